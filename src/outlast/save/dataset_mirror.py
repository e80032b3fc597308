"""A mirror on Kaggle, `kaggle://OWNER/SLUG`: each snapshot of a run is one version of a private data set.

    run.pack     the contents of all files of the run, one after the other
    index.json   which files, with size and SHA-256, in that order; the SHA-256 of run.pack and of the index itself

Two files, because each upload is several requests; of a kind that Kaggle does not unpack. A version appears whole or
not at all. It counts when Kaggle has processed it and both files were downloaded again and had the right hash. A
version can't be changed, and Kaggle keeps the older ones: nothing is ever removed here. One session at a time writes:
as soon as another one's version is there, this one makes no more.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from outlast.base.accident import reached
from outlast.base.files import sha256, write_json
from outlast.base.scratch import scratch_folder
from outlast.env import kaggle_datasets, kaggle_process
from outlast.errors import CheckpointError, RunError, UsageError
from outlast.save.mirror import START_PATIENCE_SECONDS, Entry, Index, Mirror, check_manifests, object_name, parse_index
from outlast.save.place import PIECE_BYTES, Place
from outlast.save.snapshot import Snapshot

SCHEME = "kaggle://"
PACK, INDEX = "run.pack", "index.json"
_READINGS = 3  # of what arrives damaged
_LOOKED_AT = 3  # versions, newest first

Result = TypeVar("Result")


class DatasetPlace(Place):
    """The versions of a data set, to be read. What was downloaded is kept until the place is forgotten."""

    def __init__(self, url: str) -> None:
        found = re.fullmatch(r"kaggle://([\w-]+)/([\w-]{6,50})/?", url)
        if found is None:
            raise UsageError(
                f"{url} is no data set on Kaggle",
                hint="write kaggle://OWNER/SLUG, the slug of 6 to 50 letters, digits and -",
            )
        self.url, self.folder = url, None
        self.ref, self.slug = f"{found[1]}/{found[2]}", found[2]
        self.shown = f"{SCHEME}{self.ref}"
        self._where: dict[str, list[tuple[int, int, int]]] = {}  # {object: [(version, offset, bytes)]}
        self._packs: dict[int, str] = {}  # {version: SHA-256 of its pack}
        self._bad: set[int] = set()
        self._own: Path | None = None

    def connect(self) -> None:
        """Each call to Kaggle connects anew."""

    def patiently(self, work: Callable[[], Result], patience_seconds: float) -> Result:
        """Do the work: what it asks of Kaggle is tried again by itself."""
        return work()

    def pieces(self, name: str) -> Iterator[bytes]:
        """The contents of one object, from the newest version that holds it and arrives whole.

        Raises CheckpointError if there is none.
        """
        for version, offset, size in self._where.get(name, []):
            if version in self._bad:
                continue
            try:
                pack = self.pack(version)
            except CheckpointError:
                self._bad.add(version)
                continue
            with pack.open("rb") as stream:
                stream.seek(offset)
                while size > 0 and (piece := stream.read(min(PIECE_BYTES, size))):
                    size -= len(piece)
                    yield piece
            return
        raise CheckpointError(f"{name} is in no version of {self.shown} that is whole")

    def read_index(self, version: int) -> Index:
        """The index of a version; its objects can be read from now on. Raises CheckpointError, RunError."""
        for _ in range(_READINGS):
            data = kaggle_datasets.fetch_file(self.ref, version, INDEX, self._folder(version)).read_bytes()
            if (values := _opened(data)) is not None:
                break
        else:
            raise CheckpointError(f"the index of version {version} of {self.shown} is damaged")
        index = parse_index(f"{INDEX} of version {version}", values["index"])
        self._packs[version] = values["index"]["pack"]
        offset = 0
        for path, entry in index.files.items():
            self._where.setdefault(object_name(path, entry), []).append((version, offset, entry.bytes))
            offset += entry.bytes
        return index

    def pack(self, version: int) -> Path:
        """The pack of a version whose index was read, downloaded once. Raises CheckpointError if it is damaged."""
        path = self._folder(version) / PACK
        for _ in range(_READINGS):
            if path.is_file() and sha256(path) == self._packs[version]:
                return path
            kaggle_datasets.fetch_file(self.ref, version, PACK, path.parent)
        if sha256(path) == self._packs[version]:
            return path
        raise CheckpointError(f"{PACK} of version {version} of {self.shown} is damaged (its SHA-256 differs)")

    def forget(self, version: int) -> None:
        """Remove what was downloaded of a version."""
        shutil.rmtree(self._folder(version))

    def _folder(self, version: int) -> Path:
        if self._own is None:
            scratch_folder().mkdir(parents=True, exist_ok=True)
            self._own = Path(tempfile.mkdtemp(prefix="kaggle-", dir=scratch_folder()))
            weakref.finalize(self, shutil.rmtree, self._own, ignore_errors=True)
        return self._own / f"version-{version}"


class DatasetMirror(Mirror):
    """An open mirror whose snapshots are versions of a data set; the number of a snapshot is its version's."""

    place: DatasetPlace

    @classmethod
    def open(cls, url: str, run: Path, patience_seconds: float = START_PATIENCE_SECONDS) -> Self:
        """Open the mirror: see what is there, with the credentials that there are.

        Raises UsageError (no such URL) and RunError (no credentials, no connection, Kaggle refuses).
        """
        mirror = cls(DatasetPlace(url), [])
        with kaggle_process.kept_open():
            state = kaggle_datasets.wait_until_ready(mirror.place.ref)
            mirror._base = state.version
            for version in range(state.version, max(state.version - _LOOKED_AT, 0), -1):
                try:
                    mirror.found.append(mirror.place.read_index(version))
                except CheckpointError as error:
                    mirror.problems.append(error.message)
        return mirror

    def store(self, snapshot: Snapshot, run_id: str) -> Index:
        """Make a version of the snapshot; when this returns, it was processed, read back and counts.

        Raises as Mirror.store does.
        """
        paths = {name: snapshot.folder / name for name in snapshot.names()}
        with kaggle_process.kept_open(), tempfile.TemporaryDirectory(dir=snapshot.folder.parent, prefix=".tmp-") as own:
            number = self._check_alone() + 1
            files, digest = _write_pack(Path(own) / PACK, paths)
            check_manifests(paths, files)
            values = {**self.describe(number, snapshot, files, run_id), "pack": digest}
            write_json(Path(own) / INDEX, {"index": values, "sha256": _seal(values)})
            reached("mirror.object")
            notes = ", ".join(f"{stage} at {at['step']}" for stage, at in snapshot.progress.items())
            version = kaggle_datasets.publish(Path(own), self.place.ref, self.place.slug, notes)
            reached("mirror.verify")
            index = self.place.read_index(version)
            if index.session != self.session:
                raise _other_session(self.place.shown, version)
            if index.files != files:
                raise CheckpointError(f"{self.place.shown}: what was read back of {INDEX} is not what was written")
            self._written.add(str(version))
            self.place.pack(version)
            reached("mirror.durable")
            self.place.forget(version)
        return index

    def prune(self, stored: Index) -> None:
        """Nothing: a data set keeps its versions."""

    def _check_alone(self) -> int:
        """The newest version there. Raises RunError if another session made it since this one opened the mirror."""
        version = kaggle_datasets.wait_until_ready(self.place.ref).version
        if version > self._base and str(version) not in self._written:
            if self.place.read_index(version).session != self.session:
                raise _other_session(self.place.shown, version)
            self._written.add(str(version))  # ours: only Kaggle's answer was lost
        return version


def _other_session(shown: str, version: int) -> RunError:
    return RunError(
        f"another session is writing to the mirror {shown} (version {version} is not ours): this one makes no more",
        hint="let one session at a time train with this mirror: end one of the two, start the other again",
    )


def _write_pack(pack: Path, paths: dict[str, Path]) -> tuple[dict[str, Entry], str]:
    """Write the contents of all files into one; what each of them is, and the SHA-256 of the whole."""
    files, whole = {}, hashlib.sha256()
    with pack.open("wb") as stream:
        for name, path in paths.items():
            one, size = hashlib.sha256(), 0
            with path.open("rb") as source:
                while piece := source.read(PIECE_BYTES):
                    one.update(piece)
                    whole.update(piece)
                    size += stream.write(piece)
            files[name] = Entry(size, one.hexdigest())
    return files, whole.hexdigest()


def _opened(data: bytes) -> dict[str, Any] | None:
    """What an index file holds, if it is whole."""
    try:
        values = json.loads(data)
        return values if values["sha256"] == _seal(values["index"]) and values["index"]["pack"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
