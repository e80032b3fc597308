"""Everything that the commands do, as functions: `outlast.train("plants", data="leaves")`.

Each function is one command. They return plain values (JSON-able), print on standard error what a person wants to
follow, and raise the errors of `outlast.errors`. Heavy imports happen inside, so that importing this module is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from outlast import task as _task
from outlast.base.clock import Deadline, parse_duration
from outlast.base.files import check_target, write_text
from outlast.base.log import warn
from outlast.errors import TaskError, UsageError
from outlast.plan import launch

if TYPE_CHECKING:
    from outlast.plan.deliver import Delivered


def list_tasks() -> dict[str, str]:
    """{name: what it is for} of every task."""
    return _task.names()


def train(
    task: str,
    *,
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None,
    out: str | Path | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: Literal["auto", "must", "never"] = "auto",
    start_from: str | Path | None = None,
    session_limit: str | float | None = None,
    time_limit: str | float | None = None,
    quota_left: str | float | None = None,
    quota_rate: float = 1.0,
    stage: str | None = None,
    synthetic: bool = False,
    fallback: bool = True,
    extend: bool = False,
    mirror: str | None = None,
    previous: str | None = None,
    deadline: Deadline | None = None,
    processes: int = 1,
    side_by_side: int = 1,
    sweep: Sequence[str] = (),
    on: Literal["local", "kaggle"] = "local",
    owner: str | None = None,
    accelerator: str | None = None,
) -> dict[str, Any]:
    """Train a task until it is finished or the session must end; call it again to go on.

    Durations are texts such as "9h", or seconds. It stops early enough before the earliest of three ends: that of the
    session, of the accelerator's quota (`quota_left`, of which an hour costs `quota_rate` hours), and of the run's own
    time over all its sessions (`time_limit`). extend: the run may be made longer, by larger train.epochs,
    train.minimum_steps or train.patience_epochs. mirror: a folder or any fsspec URL that keeps a verified copy of the
    run, from which it goes on if it is further there. previous: a pack, a run folder or a folder that holds some, or
    "auto" for all inputs of a Kaggle notebook: what they have more is taken over, stage by stage, as `unpack` does it.

    Returns {"status": "finished" | "stopped", "run", "reason", "next_command", "report", "synthetic", "stages",
    "stages_left"}; "stages" holds what each finished stage recorded, the scores among them. With `processes` above 1
    the training runs in that many new processes on this machine (one per GPU); a `deadline` can't be given to them.
    With `side_by_side` above 1 so many stages that do not need one another run at a time, each in a process of its own
    (and on a GPU of its own); the result is that of one after the other with as many CPU threads.

    sweep: what is varied, such as ["teacher=all", "seed=1,2,3"]: every combination is trained, in `out`/models, and
    what several of them have in common once. Then "status" may be "failed" (of some cells; nothing is raised), and
    besides there are "cells" (how each stands and why, its scores), "table" (mean and standard deviation over the seeds
    of each combination), "over", "csv" and "cells_left".

    on="kaggle": trains in sessions on Kaggle, one after another, and fetches what they make; owner: whose kernels they
    are; data: OWNER/SLUG of data sets there, or SLUG of competitions; accelerator: "NvidiaTeslaT4" unless given, "none"
    for presets that need no GPU. Besides there are "sessions" and "quota_hours".
    Raises the errors of `outlast.errors`; nothing is written before configuration and data were found right.
    """
    data, overrides = _settings_apart(task, data, overrides)
    local = ("task", "processes", "sweep", "on", "owner", "accelerator")
    asked = {name: value for name, value in locals().items() if name not in (*local, "local")}
    if on == "kaggle":
        return _train_on_kaggle(task, asked, processes=processes, sweep=sweep, owner=owner, accelerator=accelerator)
    if owner is not None or accelerator is not None:
        raise UsageError("--owner and --accelerator are for trainings on Kaggle", hint="give --on kaggle with them")
    if processes != 1 and not sweep:
        return launch.launch(task, processes, asked)
    from outlast.plan.request import Request
    from outlast.plan.session import run_session
    from outlast.plan.sweep import run_sweep

    starter, started = launch.how_started()
    work = run_sweep if sweep else run_session
    return work(
        Request(
            task=task, data=data, out=Path(out) if out else None, preset=preset,
            config=Path(config) if config else None, overrides=overrides, resume=resume,
            start_from=Path(start_from) if start_from else None, session_limit=session_limit, time_limit=time_limit,
            quota_left=quota_left, quota_rate=quota_rate, stage=stage, synthetic=synthetic, fallback=fallback,
            extend=extend, mirror=mirror, previous=previous, deadline=deadline, processes=max(started, processes),
            side_by_side=side_by_side, starter=starter, sweep=sweep,
        )
    )  # fmt: skip


def _train_on_kaggle(
    task: str, asked: Mapping[str, Any], *, processes: int, sweep: Sequence[str], owner: str | None,
    accelerator: str | None,
) -> dict[str, Any]:  # fmt: skip
    from outlast.plan.kaggle_sessions import Wish, train_on_kaggle
    from outlast.plan.request import listed_data

    known = {"data", "out", "preset", "config", "overrides", "session_limit", "quota_rate", "side_by_side"}
    usual = {"resume": "auto", "fallback": True, "synthetic": False, "extend": False}
    given = [name for name, value in asked.items() if name not in known and value != usual.get(name)]
    given += ["sweep"] if sweep else []
    if given:
        raise UsageError(
            f"--on kaggle does not go with {', '.join('--' + name.replace('_', '-') for name in given)}",
            hint="leave it out: each session goes on with the one before"
            + (", and each combination of a sweep is a training of its own, with its own --out" if sweep else ""),
        )
    if owner is None:
        raise UsageError(
            "--on kaggle needs --owner", hint="give your user name on Kaggle: the end of your profile's address"
        )
    return train_on_kaggle(
        Wish(
            task=task, owner=owner, data=listed_data(asked["data"]), out=Path(asked["out"]) if asked["out"] else None,
            preset=asked["preset"], config=Path(asked["config"]) if asked["config"] else None,
            overrides=asked["overrides"], session_limit=asked["session_limit"], quota_rate=asked["quota_rate"],
            accelerator=accelerator, processes=processes, side_by_side=asked["side_by_side"],
        )
    )  # fmt: skip


def _settings_apart(task: str, data: Any, overrides: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """The data and the settings, where `--data pretrain=A finetune=B` left the second folder among the settings."""
    if data is None or all("." in item.partition("=")[0] for item in overrides):
        return data, overrides
    names = _task.find(task).data
    roots = [item for item in overrides if item.partition("=")[0] in names]
    if not roots or isinstance(data, Mapping):
        return data, overrides
    given = [str(data)] if isinstance(data, str | Path) else [str(item) for item in data]
    return [*given, *roots], [item for item in overrides if item not in roots]


def pack(run: str | Path, to: str | Path, *, stage: str | None = None, everything: bool = False) -> dict[str, Any]:
    """Write what the next session needs of a run to `to`: a .zip file, or a folder.

    stage: only what this stage needs. everything: all that the run has made, to take it home; so too when nothing is
    left to be done. Stages that are done count as done wherever the pack is unpacked, also those whose files nothing
    needs any more and that stay here. Returns {"pack", "bytes", "files", "for", "whole", "stages": {name: "done" or
    "begun"}, "left_bytes"}. Raises UsageError, RunError (a needed file is not here as recorded) or SaveError.
    """
    from outlast.plan import pack as packing

    return packing.pack(Path(run), Path(to), stage, everything=everything)


def unpack(source: str | Path, out: str | Path) -> dict[str, Any]:
    """Put a run in place at `out` from a pack, its unpacked folder, a run folder, or a folder that holds some of these.

    All that is taken is verified before `out` is touched. A run that is there takes over what the other has more, stage
    by stage; another run, or one that contradicts it, is refused. Returns {"run", "pack", "for", "stages": {name: what
    became of it}, "stages_left", "next_command"}. Raises CheckpointError (damaged), RunError or UsageError.
    """
    from outlast.plan import arrivals

    return arrivals.unpack(Path(source), Path(out))


def check_task(
    task: str,
    *,
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None,
    out: str | Path | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    session_limit: str | float | None = None,
    quota_left: str | float | None = None,
    quota_rate: float = 1.0,
    mirror: str | None = None,
    start_from: str | Path | None = None,
    processes: int = 1,
    side_by_side: int = 1,
    synthetic: bool = False,
) -> dict[str, Any]:
    """Look for everything that can go wrong in a training, before it costs. Never stops at the first finding.

    Returns {"errors", "warnings", "unchecked", "notes": how many, "findings": [{"severity", "sentence", "evidence",
    "remedy", "id"}], "ran": the ids of all checks, "text": the same for people}.
    """
    data, overrides = _settings_apart(task, data, overrides)
    from outlast.plan import preflight

    return preflight.check(
        preflight.Question(
            task=task, data=data, out=Path(out) if out else None, preset=preset,
            config=Path(config) if config else None, overrides=overrides, session_limit=session_limit,
            quota_left=quota_left, quota_rate=quota_rate, mirror=mirror,
            start_from=Path(start_from) if start_from else None, processes=processes, side_by_side=side_by_side,
            synthetic=synthetic,
        )
    )  # fmt: skip


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


def status(run: str | Path | None = None) -> dict[str, Any]:
    """What there is to know about a run or a sweep, or about every run under ./runs; "text" is for people.

    Of every run: "last_7_days" says the hours and quota hours by task and stage.
    """
    from outlast.plan import hours
    from outlast.plan.hours import plan_against
    from outlast.plan.record import load
    from outlast.report import collect, sweep, text

    if run is None:
        runs = collect.list_runs(Path("runs"))
        spent = hours.spent([item.run for item in runs if item.status != "unreadable"], hours.week_ago())
        known = [
            {"run": str(item.run), "task": item.task, "status": item.status, "reason": item.reason} for item in runs
        ]
        sweeps = sweep.list_sweeps(Path("runs"))
        lines = [f"{one['folder']}: {sweep.told(one)[0]}" for one in sweeps]
        table = "\n".join(filter(None, [text.status_table(runs), *lines, hours.week_table(spent)]))
        return {"runs": known, "sweeps": sweeps, "last_7_days": [vars(one) for one in spent], "text": table}
    if sweep.is_sweep(Path(run)):
        found = sweep.read(Path(run))
        return {"run": str(run), **found, "text": sweep.status(found)}
    collected, known_run = collect.collect(Path(run)), load(Path(run))
    lines = [text.status_line(collected), *plan_against(Path(run), known_run)]
    return {"run": str(run), **known_run, "text": "\n".join(lines)}


def compare(runs: Sequence[str | Path], *, to: str | Path | None = None, mix_rungs: bool = False) -> dict[str, Any]:
    """Put runs of one task side by side: rungs, scores, test metrics, time, GPU hours, the settings that differ.

    `to` is a .csv file. mix_rungs: also runs that trained another rung than was wanted, or than the others; it then
    stands in capitals. Other data or another split is a warning; another task, or synthetic beside real data, is not
    compared at all. Returns {"runs": a dict per run, "differences": {key: a value per run}, "warnings", "text"}.
    Raises RunError for runs that do not belong into one table, UsageError for fewer than two.
    """
    from outlast.report import compare as side_by_side
    from outlast.report import compared

    target = Path(to) if to is not None else None
    if target is not None:
        if target.suffix != ".csv":
            raise UsageError(f"a comparison is written as .csv, not as {target.name!r}", hint="give --to FILE.csv")
        check_target(target)
    found = side_by_side.compare([Path(run) for run in runs], mix_rungs=mix_rungs)
    if target is not None:
        write_text(target, compared.as_csv(found))
    return {**found, "text": compared.table(found), "csv": str(target) if target is not None else None}


def write_report(run: str | Path, *, figures: str | Path | None = None) -> dict[str, Any]:
    """Write report.html anew, or the table and page of a sweep. Returns {"report", "text"}: its path, and a summary.

    figures: a folder into which the figures go as PNG files too; then "figures" are their paths.
    """
    from outlast.plan import session
    from outlast.report import collect, sweep, sweep_page, text

    if sweep.is_sweep(Path(run)):
        if figures is not None:
            raise UsageError(f"{run} is a sweep, whose figure is sweep.png", hint="leave --figures out")
        return {"report": str(Path(run) / "sweep.html"), "text": sweep.text(sweep_page.write(Path(run)))}

    page = session.write_report(Path(run))
    result: dict[str, Any] = {"report": str(page), "text": text.summary(collect.collect(Path(run)))}
    if figures is not None:
        result["figures"] = [str(path) for path in session.write_figures(Path(run), Path(figures))]
    return result


def make_plan(
    task: str,
    *,
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    session_limit: str | float | None = None,
    quota: str | float | None = None,
    quota_rate: float = 1.0,
    gpus: int = 1,
    measurement: str | Path | None = None,
    run: str | Path | None = None,
    to: str | Path | None = None,
    synthetic: bool = False,
) -> dict[str, Any]:
    """Which stages run in which session, from measured times: where it stops and goes on, and what it costs.

    The times come from a few real steps here, from a saved plan (`measurement`) or from what a run has recorded
    (`run`). Durations are texts such as "9h", or seconds; `quota` is that of a week, of which an hour of session costs
    `quota_rate` hours. `to` is a .png, .svg or .json file.

    Returns {"answer": one sentence, "sessions", "stages", "quota_hours", "notes", "measurement", "text", ...}.
    Raises UsageError for limits that can't be kept or a measurement that does not fit.
    """
    data, overrides = _settings_apart(task, data, overrides)
    from outlast.plan.planning import Question, plan

    return plan(
        Question(
            task=task, data=data, preset=preset, overrides=overrides, session_limit=session_limit, quota=quota,
            quota_rate=quota_rate, gpus=gpus, measurement=Path(measurement) if measurement else None,
            run=Path(run) if run else None, to=Path(to) if to else None, synthetic=synthetic,
        )
    )  # fmt: skip


def verify_resume(
    task: str,
    *,
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None,
    kills: int = 10,
    seed: int = 0,
    preset: str = "smoke",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Train uninterrupted, then again with `kills` SIGKILLs at places drawn from `seed`, and compare everything.

    Returns {"status": "equal" | "different", "kills", "differences", "compared", "steps_done_again", "first":
    {"tensor", "step"}, "killed": one dict per kill, "different": one per difference, "folder": where the runs are kept
    (`out`, or a temporary folder if they differ), ...}. Raises RunError if a session fails by itself.
    """
    data, overrides = _settings_apart(task, data, overrides)
    from outlast.plan.verify import Wish, verify

    return verify(
        Wish(
            task=task, data=data, kills=kills, seed=seed, preset=preset, overrides=overrides,
            out=Path(out) if out else None,
        )
    )  # fmt: skip


