"""The times of a plan from what a run has recorded: its sessions, its finished stages, its longest durations.

A training's evaluations are contained in the time of its steps, since the record does not tell them apart. A stage that
the run has not done takes the times of one like it; otherwise it is guessed, or refused if it is a training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlast.base.files import read_json
from outlast.config.identity import digest, identity
from outlast.config.load import read_config
from outlast.config.schema import TaskConfig
from outlast.errors import RunError, UsageError
from outlast.plan import ledger, record
from outlast.plan.measurement import GUESSED_CALL_SECONDS, Measurement, StageTimes, key
from outlast.task import Predict, Stage, Task, Train, topological

_NOT_DONE = "the run has not done it"


def measurement_of(run: Path, task: Task) -> tuple[Measurement, TaskConfig]:
    """What the run tells about times, and its configuration. Raises RunError or UsageError if it tells too little."""
    known = record.load(run)
    if known["task"] != task.name:
        raise UsageError(
            f"{run} is a run of the task {known['task']!r}, not of {task.name!r}", hint="give a run of this task"
        )
    config = read_config(task.config, run / "config.yaml")
    try:
        return _measurement(run, known, task, config), config
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"the record of {run} does not tell its times: {type(error).__name__} {error}",
            hint="restore run.json and the stage.json files from a copy, or plan without --run",
        ) from error


def _measurement(run: Path, known: Mapping[str, Any], task: Task, config: TaskConfig) -> Measurement:
    decided = identity(config)
    return Measurement(
        task=task.name, preset=config.preset, made=str(known["created"]), source=f"run {run}",
        machine=known.get("host", {}), versions=known.get("versions", {}), config=decided, config_hash=digest(decided),
        data={name: item["fingerprint"] for name, item in known.get("data", {}).items()},
        synthetic=bool(known.get("synthetic")), startup_seconds=_startup(known["sessions"]),
        report_seconds=known.get("longest_seconds", {}).get("report"),
        stages=_stages(run, known, topological(task.stages(config))),
    )  # fmt: skip


def _startup(sessions: Sequence[Mapping[str, Any]]) -> float:
    """What a session took on average beside its stages."""
    told = [session for session in sessions if session.get("ended") and session.get("stages")]
    spare = [max(session["seconds"] - sum(session["stages"].values()), 0.0) for session in told]
    return sum(spare) / len(spare) if spare else 0.0


def _stages(run: Path, known: Mapping[str, Any], stages: Sequence[Stage]) -> dict[str, StageTimes]:
    longest = {name: float(value) for name, value in known.get("longest_seconds", {}).items()}
    trains: dict[str, StageTimes] = {}
    for stage in stages:
        if isinstance(stage, Train) and (times := _training(run / stage.name, known, longest)) is not None:
            trains[stage.name] = times
    alike = {key(stage): stage.name for stage in reversed(stages) if isinstance(stage, Train) and stage.name in trains}
    found: dict[str, StageTimes] = {}
    for stage in stages:
        if not isinstance(stage, Train):
            found[stage.name] = _other(run / stage.name, stage)
        elif stage.name in trains:
            found[stage.name] = trains[stage.name]
        elif key(stage) in alike:
            like = alike[key(stage)]
            found[stage.name] = StageTimes(**{**vars(trains[like]), "like": like})
        else:
            raise RunError(
                f"{run} does not tell how long {stage.name!r} takes: no epoch of it, or of one like it, is done",
                hint="let it train longer, or measure with `outlast plan` without --run",
            )
    return found


def _training(folder: Path, known: Mapping[str, Any], longest: Mapping[str, float]) -> StageTimes | None:
    """The mean time of a training's steps over its sessions; None if no epoch of it was done."""
    sessions = [session for session in known["sessions"] if folder.name in session.get("trained", {})]
    spent = sum(session.get("stages", {}).get(folder.name, 0.0) for session in sessions)
    begin = 0.0  # contained in the time of its steps
    result = ledger.result(folder)
    if result is not None:
        steps, count, seconds = result["steps"], result["steps_per_epoch"], result["train_seconds"]
        begin = max(spent - seconds, 0.0) / max(len(sessions), 1)
    else:
        trained = [session["trained"][folder.name] for session in sessions]
        steps = sum(item["to_step"] - item["from_step"] for item in trained)
        count, seconds = _steps_per_epoch(folder), spent
    if not steps or not count or not seconds:
        return None
    told = {name: longest[name] for name in ("step", "evaluate", "save", "best", "mirror") if name in longest}
    pieces = {"begin": begin, "step": seconds / steps, "evaluate": 0.0, "best": 0.0, "save": longest.get("save", 0.0)}
    return StageTimes("train", pieces, told, int(count))


def _steps_per_epoch(folder: Path) -> int:
    """From the first evaluation of an unfinished training; 0 if there was none."""
    try:
        first = (folder / "metrics.jsonl").read_text(encoding="utf-8").partition("\n")[0]
        line = json.loads(first)
        return int(line["step"]) // int(line["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # nothing was evaluated yet, or a kill cut the line off


def _other(folder: Path, stage: Stage) -> StageTimes:
    """A prediction's or a call's times, from its own record; a guess if it has none."""
    done = (folder / ledger.RECORD).is_file()
    seconds = float(read_json(folder / ledger.RECORD)["seconds"]) if done else GUESSED_CALL_SECONDS
    guessed = None if done else _NOT_DONE
    if not isinstance(stage, Predict):
        return StageTimes("call", {"call": seconds}, guessed=guessed)
    shards = max(len(list(folder.rglob("part-*"))), 1)
    return StageTimes(
        "predict", {"begin": 0.0, "shard": seconds / shards}, {"shard": seconds / shards}, shards, guessed
    )
