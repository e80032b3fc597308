"""Files that are either wholly there or not there at all.

`write_bytes` and `write_text` replace a file atomically; `write_folder` makes a folder of several files whose manifest,
with sizes and SHA-256, is written last, and renames it into place when all of it is on the disk. `verify_folder`
compares a folder with its manifest. Nothing here knows what the files mean.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from outlast.base.accident import reached
from outlast.base.log import warn
from outlast.errors import CheckpointError, RunError, UsageError

MANIFEST = "manifest.json"
_SEAL = "sha256"  # of the manifest's own contents: a flipped bit in it must not pass for another model's checkpoint
REPLACED = ".tmp-replaced-"  # holds a folder while a newer one takes its name
_FAILED = {errno.EIO, errno.ENOSPC, errno.EDQUOT}  # the disk did not take it
TEMPORARY = ".tmp-"  # prefix of what is being written; safe to delete when no process writes


def sync_path(path: Path) -> None:
    """Force a file or folder to the disk. A file system that can't sync folders is accepted, one that fails is not."""
    reached("write.sync")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _FAILED or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` atomically: after a kill it holds the old bytes or the new ones."""
    reached("write.open")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as stream:
            reached("write.data")
            stream.write(data)
            stream.flush()
            reached("write.sync")
            os.fsync(stream.fileno())
        reached("write.rename")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)
    reached("write.done")


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; keys keep their order, NaN is written as null."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises RunError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}", hint="restore it from a copy, or start a new run") from error


def plain(value: Any) -> Any:
    """The value with NaN and infinities as None and mappings and sequences as dict and list: strict JSON."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's contents."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_folder(target: Path, fill: Callable[[Path], None], record: Mapping[str, Any]) -> Path:
    """Make the folder `target` appear at once, with all that `fill(folder)` wrote and a manifest, or not at all.

    Order: files, their sync, manifest with `record`, every file's size and SHA-256 and its own, its sync, verification
    of what lies there, rename, sync of the parent. A folder that is already at `target` is replaced only then.
    Raises OSError, and CheckpointError if what was written is not what can be read.
    """

    def whole(folder: Path) -> None:
        fill(folder)
        write_manifest(folder, record)

    return place_folder(target, whole, lambda folder: verify_folder(folder, from_disk=True))


def place_folder(target: Path, fill: Callable[[Path], None], verify: Callable[[Path], object]) -> Path:
    """As `write_folder`, without a manifest: `fill` syncs what it writes, `verify` raises if that is not right."""
    reached("folder.open")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary(target)
    folder.mkdir()
    try:
        fill(folder)
        for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            sync_path(inner)
        verify(folder)
        reached("folder.rename")
        _take_name(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_path(target.parent)
    reached("folder.done")
    return target


def write_manifest(folder: Path, record: Mapping[str, Any]) -> None:
    """Sync all files of a folder, then write its manifest over them: `record`, their sizes and SHA-256, and its own."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        reached("folder.file")
        sync_path(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    reached("folder.manifest")
    write_json(folder / MANIFEST, sealed(record, files))


def sealed(record: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A manifest: `record`, the size and SHA-256 of every file, and its own SHA-256."""
    manifest = plain({**record, "files": files})
    return {**manifest, _SEAL: _seal(manifest)}


def _take_name(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.replace(target)
        return
    outgoing = Path(tempfile.mkdtemp(prefix=REPLACED, dir=target.parent))
    target.replace(outgoing / target.name)
    try:
        reached("folder.replace")
        folder.replace(target)
    except OSError:
        (outgoing / target.name).replace(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(outgoing, ignore_errors=True)


def verify_folder(folder: Path, *, from_disk: bool = False) -> dict[str, Any]:
    """The manifest of a folder whose files all match it. Raises CheckpointError that names the first that does not.

    from_disk: read what is on the disk, not what the operating system still holds in memory, where it allows that.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not _is_inside(folder, name):
            raise _damage(f"{folder / MANIFEST} names a file outside its folder: {name!r}")
        if not path.is_file():
            raise _damage(f"{path} is missing")
        try:
            if from_disk:
                _drop_cached(path)
            size, found = path.stat().st_size, sha256(path)
        except OSError as error:
            raise _damage(f"{path} cannot be read: {error.strerror}") from error
        if size != expected["bytes"]:
            raise _damage(f"{path} has {size} bytes instead of {expected['bytes']}")
        if found != expected["sha256"]:
            raise _damage(f"{path} does not have the contents that were saved (SHA-256 differs)")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, whole and its own; its files are not looked at. Raises CheckpointError."""
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise _damage(f"{path} is missing or damaged ({error})") from error
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: Path) -> dict[str, Any]:
    """The manifest in `data`, without its own hash; `path` is where it was read. Raises CheckpointError."""
    try:
        manifest = json.loads(data)
        seal = manifest.pop(_SEAL)
        parts = [(item["bytes"], item["sha256"]) for item in manifest["files"].values()]
        whole = seal == _seal(manifest)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _damage(f"{path} is missing or damaged ({error})") from error
    if not whole or any(type(size) is not int or type(digest) is not str for size, digest in parts):
        raise _damage(f"{path} is damaged (it does not have the contents that were saved)")
    return dict(manifest)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name means a file of the folder: also a link may not lead out of it."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        return False
    return Path(os.path.realpath(folder / relative)).is_relative_to(os.path.realpath(folder))


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, however it is laid out."""
    text = json.dumps(manifest, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _damage(sentence: str) -> CheckpointError:
    return CheckpointError(sentence, hint="it is not used; remove it if you don't need it for a rescue")


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill in the middle can't leave a half that looks whole: renamed away first."""
    if folder.exists():
        reached("remove.rename")
        outgoing = _temporary(folder)  # a rename alone: a full disk may not have room for one more folder
        folder.replace(outgoing)
        reached("remove.files")
        shutil.rmtree(outgoing, ignore_errors=True)


def put_back(parent: Path) -> None:
    """Undo replacements that a kill interrupted: the old folder gets its name back if the new one did not take it."""
    for outgoing in parent.glob(f"{REPLACED}*") if parent.is_dir() else ():
        for folder in outgoing.iterdir():
            if not (parent / folder.name).exists():
                folder.replace(parent / folder.name)


def sweep(parent: Path) -> None:
    """Remove what interrupted writes left in `parent`. Only the process that owns the run may call this."""
    if parent.is_dir():
        for path in parent.iterdir():
            if path.name.startswith(TEMPORARY):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before anything is done for it. Raises UsageError."""
    above = next(folder for folder in (path.absolute().parent, *path.absolute().parents) if folder.exists())
    if path.is_dir():
        reason = "it is a folder"
    elif not above.is_dir():
        reason = f"{above} is not a folder"
    elif not os.access(above, os.W_OK | os.X_OK):
        reason = f"no permission to write into {above}"
    else:
        return
    raise UsageError(f"{path} cannot be written: {reason}", hint="give --to another file")


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold an exclusive lock on a file for as long as the block runs; the file goes with it.

    Raises RunError: `message` if another process holds the lock, or if the file cannot be made.
    """
    import fcntl

    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a")
        except OSError as error:
            raise RunError(
                f"{path.parent} cannot be written: {error.strerror}", hint="give another folder with --out"
            ) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(message, hint="wait until it ends, or give another folder with --out") from error
            except OSError as error:
                warn(f"{path.parent} can't lock files ({error.strerror}): take care that one process trains at a time")
            if not _is_at(path, stream.fileno()):
                continue  # the process that held it has just removed it: this lock keeps nobody out
            _held.append(stream)
            try:
                yield
            finally:
                _held.remove(stream)
                path.unlink(missing_ok=True)
            return


# A lock is held until the last process that inherited it is gone. Forked workers outlive a killed process by seconds,
# in which nobody could go on with its run.
_held: list[IO[str]] = []


def _let_go() -> None:
    for stream in _held:
        stream.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _drop_cached(path: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _temporary(path: Path) -> Path:
    """A free name beside `path` for what is not to be found under its own."""
    return path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
