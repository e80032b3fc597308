"""Accidents on purpose: the places where a run may be killed, so that surviving a kill there can be tried.

`reached(place)` stands in the code wherever something can be half done. It does nothing unless the environment variable
OUTLAST_ACCIDENT names a place and a count, such as `step:7`: then the process kills itself with SIGKILL when it comes
there for the seventh time. A name stands for all places that begin with it (`write.` for every moment of writing a
file). With OUTLAST_PLACES=FILE a process writes, when it ends, how often it came to each place. `outlast verify-resume`
sets both.

Places: batch, step, stepped, evaluate, predict, call, finish; write.open, write.data, write.sync, write.rename,
write.done (one file); folder.open, folder.file, folder.manifest, folder.rename, folder.replace, folder.done;
remove.rename, remove.files; mirror.take (a snapshot); mirror.object, mirror.verify (one file on the mirror),
mirror.index, mirror.indexed, mirror.durable, mirror.prune (one removal), mirror.fetch (one file), mirror.aside,
mirror.rename.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
from collections import Counter
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
    """A function for `happen`: this process dies when it comes for the n-th time to a place whose name begins so."""
    seen = Counter[str]()
    lock = threading.Lock()  # several threads write files

    def kill(here: str) -> None:
        if here.startswith(place):
            with lock:
                seen[place] += 1
                if seen[place] == count:
                    os.kill(os.getpid(), signal.SIGKILL)

    return kill


def count_into(path: Path) -> Callable[[str], None]:
    """A function for `happen` that counts, and writes the counts (JSON) when this process ends."""
    seen = Counter[str]()
    owner = os.getpid()  # forked loader workers inherit the exit handler

    def write() -> None:
        if os.getpid() == owner:
            path.write_text(json.dumps(seen), encoding="utf-8")

    atexit.register(write)
    return lambda place: seen.update([place])


def _from_environment() -> Callable[[str], None] | None:
    if os.environ.get(ACCIDENT):
        place, _, count = os.environ[ACCIDENT].rpartition(":")
        return kill_at(place, int(count))
    if os.environ.get(PLACES):
        return count_into(Path(os.environ[PLACES]))
    return None


happen = _from_environment()
