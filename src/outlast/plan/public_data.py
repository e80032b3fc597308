"""`outlast data list` and `outlast data get`: public data sets that the tasks name, with their terms and sizes.

Promises: terms and size are said, and the disk is looked at, before anything is fetched; what has arrived of a download
that breaks, or is killed, is gone on with; the folder has its name when all of it is there, and says where it is from.
Does not: accept anybody's terms for somebody, or look inside: the task does that when it is trained.
"""

from __future__ import annotations

import datetime
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlast import task as tasks
from outlast.base.files import locked, read_json, write_json
from outlast.base.log import Progress, say, warn
from outlast.env import download, kaggle_datasets
from outlast.errors import RunError, UsageError, did_you_mean
from outlast.save import strangers
from outlast.save.space import in_words, room
from outlast.task import DataSet

RECORD = ".outlast-data.json"  # in the folder of a data set: what it is, from where and when
_KAGGLE, _COMPETITION = "kaggle:", "competition:"


@dataclass(frozen=True)
class _Fetched:
    """What was done: how many bytes came, and by what they were compared."""

    bytes: int
    compared: str


def catalogue(task: str | None = None) -> list[tuple[str, DataSet]]:
    """(task, data set) of one task (also one with a dotted name) or of all that can be found. Raises TaskError."""
    names = [task] if task is not None else list(tasks.names())
    return [(name, each) for name in names for each in tasks.find(name).data_sets]


def table(found: list[tuple[str, DataSet]]) -> str:
    """For people: a line per data set, and below it where it is from."""
    rows = [("TASK", "NAME", "SIZE", "TERMS", "WHAT"), *((task, *_row(each)) for task, each in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row, each in zip(rows, [None, *(each for _, each in found)], strict=True):
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))
        if each is not None:
            lines.append(f"{'':{widths[0]}}  {each.page}")
    return "\n".join(lines)


def get(name: str, to: Path | None, task: str | None = None) -> dict[str, Any]:
    """Fetch a data set into the folder `to` (data/NAME), and say what to type next.

    Returns {"name", "task", "folder", "terms", "page", "bytes", "compared": by what the download was compared,
    "command"}. Raises UsageError for a name that nobody has or a folder that holds something else, RunError if it can't
    be fetched, DataError for an archive that is not sound.
    """
    owner, found = _named(name, task)
    folder = to if to is not None else Path("data") / found.name
    command = f"outlast train {found.train.format(folder)}" if found.train else None
    told = {
        "name": found.name, "task": owner, "folder": str(folder), "terms": found.terms, "page": found.page,
        "command": command,
    }  # fmt: skip
    if (folder / RECORD).is_file() and read_json(folder / RECORD)["name"] == found.name:
        say(f"{found.name} is in {folder} already")
        known = read_json(folder / RECORD)
        return {**told, "bytes": known["bytes"], "compared": known["compared"]}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not {found.name}", hint="give another folder with --to")
    if not found.where:
        then = f"; then: {command}" if command else ""
        raise RunError(
            f"{found.name} can't be fetched by a program: its page wants somebody to sign in",
            hint=f"download it from {found.page} and unpack it into {folder}{then}",
        )
    _announce(found)
    _check_room(found, folder)
    with locked(folder.parent / f".{folder.name}.lock", f"another process is fetching {found.name}"):
        place, made = _fetched(found, folder, _parts_of(folder))
        write_json(place / RECORD, {**asdict(found), **asdict(made), "fetched": _now()})
        if folder.is_dir():
            folder.rmdir()
        place.rename(folder)
        shutil.rmtree(_parts_of(folder))
    if found.note:
        say(found.note)
    return {**told, "bytes": made.bytes, "compared": made.compared}


def _named(name: str, task: str | None) -> tuple[str, DataSet]:
    known = {each.name: (owner, each) for owner, each in catalogue(task)}
    if name not in known:
        raise UsageError(
            f"there is no data set {name!r}.{did_you_mean(name, list(known))}",
            hint=f"`outlast data list` shows them: {', '.join(known) or 'the task names none'}",
        )
    return known[name]


def _announce(found: DataSet) -> None:
    """What it is, under which terms, and how large, before anything is fetched."""
    size = in_words(found.bytes) if found.bytes is not None else "of a size that is not known before"
    unpacked = f", {in_words(found.unpacked)} unpacked" if found.unpacked is not None else ""
    say(f"{found.name}: {found.what} ({size}{unpacked})")
    say(f"terms: {found.terms}; by fetching it you accept them: {found.page}")


def _check_room(found: DataSet, folder: Path) -> None:
    """The archive and what it holds lie on the disk together. Raises RunError."""
    free = room(folder).free
    if found.bytes is None:
        warn(f"how large {found.name} is, is not known; {in_words(free)} are free for it")
        return
    arrived = kaggle_datasets.bytes_below(_parts_of(folder))
    needed = found.bytes + (found.unpacked if found.unpacked is not None else found.bytes) - arrived
    if needed > free:
        raise RunError(
            f"{found.name} needs {in_words(needed)} while it is unpacked, and there are {in_words(free)} free",
            hint="give --to a folder on a larger disk",
        )


def _fetched(found: DataSet, folder: Path, parts: Path) -> tuple[Path, _Fetched]:
    """Download and unpack below `parts`, where all that has arrived outlives a failure; the folder with the files."""
    if found.where.startswith((_KAGGLE, _COMPETITION)):
        kind, _, ref = found.where.partition(":")
        with Progress(f"fetching {found.name}", found.bytes or 0) as shown:
            place = kaggle_datasets.fetch_public(
                ref, found.page, parts, competition=f"{kind}:" == _COMPETITION,
                arrived=lambda here: shown.update(min(here, shown.total)) if shown.total else None,
            )  # fmt: skip
        return place, _Fetched(kaggle_datasets.bytes_below(place), "what Kaggle's client compares")
    archive, note = parts / found.where.rpartition("/")[2], parts / "arrived.json"
    if not (archive.is_file() and note.is_file()):
        with Progress(f"fetching {found.name}", found.bytes or 0) as shown:

            def arrived(here: int, total: int) -> None:
                shown.total = total
                shown.update(here)

            got = download.fetch(found.where, archive, sha256=found.sha256, arrived=arrived)
        write_json(note, asdict(_Fetched(got.bytes, got.compared)))
    place = parts / "unpacked"
    shutil.rmtree(place, ignore_errors=True)
    strangers.unpack(archive, place, part=found.part, most_bytes=room(folder).free)
    return place, _Fetched(**read_json(note))


def _parts_of(folder: Path) -> Path:
    """Where what has arrived of a download lies until it is whole; hidden from those who look for data."""
    return folder.parent / f".{folder.name}.download"


def _row(each: DataSet) -> tuple[str, str, str, str]:
    return each.name, in_words(each.bytes) if each.bytes is not None else "?", each.terms, each.what


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
