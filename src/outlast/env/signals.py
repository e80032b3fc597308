"""Signals that ask a run to stop: the first is a request (save and stop), the second is obeyed at once.

SIGTERM, SIGINT and SIGUSR1 (Slurm's and spot machines' notice) all mean the same. After the first one the handlers are
as they were before, so that a second Ctrl-C interrupts and a second SIGTERM ends the process. Who listens while someone
listens already (a run of a sweep) hears the same request.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass
class StopRequest:
    """Whether a signal asked for a stop; `reason` is its name, such as 'SIGTERM'."""

    reason: str | None = None


_heard: list[StopRequest] = []  # by who listens now


@contextlib.contextmanager
def listen(*, announce: bool = True) -> Iterator[StopRequest]:
    """Turn the first signal into a request while the block runs. Outside the main thread it does nothing.

    announce: say on standard error that the signal came.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    if _heard:
        yield _heard[-1]
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        request.reason = signal.Signals(number).name
        restore()
        if announce:
            sentence = f"\n{request.reason}: saving and stopping; once more stops at once, losing what is not saved\n"
            os.write(2, sentence.encode())  # not through sys.stderr: the signal may have come amid a write to it

    for number in SIGNALS:
        signal.signal(number, stop)
    _heard.append(request)
    try:
        yield request
    finally:
        _heard.remove(request)
        restore()
