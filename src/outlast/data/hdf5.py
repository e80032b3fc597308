"""Images by id: encoded pictures in an HDF5 file (key id -> bytes), or a folder of `<id>.jpg`; one interface for both.

Promises: nothing but names is read before an image is asked for, however many there are; every process has handles of
its own (after a fork the inherited one is closed, never read from; a pickled source carries none); every failure names
the id and the source, and there is never a black image. Ids join table and images, not the order of rows.
Does not do: cache decoded pixels (cache.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd

from outlast.data.readers import UInt8, decode_image, raise_damaged
from outlast.errors import DataError, DataNotFoundError

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg"})
_MOST_NAMED = 10  # ids of each kind, in an error
_AT_ONCE = 256  # ids that a thread takes


class Images(Protocol):
    """Encoded pictures by id."""

    path: Path

    def ids(self) -> list[str]:
        """Every id, sorted; read once and remembered."""
        ...

    def data(self, name: str) -> bytes:
        """The encoded picture of an id. Raises DataError if there is none, or it can't be read."""
        ...

    def close(self) -> None:
        """Let go of the file; the next `data` opens it again."""
        ...


def open_images(path: Path) -> HDF5Images | JPEGFolder:
    """The images in an HDF5 file or in a folder of JPEG files. Raises DataNotFoundError or DataError."""
    if path.is_dir():
        return JPEGFolder(path)
    return HDF5Images(path)


def read_by_id(images: Images, name: str, *, channels: int = 3, at_least: tuple[int, int] | None = None) -> UInt8:
    """The picture of an id, uint8 (H, W, channels); channels and at_least as for `readers.read_image`.

    Raises DataError that names id and source if there is none, or it is no whole picture.
    """
    return decode_image(images.data(name), f"{name} in {images.path}", channels=channels, at_least=at_least)


def match_ids(images: Images, ids: Sequence[str], table: str, *, unlisted_allowed: bool = False) -> list[str]:
    """The ids that have an image but no row in `table` (its name, for errors).

    Raises one DataError that names the ids that stand in the table twice, those without an image, and, unless they are
    allowed (a table that was cut down on purpose), those with an image only.
    """
    listed_ids = pd.Index(ids)
    known = pd.Index(images.ids())
    twice = listed_ids[listed_ids.duplicated()].unique()
    without, unlisted = listed_ids.unique().difference(known), known.difference(listed_ids)
    details = _named(twice, f"{table} has two rows; keep one")
    details += _named(without, f"a row of {table} without an image in {images.path}; add the image or remove the row")
    if not unlisted_allowed:
        details += _named(unlisted, f"an image in {images.path} without a row in {table}; add the row, or allow it")
    if details:
        extra = "" if unlisted_allowed else f", {len(unlisted)} images have no row"
        raise DataError(
            f"{table} and {images.path} do not fit together: {len(twice)} ids stand twice, {len(without)} rows have "
            f"no image{extra}",
            hint="see the remedy in each line; are both of the same data set and the same part (train, test)?",
            details=details,
        )
    return [str(name) for name in unlisted]


