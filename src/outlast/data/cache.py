"""Decoded samples on disk, memory-mapped: every image is decoded once, then an epoch only copies bytes.

Promises: a cache is complete or absent (built in a temporary folder, synced, renamed), so a killed build leaves nothing
that looks finished; processes that race for one key build it once; all caches in a folder stay within the disk budget
(the least recently used go first, never one in use); every damaged file is found and named in one error; what doesn't
fit is read on demand, and `note` says so. Does not do: augment, shuffle, or decide the key (fingerprint of the data
and hash of the reading settings: the caller's).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from outlast.base.files import sync_path
from outlast.data.readers import raise_damaged
from outlast.errors import DataError

Array = npt.NDArray[Any]
Row = Mapping[str, Any]
Read = Callable[[Row], dict[str, Array]]
Progress = Callable[[int, int], None]
Gathered = dict[str, Any]  # name -> array (B, ...) where all samples have one shape, else a list of B arrays

_META, _IN_USE = "meta.json", "in-use.lock"
_FIELDS = {"rows", "cached", "bytes", "needed_bytes", "note", "arrays"}
_KEPT_FREE_BYTES = 512 * 2**20  # disk that is left for checkpoints and everything else


def build(
    rows: Sequence[Row],
    read: Read,
    *,
    key: str,
    folder: Path,
    budget_bytes: int,
    threads: int = 2,
    progress: Progress | None = None,
    verify: bool = True,
) -> Cache:
    """The cache of these rows: opened if it exists, else built with `threads` threads.

    read(row): {name: array} of one row, the same names and dtypes for each. key: names contents and reading settings; a
    file name. budget_bytes: for all caches in `folder`. progress(done, total): called after each row. verify: rows that
    don't fit are decoded once too, so that damaged files are found now and not in the middle of training.
    Raises DataError that names every damaged file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{key}.building"):
        _remove_dead_builds(folder)
        cache = _opened(folder / key, rows, read)
        if (
            cache is not None
            and not cache.complete
            and _has_grown(_make_room(folder / key, cache.needed_bytes, budget_bytes), cache)
        ):
            cache.close()
            _remove_unless_used(folder / key)  # more room than when it was built: build it anew
            cache = _opened(folder / key, rows, read)
        if cache is not None:
            return cache
        return _built(rows, read, folder / key, budget_bytes, threads, progress, verify)


@dataclass
class Cache:
    """A held resource: the samples of `rows`, of which the first `cached` lie decoded on disk. Picklable."""

    path: Path
    rows: Sequence[Row]
    read: Read
    cached: int
    cached_bytes: int
    needed_bytes: int
    note: str
    arrays: list[dict[str, Any]]
    _stores: dict[str, _Stacked | _Ragged] | None = field(default=None, repr=False)
    _lock: IO[bytes] | None = field(default=None, repr=False)

    @property
    def complete(self) -> bool:
        """Whether every row is on disk."""
        return self.cached == len(self.rows)

    def get(self, positions: npt.NDArray[np.int64]) -> Gathered:
        """Samples at these positions (B,): {name: (B, ...)}, or lists of B arrays where shapes differ between rows."""
        stores = self._stores if self._stores is not None else self._open_stores()
        if self.complete or (len(positions) and int(positions.max()) < self.cached):
            return {name: store.take(positions) for name, store in stores.items()}
        return self._get_partly(positions, stores)

    def close(self) -> None:
        """Let go of the files; another process may then remove this cache to make room."""
        self._stores = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # A loader process opens the files itself, at its first batch.
        return {**self.__dict__, "_stores": None, "_lock": None}

    def _open_stores(self) -> dict[str, _Stacked | _Ragged]:
        if self._lock is None:
            self._lock = _in_use(self.path)
        stores: dict[str, _Stacked | _Ragged] = {}
        for info in self.arrays:
            flat = _mapped(self.path / info["file"], np.dtype(info["dtype"]))
            if info["shape"] is not None:
                stores[info["name"]] = _Stacked(flat.reshape(self.cached, *info["shape"]))
            else:
                stores[info["name"]] = _Ragged(flat, np.load(self.path / f"{info['file']}.shapes.npy"))
        self._stores = stores
        return stores

    def _get_partly(self, positions: npt.NDArray[np.int64], stores: dict[str, _Stacked | _Ragged]) -> Gathered:
        samples: list[dict[str, Array]] = []
        for position in positions.tolist():
            if position < self.cached:
                one = np.asarray([position])
                samples.append({name: store.take(one)[0] for name, store in stores.items()})
            else:
                samples.append(self.read(self.rows[position]))
        gathered: Gathered = {}
        for info in self.arrays:
            values = [sample[info["name"]] for sample in samples]
            gathered[info["name"]] = np.stack(values) if info["shape"] is not None and values else values
        return gathered


