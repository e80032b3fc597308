"""A run's copy elsewhere: what lies on a mirror, and how it is written, read back and pruned.

    URL/files/<path in the run>.<first 16 hex of its SHA-256>      one version of one file, never changed
    URL/index/000000042-<first 16 hex of its own SHA-256>.json     one snapshot: which files, with size and SHA-256

An index is written last, when each file that it names was read back and had the right hash; then it is read back
itself. Only then does the snapshot count, and only then is what no kept index needs removed. So an upload that ends
anywhere leaves the snapshot before it whole. Files that did not change are not written again. One session at a time
writes: as soon as another one's newer index is there, this one writes and removes nothing more.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Self

from outlast.base.accident import reached
from outlast.base.files import MANIFEST, sha256
from outlast.errors import CheckpointError, RunError, UsageError
from outlast.save.place import Place
from outlast.save.snapshot import Facts, Snapshot

FILES, INDEX, PROBE = "files", "index", "probe"
START_PATIENCE_SECONDS = 120.0
_INDEX_NAME = re.compile(rf"{INDEX}/(\d{{9,}})-([0-9a-f]{{16}})\.json")
_FORMAT = 1
_READINGS = 3  # of an index that arrives damaged: it may have been damaged on the way


@dataclass(frozen=True)
class Entry:
    """One file of a snapshot."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """One snapshot of a run on the mirror."""

    number: int
    run_id: str
    session: str
    time: str
    progress: Facts
    files: dict[str, Entry]
    name: str

    def objects(self) -> set[str]:
        """The names on the mirror of all its files."""
        return {object_name(path, entry) for path, entry in self.files.items()}


def object_name(path: str, entry: Entry) -> str:
    """Where a version of a file lies on the mirror."""
    return f"{FILES}/{path}.{entry.sha256[:16]}"


class Mirror:
    """An open mirror of one run, for one session.

    `found` are the whole snapshots that were there when it was opened, newest first, `problems` says what is wrong with
    others. A snapshot that is newer than all of them is this session's own, or another session is writing.
    """

    def __init__(self, place: Place, warnings: list[str]) -> None:
        self.place, self.warnings = place, warnings
        self.found: list[Index] = []
        self.problems: list[str] = []
        self._base = 0  # the highest number that was there
        self.session = secrets.token_hex(8)
        self._written: set[str] = set()  # indices
        self._verified: set[str] = set()  # objects that were read back

    @classmethod
    def open(cls, url: str, run: Path, patience_seconds: float = START_PATIENCE_SECONDS) -> Self:
        """Open the mirror of `run`, and try that it can be written, read and listed.

        Raises UsageError (nothing can open the URL, or it lies inside the run) and RunError (the place refuses, or
        does not answer for `patience_seconds`).
        """
        place = Place(url)
        mirror = cls(place, [warning] if (warning := same_file_system(place, run)) else [])
        place.patiently(mirror._look, patience_seconds)
        return mirror

    def store(self, snapshot: Snapshot, run_id: str) -> Index:
        """Bring a snapshot to the mirror; when this returns, it was read back and counts.

        Raises RunError if another session writes to this mirror, CheckpointError if a file of the snapshot is damaged
        or what is read back is not what was written, and whatever the place raises.
        """
        self._check_alone()
        present = self.place.sizes(FILES)
        paths = {name: snapshot.folder / name for name in snapshot.names()}
        files = {name: Entry(path.stat().st_size, sha256(path)) for name, path in paths.items()}
        check_manifests(paths, files)
        for name, path in paths.items():
            self._keep(path, object_name(name, files[name]), files[name], present)
        return self._write_index(self._check_alone() + 1, snapshot, files, run_id)

    def prune(self, stored: Index) -> None:
        """Keep the snapshot just stored and the newest whole one before it; remove what neither of them needs."""
        self._check_alone()
        before = (index for index in self._indices([]) if index.number < stored.number)
        kept = [stored, *itertools.islice(before, 1)]
        names = {index.name for index in kept}
        needed = set().union(*(index.objects() for index in kept))
        for name in [name for name in self.place.sizes(INDEX) if name not in names]:
            reached("mirror.prune")
            self.place.remove(name)
        for name in [name for name in self.place.sizes(FILES) if name not in needed]:
            reached("mirror.prune")
            self.place.remove(name)

    def check_run(self, run_id: str) -> None:
        """Refuse (RunError) a mirror that holds another run."""
        for index in self.found:
            if index.run_id != run_id:
                raise RunError(
                    f"the mirror {self.place.shown} holds another run (snapshot {index.number} of {index.time})",
                    hint="give this run a mirror of its own, or --out a new folder to go on with the run that is there",
                )

    def describe(self, number: int, snapshot: Snapshot, files: dict[str, Entry], run_id: str) -> dict[str, Any]:
        """What the index of a snapshot says."""
        return {
            "format": _FORMAT,
            "number": number,
            "run_id": run_id,
            "session": self.session,
            "time": datetime.fromtimestamp(snapshot.taken_at, UTC).isoformat(timespec="seconds"),
            "progress": snapshot.progress,
            "files": {path: asdict(entry) for path, entry in files.items()},
        }

    def _index_names(self) -> list[str]:
        """The names of all indices, newest first."""
        return sorted(filter(_INDEX_NAME.fullmatch, self.place.sizes(INDEX)), key=_number, reverse=True)

    def _indices(self, problems: list[str]) -> Iterator[Index]:
        """The indices that are whole, newest first; what is wrong with others goes to `problems`."""
        for name in self._index_names():
            try:
                yield self._read_index(name)
            except (CheckpointError, FileNotFoundError) as error:
                problems.append(error.message if isinstance(error, CheckpointError) else f"{name} is gone")

    def _keep(self, path: Path, name: str, entry: Entry, present: Mapping[str, int]) -> None:
        """See to it that an object is on the mirror and was read back."""
        if present.get(name) == entry.bytes and (name in self._verified or self._is_whole(name, entry)):
            self._verified.add(name)
            return
        reached("mirror.object")
        self.place.put(path, name)
        reached("mirror.verify")
        if not self._is_whole(name, entry):
            raise CheckpointError(f"{self.place.shown}: what was read back of {name} is not what was written")
        self._verified.add(name)

    def _is_whole(self, name: str, entry: Entry) -> bool:
        digest, size = hashlib.sha256(), 0
        for piece in self.place.pieces(name):
            digest.update(piece)
            size += len(piece)
        return (size, digest.hexdigest()) == (entry.bytes, entry.sha256)

    def _write_index(self, number: int, snapshot: Snapshot, files: dict[str, Entry], run_id: str) -> Index:
        data = json.dumps(self.describe(number, snapshot, files, run_id), indent=1).encode()
        name = f"{INDEX}/{number:09d}-{hashlib.sha256(data).hexdigest()[:16]}.json"
        reached("mirror.index")
        self._written.add(name)  # before: an answer that never comes back does not mean that nothing was written
        self.place.put_bytes(data, name)
        reached("mirror.indexed")
        index = self._read_index(name)
        reached("mirror.durable")
        return index

    def _read_index(self, name: str) -> Index:
        for _ in range(_READINGS):
            data = b"".join(self.place.pieces(name))
            if name.endswith(f"-{hashlib.sha256(data).hexdigest()[:16]}.json"):
                return parse_index(name, _json(name, data))
        raise CheckpointError(f"{name} is damaged (its SHA-256 is not the one in its name)")

    def _check_alone(self) -> int:
        """The highest number there. Raises RunError if another session has written since this one opened the mirror."""
        names = self._index_names()
        for name in names:
            if _number(name) > self._base and name not in self._written:
                raise RunError(
                    f"another session is writing to the mirror {self.place.shown} (snapshot {_number(name)} is not "
                    "ours): nothing there is overwritten",
                    hint="let one session at a time train with this mirror: end one of the two, start the other again",
                )
        return max(map(_number, names), default=0)

    def _look(self) -> None:
        """See what is there, and that a few bytes can be written, read back and removed."""
        self._base = max(map(_number, self._index_names()), default=0)
        self.problems = []
        self.found = list(self._indices(self.problems))
        name, data = f"{PROBE}/{self.session}", self.session.encode()
        self.place.put_bytes(data, name)
        if b"".join(self.place.pieces(name)) != data:
            raise OSError("it does not give back what was written")
        self.place.remove(name)


def same_file_system(place: Place, run: Path) -> str | None:
    """A sentence if the mirror lies on the disk of the run. Raises UsageError if one lies inside the other."""
    if place.folder is None:
        return None
    there, here = place.folder.resolve(), run.absolute().resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise UsageError(
            f"the mirror {place.shown} and the run {run} lie inside each other", hint="give --mirror another folder"
        )
    if _device(there) != _device(here):
        return None
    return (
        f"the mirror {place.shown} lies on the same file system as the run: it protects against a damaged file, not "
        "against losing the disk or the machine"
    )


def _device(path: Path) -> int:
    return next(folder for folder in (path, *path.parents) if folder.exists()).stat().st_dev


def _number(name: str) -> int:
    return int(name.removeprefix(f"{INDEX}/").partition("-")[0])


def _json(name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{name} is no index of a run ({error})") from error


def parse_index(name: str, values: Any) -> Index:
    """The index that was read as JSON from the file `name`.

    Raises CheckpointError if it is not what it should be, or names a file outside the run's folder.
    """
    try:
        files = {path: Entry(int(entry["bytes"]), str(entry["sha256"])) for path, entry in values["files"].items()}
        progress = {stage: dict(facts) for stage, facts in values["progress"].items()}
        if values["format"] != _FORMAT or not all(
            re.fullmatch(r"[0-9a-f]{64}", item.sha256) for item in files.values()
        ):
            raise ValueError("written by another version of Outlast")
        index = Index(
            values["number"], values["run_id"], values["session"], values["time"], progress, files, name
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name} is no index of a run ({type(error).__name__}: {error})") from error
    for path in files:
        parts = path.split("/")
        if PurePosixPath(path).is_absolute() or "\\" in path or "\0" in path or {"", ".", ".."} & set(parts):
            raise CheckpointError(f"{name} names a file outside the run: {path!r}")
    return index


def check_manifests(paths: Mapping[str, Path], files: Mapping[str, Entry]) -> None:
    """Compare the files of checkpoints and best weights with their manifests: damage is not handed on."""
    for name, path in paths.items():
        if path.name != MANIFEST:
            continue
        folder = name.removesuffix(MANIFEST)
        for inner, expected in json.loads(path.read_text(encoding="utf-8"))["files"].items():
            entry = files.get(folder + inner)
            if entry is None or entry.sha256 != expected["sha256"]:
                raise CheckpointError(f"{folder}{inner} is not what was saved: not brought to the mirror")
