"""Reading image files: any ordinary picture becomes uint8 (H, W, C), and whatever can't be read is named.

Promises: upright (EXIF), on white where it was transparent, 8 bits, the wanted number of channels; every failure is a
DataError that names the file and the remedy, never a black image. The result depends on the file and the arguments
alone. Does not do: cache (cache.py), augment (augment.py), or read scientific rasters (a task's own reader does).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from outlast.base.files import write_text
from outlast.data.look import DAMAGED, TOO_LARGE
from outlast.errors import DataError

UInt8 = npt.NDArray[np.uint8]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_ORIENTATION = 0x0112


def read_image(path: str | os.PathLike[str], *, channels: int = 3, at_least: tuple[int, int] | None = None) -> UInt8:
    """The picture in a file, uint8 (H, W, channels), channels 1 or 3.

    at_least: (height, width) that are enough; a JPEG may then come back at 1/2, 1/4 or 1/8 of its size, never smaller
    than this, which decodes several times faster (the scaled inverse DCT of libjpeg).
    Raises DataError for anything that isn't a whole, readable picture.
    """
    return _read(path, os.fspath(path), channels, at_least)


def decode_image(data: bytes, name: str, *, channels: int = 3, at_least: tuple[int, int] | None = None) -> UInt8:
    """Like `read_image`, for the bytes of an image file held elsewhere (HDF5); `name` stands in error messages."""
    return _read(io.BytesIO(data), name, channels, at_least)


def center_crop(image: UInt8, fraction: float) -> UInt8:
    """The middle `fraction` (of height and of width) of an image (H, W, C); a view."""
    height, width = image.shape[:2]
    kept_h, kept_w = max(1, round(height * fraction)), max(1, round(width * fraction))
    top, left = (height - kept_h) // 2, (width - kept_w) // 2
    return image[top : top + kept_h, left : left + kept_w]


def resize(image: UInt8, size_hw: tuple[int, int]) -> UInt8:
    """An image (H, W, C) resized to (height, width), bilinear with antialiasing."""
    if image.shape[:2] == tuple(size_hw):
        return image
    plane = image[:, :, 0] if image.shape[2] == 1 else image
    resized = Image.fromarray(plane).resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(*size_hw, image.shape[2])


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Every image file below a folder, sorted; hidden files and __MACOSX are left out, link loops are safe.

    Raises DataError for a folder that doesn't exist or can't be listed.
    """
    return sorted(Path(path) for path in _walk(os.fspath(folder), frozenset()))


def scan(
    paths: Sequence[str | os.PathLike[str]], *, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> None:
    """Decode every file, to know before training starts; raises one DataError that names all damaged ones."""

    def problem(path: str | os.PathLike[str]) -> str | None:
        try:
            read_image(path, channels=1)
        except DataError as error:
            return error.message
        return None

    problems: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        for done, found in enumerate(pool.map(problem, paths), start=1):
            problems += [found] if found else []
            if progress:
                progress(done, len(paths))
    raise_damaged(problems, len(paths))


def raise_damaged(problems: Sequence[str], total: int) -> None:
    """One DataError for all files that could not be read; nothing if there are none."""
    if problems:
        shown = [*problems[:200], *([f"and {len(problems) - 200} more"] if len(problems) > 200 else [])]
        raise DataError(
            f"{len(problems)} of {total} samples can't be read",
            hint="replace these files with whole copies, or take them out of the data set",
            details=shown,
        )


def hash_files(paths: Sequence[str | os.PathLike[str]], *, memo: Path | None = None, threads: int = 2) -> list[str]:
    """SHA-256 (hex) of the contents of each file, in order.

    memo: a JSON file that remembers (path, size, mtime in ns) -> hash between runs, so that unchanged files aren't read
    again; it is written here. A file changed within the last two seconds is not remembered: a second change might not
    show in its time stamp. Raises one DataError that names every file that is missing or unreadable.
    """
    known = _load_memo(memo)
    fresh: dict[str, str] = {}

    def digest(path: str | os.PathLike[str]) -> tuple[str, str | None]:
        try:
            path = Path(path)
            status = path.stat()
            key = f"{path.absolute()}|{status.st_size}|{status.st_mtime_ns}"
            if key in known:
                fresh[key] = known[key]
                return known[key], None
            with path.open("rb") as file:
                value = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            remedy = f"; run: chmod u+r '{os.fspath(path)}'" if isinstance(error, PermissionError) else ""
            return "", f"{os.fspath(path)}: {error.strerror or error}{remedy}"
        if time.time() - status.st_mtime > 2.0:
            fresh[key] = value
        return value, None

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(digest, paths, chunksize=64))
    raise_damaged([problem for _, problem in results if problem], len(paths))
    if memo is not None and fresh.keys() - known.keys():
        with contextlib.suppress(OSError):  # a disk that is full or read-only: they are read again next time
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_text(memo, json.dumps({**known, **fresh}))
    return [value for value, _ in results]


