"""Commands that train, that come before it, and that take a run from one machine to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlast.cli.command import AsJson, RunFolder, app, show
from outlast.errors import UsageError


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks."""
    from outlast import api

    found = api.list_tasks()
    show(found, as_json, "\n".join(f"{name:<12} {about}" for name, about in found.items()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Train on an embedded synthetic set, with a stop in the middle, a resume, a test and a report."""
    from outlast import api

    result = api.demo(out=out)
    show(result, as_json, "")


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
    show(result, as_json, "")
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
    show(result, as_json, result["pack"])


@app.command()
def unpack(
    source: Annotated[Path, typer.Argument(metavar="PACK", help="FILE.zip, its folder, a run, or what holds some.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder: new, or of the same run.")],
    as_json: AsJson = False,
) -> None:
    """Go on with a run from elsewhere: verified, then put in place or joined with the one that is there."""
    from outlast import api

    result = api.unpack(source, out)
    show(result, as_json, result["run"])


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
    show(result, as_json, text)
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
    show(result, as_json, text)


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
    show(result, as_json, text)
    if result["differences"]:
        raise typer.Exit(1)
