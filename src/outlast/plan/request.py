"""What a user asked a training for, as plain values, and the command line that says the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from outlast.base.clock import Deadline, parse_duration
from outlast.errors import UsageError
from outlast.plan import sources
from outlast.plan.shared import Twin
from outlast.save.place import shown
from outlast.task import DATA, Stage, Train


@dataclass(frozen=True)
class Request:
    """What the user asked for, as `outlast.train` takes it."""

    task: str
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None
    out: Path | None = None
    preset: str | None = None
    config: Path | None = None
    overrides: Sequence[str] = ()
    resume: Literal["auto", "must", "never"] = "auto"
    start_from: Path | None = None
    session_limit: str | float | None = None
    time_limit: str | float | None = None
    quota_left: str | float | None = None
    quota_rate: float = 1.0
    stage: str | None = None
    synthetic: bool = False
    fallback: bool = True
    extend: bool = False
    mirror: str | None = None
    previous: str | None = None  # a pack, a run or what holds some; "auto": what is among the inputs
    deadline: Deadline | None = None
    processes: int = 1  # on this machine
    side_by_side: int = 1  # stages at a time, each in a process of its own
    starter: Sequence[str] = ("outlast",)  # what stands before `train`; with several machines that is torchrun's
    sweep: Sequence[str] = ()  # what is varied: this is a grid of runs, and `out` its folder
    twins: Mapping[str, Sequence[Twin]] = field(default_factory=dict)  # other cells of the sweep with a stage in common

    def command(self, run: Path, preset: str, quota_used_seconds: float = 0.0) -> str:
        """The command that goes on with this run, with the quota that is then left."""
        words = [*self.starter, "train", self.task]
        for name, folder in sources.parse_data(self.data).items():
            words += ["--data", str(folder) if name == DATA else f"{name}={folder}"]
        words += ["--preset", preset, "--out", str(run)]
        words += ["--config", str(self.config)] if self.config else []
        words += ["--session-limit", str(self.session_limit)] if self.session_limit is not None else []
        words += ["--time-limit", str(self.time_limit)] if self.time_limit is not None else []
        if self.quota_left is not None:
            words += ["--quota-left", f"{max(round(seconds(self.quota_left) - quota_used_seconds), 0)}s"]
            words += ["--quota-rate", f"{self.quota_rate:g}"] if self.quota_rate != 1 else []
        words += ["--start-from", str(self.start_from)] if self.start_from else []
        words += ["--mirror", shown(self.mirror)] if self.mirror else []
        words += ["--previous", self.previous] if self.previous else []
        words += ["--stage", self.stage] if self.stage else []
        words += ["--synthetic"] if self.synthetic else []
        words += [] if self.fallback else ["--no-fallback"]
        words += ["--extend"] if self.extend else []
        words += ["--processes", str(self.processes)] if self.processes > 1 else []
        words += ["--side-by-side", str(self.side_by_side)] if self.side_by_side > 1 else []
        words += [word for axis in self.sweep for word in ("--sweep", axis)]
        return shlex.join([*words, *self.overrides])


def check_usage(asked: Request) -> None:
    """Refuse what is wrong whatever lies in the folder. Raises UsageError."""
    if asked.extend and asked.resume == "never":
        raise UsageError(
            "--extend goes on with a run and --resume never begins a new one", hint="leave one of them out"
        )
    if asked.previous is not None and asked.resume == "never":
        raise UsageError("--previous goes on with a run and --resume never begins a new one", hint="leave one out")
    for duration in (asked.session_limit, asked.time_limit, asked.quota_left):
        if duration is not None:
            seconds(duration)
    if asked.side_by_side < 1:
        raise UsageError(f"--side-by-side {asked.side_by_side} is not a number of stages", hint="give 1 or more")
    alone = {"--processes": asked.processes > 1, "--stage": asked.stage, "a deadline object": asked.deadline}
    named = [name for name, given in alone.items() if given]
    if asked.side_by_side > 1 and named:
        raise UsageError(f"--side-by-side does not go with {', '.join(named)}", hint="leave one of them out")
    if not asked.quota_rate > 0:
        raise UsageError(f"--quota-rate {asked.quota_rate:g} is not a rate", hint="give a number such as 1.0")


def beginnings(plan: Sequence[Stage], asked: Request) -> dict[str, Path]:
    """{training stage: weights to begin with}: of the only one there is, or of the one that --stage names."""
    if asked.start_from is None:
        return {}
    trains = [stage.name for stage in plan if isinstance(stage, Train)]
    meant = [asked.stage] if asked.stage in trains else trains
    if len(meant) != 1:
        raise UsageError(
            f"--start-from is for one training stage, and this plan has {len(meant)}",
            hint=f"name it with --stage: {', '.join(trains)}",
        )
    return {meant[0]: asked.start_from}


def listed_data(data: str | Path | Mapping[str, str | Path] | Sequence[str] | None) -> list[str]:
    """What was given as data, as texts: DIR, NAME=DIR."""
    if data is None:
        return []
    if isinstance(data, Mapping):
        return [f"{name}={place}" for name, place in data.items()]
    return [str(data)] if isinstance(data, str | Path) else [str(item) for item in data]


def seconds(duration: str | float) -> float:
    return parse_duration(duration) if isinstance(duration, str) else float(duration)
