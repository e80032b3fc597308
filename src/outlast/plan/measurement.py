"""What was measured of a plan: seconds of every stage's pieces with their provenance, as plain data.

Promises: a saved measurement is read back as it was, or refused in one sentence; what was not measured but guessed says
so with its reason. How to measure is in `measure` (on this machine) and `recorded` (from what a run has recorded).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outlast.config.identity import digest, identity
from outlast.config.schema import TaskConfig
from outlast.errors import UsageError
from outlast.task import Train

FORMAT = 1
GUESSED_CALL_SECONDS = 60.0
GUESSED_REPORT_SECONDS = 5.0
# Settings that change neither what a step takes nor how many there are in an epoch.
_WITHOUT_EFFECT = (
    "train.epochs", "train.minimum_steps", "train.evaluate_every_epochs", "train.patience_epochs", "train.seed",
    "train.learning_rate", "train.weight_decay", "train.schedule", "train.warmup_fraction", "train.final_fraction",
    "train.plateau_factor", "train.plateau_patience_epochs", "train.fallback",
)  # fmt: skip


@dataclass(frozen=True)
class StageTimes:
    """Seconds of a stage's pieces. train: begin, step, evaluate, save, best, and
    of a measured one build and row; predict: begin, shard; call: call.

    longest: of each kind of work, what the time to set aside is reckoned from. count: steps per epoch, or shards.
    guessed: why it is a guess; None if it was measured. like: the stage that was measured in its place.
    """

    kind: str
    seconds: Mapping[str, float]
    longest: Mapping[str, float] = field(default_factory=dict)
    count: int = 1
    guessed: str | None = None
    like: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The times of a plan's stages, and where they come from: the machine, versions, configuration and data."""

    task: str
    preset: str
    made: str
    source: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    config_hash: str
    data: Mapping[str, str]
    synthetic: bool
    startup_seconds: float
    report_seconds: float | None
    stages: Mapping[str, StageTimes]
    format: int = FORMAT

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def where(self) -> str:
        """The machine in a few words."""
        named = [str(self.machine.get(key)) for key in ("device_name", "device") if self.machine.get(key)]
        return f"{', '.join(named)}, {self.machine.get('cores')} cores"


def load(path: Path, task: str) -> Measurement:
    """A saved measurement, or the one in a saved plan. Raises UsageError if it is none, or of another task."""
    hint = "give a file that `outlast plan TASK --to FILE.json` wrote"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the measurement {path} cannot be read: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{path} is not a measurement: it is not JSON ({error})", hint=hint) from error
    values = values.get("measurement", values) if isinstance(values, dict) else values
    try:
        if values["format"] != FORMAT:
            raise UsageError(f"{path} is a measurement of another version of Outlast", hint="measure again")
        stages = {name: _checked(StageTimes(**item)) for name, item in values["stages"].items()}
        found = Measurement(**{**values, "stages": stages, "startup_seconds": float(values["startup_seconds"])})
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UsageError(f"{path} is not a measurement: {_reason(error)}", hint=hint) from error
    if found.task != task:
        raise UsageError(f"{path} is a measurement of the task {found.task!r}, not of {task!r}", hint=hint)
    return found


def key(stage: Train) -> str:
    """Trainings with the same key take the same time per step: the same learner under the same settings."""
    return digest([stage.learner.name, _telling(_flat(identity(stage.config)))])


def other_settings(measured: Measurement, config: TaskConfig) -> list[str]:
    """A line for each setting that may change the times and is another than when they were measured."""
    before = _telling(_flat(measured.config))
    after = _telling(_flat(json.loads(json.dumps(identity(config), default=str))))
    names = sorted({*before, *after})
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names if before.get(name) != after.get(name)]


def _telling(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _checked(times: StageTimes) -> StageTimes:
    if any(not 0 <= float(value) < float("inf") for value in [*times.seconds.values(), *times.longest.values()]):
        raise ValueError("a time in it is no number of seconds")
    return times


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
