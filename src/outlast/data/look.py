"""A look at image files by their headers: format, mode, size, frames, bytes; nothing is decoded.

For the checks, which want to tell of exotic and tiny pictures in a set of hundreds of thousands of files. Promises:
one answer per path, in order, also for a file that is no picture (its format is '' then). Whether a file is whole, only
decoding it tells (cache.py). One thread: opening is Python code, and threads only get in each other's way there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from outlast.base.files import write_text
from outlast.data.readers import UNREADABLE

_SETTLED_SECONDS = 2.0  # a file younger than this may change again without its time stamp showing it


class Look(NamedTuple):
    """What the header of a file says; sizes in pixels, as stored (before any EXIF rotation)."""

    bytes: int
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    animated: bool = False


def look_at(
    paths: Sequence[str], *, memo: Path | None = None, progress: Callable[[int], None] = lambda done: None
) -> list[Look]:
    """The header of each file. memo: a JSON file that remembers (path, size, time of change) -> look between runs."""
    known = _load(memo)
    fresh: dict[str, list[object]] = {}
    looks = []
    now = time.time()
    for number, path in enumerate(paths):
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path costs more than the call
        except OSError:
            looks.append(Look(0))
            continue
        key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
        look = Look(*known[key]) if key in known else _header(path, status.st_size)
        looks.append(look)
        if now - status.st_mtime > _SETTLED_SECONDS:
            fresh[key] = list(look)
        if number % 256 == 255:
            progress(number + 1)
    if memo is not None and fresh.keys() - known.keys():
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_text(memo, json.dumps(fresh))
    return looks


def _header(path: str, size: int) -> Look:
    try:
        with Image.open(path) as image:
            animated = bool(getattr(image, "is_animated", False))
            return Look(size, image.format or "", image.mode, *image.size, animated)
    except UNREADABLE:
        return Look(size)


def _load(memo: Path | None) -> dict[str, tuple[int, str, str, int, int, bool]]:
    """What is remembered; nothing if there is no memo or it is damaged (then the files are looked at again)."""
    if memo is None or not memo.is_file():
        return {}
    try:
        loaded = json.loads(memo.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    if not isinstance(loaded, dict):
        return {}
    return {key: tuple(value) for key, value in loaded.items() if len(value) == len(Look._fields)}
