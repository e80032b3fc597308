"""Accidents on purpose: the places where a run may be killed, so that surviving a kill there can be tried.

`reached(place)` stands in the code wherever something can be half done. It does nothing unless one of two environment
variables is set, as `outlast verify-resume` does. OUTLAST_ACCIDENT names a place and a count, such as `step:7`: the
process kills itself with SIGKILL when it comes there for the seventh time. `stepped:20>write.:3` is a route: the third
write after the twentieth step; `step:7,finish:1` are two routes, and the one that ends first counts. A name with a dot
at its end stands for all places that begin so. With OUTLAST_PLACES=FILE each place is written there, a line each, as
soon as it is reached and before anything happens at it.

Places: batch, step, stepped, evaluate, predict, call, unit (of a call: done), finish; write.open, write.data,
write.sync, write.rename, write.done (one file); write.append (metrics.jsonl); folder.open, folder.file,
folder.manifest, folder.rename, folder.replace, folder.done; remove.rename, remove.files; mirror.take (a snapshot);
mirror.object, mirror.verify (one file on the mirror), mirror.index, mirror.indexed, mirror.durable, mirror.prune (one
removal), mirror.fetch (one file), mirror.aside, mirror.rename; unpack.file (one file), unpack.rename, unpack.stage (one
that is taken over).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

ACCIDENT = "OUTLAST_ACCIDENT"
PLACES = "OUTLAST_PLACES"

# What is done at every place; None, as in every ordinary run, is nothing. Tests put a function here.
happen: Callable[[str], None] | None = None


def reached(place: str) -> None:
    """This process is at `place` now."""
    if happen is not None:
        happen(place)


def kill_at(place: str, count: int) -> Callable[[str], None]:
    """A function for `happen`: this process dies when it comes to `place` for the n-th time."""
    return kill_along(f"{place}:{count}")


def kill_along(script: str) -> Callable[[str], None]:
    """A function for `happen`: this process dies at the end of the first route of `script` that it comes to."""
    routes = [[_stop(stop) for stop in route.split(">")] for route in script.split(",")]
    lock = threading.Lock()  # several threads write files

    def kill(here: str) -> None:
        with lock:
            for route in routes:
                if _passes(route, here):
                    os.kill(os.getpid(), signal.SIGKILL)

    return kill


def write_to(path: Path) -> Callable[[str], None]:
    """A function for `happen` that appends every place to a file; what is written survives a SIGKILL."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(place: str) -> None:
        os.write(descriptor, f"{place}\n".encode())

    return write


def _stop(text: str) -> tuple[str, int]:
    place, _, count = text.rpartition(":")
    return place, int(count)


def _passes(route: list[tuple[str, int]], here: str) -> bool:
    """Whether the route ends here; its stops are used up one after another."""
    if not route:
        return False
    place, count = route[0]
    if here != place and not (place.endswith(".") and here.startswith(place)):
        return False
    route[:1] = [(place, count - 1)] if count > 1 else []
    return not route


def _from_environment() -> Callable[[str], None] | None:
    script, path = os.environ.get(ACCIDENT), os.environ.get(PLACES)
    actions = [*([write_to(Path(path))] if path else []), *([kill_along(script)] if script else [])]

    def act(place: str) -> None:
        for action in actions:
            action(place)

    return act if actions else None


happen = _from_environment()
