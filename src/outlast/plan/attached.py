"""Packs and runs that lie somewhere: named by the user, or attached as an input of a notebook.

A pack is a zip file that `outlast pack` wrote, or the folder that somebody, or a platform, made of one. A run is the
folder that `outlast train` wrote. Both are found at any depth that platforms put them to; folders of thousands of
files, and what no notebook has made (competitions, published models), are not looked through.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from outlast.base.files import MANIFEST, read_manifest
from outlast.errors import CheckpointError, OutlastError, UsageError
from outlast.plan import record
from outlast.save import archive

KIND = "outlast pack"  # what the manifest of a pack says
_DEEPEST = 6  # /kaggle/input/notebooks/OWNER/SLUG/runs/NAME
_LEFT_OUT = ("competitions", "models")  # of the inputs
_MANY = 5000  # entries of a folder that is full of images


def named(place: Path) -> list[Path]:
    """The pack or run that was named, or all that this folder holds. Raises UsageError, CheckpointError."""
    if not place.exists():
        raise UsageError(f"there is no {place}", hint="give a pack (FILE.zip or its folder) or a run folder")
    if place.is_file():
        if not zipfile.is_zipfile(place):
            raise CheckpointError(f"{place} is refused: it is no zip file, or a part of one", hint="copy it again")
        return [place]
    found = list(_below(place))
    if not found:
        raise UsageError(f"{place} holds no pack and no run", hint="give what `outlast pack` or `outlast train` wrote")
    return found


def among(inputs: Path) -> list[Path]:
    """All packs and runs among the inputs of a notebook."""
    return list(_below(inputs, _LEFT_OUT))


def is_pack(place: Path) -> bool:
    """Whether this is a pack and not a run as it is; also one that is damaged, as far as that can be told."""
    if place.is_dir():
        try:
            return read_manifest(place).get("kind") == KIND
        except CheckpointError:
            return (place / MANIFEST).exists() and record.is_run(place)
    return _begins_as_pack(place) or _kind_of(place) == KIND


def task_of(place: Path) -> str | None:
    """The task that a pack or a run is of; None if it is too damaged to tell."""
    try:
        if is_pack(place):
            with archive.opened(place) as found:
                return str(found.manifest.get("task"))
        return str(record.load(place)["task"])
    except OutlastError:
        return None


def _below(place: Path, left_out: tuple[str, ...] = (), depth: int = 0) -> Iterator[Path]:
    if record.is_run(place) or is_pack(place):
        yield place
        return
    try:
        with os.scandir(place) as entries:
            inside = [entry for _, entry in zip(range(_MANY), entries, strict=False)]
    except OSError:
        return
    for entry in sorted(inside, key=lambda entry: entry.name):
        if entry.name.startswith(".") or (depth == 0 and entry.name in left_out):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), depth=depth + 1) if depth < _DEEPEST else ()
        elif entry.name.endswith(".zip") and is_pack(Path(entry.path)):
            yield Path(entry.path)


def _begins_as_pack(path: Path) -> bool:
    """What was cut off has lost the list of contents at its end; its first file is at its beginning."""
    name = record.NAME.encode()
    try:
        with path.open("rb") as stream:
            start = stream.read(30 + len(name))
    except OSError:
        return False
    return start[:4] == b"PK\x03\x04" and start[30:] == name


def _kind_of(path: Path) -> object:
    try:
        with archive.opened(path) as found:
            return found.manifest.get("kind")
    except CheckpointError:
        return None
