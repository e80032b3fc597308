"""The command line. Each command is one call of `outlast.api`; results go to standard output, the rest to stderr.

Exit codes: 0 finished, or stopped in time with a verified checkpoint; 1 a failure, with one clear sentence and a hint;
2 wrong usage; 130 interrupted twice.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from outlast.base.log import keep_stdout_clean
from outlast.errors import OutlastError, UsageError
from outlast.plan import launch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train vision models that outlast the session: stops before the kill, resumes exactly.",
)

OneStage = Annotated[str | None, typer.Option("--stage", help="A training stage, not what the task delivers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks."""
    from outlast import api

    found = api.list_tasks()
    _print(found, as_json, "\n".join(f"{name:<12} {about}" for name, about in found.items()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Train on an embedded synthetic set, with a stop in the middle, a resume, a test and a report."""
    from outlast import api

    result = api.demo(out=out)
    _print(result, as_json, "")


@app.command()
def train(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task (see `outlast tasks`) or a dotted module name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=40.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DIR|NAME=DIR", help="The data; may be repeated with names.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default runs/TASK-PRESET.")] = None,
    preset: Annotated[str | None, typer.Option(help="smoke, cpu, t4, full, ...; default by machine.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings on top of the preset.")] = None,
    resume: Annotated[str, typer.Option(help="auto, must or never.")] = "auto",
    start_from: Annotated[Path | None, typer.Option(help="Weights (.safetensors) to begin with.")] = None,
    session_limit: Annotated[str | None, typer.Option(help="Length of the session, such as 9h or 45m.")] = None,
    time_limit: Annotated[str | None, typer.Option(help="Length of the run, over all its sessions.")] = None,
    quota_left: Annotated[str | None, typer.Option(help="Accelerator quota at the session's start, as 12h.")] = None,
    quota_rate: Annotated[float, typer.Option(help="Quota hours that an hour of session costs.")] = 1.0,
    stage: Annotated[str | None, typer.Option(help="Do only this stage of the plan.")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Train on the task's synthetic set.")] = False,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Keep a verified copy: a folder, s3://bucket/folder, ...")
    ] = None,
    previous: Annotated[
        str | None,
        typer.Option(metavar="PACK|RUN|auto", help="Go on with what came from elsewhere; auto: what is attached."),
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Make the run's training longer (train.epochs=...).")
    ] = False,
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="Never take a smaller model.")] = False,
    processes: Annotated[int, typer.Option(metavar="N", help="Processes on this machine: one per GPU.")] = 1,
    side_by_side: Annotated[int, typer.Option(metavar="N", help="Stages at a time, each on a GPU of its own.")] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE,VALUE", help="Train every combination: --sweep loss=all seed=1,2,3."),
    ] = None,
    on: Annotated[str, typer.Option(help="local, or kaggle: in sessions there, one after another.")] = "local",
    owner: Annotated[str | None, typer.Option(metavar="USER", help="On Kaggle: whose kernels they are.")] = None,
    accelerator: Annotated[
        str | None, typer.Option(metavar="ID", help="On Kaggle: NvidiaTeslaT4 (two of them), none, ...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a task; type the same again to go on after a stop or a kill."""
    from outlast import api

    if resume not in ("auto", "must", "never"):
        raise UsageError(f"--resume {resume!r} is not known", hint="choose auto, must or never")
    if on not in ("local", "kaggle"):
        raise UsageError(f"--on {on!r} is not known", hint="choose local or kaggle")
    result = api.train(
        task, data=data, out=out, preset=preset, config=config, overrides=overrides or [], resume=resume,  # type: ignore[arg-type]
        on=on, owner=owner, accelerator=accelerator,  # type: ignore[arg-type]
        start_from=start_from, session_limit=session_limit, time_limit=time_limit, quota_left=quota_left,
        quota_rate=quota_rate, stage=stage, synthetic=synthetic, fallback=not no_fallback, extend=extend,
        mirror=mirror, previous=previous, processes=processes, side_by_side=side_by_side, sweep=sweep or (),
    )  # fmt: skip
    _print(result, as_json, "")
    if result["status"] == "failed":
        raise typer.Exit(1)


@app.command()
def pack(
    run: RunFolder,
    to: Annotated[Path, typer.Option(metavar="FILE.zip|DIR", help="The pack to write: a zip file, or a folder.")],
    stage: Annotated[str | None, typer.Option("--for", metavar="STAGE", help="Only what this stage needs.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that the run has made, to take it home.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pack what the next session needs of a run, to go on with it on another machine."""
    from outlast import api

    result = api.pack(run, to, stage=stage, everything=everything)
    _print(result, as_json, result["pack"])


@app.command()
def unpack(
    source: Annotated[Path, typer.Argument(metavar="PACK", help="FILE.zip, its folder, a run, or what holds some.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder: new, or of the same run.")],
    as_json: AsJson = False,
) -> None:
    """Go on with a run from elsewhere: verified, then put in place or joined with the one that is there."""
    from outlast import api

    result = api.unpack(source, out)
    _print(result, as_json, result["run"])


@app.command()
def check(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task (see `outlast tasks`) or a dotted module name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=40.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DIR|NAME=DIR", help="The data; may be repeated with names.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default runs/TASK-PRESET.")] = None,
    preset: Annotated[str | None, typer.Option(help="smoke, cpu, t4, full, ...; default by machine.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings on top of the preset.")] = None,
    session_limit: Annotated[str | None, typer.Option(help="Length of the session, such as 9h or 45m.")] = None,
    quota_left: Annotated[str | None, typer.Option(help="Accelerator quota at the session's start, as 12h.")] = None,
    quota_rate: Annotated[float, typer.Option(help="Quota hours that an hour of session costs.")] = 1.0,
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="Where a copy will be kept.")] = None,
    start_from: Annotated[Path | None, typer.Option(help="Weights (.safetensors) to begin with.")] = None,
    processes: Annotated[int, typer.Option(metavar="N", help="Processes on this machine: one per GPU.")] = 1,
    side_by_side: Annotated[int, typer.Option(metavar="N", help="Stages at a time, each on a GPU of its own.")] = 1,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Check the task's synthetic set.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for everything that can go wrong, before it costs; exit status 1 if there is an error."""
    from outlast import api

    result = api.check_task(
        task, data=data, out=out, preset=preset, config=config, overrides=overrides or [],
        session_limit=session_limit, quota_left=quota_left, quota_rate=quota_rate, mirror=mirror,
        start_from=start_from, processes=processes, side_by_side=side_by_side, synthetic=synthetic,
    )  # fmt: skip
    text = result.pop("text")
    _print(result, as_json, text)
    if result["errors"]:
        raise typer.Exit(1)


@app.command()
def plan(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task (see `outlast tasks`) or a dotted module name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=40.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DIR|NAME=DIR", help="The data; may be repeated with names.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="smoke, cpu, t4, full, ...; default by machine.")] = None,
    session_limit: Annotated[str | None, typer.Option(help="Length of a session, such as 9h or 45m.")] = None,
    quota: Annotated[str | None, typer.Option(help="Accelerator quota of a week, such as 30h.")] = None,
    quota_rate: Annotated[float, typer.Option(help="Quota hours that an hour of session costs.")] = 1.0,
    gpus: Annotated[int, typer.Option(help="GPUs of a session; one stage at a time on each.")] = 1,
    measurement: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the times of a plan that was saved as JSON.")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="Take the times that a run has recorded.")] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="plan.png, plan.svg or plan.json.")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Measure on the task's synthetic set.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what training takes before it is begun: sessions, quota hours, where it stops and goes on."""
    from outlast import api

    result = api.make_plan(
        task, data=data, preset=preset, overrides=overrides or [], session_limit=session_limit, quota=quota,
        quota_rate=quota_rate, gpus=gpus, measurement=measurement, run=run, to=to, synthetic=synthetic,
    )  # fmt: skip
    text = result.pop("text")
    _print(result, as_json, text)


@app.command("verify-resume")
def verify_resume(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task (see `outlast tasks`) or a dotted module name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=4.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="DIR|NAME=DIR", help="The data; may be repeated with names.")
    ] = None,
    kills: Annotated[int, typer.Option(help="How often to kill it.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the places of the kills.")] = 0,
    preset: Annotated[str, typer.Option(help="What to train: smoke, cpu, t4, full, ...")] = "smoke",
    out: Annotated[Path | None, typer.Option(help="Keep both runs in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Kill a run at random places, resume it, compare with an uninterrupted one."""
    from outlast import api

    result = api.verify_resume(
        task, data=data, kills=kills, seed=seed, preset=preset, overrides=overrides or [], out=out
    )
    text = result.pop("text")
    _print(result, as_json, text)
    if result["differences"]:
        raise typer.Exit(1)


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
    _print(result, as_json, "\n".join([f"{result['task']}, {result['images']} examples in {result['data']}", *lines]))


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
    _print(result, as_json, "" if to == "-" else result["csv" if images else "submission"])


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
    _print(result, as_json, "\n".join(made))
    if result["failed"]:
        raise typer.Exit(1)


@app.command()
def status(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder; default: all under ./runs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how a run, or every run, stands."""
    from outlast import api

    result = api.status(run)
    text = result.pop("text")
    _print(result, as_json, text)


@app.command()
def report(
    run: RunFolder,
    text: Annotated[bool, typer.Option("--text", help="Print a summary to paste.")] = False,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures as PNG files into this folder too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report page of a run."""
    from outlast import api

    result = api.write_report(run, figures=figures)
    _print(result, as_json, result["text"] if text else result["report"])


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders of one task.")],
    to: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Write it as CSV too, a line per run.")] = None,
    mix_rungs: Annotated[
        bool, typer.Option("--mix-rungs", help="Compare runs of other rungs too; they stand in capitals.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side: rungs, scores, time, and the settings that differ.

    Refused: other tasks; synthetic beside real data; without --mix-rungs, runs that trained another rung than was
    wanted or than the others. Other data or another split is compared with a warning in capitals: scores on different
    examples are not comparable one to one.
    """
    from outlast import api

    result = api.compare(runs, to=to, mix_rungs=mix_rungs)
    text = result.pop("text")
    _print(result, as_json, text)


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
        _print(bundle, as_json, bundle["files"][0])
        return
    if preset is not None or overrides or submit:
        raise UsageError(
            f"--preset, --submit and KEY=VALUE are not of {to.name}: a run has its own",
            hint="they go with kaggle.py or kaggle.ipynb",
        )
    result = api.export_weights(subject, to, stage=stage, half=half, int8=int8, compare=compare, data=data)
    text = result.pop("text", None)
    _print(result, as_json, "\n".join([*result["files"], *([text] if text else [])]))


kaggle = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Kaggle through its own client.")
app.add_typer(kaggle, name="kaggle")
Kernel = Annotated[str, typer.Argument(metavar="OWNER/SLUG", help="The kernel.")]


@kaggle.command("push")
def kaggle_push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="kernel-metadata.json and the file that it names.")],
    session_limit: Annotated[str | None, typer.Option(help="When Kaggle is to end it, such as 9h or 45m.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="NvidiaTeslaT4, ...; default: what the file says.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a kernel: a new version of it runs."""
    from outlast import api

    result = api.kaggle_push(folder, session_limit=session_limit, accelerator=accelerator)
    _print(result, as_json, f"{result['kernel']} version {result['version']}: {result['url']}")


@kaggle.command("status")
def kaggle_status(kernel: Kernel, as_json: AsJson = False) -> None:
    """Say how a kernel's newest session stands."""
    from outlast import api

    result = api.kaggle_status(kernel)
    _print(result, as_json, result["state"] + (f": {result['message']}" if result["message"] else ""))


@kaggle.command("logs")
def kaggle_logs(kernel: Kernel, as_json: AsJson = False) -> None:
    """Print what a kernel's newest session printed."""
    from outlast import api

    result = api.kaggle_logs(kernel)
    _print(result, as_json, result["log"].rstrip("\n"))


@kaggle.command("pull")
def kaggle_pull(
    kernel: Kernel,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")],
    pattern: Annotated[
        str | None, typer.Option(help="Only files whose names this regular expression finds: '\\.csv$'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a kernel's output, and compare each file with the session's manifest."""
    from outlast import api

    result = api.kaggle_pull(kernel, to=to, pattern=pattern)
    note = "each compared with the session's manifest" if result["verified"] else "NOT VERIFIED: there is no manifest"
    _print(result, as_json, f"{len(result['files'])} files in {to}, {note}")


@kaggle.command("quota")
def kaggle_quota(as_json: AsJson = False) -> None:
    """Say how many accelerator hours are left this week."""
    from outlast import api

    result = api.kaggle_quota()
    lines = [
        f"{name.upper()}: {item['remaining_hours']:.2f} h of {item['total_hours']:.2f} h left, "
        f"renewed {item['refresh_at'] or 'at a time that Kaggle does not say'}"
        for name, item in result.items()
    ]
    _print(result, as_json, "\n".join(lines))


public = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Public data sets of the tasks.")
app.add_typer(public, name="data")


@public.command("list")
def data_list(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Only those of one task.")] = None,
    as_json: AsJson = False,
) -> None:
    """List them: name, size, terms, and where they are."""
    from outlast import api

    result = api.list_data(task)
    text = result.pop("text")
    _print(result, as_json, text)


@public.command("get")
def data_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `outlast data list` shows.")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where it goes; default data/NAME.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Whose it is, for a task of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch one, under its terms; type the same again to go on after a break."""
    from outlast import api

    result = api.get_data(name, to=to, task=task)
    _print(result, as_json, result["command"] or result["folder"])


def main() -> None:
    """Run the command line; a failure that we foresaw is one sentence and an exit code, not a traceback."""
    # Threads that spin while they wait make a step many times slower as soon as another process wants a core
    # (benchmarks/README.md); this must be said before torch is imported, and is the user's to overrule.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path.append(str(Path.cwd()))  # a task module beside the user, as `python -m outlast` would find it
    as_json = "--json" in sys.argv
    launch.end_with_launcher()
    if "WORLD_SIZE" in os.environ:  # of several processes, whoever started them
        keep_stdout_clean()
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        launch.leave(end.code)
        raise
    except OutlastError as error:
        if launch.tell_failure(error):
            sys.exit(error.exit_code)
        print(f"error: {error}", file=sys.stderr)
        if as_json:
            print(
                json.dumps({"status": "failed", "error": error.message, "hint": error.hint, "details": error.details})
            )
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: what was not saved is lost, what was saved is intact", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not launch.tell_failure(error):
            raise
        sys.exit(1)


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # several processes (torchrun) work on one job: the first one speaks
    if as_json:
        from outlast.base.files import plain

        print(json.dumps(plain(result), ensure_ascii=False, default=str))
    elif text:
        print(text)