def scan_images(
    images: Images, ids: Sequence[str], *, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> None:
    """Decode the image of every id, to know before training starts; raises one DataError that names all damaged."""

    def decode(name: str) -> str:
        read_by_id(images, name, channels=1)
        return ""

    _visit(ids, decode, threads, progress)


def unreadable(
    images: Images, ids: Sequence[str], *, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> dict[str, str]:
    """{id: why}, in their order, of the ids whose picture is not there or can't be decoded."""

    def look(name: str) -> str:
        try:
            read_by_id(images, name, channels=1)
        except DataError as error:
            return error.message
        return ""

    found = _visit(ids, look, threads, progress)
    return {name: why for name, why in zip(ids, found, strict=True) if why}


def hash_images(
    images: Images, ids: Sequence[str], *, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """SHA-256 (hex) of the encoded picture of each id, in order; the same in a file and in a folder.

    Raises one DataError that names every id that is missing or unreadable.
    """
    return _visit(ids, lambda name: hashlib.sha256(images.data(name)).hexdigest(), threads, progress)


class HDF5Images:
    """A held resource: an HDF5 file whose keys are ids and whose values are encoded pictures.

    A value may be an opaque or byte-string scalar or a one-dimensional array of bytes. Picklable; each process opens
    the file itself when it first reads. Raises DataNotFoundError if there is no file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataNotFoundError(f"there are no images at {path}", hint="check the path; is the data set attached?")
        self.path = path
        self._ids: list[str] | None = None
        self._handle: tuple[int, Any] | None = None  # (process, h5py.File)

    def ids(self) -> list[str]:
        """Every id, sorted. Raises DataError if the file is no HDF5 file."""
        if self._ids is None:
            self._ids = sorted(self._file())
        return self._ids

    def data(self, name: str) -> bytes:
        """The encoded picture of an id. Raises DataError."""
        file = self._file()
        try:
            value = file[name][()]
        except KeyError as error:
            raise DataError(
                f"{name}: there is no image with this id in {self.path}", hint="remove the row, or add the image"
            ) from error
        except (OSError, RuntimeError, TypeError, AttributeError) as error:
            raise DataError(
                f"{name}: the entry in {self.path} can't be read ({error})", hint="copy the file again from its source"
            ) from error
        encoded = _encoded(value)
        if encoded is None:
            raise DataError(
                f"{name}: the entry in {self.path} holds {_kind(value)}, not the bytes of a picture",
                hint="store each image as its encoded bytes under its id",
            )
        return encoded

    def close(self) -> None:
        """Close the file in this process; the next read opens it again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # A loader process opens the file itself; 400,000 ids are listed faster than they are pickled and sent.
        return {"path": self.path, "_ids": None, "_handle": None}

    def _file(self) -> Any:
        """The file as this process opened it. An inherited handle shares its descriptor and the library's state with
        the parent: it is closed first, or HDF5 would take it for the same open file and go on using it."""
        handle = self._handle
        if handle is None or handle[0] != os.getpid():
            self.close()
            handle = self._handle = (os.getpid(), _opened(self.path))
        return handle[1]


class JPEGFolder:
    """A folder of `<id>.jpg` files (.jpeg, capitals), with the interface of `HDF5Images`. Picklable; holds nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: dict[str, str] | None = None

    def ids(self) -> list[str]:
        """Every id, sorted. Raises DataError that names the ids that two files have."""
        return sorted(self._listed())

    def data(self, name: str) -> bytes:
        """The contents of an id's file. Raises DataError."""
        file = self._listed().get(name)
        if file is None:
            raise DataError(
                f"{name}: there is no image with this id in {self.path}", hint="remove the row, or add the image"
            )
        try:
            return (self.path / file).read_bytes()
        except OSError as error:
            raise DataError(
                f"{name}: {self.path / file} can't be read ({error.strerror or error})",
                hint="restore the file, or list the data anew",
            ) from error

    def close(self) -> None:
        """Nothing is held open."""

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_names": None}

    def _listed(self) -> dict[str, str]:
        if self._names is not None:
            return self._names
        try:
            with os.scandir(self.path) as entries:
                files = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            raise DataError(
                f"{self.path} can't be listed ({error.strerror or error})", hint="check the path and its permissions"
            ) from error
        parts = [(*_split(name), name) for name in files]
        pictures = [(stem, name) for stem, suffix, name in parts if suffix.lower() in JPEG_SUFFIXES]
        names = dict(pictures)
        twice = [f"{stem}: {name} and {names[stem]}" for stem, name in pictures if names[stem] != name]
        if twice:
            raise DataError(
                f"{len(twice)} ids in {self.path} have two files",
                hint="keep one file per id",
                details=_shortened(twice),
            )
        self._names = names
        return names


def _opened(path: Path) -> Any:
    import h5py

    try:
        # Only ever read; and no locks: read-only and network file systems have none.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(
            f"{path} is not a whole HDF5 file ({error})",
            hint="copy it again from its source; a git-lfs pointer or an interrupted download looks like this",
        ) from error


def _encoded(value: Any) -> bytes | None:
    """The bytes in an entry, however they were stored; None if it holds something else."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.void) and value.dtype.names is None:
        return value.tobytes()
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in (np.uint8, np.int8):
        return value.tobytes()
    return None


def _kind(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _split(name: str) -> tuple[str, str]:
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix}") if dot else (name, "")


def _visit(
    ids: Sequence[str], act: Callable[[str], str], threads: int, progress: Callable[[int, int], None] | None
) -> list[str]:
    """What `act` gives for each id, in order; one DataError with every problem."""
    problems: list[str] = []
    results: list[str] = []

    def some(names: Sequence[str]) -> list[tuple[str, str]]:
        made = []
        for name in names:
            try:
                made.append((act(name), ""))
            except DataError as error:
                made.append(("", error.message))
        return made

    parts = [ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE)]
    with ThreadPoolExecutor(threads) as pool:
        for made in pool.map(some, parts):
            results += [result for result, _ in made]
            problems += [problem for _, problem in made if problem]
            if progress:
                progress(len(results), len(ids))
    raise_damaged(problems, len(ids))
    return results


def _named(ids: pd.Index[Any], what: str) -> list[str]:
    return _shortened([f"{name}: {what}" for name in ids[: _MOST_NAMED + 1]], len(ids))


def _shortened(lines: Sequence[str], total: int | None = None) -> list[str]:
    left = (len(lines) if total is None else total) - _MOST_NAMED
    return [*lines[:_MOST_NAMED], *([f"and {left} more"] if left > 0 else [])]