def _has_grown(room_bytes: int, cache: Cache) -> bool:
    """Whether all rows would fit now, or at least twice as many."""
    return room_bytes >= cache.needed_bytes or room_bytes >= 2 * max(cache.cached_bytes, cache.needed_bytes // 100)


@dataclass
class _Stacked:
    """Samples of one shape: an array (rows, ...)."""

    array: Array

    def take(self, positions: npt.NDArray[np.int64]) -> Array:
        return self.array.take(positions, axis=0)


@dataclass
class _Ragged:
    """Samples of different shapes, one after the other: flat (elements,), shapes (rows, dimensions)."""

    flat: Array
    shapes: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        self.ends = np.cumsum(self.shapes.prod(axis=1))

    def take(self, positions: npt.NDArray[np.int64]) -> list[Array]:
        samples = []
        for position in positions.tolist():
            end, shape = self.ends[position], self.shapes[position]
            samples.append(self.flat[end - shape.prod() : end].reshape(shape).copy())
        return samples


def _built(
    rows: Sequence[Row],
    read: Read,
    target: Path,
    budget_bytes: int,
    threads: int,
    progress: Progress | None,
    verify: bool,
) -> Cache:
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
    lock = _in_use(temporary)  # held from here on, through the rename: nobody takes it for a dead build
    writer = _Writer(temporary, target, len(rows), budget_bytes)
    try:
        problems: list[str] = []
        for done, (sample, problem) in enumerate(_in_order(rows, read, threads), start=1):
            if sample is None:
                problems.append(problem)
            else:
                writer.add(sample)
            if progress:
                progress(done, len(rows))
            if writer.full and not verify:
                break
        raise_damaged(problems, len(rows))
        writer.finish()
        _rename_or_yield(temporary, target)
    except BaseException as error:
        writer.close()
        lock.close()
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk of {target.parent} is full", hint="free some space, or set loading.cache_gigabytes=0"
            ) from error
        raise
    cache = _opened(target, rows, read)
    lock.close()
    if cache is None:
        raise DataError(f"the cache {target} vanished while it was opened", hint="start again")
    return cache


def _rename_or_yield(temporary: Path, target: Path) -> None:
    try:
        os.rename(temporary, target)  # noqa: PTH104
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(temporary)  # without file locks another process may have finished first: its cache is as good
    sync_path(target.parent)


