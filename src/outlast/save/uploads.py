"""Uploads beside the training: a thread that brings snapshots of the run to its mirror.

`offer` costs a few hard links; everything else happens in the thread. A snapshot that is not begun yet gives way to a
newer one. What fails is tried again, with connections and credentials made anew, after longer and longer pauses; after
some minutes the snapshot is given up, and the next offer begins again. Nothing of this ever raises into the training:
how the mirror stands is in `state`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from outlast.base.clock import format_duration
from outlast.base.patience import delays
from outlast.errors import OutlastError, RunError
from outlast.save.mirror import Mirror
from outlast.save.snapshot import Facts, Snapshot, take

_CLOSE_SECONDS = 5.0
_HURRIED_DELAY_SECONDS = 2.0


@dataclass(frozen=True)
class MirrorState:
    """How a mirror stands. `seconds` is how long the last durable snapshot took to upload and read back."""

    url: str
    durable: Facts | None = None
    durable_at: str | None = None  # ISO 8601: when the durable snapshot was taken
    seconds: float | None = None
    failing: str | None = None
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """A few words for a progress line."""
        if self.failing:
            return "MIRROR FAILS"
        return f"mirrored {self.durable_at[11:16]} UTC" if self.durable_at else "not mirrored yet"


class Uploads:
    """Brings snapshots of `run` to the mirror while the block runs. `run_id` is the run's, for all its sessions.

    Raises RunError, before anything is done, if the mirror holds another run.
    """

    def __init__(
        self,
        mirror: Mirror,
        run: Path,
        run_id: str,
        *,
        patience_seconds: float = 300.0,
        delays: Callable[[], Iterator[float]] = delays,
    ) -> None:
        mirror.check_run(run_id)
        self.mirror, self.run, self.run_id = mirror, run, run_id
        self.patience_seconds, self.delays = patience_seconds, delays
        self._state = MirrorState(mirror.place.shown, warnings=tuple(mirror.warnings))
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._busy = self._closing = False
        self._last_is_durable = True  # until something is offered, nothing is missing
        self._taken = True  # whether the last offer could take its snapshot
        self._finish_by = 0.0  # while finish() waits: monotonic seconds until when nothing is given up
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            outdated, self._waiting = self._waiting, None
            self._changed.notify_all()
        if outdated is not None:
            outdated.drop()
        self._thread.join(_CLOSE_SECONDS)  # a request that hangs must not keep the session from ending

    @property
    def state(self) -> MirrorState:
        """How the mirror stands now."""
        with self._changed:
            return self._state

    def offer(self) -> None:
        """Have the run as it is now brought to the mirror. Call it when a checkpoint has just become durable."""
        try:
            snapshot = take(self.run)
        except OSError as error:
            with self._changed:
                self._taken = False
            self._fails(f"no snapshot of {self.run} could be taken: {error}")
            return
        with self._changed:
            outdated, self._waiting = self._waiting, snapshot
            self._last_is_durable, self._taken = False, True
            self._changed.notify_all()
        if outdated is not None:
            outdated.drop()

    def finish(self, timeout_seconds: float) -> bool:
        """Wait until what was offered last is durable, at most so long. Whether it is."""
        with self._changed:
            self._finish_by = time.monotonic() + timeout_seconds
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting is None and not self._busy, timeout_seconds)
            return self._last_is_durable and self._taken and self._waiting is None and not self._busy

    def _work(self) -> None:
        while (snapshot := self._next()) is not None:
            try:
                self._bring(snapshot)
            finally:
                snapshot.drop()
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _next(self) -> Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            if self._closing:
                return None
            snapshot, self._waiting, self._busy = self._waiting, None, True
            return snapshot

    def _bring(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        for delay in self.delays():
            if self._attempt(snapshot):
                return
            given_up = time.monotonic() - began > self.patience_seconds and time.monotonic() > self._finish_by
            if given_up:
                self._warns(f"a snapshot was given up after {format_duration(time.monotonic() - began)} of attempts")
            if given_up or not self._pause(delay):
                return

    def _attempt(self, snapshot: Snapshot) -> bool:
        """Try once. True if there is nothing more to try: it is durable, or it must not be brought there."""
        began = time.monotonic()
        try:
            index = self.mirror.store(snapshot, self.run_id)
        except RunError as error:  # another session writes there
            self._fails(error.message)
            return True
        except Exception as error:  # the edge to other people's code, and of this thread: training goes on
            self._fails(error.message if isinstance(error, OutlastError) else self.mirror.place.masked(error))
            self._reconnect()
            return False
        with self._changed:
            self._last_is_durable = self._waiting is None
            self._state = replace(
                self._state,
                durable=index.progress,
                durable_at=index.time,
                seconds=time.monotonic() - began,
                failing=None,
            )
        try:
            self.mirror.prune(index)
        except Exception as error:  # the same edge; what could not be removed now goes the next time
            self._warns(f"older snapshots could not be removed: {self.mirror.place.masked(error)}")
        return True

    def _reconnect(self) -> None:
        """Credentials that expired are read anew with a new connection."""
        try:
            self.mirror.place.connect()
        except Exception as error:  # the same edge
            self._fails(self.mirror.place.masked(error))

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt. False if there is none: a newer snapshot is there, or the session ends."""
        end = time.monotonic() + seconds
        with self._changed:
            while not (self._closing or self._waiting is not None):
                now = time.monotonic()
                hurried = now < self._finish_by
                left = min(end, now + _HURRIED_DELAY_SECONDS if hurried else end) - now
                if left <= 0 or (not self._changed.wait(left) and hurried):
                    return True
            return False

    def _fails(self, sentence: str) -> None:
        with self._changed:
            self._state = replace(self._state, failing=sentence)

    def _warns(self, sentence: str) -> None:
        sentence = f"the mirror {self._state.url}: {sentence}"
        with self._changed:
            if sentence not in self._state.warnings:
                self._state = replace(self._state, warnings=(*self._state.warnings, sentence))