def kaggle_push(
    folder: str | Path, *, session_limit: str | float | None = None, accelerator: str | None = None
) -> dict[str, Any]:
    """Push the kernel in a folder to Kaggle, where a new version of it runs. Returns {"kernel", "version", "url"}.

    session_limit: when Kaggle is to end it, such as "9h", or seconds; accelerator: such as "NvidiaTeslaT4".
    Raises UsageError, and RunError if Kaggle refuses.
    """
    from outlast.env import kaggle_client

    seconds = parse_duration(session_limit) if isinstance(session_limit, str) else session_limit
    pushed = kaggle_client.push(
        Path(folder), seconds=int(seconds) if seconds is not None else None, accelerator=accelerator
    )
    return asdict(pushed)


def kaggle_status(kernel: str) -> dict[str, Any]:
    """How the newest session of a kernel (OWNER/SLUG) stands. Returns {"kernel", "state", "message"}.

    state: queued, running, complete, error or cancelled.
    """
    from outlast.env import kaggle_client

    return {"kernel": kernel, **asdict(kaggle_client.status(kernel))}


def kaggle_logs(kernel: str) -> dict[str, Any]:
    """What the newest session of a kernel printed. Returns {"kernel", "log"}."""
    from outlast.env import kaggle_client

    return {"kernel": kernel, "log": kaggle_client.logs(kernel).text}


