"""What the files are: their names, where they lie, how large and of what kind they are; told by their headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from outlast.check.finding import Finding, note, warning
from outlast.check.subject import Subject
from outlast.errors import listed

_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "9p", "afs", "lustre", "sshfs", "fuse.")
_TINY = 128  # bytes: hardly more than a header
_ORDINARY_MODES = ("RGB", "L", "P", "1", "RGBA", "LA")


def names_that_collide(subject: Subject) -> Iterator[Finding]:
    """Names that are one and the same on a file system that ignores case."""
    for reading in subject.readings:
        ids = reading.examples.table["id"].astype(str)
        alike = ids[ids.str.lower().duplicated(keep=False)].tolist()
        if alike:
            yield warning(
                f"{len(alike)} names differ only in upper and lower case: a Mac, Windows or an archive may lose some",
                evidence=listed(sorted(alike, key=lambda name: str(name).lower())),
                remedy="rename them",
            )


def links(subject: Subject) -> Iterator[Finding]:
    """Files that lie elsewhere: they don't travel with the folder."""
    for reading in subject.readings:
        root = reading.examples.root
        table = reading.examples.table
        if "path" not in table.columns:
            continue
        # Not only the file, any folder above it may be the link.
        folders = {parent for path in table["path"].tolist() for parent in Path(path).parents if parent != Path()}
        linked = sorted(str(folder) for folder in folders if (root / folder).is_symlink())
        linked += sorted(path for path in table["path"].tolist() if (root / path).is_symlink())
        if linked:
            yield note(
                f"{len(linked)} files or folders of the data are links",
                evidence=listed(linked),
                remedy="to move the data to another machine, copy what they lead to (cp -rL, zip without -y)",
            )


def remote_disk(subject: Subject) -> Iterator[Finding]:
    """Data on a network's disk, which is slow to read the first time."""
    for reading in subject.readings:
        kind = subject.file_system(reading.examples.root)
        if kind.startswith(_REMOTE):
            yield note(
                f"{reading.examples.root} is on a file system of type {kind}: reading many small files from it is slow",
                remedy="copy the data to the machine's own disk first, or leave loading.cache_gigabytes large enough",
            )


def small_files(subject: Subject) -> Iterator[Finding]:
    """Files of so few bytes that they can't be photos, even if they decode."""
    for reading in subject.readings:
        sizes = {name: look.bytes for name, look in reading.looks.items() if look.bytes}
        if not sizes:
            continue
        usual = float(np.median(list(sizes.values())))
        tiny = [
            f"{name} ({size} bytes)" for name, size in sizes.items() if size < min(max(usual / 50, _TINY), usual / 2)
        ]
        if tiny:
            yield warning(
                f"{len(tiny)} files are much smaller than the others (usual: {usual:.0f} bytes)",
                evidence=listed(tiny),
                remedy="open them; delete or replace those that show nothing",
            )


def small_images(subject: Subject) -> Iterator[Finding]:
    """Pictures that have to be blown up to the size that the model gets."""
    for reading in subject.readings:
        arrays = reading.samples.arrays
        small = []
        for name, look in reading.looks.items():
            shape = next((array.shape for array in arrays.get(name, {}).values() if len(array.shape) == 3), None)
            if shape and look.width and max(look.width, look.height) * 2 <= max(shape[1:]):
                small.append(f"{name} ({look.width}x{look.height})")
        if small:
            yield warning(
                f"{len(small)} pictures are at most half as large as what is made of them",
                evidence=listed(small),
                remedy="choose a smaller image size (such as data.image_size), or larger pictures",
            )


def modes(subject: Subject) -> Iterator[Finding]:
    """Pictures that are stored in unusual ways, and what becomes of them."""
    for reading in subject.readings:
        kinds: dict[str, list[str]] = {}
        for name, look in reading.looks.items():
            if look.mode and look.mode not in _ORDINARY_MODES:
                kinds.setdefault(look.mode, []).append(name)
            if look.animated:
                kinds.setdefault("animated", []).append(name)
            if look.format and not _says(name, look.format):
                kinds.setdefault("format", []).append(f"{name} is {look.format}")
        for kind, names in kinds.items():
            fate = _FATES.get(kind, f"are of mode {kind}: look whether they come out right")
            yield note(
                f"{len(names)} pictures {fate}",
                evidence=listed(names),
                remedy="nothing, if that is what you want; else convert them to 8-bit RGB",
            )


_FATES = {
    "CMYK": "are CMYK (made for printing): converted to RGB without their colour profile, colours may be off",
    "I;16": "have 16 bits: scaled to 8, which loses detail",
    "I": "have 16 or 32 bits: scaled to 8, which loses detail",
    "F": "have floating-point pixels, which have no known range",
    "animated": "are animations: the first frame counts",
    "format": "are of another format than their name says: read all the same",
}


def _says(name: str, format: str) -> bool:
    suffix = Path(name).suffix.lower().lstrip(".")
    usual = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF"}
    return suffix not in usual or usual[suffix] == format or (format == "MPO" and usual[suffix] == "JPEG")
