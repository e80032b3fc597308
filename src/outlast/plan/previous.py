"""Going on with a run that an earlier session left, where its output is attached as a read-only input (Kaggle).

Promises: only a run of the same task and the same configuration is taken; what was copied is what lies there, file by
file, before it gets the run's name; a run that is here already gives way only to one that has come further, and is then
kept under another name. Which one was taken, and why another one was not, is said in a sentence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from outlast.base.files import TEMPORARY, place_folder, sha256, sync_path
from outlast.base.log import say, warn
from outlast.config.schema import TaskConfig
from outlast.data.find import KAGGLE_INPUT
from outlast.errors import CheckpointError, OutlastError, RunError
from outlast.plan import record
from outlast.save import bring_back, snapshot
from outlast.task import Task

AUTO = "auto"
_DEEPEST = 6  # /kaggle/input/notebooks/OWNER/SLUG/runs/NAME
_LEFT_OUT = ("competitions", "models")  # of the inputs: no notebook's output
_MANY = 5000  # entries of a folder that is full of images


@dataclass(frozen=True)
class _Found:
    """A run that lies somewhere, and how far it has come."""

    folder: Path
    progress: snapshot.Facts


def bring(wish: str, run: Path, task: Task, config: TaskConfig, inputs: Path = KAGGLE_INPUT) -> Path | None:
    """Copy the run that an earlier session left into `run`, if it has come further than what is there; returns it.

    wish: the folder of the run (or of what holds it), or "auto" for all that is attached. Raises RunError if a folder
    that was named holds no such run.
    """
    places = [inputs] if wish == AUTO else [Path(wish)]
    refused: list[str] = []
    found = [
        one for place in places for folder in runs_below(place) if (one := _fitting(folder, task, config, refused))
    ]
    if wish != AUTO and not found:
        raise RunError(
            f"{wish} holds no run that this one could go on with",
            details=refused,
            hint="give the folder that `outlast train` wrote with the same task and settings, or leave --previous out",
        )
    for reason in refused:
        warn(f"not gone on with: {reason}")
    best: _Found | None = None
    for one in found:
        if best is None or snapshot.further(one.progress, best.progress):
            best = one
    if best is None:
        return None
    if record.is_run(run):
        if not snapshot.further(best.progress, snapshot.progress(run, verify=True)):
            return None
        say(f"the run that was in {run} is now {bring_back.set_aside(run)}: the one in {best.folder} is further")
    _copy(best.folder, run)
    stages = [f"{name} {'done' if at['finished'] else 'at ' + str(at['step'])}" for name, at in best.progress.items()]
    say(f"goes on with the run in {best.folder} ({', '.join(stages)}), copied to {run} and verified")
    return best.folder


def runs_below(place: Path, depth: int = 0) -> Iterator[Path]:
    """The run folders at or below a folder. Folders of thousands of files are not looked through."""
    if record.is_run(place):
        yield place
        return
    if depth == _DEEPEST:
        return
    try:
        with os.scandir(place) as entries:
            inside = [entry for _, entry in zip(range(_MANY), entries, strict=False)]
    except OSError:
        return
    for entry in sorted(inside, key=lambda entry: entry.name):
        left_out = entry.name.startswith(".") or (depth == 0 and entry.name in _LEFT_OUT)
        if not left_out and entry.is_dir(follow_symlinks=False):
            yield from runs_below(Path(entry.path), depth + 1)


def _fitting(folder: Path, task: Task, config: TaskConfig, refused: list[str]) -> _Found | None:
    """The run in a folder, if it is of this task and configuration and anything of it verifies."""
    try:
        if record.load(folder)["task"] != task.name:
            return None
        record.check_same(folder, task.name, config, extend=False, extend_command="")
        progress = snapshot.progress(folder, verify=True)
    except OutlastError as error:
        refused.append("; ".join([error.message, *error.details]))
        return None
    if not progress:
        refused.append(f"in {folder} no stage is done, and no checkpoint verifies")
        return None
    return _Found(folder, progress)


def _copy(source: Path, run: Path) -> None:
    """The run in a folder, as a folder of its own that may be written. Raises CheckpointError, OSError."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and not _is_temporary(path, source)]

    def fill(folder: Path) -> None:
        for path in files:
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)  # not its permissions: inputs may only be read
            sync_path(target)

    def verify(folder: Path) -> None:
        for path in files:
            if sha256(folder / path.relative_to(source)) != sha256(path):
                raise CheckpointError(f"the copy of {path} is not what lies there", hint="try again")

    if run.is_dir() and not any(run.iterdir()):
        run.rmdir()
    place_folder(run, fill, verify)


def _is_temporary(path: Path, source: Path) -> bool:
    return any(part.startswith(TEMPORARY) for part in path.relative_to(source).parts)