def kaggle_pull(kernel: str, *, to: str | Path, pattern: str | None = None) -> dict[str, Any]:
    """Fetch the output of a kernel's newest session into a folder. Returns {"kernel", "files", "verified"}.

    pattern: a regular expression on the names. verified: whether each file was compared with the manifest that the
    session wrote; without a manifest it can't be. Raises CheckpointError if a file differs however often it is fetched.
    """
    from outlast.env import kaggle_client

    fetched = kaggle_client.output(kernel, Path(to), pattern)
    return {"kernel": kernel, "files": [str(path) for path in fetched.files], "verified": fetched.verified}


def kaggle_quota() -> dict[str, Any]:
    """Kaggle's accelerator quota of this week.

    Returns {"gpu": {"used_hours", "remaining_hours", "total_hours", "refresh_at"}, "tpu": the same}.
    """
    from outlast.env import kaggle_client

    return {name: asdict(item) for name, item in kaggle_client.quota().items()}


def list_data(task: str | None = None) -> dict[str, Any]:
    """The public data sets that tasks name: {"data_sets": [{"task", "name", "what", "terms", "page", ...}], "text"}."""
    from outlast.plan import public_data

    found = public_data.catalogue(task)
    return {
        "data_sets": [{"task": owner, **asdict(each)} for owner, each in found],
        "text": public_data.table(found),
    }


def get_data(name: str, *, to: str | Path | None = None, task: str | None = None) -> dict[str, Any]:
    """Fetch a public data set into a folder (data/NAME unless given), going on where an earlier attempt broke off.

    Says its terms and size first. Returns {"name", "task", "folder", "terms", "page", "bytes", "compared", "command":
    what to type next}. Raises UsageError for a name that there is not, RunError if it can't be had or has no room.
    """
    from outlast.plan import public_data

    return public_data.get(name, Path(to) if to is not None else None, task)


def demo(*, out: str | Path = "runs/demo") -> dict[str, Any]:
    """The main job in a minute or two on the synthetic leaves, with a stop and a resume in the middle."""
    from outlast.plan.demo import run_demo

    return run_demo(Path(out))
