"""Commands that use what was trained: scores, predictions, features, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlast.cli.command import AsJson, OneStage, RunFolder, app, show
from outlast.errors import UsageError


@app.command("eval")
def evaluate(
    run: RunFolder,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Labelled examples; default: the run's own.")] = None,
    stage: OneStage = None,
    as_json: AsJson = False,
) -> None:
    """Score a run's best weights on labelled examples."""
    from outlast import api

    result = api.evaluate(run, data=data, stage=stage)
    lines = [f"{name:<20} {value:.4f}" for name, value in result["metrics"].items() if isinstance(value, float)]
    show(result, as_json, "\n".join([f"{result['task']}, {result['images']} examples in {result['data']}", *lines]))


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder; of a test set, also what holds it.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGES]...", help="Image files, or folders of them.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="The CSV to write; - is standard output; of scenes, a folder. Default: RUN/predictions.csv; of a test "
            "set submission.csv."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A test set; default without IMAGES: where data are looked for.")
    ] = None,
    gaps: Annotated[
        str, typer.Option(help="Rows of a test set whose image can't be read: refuse, or fill (without the image).")
    ] = "refuse",
    as_json: AsJson = False,
) -> None:
    """Predict images (a CSV, or a file per scene), or a whole test set: the competition's submission."""
    from outlast import api

    if gaps not in ("refuse", "fill"):
        raise UsageError(f"--gaps {gaps!r} is not known", hint="choose refuse or fill")
    if to == "-" and as_json:
        raise UsageError("--to - and --json both want standard output", hint="give one of them, or --to FILE")
    result = api.predict(run, images or [], to=to, data=data, gaps=gaps)  # type: ignore[arg-type]
    show(result, as_json, "" if to == "-" else result["csv" if images else "submission"])


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder, or a folder of runs (a sweep).")],
    method: Annotated[str, typer.Option(metavar="tsne|umap", help="t-SNE or UMAP.")] = "tsne",
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Labelled examples; default: the run's own.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this part of the run's split, such as test.")] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="A training stage; repeat it to see several side by side.")
    ] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Exported weights instead of the run's; one per stage.")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default: RUN/embeddings.")] = None,
    samples: Annotated[int, typer.Option(help="At most so many samples, drawn by the seed.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the choice of samples and of the method.")] = 0,
    perplexity: Annotated[float | None, typer.Option(help="t-SNE: 30, or less for few samples.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="t-SNE: 200 unless given.")] = None,
    iterations: Annotated[int | None, typer.Option(help="t-SNE: 1000 unless given.")] = None,
    neighbours: Annotated[int | None, typer.Option(help="UMAP: 15, or less for few samples.")] = None,
    min_dist: Annotated[float | None, typer.Option(help="UMAP: 0.1 unless given.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="UMAP: euclidean, manhattan, cosine or correlation; euclidean unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a model's features in two dimensions (t-SNE, UMAP): PNG, interactive HTML, CSV."""
    from outlast import api

    result = api.embed(
        run, method=method, data=data, split=split, stages=stage or [], weights=weights or [], to=to, samples=samples,
        seed=seed, perplexity=perplexity, learning_rate=learning_rate, iterations=iterations, neighbours=neighbours,
        min_dist=min_dist, metric=metric,
    )  # fmt: skip
    made = [path for one in result["embeddings"] for path in (one["png"], one["html"], one["csv"])]
    show(result, as_json, "\n".join(made))
    if result["failed"]:
        raise typer.Exit(1)


@app.command()
def export(
    subject: Annotated[str, typer.Argument(metavar="RUN|TASK", help="The run folder; for .py and .ipynb also a task.")],
    to: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="model.safetensors, .pth or .onnx; solution.zip for tasks that submit one; kaggle.py or kaggle.ipynb: "
            "all that trains the task, in one file.",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of a task: settings, such as train.epochs=40.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Of a task: smoke, cpu, t4, full, ...; t4 if it has it.")] = None,
    stage: OneStage = None,
    half: Annotated[bool, typer.Option("--half", help="Weights in float16: half the size.")] = False,
    int8: Annotated[
        str | None, typer.Option(metavar="KIND", help="ONNX in 8-bit integers: dynamic, or static (calibrated).")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="ONNX: a table of score, size and latency of all precisions too.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DIR|NAME=DIR", help="ONNX: where the run's data are now.")
    ] = None,
    submit: Annotated[
        bool,
        typer.Option("--submit", help="Of .py and .ipynb: one that submits with a finished run, and trains nothing."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export a run's best weights for use without Outlast, or (.py, .ipynb) one file that trains a task anywhere."""
    from outlast import api

    if to.suffix in (".py", ".ipynb"):
        given = {"--stage": stage, "--half": half, "--int8": int8, "--compare": compare, "--data": data}
        if named := [name for name, value in given.items() if value]:
            raise UsageError(f"{', '.join(named)}: not of {to.name}, which holds no weights", hint="leave it out")
        bundle = api.export_bundle(subject, to, preset=preset, overrides=overrides or [], submit=submit)
        show(bundle, as_json, bundle["files"][0])
        return
    if preset is not None or overrides or submit:
        raise UsageError(
            f"--preset, --submit and KEY=VALUE are not of {to.name}: a run has its own",
            hint="they go with kaggle.py or kaggle.ipynb",
        )
    result = api.export_weights(subject, to, stage=stage, half=half, int8=int8, compare=compare, data=data)
    text = result.pop("text", None)
    show(result, as_json, "\n".join([*result["files"], *([text] if text else [])]))
