"""Files under one manifest that travel together, as a folder or one zip file: written whole, read with distrust.

Written: under another name, every file hashed on its way, the manifest last, all of it read back from the disk and
compared, then renamed. Read: nothing is believed that the manifest does not say and the contents do not keep. Refused
are names that lead elsewhere, links, files that are larger than declared or that nobody declared, archives that would
unpack to a hundred times their size, and any file whose SHA-256 differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from outlast.base.accident import reached
from outlast.base.files import (
    MANIFEST,
    TEMPORARY,
    parse_manifest,
    plain,
    sealed,
    sync_path,
    write_folder,
)
from outlast.base.log import Progress
from outlast.errors import CheckpointError, SaveError, UsageError
from outlast.save.space import in_words, room

_PIECE_BYTES = 2**20
_MANIFEST_BYTES = 64 * 2**20  # more than a manifest of a hundred thousand files takes
_MOST_FILES = 200_000
_MOST_RATIO = 100  # weights hardly shrink; deflate can make a thousand times as much of nothing
_HARMLESS_BYTES = 100 * 10**6  # below this no ratio does harm
_DATE = (1980, 1, 1, 0, 0, 0)  # zip's first day: the same files give the same archive
_AGAIN = "copy it again from where it was made, or make it again with `outlast pack`"

Source = Path | bytes  # a file that is there, or the contents of one that is made up


@dataclass(frozen=True)
class Archive:
    """Files to read: `manifest` has their sizes and hashes, `open(name)` reads one of them."""

    path: Path
    manifest: Mapping[str, Any]
    open: Callable[[str], IO[bytes]]

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """{relative name: {"bytes", "sha256"}}."""
        return dict(self.manifest["files"])


def check_target(target: Path) -> None:
    """Refuse what can't become an archive. Raises UsageError."""
    if target.suffix == ".zip":
        if target.is_dir():
            raise UsageError(f"{target} is a folder", hint="give --to FILE.zip, or a folder that is not called .zip")
    elif target.suffix and not target.is_dir():
        raise UsageError(f"{target} is neither a zip file nor a folder", hint="give --to FILE.zip or --to DIR")
    elif target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is no pack", hint="give another folder with --to; nothing was changed")
    elif (target / "run.json").is_file() and not (target / MANIFEST).is_file():
        raise UsageError(f"{target} is a run", hint="give another folder with --to; nothing was changed")


def write(target: Path, files: Mapping[str, Source], record: Mapping[str, Any]) -> int:
    """Write the files and their manifest with `record` to a .zip file or else a folder; returns its size in bytes.

    What was at `target` is replaced when the new one is verified. Raises SaveError or CheckpointError.
    """
    wanted = sum(source.stat().st_size if isinstance(source, Path) else len(source) for source in files.values())
    free = room(target.absolute().parent).free
    if wanted > free:
        raise SaveError(
            f"{target} will take {in_words(wanted)}, and there are {in_words(free)} free",
            hint="give --to a place on a larger disk",
        )
    try:
        if target.suffix == ".zip":
            _write_zip(target, files, record, wanted)
            return target.stat().st_size
        write_folder(target, lambda folder: _fill(folder, files, wanted), record)
    except OSError as error:
        raise SaveError(
            f"{target} cannot be written: {error.strerror or error}", hint="give --to a place on another disk"
        ) from error
    return wanted