def _load_memo(memo: Path | None) -> dict[str, str]:
    """What is remembered; nothing if there is no memo or it is damaged (then the files are read again)."""
    if memo is None or not memo.is_file():
        return {}
    try:
        loaded = json.loads(memo.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _read(
    source: str | os.PathLike[str] | io.BytesIO, name: str, channels: int, at_least: tuple[int, int] | None
) -> UInt8:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")
    try:
        with Image.open(source) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            if at_least is not None and image.format == "JPEG":
                height, width = at_least[::-1] if orientation in (5, 6, 7, 8) else at_least
                image.draft("L" if channels == 1 and image.mode == "L" else "RGB", (width, height))
            upright = ImageOps.exif_transpose(image) if orientation != 1 else image
            return _pixels(upright, channels)
    except DataError as error:
        raise DataError(f"{name}: {error.message}", hint=error.hint) from error
    except FileNotFoundError as error:
        raise DataError(
            f"{name}: the file doesn't exist (any more)", hint="restore it, or list the data anew"
        ) from error
    except PermissionError as error:
        raise DataError(f"{name}: no permission to read the file", hint=f"run: chmod u+r '{name}'") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: this is a folder, not an image", hint="name an image file") from error
    except UnidentifiedImageError as error:
        if _is_empty(source):
            raise DataError(f"{name}: the file is empty (0 bytes)", hint="copy it again, or delete it") from error
        raise DataError(
            f"{name}: this is not an image, whatever its name says", hint="delete the file, or replace it by an image"
        ) from error
    except TOO_LARGE as error:
        raise DataError(
            f"{name}: the image is too large to be decoded safely ({error})",
            hint="cut it into tiles, or make it smaller",
        ) from error
    except DAMAGED as error:
        raise DataError(
            f"{name}: the image is damaged ({error})", hint="copy the file again from its source, or delete it"
        ) from error


def _pixels(image: Image.Image, channels: int) -> UInt8:
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(image))
    elif image.mode == "F":
        raise DataError("floating-point pixels have no known range", hint="save it with 8 or 16 bits per channel")
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode != mode:
        image = image.convert("RGB").convert("L") if mode == "L" and image.mode != "1" else image.convert(mode)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bits(image: Image.Image) -> UInt8:
    """Grey values of 16 bits (mode I;16, or I, which holds 16-bit PNGs too) scaled to 8: 65535 becomes 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError("grey values outside 16 bits have no known range", hint="save it with 8 or 16 bits per channel")
    return ((values * 255 + 32767) // 65535).astype(np.uint8)


def _is_empty(source: str | os.PathLike[str] | io.BytesIO) -> bool:
    if isinstance(source, io.BytesIO):
        return source.getbuffer().nbytes == 0
    return Path(source).stat().st_size == 0


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    try:
        status = Path(folder).stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except NotADirectoryError as error:
        raise DataError(
            f"{folder}: this is a file, not a folder", hint="name the folder that holds the images"
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{folder}: the folder doesn't exist", hint="check the path") from error
    except PermissionError as error:
        raise DataError(f"{folder}: no permission to list the folder", hint=f"run: chmod u+rx '{folder}'") from error
    here = (status.st_dev, status.st_ino)
    if here in above:  # links that lead to each other
        return
    real = os.path.realpath(folder)
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        link = entry.is_symlink()
        # There may be 400,000 entries, so no stat for a plain one; no exception for a circular link.
        if os.path.isdir(entry.path) if link else entry.is_dir():  # noqa: PTH112
            if not (link and _contains(os.path.realpath(entry.path), real)):  # a link back up
                yield from _walk(entry.path, above | {here})
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not _loops(entry):  # noqa: PTH122
            yield entry.path


def _contains(folder: str, inner: str) -> bool:
    return f"{inner}/".startswith(f"{folder.rstrip('/')}/")


def _loops(entry: os.DirEntry[str]) -> bool:
    """Whether a symbolic link leads only to itself; a link to a missing file is listed, so that it gets named."""
    if not entry.is_symlink():
        return False
    try:
        entry.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
