"""Do the files of one tile belong together? By their headers, and by the extremes of their values.

Promises: every contradiction between the bands and the mask of a tile is a sentence with its remedy, none an exception;
an untagged nodata value is judged over all tiles of a band, so that each is read the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from outlast.data.masks import encodings_in
from outlast.data.nodata import Extremes, extremes, negative_fill
from outlast.data.raster import Georeference, Header, open_raster, strips
from outlast.errors import DataError
from outlast.tasks.glaciers.layout import CLASSES, Tiles


@dataclass
class Look:
    """A tile by its headers, and the extremes of its bands."""

    file: str
    header: Header | None = None
    georeference: Georeference = field(default_factory=Georeference)
    unplaced: int = 0  # files without georeferencing, where another file of the tile has it
    extremes: list[Extremes] = field(default_factory=list)
    encodings: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def look_at(tiles: Tiles, file: str) -> Look:
    """Open every file of a tile: do they belong together?"""
    look = Look(file)
    headers = []
    for path, folder in zip(tiles.paths(file), (*tiles.bands, tiles.label), strict=False):
        try:
            with open_raster(path) as raster:
                headers.append(raster.header)
                if raster.header.bands != 1:
                    look.problems.append(
                        f"{path}: {raster.header.bands} bands where one is expected; save {folder} as a single band"
                    )
                elif folder == tiles.label:
                    for strip in strips(raster.header):
                        look.encodings |= encodings_in(raster.raw(1, strip), classes=len(CLASSES))
                else:
                    look.extremes.append(extremes(raster, 1))
        except DataError as error:
            look.problems.append(f"{error.message}; {error.hint}")
    if len(look.encodings) > 1:
        look.problems.append(
            f"{tiles.root / tiles.label / file}: classes as 1, 2, 3 beside 85, 170, 255; use one of the two"
        )
    if headers:
        look.header = headers[0]
        look.problems += _contradictions(headers)
        placed = [header.georeference for header in headers if header.georeference.transform is not None]
        look.georeference = placed[0] if placed else headers[0].georeference
        look.unplaced = len(headers) - len(placed) if placed else 0
    return look


def _contradictions(headers: Sequence[Header]) -> list[str]:
    first = headers[0]
    problems = []
    placed = next((header for header in headers if header.georeference.transform is not None), first)
    for header in headers:
        if (header.height, header.width) != (first.height, first.width):
            problems.append(
                f"{header.path}: {header.width}x{header.height} pixels, but {first.path} has "
                f"{first.width}x{first.height}; resample it to the same grid"
            )
            continue
        different = placed.georeference.contradicts(header.georeference, header.height, header.width)
        if different:
            problems.append(
                f"{header.path}: another {different} than {placed.path}; reproject it to the same grid, or correct it"
            )
    return problems


def fills_of(looks: Sequence[Look], bands: int) -> list[float | None]:
    """Per band, the untagged negative fill: judged over all tiles, so that every tile is read the same way."""
    return [negative_fill(reduce(add, (look.extremes[band] for look in looks), Extremes())) for band in range(bands)]


def notes_of(tiles: Tiles, looks: Sequence[Look], fills: Sequence[float | None]) -> list[str]:
    """What was assumed about the files, in sentences."""
    notes = []
    for number, (band, fill) in enumerate(zip(tiles.bands, fills, strict=True)):
        if fill is not None:
            pixels = [look.extremes[number].count for look in looks if look.extremes[number].lowest == fill]
            notes.append(
                f"{band}: {fill:g} ({sum(pixels)} values in {len(pixels)} tiles) is taken as nodata, which no tag says"
            )
    unplaced = sum(look.unplaced for look in looks)
    if unplaced:
        notes.append(f"{unplaced} files have no georeferencing: that of the other files of their tile is taken")
    return notes
