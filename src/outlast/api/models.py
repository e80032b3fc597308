"""What was trained, used: scores, predictions, features, exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from outlast.base.files import check_target, write_text
from outlast.base.log import warn
from outlast.errors import TaskError, UsageError

if TYPE_CHECKING:
    from outlast.plan.deliver import Delivered


def evaluate(run: str | Path, *, data: str | Path | None = None, stage: str | None = None) -> dict[str, Any]:
    """Score a run's best weights on every labelled example under `data` (none: the data that the run was trained on).

    stage: a training stage whose model is scored, instead of what the task delivers.
    Returns {"task", "images", "metrics", ...}. Raises DataError if the labels do not fit the run.
    """
    from outlast.plan.deliver import Delivered
    from outlast.plan.sources import SYNTHETIC

    opened = Delivered(Path(run), stage)
    root = Path(data) if data is not None else Path(opened.record["data"][opened.learner.name]["path"])
    if data is None:
        warn(f"scoring on {root}, which the run was trained on; the test score is in the report")
    examples = opened.delivery.labelled(opened.config, root, opened.facts)
    for note in examples.notes:
        warn(note)
    metrics = opened.evaluate(examples)
    return {
        "task": opened.task.name,
        "images": len(examples.table),
        "metrics": metrics,
        "run": str(run),
        "data": str(root),
        "synthetic": bool(opened.record.get("synthetic")) or (root / SYNTHETIC).is_file(),
        "rung": opened.rung,
        "stages": [each.name for each in opened.stages],
    }


def predict(
    run: str | Path,
    images: Sequence[str | Path] = (),
    *,
    to: str | Path | None = None,
    data: str | Path | None = None,
    gaps: Literal["refuse", "fill"] = "refuse",
) -> dict[str, Any]:
    """Predict images that were never seen; writes a CSV (`to`, or predictions.csv in the run folder).

    Folders among `images` stand for the images in them. Tasks that predict whole scenes write a folder (`to`, or
    predictions in the run folder) of one file per scene, with a table of them. Returns {"images", "csv", "rows"}.

    Without images: a whole test set, with all that the finished run has made, as the competition wants it: `to`, or
    submission.csv here. data: its folder; none: where training data are looked for. run may then be a folder that holds
    the run. gaps: what is done with rows whose image can't be read; "fill" predicts them without it. Returns
    {"submission", "rows": how many, "filled": {id: why}, ...}.
    """
    if not images:
        from outlast.plan import submit

        target = Path(to) if to is not None else submit.DEFAULT
        return submit.submit(Path(run), Path(data) if data is not None else None, target, fill=gaps == "fill")
    if data is not None or gaps != "refuse":
        raise UsageError("data and gaps are of a whole test set", hint="leave out either them or the images")
    from outlast.plan.deliver import Delivered

    opened = Delivered(Path(run))
    if opened.delivery.scenes is not None:
        return _predict_scenes(opened, [Path(image) for image in images], to)
    target = Path(to) if to is not None else Path(run) / "predictions.csv"
    if str(target) != "-":
        check_target(target)
    unlabelled, made = opened.delivery.unlabelled, opened.delivery.table
    if unlabelled is None or made is None:
        raise TaskError(
            f"the task {opened.task.name!r} does not say how it predicts", hint="see docs/how-to/add-a-task.md"
        )
    examples = unlabelled(opened.config, [Path(image) for image in images], opened.facts)
    outputs = opened.outputs(examples)
    table = made(opened.config, opened.facts, examples.table["id"].tolist(), outputs)
    text = table.to_csv(index=False, float_format="%.6f")
    if str(target) == "-":
        print(text, end="")
    else:
        write_text(target, text)
    return {"images": len(table), "csv": str(target), "rows": table.to_dict("records")}


def _predict_scenes(opened: Delivered, files: Sequence[Path], to: str | Path | None) -> dict[str, Any]:
    """Each scene's prediction as a file of its own in a folder, and a table of them."""
    folder = Path(to) if to is not None else opened.run / "predictions"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="this task writes a file per scene: give a folder with --to")
    table = opened.scenes(files, folder)
    write_text(folder / "predictions.csv", table.to_csv(index=False, float_format="%.6f"))
    return {"images": len(table), "csv": str(folder / "predictions.csv"), "rows": table.to_dict("records")}


