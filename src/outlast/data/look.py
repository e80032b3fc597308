"""A look at image files by their headers: format, mode, size, frames, bytes; nothing is decoded.

For the checks, which want to tell of exotic and tiny pictures in a set of hundreds of thousands of files. Promises:
one answer per path, in order and as PIL gives it, also for a file that is no picture (its format is '' then). Whether a
file is whole, only decoding it tells (cache.py). One thread: opening is Python code, and threads only get in each
other's way there.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from outlast.base.files import TEMPORARY
from outlast.errors import DataError

# What PIL raises at files that are no whole pictures. (Here and not in readers.py: a helping process starts at once
# without numpy.)
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
UNREADABLE = (*DAMAGED, *TOO_LARGE)
_MOVING = frozenset({"PNG", "WEBP", "TIFF", "GIF"})  # a JPEG of several frames (MPO) is a photo with a preview
_FIRST_BYTES = 16_384  # of a file: the segments before the scan, unless there is a thumbnail or a long profile
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # by the number of layers
_MOST_PIXELS = 80_000_000  # less than what PIL warns of
_MANY = 10_000  # files: with fewer, helpers take longer to start than they save
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
    paths: Sequence[str],
    *,
    memo: Path | None = None,
    cores: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Look]:
    """The header of each file. memo: a JSON file that remembers (path, size, time of change) -> look between runs."""
    known = _load(memo)
    looks = {path: look for path in paths if (look := known.get(_key(path))) is not None} if known else {}
    unknown = [path for path in paths if path not in looks] if looks else paths
    with _no_collection():
        seen = _shared_out(unknown, cores, progress)
    looks.update((path, look) for path, (look, _) in zip(unknown, seen, strict=True))
    if memo is not None and seen:
        before = (time.time() - _SETTLED_SECONDS) * 1e9
        fresh = {_name(p, look.bytes, ns): look for p, (look, ns) in zip(unknown, seen, strict=True) if 0 < ns < before}
        _remember(memo, {**known, **fresh})
    return [looks[path] for path in paths]


def serve() -> None:
    """What a helping process does: a JSON list of paths in, a JSON list of what it saw out."""
    with _no_collection():
        sys.stdout.write(json.dumps([_see(path) for path in json.load(sys.stdin)]))


def _key(path: str) -> str:
    """What a file is remembered by; '' for one that is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path costs more than the call
    except OSError:
        return ""
    return _name(path, status.st_size, status.st_mtime_ns)


def _name(path: str, size: int, changed_ns: int) -> str:
    return f"{path}|{size}|{changed_ns}"


def _shared_out(paths: Sequence[str], cores: int, progress: Callable[[int], None]) -> list[tuple[Look, int]]:
    """What is seen of each, in order. A helper is a Python of its own: forks may hang, a spawn runs the main module."""
    count = cores if len(paths) >= _MANY else 1
    bounds = [len(paths) * part // count for part in range(count + 1)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    helpers = []
    for start, end in itertools.pairwise(bounds[1:]):
        command = [sys.executable, "-c", "from outlast.data.look import serve; serve()"]
        helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert helper.stdin is not None
        with contextlib.suppress(BrokenPipeError), helper.stdin as pipe:  # its exit status says that it died
            pipe.write(json.dumps(paths[start:end]).encode())
        helpers.append(helper)
    seen = []
    for number, path in enumerate(paths[: bounds[1]]):
        seen.append(_see(path))
        if number % 256 == 255:
            progress((number + 1) * count)
    answers = [_answer(helper) for helper in helpers]
    failed = [helper.returncode for helper in helpers if helper.returncode]
    if failed:
        raise DataError(f"a process that looked at files ended with status {failed[0]}", hint="start again")
    return seen + [(Look(*values), changed) for answer in answers for values, changed in json.loads(answer)]


def _answer(helper: subprocess.Popen[bytes]) -> bytes:
    assert helper.stdout is not None
    with helper.stdout as pipe:
        answer = pipe.read()
    helper.wait()
    return answer


def _see(path: str) -> tuple[Look, int]:
    """The header of a file and when it changed, in nanoseconds (0 if it isn't there)."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a Path costs more than the call
            status = os.fstat(file.fileno())
            return _header(file, status.st_size), status.st_mtime_ns
    except OSError:
        return Look(0), 0


def _header(file: IO[bytes], size: int) -> Look:
    if (jpeg := _jpeg(file.read(_FIRST_BYTES))) is not None:
        return Look(size, "JPEG", *jpeg)
    file.seek(0)
    try:
        with Image.open(file) as image:
            animated = image.format in _MOVING and bool(getattr(image, "is_animated", False))
            return Look(size, image.format or "", image.mode, *image.size, animated)
    except UNREADABLE:
        return Look(size)


def _jpeg(begin: bytes) -> tuple[str, int, int] | None:
    """(mode, width, height) of a plain JPEG, as PIL says them; None for anything that PIL had better look at.

    Read are the segments up to the start of the scan (ITU T.81, B.1.1 and B.2.2), in a third of PIL's time.
    """
    if begin[:3] != b"\xff\xd8\xff":
        return None
    place, found = 2, None
    while place + 10 <= len(begin) and begin[place] == 0xFF:
        marker, length = begin[place + 1], begin[place + 2] << 8 | begin[place + 3]
        if marker == 0xDA:
            return found
        if marker in _FRAMES and found is None:
            bits, height, width, layers = struct.unpack_from(">BHHB", begin, place + 4)
            if bits != 8 or layers not in _MODES or length != 8 + 3 * layers or not 0 < height * width < _MOST_PIXELS:
                return None
            found = _MODES[layers], width, height
        elif not (marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF) or length < 2:
            return None
        if marker == 0xE2 and begin[place + 4 : place + 7] == b"MPF":  # several pictures in one file
            return None
        place += 2 + length
    return None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector: it would go through all that torch and pandas have loaded, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _remember(memo: Path, known: dict[str, Look]) -> None:
    """Not synced, which may take longer than all the looking: a memo that is damaged is not used."""
    memo.parent.mkdir(parents=True, exist_ok=True)
    temporary = memo.with_name(f"{TEMPORARY}{os.getpid()}-{memo.name}")
    temporary.write_text(json.dumps(known), encoding="utf-8")
    temporary.replace(memo)


def _load(memo: Path | None) -> dict[str, Look]:
    """What is remembered; nothing if there is no memo or it is damaged (then the files are looked at again)."""
    if memo is None or not memo.is_file():
        return {}
    try:
        loaded = json.loads(memo.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    if not isinstance(loaded, dict):
        return {}
    return {key: Look(*value) for key, value in loaded.items() if len(value) == len(Look._fields)}
