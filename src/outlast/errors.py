"""Every exception that Outlast raises on purpose.

OutlastError                what went wrong, where, and a `hint` that says what to do
├── UsageError              the command was typed wrongly (exit code 2)
├── ConfigError             a preset, a configuration file or a key=value
├── DataError               files, labels, groups, splits
│   └── DataNotFoundError   no data set where it was looked for
├── TaskError               an unknown task, or one that does not keep the contract
├── ModelError              an unknown architecture, weights that do not fit
├── CheckpointError         a checkpoint that is missing, damaged or of another model
├── SaveError               what was trained can't be written to the disk
├── RunError                a run folder that does not fit what was asked
│   └── NoTimeError         the session's end leaves no time for anything
└── TrainingError           training itself failed (non-finite loss, out of memory)

A user sees `str(error)`: one sentence, the collected details, and the hint; never a traceback. Everything else that
escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class OutlastError(Exception):
    """A failure with one clear sentence, optional details (one line each) and a hint that says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    def __str__(self) -> str:
        lines = [self.message, *(f"  - {detail}" for detail in self.details)]
        if self.hint:
            lines.append(f"  What to do: {self.hint}")
        return "\n".join(lines)

    def _render_traceback_(self) -> list[str]:
        # A notebook asks for this in the place of a traceback.
        return [f"error: {self}"]

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes send errors to the parent by pickling them; the default would lose hint and details.
        return (type(self), (self.message, self.hint, self.details))


class UsageError(OutlastError):
    """The command was typed wrongly."""

    exit_code = 2


class ConfigError(OutlastError):
    """A preset, a configuration file or a key=value is wrong; all problems are listed together."""


class DataError(OutlastError):
    """Files, labels, groups or splits are missing, damaged or contradict each other."""


class DataNotFoundError(DataError):
    """There is no data set where it was looked for."""


class TaskError(OutlastError):
    """The task does not exist, or its module does not keep the contract of a task."""


class ModelError(OutlastError):
    """The architecture is unknown, or weights are missing or do not fit it."""


class CheckpointError(OutlastError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class SaveError(OutlastError):
    """What was trained can't be written: the disk is full, read-only or failing."""


class RunError(OutlastError):
    """The run folder does not fit what was asked: another task, another configuration, nothing to resume."""


class NoTimeError(RunError):
    """The session's end leaves no time to do anything."""


class TrainingError(OutlastError):
    """Training failed: a non-finite loss, memory, a device."""


def listed(items: Sequence[object], most: int = 8) -> str:
    """Join items for a sentence, the first `most` by name and the rest as a count."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """' Did you mean X?' if one of the known words is close to `word`, else the empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