def of_files(path: Path, files: Mapping[str, Source], record: Mapping[str, Any]) -> Archive:
    """An archive that was never written: the files as they lie at `path`, hashed now."""
    found = {name: _measured(source) for name, source in files.items()}
    manifest = parse_manifest(_encoded(sealed(record, found)), path)
    return Archive(path, manifest, lambda name: _opened(files[name]))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """An archive to read from: a zip file, or a folder with a manifest. Raises CheckpointError if it is not sound."""
    if path.is_dir():
        with _damage_of(path):
            manifest = parse_manifest((path / MANIFEST).read_bytes(), path / MANIFEST)
        _check_manifest(path, manifest)
        yield Archive(path, manifest, lambda name: _inside(path, name))
        return
    with contextlib.ExitStack() as stack:
        with _damage_of(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            manifest = _manifest_in(archive, path)
        yield Archive(path, manifest, archive.open)


def fetch(archive: Archive, folder: Path, names: Collection[str], free: int) -> None:
    """Write these files of the archive below a folder, each compared with its size and hash, and synced.

    free: bytes that may be written there. Raises CheckpointError that names the first file that is not what the
    manifest says, SaveError without room.
    """
    wanted = {name: expected for name, expected in archive.files.items() if name in names}
    total = sum(int(expected["bytes"]) for expected in wanted.values())
    if total > free:
        raise SaveError(
            f"{archive.path} unpacks to {in_words(total)}, and there are {in_words(free)} free",
            hint="give --out a folder on a larger disk",
        )
    done = 0
    with Progress(f"unpacking {archive.path.name}", total) as shown:
        for name, expected in wanted.items():
            reached("unpack.file")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(archive, name, expected, target)
            sync_path(target)
            done += int(expected["bytes"])
            shown.update(done)
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        sync_path(inner)


def _copy(archive: Archive, name: str, expected: Mapping[str, Any], target: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as out, contextlib.closing(_pieces(archive, name)) as pieces:
        for piece in pieces:
            size += len(piece)
            if size > expected["bytes"]:
                break  # whatever it claims to be: no more than was declared is ever written
            digest.update(piece)
            out.write(piece)
    if size != expected["bytes"]:
        how = "more than" if size > expected["bytes"] else f"{size} instead of"
        raise _refused(archive.path, f"{name!r} has {how} the {expected['bytes']} bytes that its manifest says")
    if digest.hexdigest() != expected["sha256"]:
        raise _refused(archive.path, f"{name!r} does not have the contents that were packed (SHA-256 differs)")


def _pieces(archive: Archive, name: str) -> Generator[bytes, None, None]:
    with _damage_of(archive.path), archive.open(name) as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


# -- writing -----------------------------------------------------------------------------------------------------------


def _fill(folder: Path, files: Mapping[str, Source], total: int) -> None:
    done = 0
    with Progress(f"packing into {folder.parent}", total) as shown:
        for name, source in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with _opened(source) as stream, (folder / name).open("xb") as out:
                while piece := stream.read(_PIECE_BYTES):
                    done += out.write(piece)
                    shown.update(done)


def _write_zip(target: Path, files: Mapping[str, Source], record: Mapping[str, Any], total: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            found = _fill_zip(archive, files, total, target.name)
            archive.writestr(zipfile.ZipInfo(MANIFEST, _DATE), _encoded(sealed(record, found)))
        sync_path(temporary)
        with opened(temporary) as written:
            for name, expected in written.files.items():
                with written.open(name) as stream:
                    if _hashed(stream) != expected:
                        raise _refused(temporary, f"{name!r} was not written as it was read")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(target.absolute().parent)


def _fill_zip(archive: zipfile.ZipFile, files: Mapping[str, Source], total: int, label: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    done = 0
    with Progress(f"packing {label}", total) as shown:
        for name, source in files.items():
            digest, size = hashlib.sha256(), 0
            entry = zipfile.ZipInfo(name, _DATE)
            with _opened(source) as stream, archive.open(entry, "w", force_zip64=True) as out:
                while piece := stream.read(_PIECE_BYTES):
                    digest.update(piece)
                    size += out.write(piece)
                    shown.update(done + size)
            done += size
            found[name] = {"bytes": size, "sha256": digest.hexdigest()}
    return found


def _encoded(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(plain(manifest), indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _opened(source: Source) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _measured(source: Source) -> dict[str, Any]:
    with _opened(source) as stream:
        return _hashed(stream)


def _hashed(stream: IO[bytes]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    while piece := stream.read(_PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


# -- reading -----------------------------------------------------------------------------------------------------------


def _manifest_in(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """The manifest of a zip file whose list of contents is what it says. Raises CheckpointError."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in archive.infolist():
        _check_entry(path, entry)
    sizes = {entry.filename: entry.file_size for entry in entries}
    if len(sizes) < len(entries):
        raise _refused(path, "it holds two files of the same name")
    if MANIFEST not in sizes:
        raise _refused(path, f"it has no {MANIFEST}: it is no pack")
    packed, total = sum(entry.compress_size for entry in entries), sum(sizes.values())
    if packed > path.stat().st_size:
        raise _refused(path, "its files lie over one another")
    if total > max(_HARMLESS_BYTES, _MOST_RATIO * path.stat().st_size):
        raise _refused(path, f"it would unpack to {in_words(total)}, more than {_MOST_RATIO} times its size")
    if sizes.pop(MANIFEST) > _MANIFEST_BYTES:
        raise _refused(path, f"its {MANIFEST} is too large")
    with archive.open(MANIFEST) as stream:
        manifest = parse_manifest(stream.read(_MANIFEST_BYTES), path / MANIFEST)
    _check_manifest(path, manifest)
    declared = {name: item["bytes"] for name, item in manifest["files"].items()}
    if sizes != declared:
        name = min(name for name in {*sizes, *declared} if sizes.get(name) != declared.get(name))
        if name in sizes and name in declared:
            raise _refused(path, f"{name!r} is of another size than its manifest says")
        raise _refused(path, f"{name!r} is {'missing' if name in declared else 'not in its manifest'}")
    return manifest


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    mode = entry.external_attr >> 16
    _check_name(path, entry.filename.rstrip("/"))
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(path, f"{entry.filename!r} is a link or another thing that is no file")
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(path, f"{entry.filename!r} is encrypted or packed in an uncommon way")


def _check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest["files"]
    if len(files) > _MOST_FILES or any(item["bytes"] < 0 for item in files.values()):
        raise _refused(path, f"its {MANIFEST} names too many files, or files of no possible size")
    for name in files:
        _check_name(path, name)
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    both = folders & set(files)
    if both:
        raise _refused(path, f"{min(both)!r} is a file and a folder")


def _check_name(path: Path, name: str) -> None:
    """A relative path of plain parts, written the one way there is. Raises CheckpointError."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(sign in name for sign in "\\:\0"):
        raise _refused(path, f"{name!r} is no name of a file inside of it")


def _inside(folder: Path, name: str) -> IO[bytes]:
    """A file of a folder; it and all above it are no links. Raises CheckpointError."""
    path = folder / name
    if any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(folder) and part != folder):
        raise _refused(folder, f"{name!r} is a link, or lies behind one")
    if not path.is_file():
        raise _refused(folder, f"{name!r} is missing")
    return path.open("rb")


@contextlib.contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """What reading a damaged archive raises, as one sentence about it."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise _refused(path, f"it can't be read ({error})") from error
    except CheckpointError as error:
        if error.hint != _AGAIN:
            raise _refused(path, error.message) from error
        raise


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is refused: {why}", hint=_AGAIN)
