"""A session of training in a process of its own, watched and perhaps killed from outside.

The process writes down which places it came to (base.accident) and which steps it did (loop.trace) as it goes, so that
a session tells what it did however it ended. Nothing of it outlives the call.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.base import accident
from outlast.loop import trace

_POLL_SECONDS = 0.01

# moment(seconds since the start, whether the first step is done): whether to kill the session now
Moment = Callable[[float, bool], bool]


@dataclass(frozen=True)
class Ended:
    """A session that ended. status: as subprocess has it; ready_seconds: until its first step was done."""

    status: int
    ready_seconds: float
    seconds: float
    places: list[str]
    steps: list[trace.TracedStep]
    printed: list[str]
    from_outside: bool


def run(
    words: Sequence[str], files: Path, name: str, *, script: str | None = None, moment: Moment | None = None
) -> Ended:
    """Run the command to its end; what it prints and writes down goes into `files`, under `name`.

    script: OUTLAST_ACCIDENT of the process. moment: when to send SIGKILL to its process group.
    """
    places, steps, printed = (files.resolve() / f"{name}.{kind}" for kind in ("places", "trace", "log"))
    environment = {**os.environ, accident.PLACES: str(places), trace.TRACE: str(steps)}
    environment.pop(accident.ACCIDENT, None)
    if script is not None:
        environment[accident.ACCIDENT] = script
    began = time.monotonic()
    ready: float | None = None
    from_outside = False
    with printed.open("wb") as stream, _started(words, environment, stream) as process:
        while process.poll() is None:
            now = time.monotonic() - began
            if ready is None and steps.is_file() and steps.stat().st_size:
                ready = now
            if moment is not None and moment(now, ready is not None):
                from_outside = True
                _kill_group(process)
                process.wait()
            else:
                time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - began
    return Ended(
        status=process.returncode,
        ready_seconds=seconds if ready is None else ready,
        seconds=seconds,
        places=places.read_text(encoding="utf-8").split("\n")[:-1] if places.is_file() else [],
        steps=trace.read(steps),
        printed=printed.read_text(encoding="utf-8", errors="replace").splitlines(),
        from_outside=from_outside,
    )


@contextlib.contextmanager
def _started(words: Sequence[str], environment: dict[str, str], stream: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process, in a group of its own that does not outlive the block."""
    with subprocess.Popen(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
