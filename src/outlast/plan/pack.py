"""`outlast pack`: a run, or what one stage of it needs, as one file or folder that goes to another machine.

A pack has one manifest (`save.archive`) over the files that `plan.carry` chooses. It may be read where it lies
read-only; `plan.arrivals` is what takes it in.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from outlast.base.files import locked
from outlast.base.log import say
from outlast.errors import RunError, UsageError
from outlast.plan import attached, carry, record
from outlast.report import sweep
from outlast.save import archive
from outlast.save.space import in_words

FORMAT = 1


def pack(run: Path, to: Path, stage: str | None = None, *, everything: bool = False) -> dict[str, Any]:
    """Write what the next session needs of a run to a .zip file or a folder; see `outlast.pack`."""
    if stage is not None and everything:
        raise UsageError("--for and --all exclude each other", hint="leave one of them out")
    archive.check_target(to)
    _check_run(run)
    if to.absolute().resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{to} lies inside of the run that is packed", hint="give --to a place outside of it")
    with quiet_run(run):
        _, _, plan = carry.plan_of(run)
        load = carry.load(run, plan, stage, everything=everything)
        size = archive.write(to, load.files, about(run, load, stage))
    what = "all of the run" if load.whole else f"what {stage} needs" if stage else "what the rest of the plan needs"
    left = f"; {in_words(load.left_bytes)} of it stay here" if load.left_bytes else ""
    say(f"{to}: {what}, {in_words(size)}{left}; there: outlast unpack {shlex.quote(to.name)} --out {run.name}")
    return {
        "pack": str(to), "bytes": size, "files": len(load.files), "for": stage, "whole": load.whole,
        "stages": load.stages, "left_bytes": load.left_bytes,
    }  # fmt: skip


def _check_run(run: Path) -> None:
    if sweep.is_sweep(run):
        raise RunError(f"{run} is a sweep of many runs", hint="pack one of the runs in its folder models")
    record.load(run)


@contextlib.contextmanager
def quiet_run(run: Path) -> Iterator[None]:
    """Nobody trains in the run meanwhile. Where nothing can be written (an attached input) nobody does."""
    if not os.access(run.absolute().parent, os.W_OK):
        yield
        return
    with locked(run.parent / f".{run.name}.lock", f"another process is training in {run}"):
        yield


def about(run: Path, load: carry.Load, stage: str | None) -> dict[str, Any]:
    """What the manifest of a pack says of the run and of what is in it."""
    known = record.load(run)
    return {
        "kind": attached.KIND, "format": FORMAT, "task": known["task"], "run_id": known.get("run_id"), "for": stage,
        "whole": load.whole, "stages": load.stages, "made": record.now(), "synthetic": known.get("synthetic"),
        "outlast": metadata.version("outlast"),
    }  # fmt: skip
