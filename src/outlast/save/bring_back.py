"""Rule 2 of resuming: a run whose copy on the mirror has come further goes on from there, also on an empty machine.

Everything is fetched into a folder beside the run, hashed while it is read, synced, and then renamed into place. What
an interrupted fetch or the run on this machine already has is not fetched again. A run that was there is kept under
another name. A snapshot that can't be had whole is passed over for the one before it, and the sentence says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from outlast.base.accident import reached
from outlast.base.files import TEMPORARY, sha256, sync_path
from outlast.base.log import Progress
from outlast.errors import CheckpointError, RunError
from outlast.save.mirror import START_PATIENCE_SECONDS, Entry, Index, Mirror, object_name
from outlast.save.place import PIECE_BYTES
from outlast.save.snapshot import further, progress

_READINGS = 3  # of an object that arrives damaged
_BEGINNINGS = {"config.yaml"}  # what a kill in a run's first moments may leave alone


@dataclass(frozen=True)
class Restored:
    """What was brought back, and the sentence that says so."""

    index: Index
    sentence: str
    aside: Path | None


def bring_back(
    mirror: Mirror, run: Path, run_id: str | None, patience_seconds: float = START_PATIENCE_SECONDS
) -> Restored | None:
    """Put the mirror's copy of the run into `run` if it has come further than what is there; None if it hasn't.

    `run_id` is that of the run in `run`, None if there is none. Raises RunError if the mirror holds another run or
    does not answer, CheckpointError if there is no run here and no snapshot on the mirror verifies.
    """
    if run_id is None and run.exists() and not _is_beginning(run):
        return None  # somebody's folder: what refuses it has the right words
    if run_id is not None:
        mirror.check_run(run_id)
    here = progress(run, verify=True) if run_id is not None and mirror.found else None
    problems = list(mirror.problems)
    for index in mirror.found:
        if here is not None and not further(index.progress, here):
            break
        try:
            folder = _fetch(mirror, index, run, patience_seconds)
        except CheckpointError as error:
            problems.append(f"snapshot {index.number}: {error.message}")
            continue
        aside = _put_in_place(folder, run)
        return Restored(index, _sentence(mirror, index, run, aside, problems), aside)
    if problems and run_id is None:
        raise CheckpointError(
            f"no snapshot on the mirror {mirror.place.shown} verifies",
            details=problems,
            hint="give another --mirror or a copy of the run, or leave --mirror out to begin a new run",
        )
    mirror.warnings += [f"the mirror {mirror.place.shown}: {problem}" for problem in problems]
    return None


def set_aside(run: Path) -> Path:
    """Give the run in this folder another name, so that its own is free; returns it."""
    aside = free_name(run)
    run.rename(aside)
    return aside


def free_name(run: Path) -> Path:
    """A name beside the run that nothing has, for what it was before."""
    number = 1
    while (aside := run.with_name(f"{run.name}.before-{number}")).exists():
        number += 1
    return aside


def _fetch(mirror: Mirror, index: Index, run: Path, patience_seconds: float) -> Path:
    """All files of a snapshot in a folder beside the run, verified and on the disk."""
    folder = run.absolute().with_name(f"{TEMPORARY}{run.name}-from-mirror")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {folder / name for name in index.files}
    for path in [path for path in folder.rglob("*") if not path.is_dir() and path not in wanted]:
        path.unlink()  # an interrupted fetch of another snapshot
    total, done = sum(entry.bytes for entry in index.files.values()), 0
    with Progress(f"fetching {run.name} from the mirror", total) as shown:
        for name, entry in index.files.items():
            reached("mirror.fetch")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (_is(target, entry) or _write(target, _local(run / name), entry)):
                _download(mirror, object_name(name, entry), target, entry, patience_seconds)
            sync_path(target)
            done += entry.bytes
            shown.update(done)
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        sync_path(inner)
    return folder


def _download(mirror: Mirror, name: str, target: Path, entry: Entry, patience_seconds: float) -> None:
    def once() -> bool | None:
        try:
            return _write(target, mirror.place.pieces(name), entry)
        except FileNotFoundError:
            return None

    for _ in range(_READINGS):
        whole = mirror.place.patiently(once, patience_seconds)
        if whole:
            return
        if whole is None:
            raise CheckpointError(f"{name} is missing")
    raise CheckpointError(f"{name} is damaged (its SHA-256 differs)")


def _write(target: Path, pieces: Iterable[bytes], entry: Entry) -> bool:
    """Write a file; whether it has become what it should be."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as stream:
        for piece in pieces:
            digest.update(piece)
            size += stream.write(piece)
    return (size, digest.hexdigest()) == (entry.bytes, entry.sha256)


def _local(path: Path) -> Iterator[bytes]:
    """The contents of a file of the run that is on this machine; nothing if it is not there."""
    if path.is_file():
        with path.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece


def _is(path: Path, entry: Entry) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes and sha256(path) == entry.sha256


def _put_in_place(folder: Path, run: Path) -> Path | None:
    try:
        reached("mirror.aside")
        aside = None
        if run.exists():
            if any(run.iterdir()):
                aside = set_aside(run)
            else:
                run.rmdir()
        reached("mirror.rename")
        folder.replace(run)
    except OSError as error:
        raise RunError(
            f"the run from the mirror, now in {folder}, can't be renamed to {run}: {error.strerror}",
            hint="give --out a folder that does not exist yet",
        ) from error
    sync_path(run.absolute().parent)
    return aside


def _is_beginning(run: Path) -> bool:
    """Whether a folder is empty or holds no more than a kill in the first moments of a run leaves."""
    return run.is_dir() and all(path.name in _BEGINNINGS or path.name.startswith(TEMPORARY) for path in run.iterdir())


def _sentence(mirror: Mirror, index: Index, run: Path, aside: Path | None, problems: list[str]) -> str:
    stages = [f"{name} {'done' if at['finished'] else 'at ' + str(at['step'])}" for name, at in index.progress.items()]
    text = (
        f"{run} comes from the mirror {mirror.place.shown}: snapshot {index.number} of {index.time} "
        f"({', '.join(stages) or 'nothing trained yet'})"
    )
    text += f"; what was in {run} is now {aside}" if aside else ""
    return text + (f"; passed over: {'; '.join(problems)}" if problems else "")
