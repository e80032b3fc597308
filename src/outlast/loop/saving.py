"""When to save, and saving beside the training: copies are taken on the training thread, a writer thread does the rest.

Promises: checkpoints, best weights and metrics get to the disk in the order in which they came about; training stands
still only for the copies; a disk that fails is told and tried again, and ends the run only when it has failed often.
Only the main process has a Saver.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from outlast.base.accident import reached
from outlast.base.clock import Deadline, Durations, youngs_interval
from outlast.base.log import warn
from outlast.config.schema import Saving
from outlast.errors import SaveError
from outlast.save import store
from outlast.save.host import HostCopy
from outlast.save.writer import Writer
from outlast.state import RunState

_FIRST_SAVE_SECONDS = 20.0
_RETRY_SECONDS = 60.0
_MOST_FAILURES = 3


class Saver:
    """Saves one training stage. Leaving the `with` block waits until what was handed over is written."""

    def __init__(self, stage: Path, step: int, saving: Saving, deadline: Deadline, durations: Durations) -> None:
        self.stage, self.saving, self.deadline, self.durations = stage, saving, deadline, durations
        self.now = deadline.now
        self.at, self.step = self.now(), step  # when the last checkpoint was handed over, and its step
        self.measured = False  # whether a save was measured in this session
        self.stall_seconds = 0.0  # the longest time that training stood still for a save
        self._began = self.at
        self._state, self._best = HostCopy(), HostCopy()
        self._warned: str | None = None
        self._writer = Writer()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def is_due(self, step: int, reserve_seconds: float) -> bool:
        """Whether to save now. Not if the session ends so soon that its last save would come right after this one."""
        if self.deadline.expired(reserve_seconds + self.durations.expected("save")):
            return False
        if self.saving.every_steps is not None and step - self.step >= self.saving.every_steps:
            return True  # even if the save before is not written yet: training waits for it
        if self._writer.pending():
            return False
        since = self.now() - self.at
        # How long a save takes is what must be set aside at the session's end: it is measured early, once.
        early = self.deadline.limited and not self.measured and self.now() - self._began >= _FIRST_SAVE_SECONDS
        return early or since >= self.interval_seconds()

    def interval_seconds(self) -> float:
        """The time between checkpoints: as configured, or Young's formula; shorter while saving fails."""
        seconds = 60 * self.saving.every_minutes
        if self.saving.hours_between_failures is not None and self.measured:
            cost = self.durations.longest["save"]
            seconds = max(youngs_interval(cost, 3600 * self.saving.hours_between_failures), cost)
        return min(seconds, _RETRY_SECONDS) if self._writer.problem is not None else seconds

    def checkpoint(self, state: RunState, record: Mapping[str, Any], told: Callable[[], None]) -> None:
        """Copy the state and have it written; `told` is called (by the writer) once it is durable."""
        began = self.now()
        self._free(self._state)
        copied = self._state.take({name: getattr(state, name) for name in state.__dataclass_fields__})
        state = replace(state, **copied)

        def write() -> None:
            store.save(self.stage, state, record, self.saving.keep)
            store.keep_best(self.stage, state.best_step)
            self.durations.record("save", self.now() - began)
            self.measured = True
            told()

        self._writer.put("save", write, self._state.release, needed=False)
        self.at, self.step = self.now(), state.step
        self.stall_seconds = max(self.stall_seconds, self.at - began)
        self._complain()

    def best(self, step: int, weights: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Copy the best weights so far and have them written."""
        self._free(self._best)
        self._writer.drop("best")
        copied = self._best.take(dict(weights))

        def write() -> None:
            store.save_best(self.stage, step, copied, record)

        self._writer.put("best", write, self._best.release, needed=True)

    def metrics(self, text: str, at_byte: int) -> None:
        """Have a line written to metrics.jsonl, at the place where it belongs."""
        path = self.stage / "metrics.jsonl"

        def write() -> None:
            reached("write.append")
            with path.open("r+b") as stream:
                stream.truncate(at_byte)  # what a try before this one may have left
                stream.seek(at_byte)
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())

        self._writer.put("metrics", write, lambda: None, needed=True)

    def backlog_seconds(self) -> float:
        """What is still to be written takes about so long; best weights at most as long as a checkpoint."""
        return self.durations.expected(*("save" for kind in self._writer.pending() if kind != "metrics"))

    def settle(self) -> str | None:
        """Wait until all is written; what went wrong, or None."""
        self._writer.wait()
        return self._writer.problem

    def _free(self, copy: HostCopy) -> None:
        if copy.in_use:
            self._writer.wait()

    def _complain(self) -> None:
        """Say that saving fails, once per reason; end the run when it has failed too often. Raises SaveError."""
        problem = self._writer.problem
        if problem is not None and problem != self._warned:
            warn(f"saving failed ({problem}); training goes on, and it is tried again within a minute")
        self._warned = problem
        if problem is not None and self._writer.failures >= _MOST_FAILURES:
            raise failed(self.stage, problem)


def failed(stage: Path, problem: str) -> SaveError:
    """The error that ends a run which can't be saved."""
    kept = store.newest(stage / "checkpoints", [])
    held = f"the newest checkpoint that verifies is of step {kept.step}" if kept else "there is no checkpoint yet"
    return SaveError(
        f"what was trained can't be written to {stage}: {problem}; {held}",
        hint="make room or mend the disk (df, mount), then type the same command again: it goes on from there",
    )