class _Writer:
    """Appends samples to one file per array until the budget or the disk is full; then only checks them."""

    def __init__(self, folder: Path, target: Path, total: int, budget_bytes: int) -> None:
        self.folder, self.target, self.total, self.budget = folder, target, total, budget_bytes
        self.names: list[str] = []
        self.dtypes: list[np.dtype[Any]] = []
        self.files: list[IO[bytes]] = []
        self.shapes: list[list[tuple[int, ...]]] = []
        self.constant: list[bool] = []
        self.first: list[tuple[int, ...]] = []
        self.cached, self.bytes, self.room = 0, 0, 0
        self.seen, self.seen_bytes = 0, 0
        self.full = ""  # why nothing more is written

    def add(self, sample: Mapping[str, Array]) -> None:
        if not self.names:
            self._start(sample)
        if list(sample) != self.names or [value.dtype for value in sample.values()] != self.dtypes:
            raise TypeError(f"read() must return the same arrays for each row: {self.names}, then {list(sample)}")
        values = [np.asarray(value, order="C") for value in sample.values()]
        for number, value in enumerate(values):
            self.constant[number] &= value.shape == self.first[number]
        size = sum(value.nbytes for value in values)
        self.seen, self.seen_bytes = self.seen + 1, self.seen_bytes + size
        if not self.full and self.bytes + size > self.room:
            self.room = _make_room(self.target, self.bytes + size, self.budget)
            if self.bytes + size > self.room:
                self.full = "the disk budget is used up"
        if self.full:
            return
        try:
            for file, value in zip(self.files, values, strict=True):
                _write_all(file, value)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.full = "the disk is full"
            return
        for shapes, value in zip(self.shapes, values, strict=True):
            shapes.append(value.shape)
        self.bytes += size
        self.cached += 1

    def finish(self) -> None:
        arrays = []
        for number, name in enumerate(self.names):
            file, shapes = self.files[number], self.shapes[number]
            elements = sum(int(np.prod(shape)) for shape in shapes)
            file.flush()
            file.truncate(elements * self.dtypes[number].itemsize)  # a row that the disk had no room for
            os.fsync(file.fileno())
            file.close()
            if not self.constant[number]:
                table = np.asarray(shapes, dtype=np.int64).reshape(len(shapes), len(self.first[number]))
                with (self.folder / f"{number}.bin.shapes.npy").open("wb") as out:
                    np.save(out, table)
                    out.flush()
                    os.fsync(out.fileno())
            shape = list(self.first[number]) if self.constant[number] else None
            arrays.append({"name": name, "dtype": self.dtypes[number].str, "file": f"{number}.bin", "shape": shape})
        note = "" if self.cached == self.total else self._note()
        needed = self.seen_bytes * self.total // max(self.seen, 1)
        meta = {"rows": self.total, "cached": self.cached, "bytes": self.bytes, "needed_bytes": needed, "note": note}
        with (self.folder / _META).open("w", encoding="utf-8") as out:
            json.dump({**meta, "arrays": arrays}, out)
            out.flush()
            os.fsync(out.fileno())
        sync_path(self.folder)

    def close(self) -> None:
        for file in self.files:
            file.close()

    def _start(self, sample: Mapping[str, Array]) -> None:
        self.names = list(sample)
        self.dtypes = [value.dtype for value in sample.values()]
        self.first = [value.shape for value in sample.values()]
        self.constant = [True] * len(self.names)
        self.shapes = [[] for _ in self.names]
        # Unbuffered: a full disk shows at the row that doesn't fit.
        self.files = [(self.folder / f"{number}.bin").open("wb", buffering=0) for number in range(len(self.names))]
        self.room = _make_room(self.target, self.total * sum(value.nbytes for value in sample.values()), self.budget)

    def _note(self) -> str:
        return (
            f"{self.cached} of {self.total} samples are cached ({self.bytes / 1e9:.2f} GB; {self.full}); the others "
            "are decoded each time. A larger loading.cache_gigabytes, or smaller samples, would make epochs faster"
        )