def embed(
    run: str | Path,
    *,
    method: str = "tsne",
    data: str | Path | None = None,
    split: str | None = None,
    stages: Sequence[str] = (),
    weights: Sequence[str | Path] = (),
    to: str | Path | None = None,
    samples: int = 2000,
    seed: int = 0,
    perplexity: float | None = None,
    learning_rate: float | None = None,
    iterations: int | None = None,
    neighbours: int | None = None,
    min_dist: float | None = None,
    metric: str | None = None,
) -> dict[str, Any]:
    """Draw what the models of a run have made of the data, in two dimensions: a PNG, an interactive HTML file, a CSV.

    run: a run folder, or a folder of them (the cells of a sweep). method: "tsne" (perplexity 30, learning rate 200,
    1000 iterations) or "umap" (15 neighbours, min_dist 0.1, euclidean). stages: training stages side by side. weights:
    files that `export_weights` wrote, one per stage, instead of the run's own. split: only this part of the run's
    split. Returns {"method", "embeddings": [{"run", "png", "html", "csv", "json", "images", "stages", "notes",
    "synthetic"}], "failed": [{"run", "error", "hint"}]}. Raises UsageError for settings that can't be.
    """
    from outlast.model.projection import projection
    from outlast.plan.embed import Wish
    from outlast.plan.embed import embed as embed_all

    wanted = projection(
        method, seed, perplexity=perplexity, learning_rate=learning_rate, iterations=iterations, neighbours=neighbours,
        min_dist=min_dist, metric=metric,
    )  # fmt: skip
    wish = Wish(
        projection=wanted, stages=tuple(stages), weights=tuple(Path(file) for file in weights),
        data=Path(data) if data is not None else None, split=split, samples=samples,
        to=Path(to) if to is not None else None,
    )  # fmt: skip
    return embed_all(Path(run), wish)


def export_weights(
    run: str | Path,
    to: str | Path,
    *,
    stage: str | None = None,
    half: bool = False,
    int8: str | None = None,
    compare: bool = False,
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write what a run learned for use without Outlast. Returns {"files", "parameters"}.

    to: .safetensors or .pth, bare weights with a JSON beside them; .onnx, the network itself, compared with torch;
    .zip, a submission that stands alone, for tasks that have one. stage: a training stage whose model is written,
    instead of what the task delivers. half: weights in float16, where that loses no range.

    Of ONNX only: int8: "dynamic" or "static" makes 8-bit integers. compare: writes a table of score, size and latency
    of all precisions too, and returns it as "comparison", with "text" for people. data: where the run's data are now.
    """
    from outlast.export import solution, weights
    from outlast.plan import onnx
    from outlast.plan.deliver import Delivered

    target = Path(to)
    alone = target.suffix == ".zip"
    wish = onnx.Wish(target, half, int8, compare, data)
    if target.suffix == ".onnx":
        onnx.check(wish)
    elif int8 is not None or compare or data is not None:
        raise UsageError(f"int8, compare and data do not go with {target.name!r}", hint="give --to model.onnx")
    else:
        (solution if alone else weights).check_target(target)
    opened = Delivered(Path(run), stage)
    sidecar = {**opened.delivery.sidecar(opened.config, opened.facts, opened.rung), **opened.provenance()}
    if target.suffix == ".onnx":
        result = onnx.export(opened, wish, sidecar)
        return {**result, "files": [str(path) for path in result["files"]]}
    if alone:
        files, module = [opened.solution(target, {**sidecar, "run": str(run)}, half=half)], opened.opened.model
    else:
        module = opened.module()
        files = weights.export(module, target, sidecar, half=half)
    return {"files": [str(path) for path in files], "parameters": sum(p.numel() for p in module.parameters())}


def export_bundle(
    subject: str | Path,
    to: str | Path,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    submit: bool = False,
) -> dict[str, Any]:
    """Write one file that trains a task where Outlast is not installed: a script (.py), or a notebook (.ipynb).

    subject: a task, whose preset and settings are given; or the folder of a run, whose own are taken. submit: the file
    trains nothing, it predicts a test set with a finished run that is attached to it. Returns {"files",
    "bytes", "bytes_of_packages": those of other people's packages in it, "sources", "packages"}.
    """
    from outlast.plan import bundling

    result = bundling.export(str(subject), Path(to), preset, overrides, submit=submit)
    return {**result, "files": [str(path) for path in result["files"]]}
