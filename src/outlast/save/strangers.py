"""Archives of other people (.zip, .tar.gz), unpacked with distrust: nothing is known of them but their names.

Refused are names that lead elsewhere, links and devices, two files of one name, and more bytes than the caller allows.
The folder appears at once, when all of the archive was read to its end (which compares the sums that it carries).
"""

from __future__ import annotations

import contextlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from outlast.base.files import place_folder
from outlast.base.log import Progress
from outlast.errors import DataError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
_PIECE_BYTES = 2**20

Open = Callable[[], IO[bytes]]


def unpack(archive: Path, to: Path, *, part: str = "", most_bytes: int) -> int:
    """Unpack the files below the folder `part` of the archive (all if it is '') into `to`; returns how many.

    Names stay as they are in the archive. `to` must not exist, or be empty. Raises DataError.
    """
    count = 0

    def fill(folder: Path) -> None:
        nonlocal count
        left = most_bytes
        with _damage_of(archive), Progress(f"unpacking {archive.name}", archive.stat().st_size) as shown:
            for name, opened, done in _files(archive):
                parts = _parts(archive, name)
                if part and "/".join(parts[: len(part.split("/"))]) != part:
                    continue
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                left = _copy(opened, target, left, archive)
                count += 1
                shown.update(done)

    def verify(folder: Path) -> None:
        if not count:
            raise _refused(archive, f"it has no files below {part}" if part else "it has no files")

    if to.is_dir() and not any(to.iterdir()):
        to.rmdir()
    place_folder(to, fill, verify)
    return count


def _files(archive: Path) -> Iterator[tuple[str, Open, int]]:
    """(name, how to open it, bytes of the archive that were read up to it) of every file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                kind = entry.external_attr >> 28  # of Unix; 0 where the packer has none
                if kind not in (0, 0o4, 0o10) or entry.flag_bits & 1:
                    raise _refused(archive, f"{entry.filename!r} is a link, or encrypted")
                if not entry.is_dir():
                    yield entry.filename, partial(opened.open, entry), entry.header_offset
        return
    with archive.open("rb") as stream, tarfile.open(fileobj=stream) as packed:
        for member in packed:
            if member.isdir():
                continue
            if not member.isfile():
                raise _refused(archive, f"{member.name!r} is a link or another thing that is no file")
            yield member.name, partial(_member, packed, member), stream.tell()


def _member(packed: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    found = packed.extractfile(member)
    assert found is not None  # only of what is no file
    return found


def _parts(archive: Path, name: str) -> list[str]:
    """The parts of a relative name that stays inside."""
    parts = [part for part in name.split("/") if part != "."]
    if name.startswith("/") or any(part in ("", "..") for part in parts) or "\\" in name or "\0" in name:
        raise _refused(archive, f"{name!r} is no name of a file inside of it")
    return parts


def _copy(opened: Open, target: Path, left: int, archive: Path) -> int:
    """Write a file; returns how many more bytes there may be."""
    with opened() as source, target.open("xb") as out:
        while piece := source.read(_PIECE_BYTES):
            left -= len(piece)
            if left < 0:
                raise _refused(archive, "it unpacks to more than there is room for, or than it was said to")
            out.write(piece)
    return left


@contextlib.contextmanager
def _damage_of(archive: Path) -> Iterator[None]:
    """What reading a damaged or malicious archive raises, as one sentence about it."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise _refused(archive, f"it can't be read ({error})") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _refused(archive, f"two of its files have one name ({error.filename})") from error
    except OSError as error:
        raise _refused(archive, f"it can't be unpacked: {error.strerror or error}") from error


def _refused(archive: Path, why: str) -> DataError:
    return DataError(f"{archive} is refused: {why}", hint="download it again, or look at the page of the data set")