def _in_order(rows: Sequence[Row], read: Read, threads: int) -> Iterator[tuple[dict[str, Array] | None, str]]:
    """(sample, '') or (None, problem) of each row, in order, with a few rows in flight."""

    def one(row: Row) -> tuple[dict[str, Array] | None, str]:
        try:
            return read(row), ""
        except DataError as error:
            return None, error.message

    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[tuple[dict[str, Array] | None, str]]] = deque()
    try:
        for position in range(len(rows)):
            waiting.append(pool.submit(one, rows[position]))
            if len(waiting) >= 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _opened(path: Path, rows: Sequence[Row], read: Read) -> Cache | None:
    """The finished cache at `path`, marked as in use and as just used; None if there is none (or of another form)."""
    try:
        lock = _in_use(path)
    except FileNotFoundError:
        return None
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
        complete = set(meta) >= _FIELDS
    except (FileNotFoundError, ValueError, TypeError):
        complete = False
    if not complete:  # another version wrote it, or something damaged it: what it held can be decoded again
        lock.close()
        if _remove_unless_used(path):
            return None
        raise DataError(
            f"the cache {path} is of another version of Outlast, which is using it", hint="wait until that has ended"
        )
    sizes = {info["file"]: (path / info["file"]).stat().st_size for info in meta["arrays"]}
    if meta["rows"] != len(rows) or sum(sizes.values()) != meta["bytes"]:
        lock.close()
        raise DataError(f"the cache {path} doesn't fit its key or is damaged", hint=f"delete it: rm -r '{path}'")
    with suppress(OSError):
        os.utime(path)
    sizes_of = {"cached_bytes": meta["bytes"], "needed_bytes": meta["needed_bytes"]}
    return Cache(path, rows, read, meta["cached"], note=meta["note"], arrays=meta["arrays"], **sizes_of, _lock=lock)


def _make_room(target: Path, wanted_bytes: int, budget_bytes: int) -> int:
    """How many bytes the new cache may have, after removing other ones, the least recently used first."""
    free = shutil.disk_usage(target.parent).free - _KEPT_FREE_BYTES
    finished = (path for path in target.parent.iterdir() if not path.name.startswith(".tmp-"))
    others = [path for path in finished if (path / _META).is_file() and path != target]
    sizes = {path: _bytes_in(path) for path in others}
    for path in sorted(others, key=_last_used):
        if min(budget_bytes - sum(sizes.values()), free) >= wanted_bytes:
            break
        if _remove_unless_used(path):
            free += sizes.pop(path)
    own = [target, *(path for path in target.parent.iterdir() if path.name.startswith(f".tmp-{target.name}-"))]
    return max(0, min(budget_bytes - sum(sizes.values()), free + sum(map(_bytes_in, own))))


def _remove_unless_used(path: Path) -> bool:
    """Remove a cache or a build if no process has it open. It is renamed first: it vanishes at once or not at all."""
    try:
        with (path / _IN_USE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            doomed = path.with_name(f".tmp-removed-{path.name}-{os.getpid()}")
            os.rename(path, doomed)  # noqa: PTH104
            shutil.rmtree(doomed, ignore_errors=True)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOTEMPTY, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return False
    return True


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder; what another process has moved away since it was listed does not count."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as files:
        for file in files:
            total += file.stat().st_size
    return total


def _last_used(folder: Path) -> int:
    """When a cache was opened last, in nanoseconds; 0 if another process has removed it since it was listed."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _remove_dead_builds(folder: Path) -> None:
    for path in folder.glob(".tmp-*"):
        if path.name.startswith(".tmp-removed-"):  # its remover was killed
            shutil.rmtree(path, ignore_errors=True)
        else:
            _remove_unless_used(path)


def _in_use(path: Path) -> IO[bytes]:
    """A shared lock on a cache folder, held as long as the returned file is open; it goes with the process."""
    while True:
        marker = path / _IN_USE
        if path.name.startswith(".tmp-"):
            marker.touch()
        lock = marker.open("rb")
        with suppress(OSError):  # a file system without locks: nothing is ever evicted there either
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            if os.fstat(lock.fileno()).st_ino == marker.stat().st_ino:
                return lock
        except FileNotFoundError:
            lock.close()
            raise
        lock.close()  # removed and built anew in between


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. The lock goes with the process, whatever kills it."""
    with path.open("wb") as lock:
        with suppress(OSError):  # without locks the rename decides the race
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _mapped(path: Path, dtype: np.dtype[Any]) -> Array:
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def _write_all(file: IO[bytes], value: Array) -> None:
    left = value.reshape(-1).view(np.uint8).data
    while len(left):
        left = left[file.write(left) :]  # an unbuffered write may take a part only
