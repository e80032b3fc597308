"""A thread that writes what the training thread hands over, so that training goes on meanwhile.

Things are written one after another in the order they were handed over: the best weights are on the disk before a
checkpoint that speaks of them. A checkpoint that can't be written is given up (the next one is newer); what later ones
depend on is kept and tried again before them. Nothing here knows what is written.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from outlast.errors import CheckpointError

FAILURES = (OSError, CheckpointError)  # what a disk does: it refuses, or what lies on it is not what was written


@dataclass(frozen=True)
class Work:
    """write(): does it; done(): its memory is free again; needed: what comes after must wait for it."""

    kind: str
    write: Callable[[], None]
    done: Callable[[], None]
    needed: bool


class Writer:
    """The thread with its queue; leaving the `with` block waits until everything was written or failed.

    problem: why the last try failed, None if it did not; failures: how many tries failed since the last checkpoint that
    was written.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self.failures = 0
        self._queue: deque[Work] = deque()
        self._change = threading.Condition()
        self._trying = self._ended = False
        self._fatal: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="outlast-writer", daemon=True)
        self._thread.start()

    def put(self, kind: str, write: Callable[[], None], done: Callable[[], None], *, needed: bool) -> None:
        """Hand over one thing to write. Raises what the thread died of, if it did."""
        with self._change:
            self._raise()
            self._queue.append(Work(kind, write, done, needed))
            self._trying = True
            self._change.notify_all()

    def pending(self) -> list[str]:
        """The kinds of work that are being tried or will be without another `put`."""
        with self._change:
            return [work.kind for work in self._queue] if self._trying else []

    def wait(self) -> None:
        """Wait until everything was written or failed; raises what the thread died of, if it did."""
        with self._change:
            self._change.wait_for(lambda: not self._trying)
            self._raise()

    def drop(self, kind: str) -> None:
        """Forget what could not be written of this kind: something newer takes its place. Call `wait` first."""
        with self._change:
            for work in [work for work in self._queue if work.kind == kind]:
                self._queue.remove(work)
                work.done()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._change:
            self._ended = True
            self._change.notify_all()
        self._thread.join()

    def _raise(self) -> None:
        if self._fatal is not None:
            raise self._fatal

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ended or self._trying)
                if not self._trying:
                    return
                work = self._queue[0]
            try:
                work.write()
            except FAILURES as error:
                self._failed(work, error)
            except BaseException as error:  # handed to the training thread, which raises it
                with self._change:
                    self._fatal, self._trying = error, False
                    self._queue.clear()
                    self._change.notify_all()
                return
            else:
                self._succeeded(work)

    def _succeeded(self, work: Work) -> None:
        with self._change:
            if not work.needed:
                self.problem, self.failures = None, 0
            self._next(work)

    def _failed(self, work: Work, error: Exception) -> None:
        with self._change:
            self.problem = error.message if isinstance(error, CheckpointError) else str(error)
            self.failures += 1
            if not work.needed:
                self._next(work)
                return
            # What comes after would speak of something that is not there.
            for later in [later for later in self._queue if not later.needed]:
                self._queue.remove(later)
                later.done()
            self._trying = False
            self._change.notify_all()

    def _next(self, work: Work) -> None:
        self._queue.popleft()
        work.done()
        self._trying = bool(self._queue)
        self._change.notify_all()
