"""Training a task, what comes before it, and taking a run from one machine to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from outlast import task as _task
from outlast.base.clock import Deadline
from outlast.errors import UsageError
from outlast.plan import launch

if TYPE_CHECKING:
    pass


def list_tasks() -> dict[str, str]:
    """{name: what it is for} of every task."""
    return _task.names()


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


def demo(*, out: str | Path = "runs/demo") -> dict[str, Any]:
    """The main job in a minute or two on the synthetic leaves, with a stop and a resume in the middle."""
    from outlast.plan.demo import run_demo

    return run_demo(Path(out))
