"""What a trained model is shown: whole scenes, read window by window from wherever they lie.

A scene is a tile of BandK folders, or a GeoTIFF with one band after the other. Promises: opening reads headers only,
besides one pass over signed numbers to find an untagged nodata value; every window is float32 with NaN where nothing
was observed. Masks are neither needed nor looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from outlast.data.nodata import Extremes, extremes, negative_fill
from outlast.data.raster import EXTENSIONS, Float32, Georeference, Header, Window, open_raster
from outlast.errors import DataError, listed
from outlast.tasks.glaciers.agreement import Look, fills_of, look_at
from outlast.tasks.glaciers.layout import LAYOUT, Tiles, band_folders, band_number, find_tiles, looks_like_tiles

_EXPECTED = f"{LAYOUT}; one tile of them; or GeoTIFFs that hold all bands"


@dataclass(frozen=True)
class Scene:
    """A raster of several bands. `sources`: (file, number of the band in it) of each band. Picklable, no open file."""

    name: str
    height: int
    width: int
    georeference: Georeference
    sources: tuple[tuple[Path, int], ...]
    fills: tuple[float | None, ...]

    @property
    def bands(self) -> int:
        """How many."""
        return len(self.sources)

    def read(self, y: int, x: int, height: int, width: int) -> Float32:
        """float32 (bands, height, width), NaN where nothing was observed or beyond the scene. Raises DataError."""
        window = Window(y, x, height, width)
        values = np.empty((self.bands, height, width), dtype=np.float32)
        for path in dict.fromkeys(path for path, _ in self.sources):
            with open_raster(path) as raster:
                for position, (own, band) in enumerate(self.sources):
                    if own == path:
                        values[position] = raster.values(band, window, self.fills[position])
        return values


def find_scenes(paths: Sequence[Path], *, bands: Sequence[str] | None = None) -> list[Scene]:
    """The scenes that files and folders name, in that order; each once.

    A folder holds BandK folders or GeoTIFFs with all bands; a file is one tile in a BandK folder (its other bands are
    found beside it) or such a GeoTIFF. bands: names such as "Band3" in the order wanted; none: all.
    Raises one DataError that names everything that is missing, damaged or contradicts itself.
    """
    problems: list[str] = []
    scenes: dict[tuple[tuple[Path, int], ...], Scene] = {}
    for path in paths:
        for scene in _scenes_at(path, bands, problems):
            scenes.setdefault(scene.sources, scene)
    if problems:
        raise DataError("these scenes can't be used", hint="see the remedy in each line", details=problems)
    if not scenes:
        raise DataError("no scene was named", hint=f"give {_EXPECTED}")
    return list(scenes.values())


def _scenes_at(path: Path, bands: Sequence[str] | None, problems: list[str]) -> list[Scene]:
    if not path.exists():
        problems.append(f"{path}: there is no such file or folder; check the path")
        return []
    if path.is_file():
        root = path.parent.parent
        if band_number(path.parent.name) is not None and looks_like_tiles(root):
            return _of_tiles(Tiles(root, band_folders(root, bands), "", (path.name,)), problems)
        return _of_files([path], bands, problems)
    if looks_like_tiles(path):
        return _of_tiles(find_tiles(path, labelled=False, bands=bands), problems)
    if band_number(path.name) is not None:
        problems.append(f"{path}: this is one band of the tiles; name the folder above it, {path.parent}")
        return []
    inside = sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
    if not inside:
        problems.append(f"{path}: there is no scene in this folder; expected {_EXPECTED}")
    return _of_files(inside, bands, problems)


def _of_tiles(tiles: Tiles, problems: list[str]) -> list[Scene]:
    looks = [look_at(tiles, file) for file in tiles.files]
    problems += [problem for look in looks for problem in look.problems]
    whole = [look for look in looks if not look.problems]
    fills = tuple(fills_of(whole, len(tiles.bands)))
    return [scene for look in whole if (scene := _of_tile(tiles, look, fills))]


def _of_tile(tiles: Tiles, look: Look, fills: tuple[float | None, ...]) -> Scene | None:
    if look.header is None:
        return None
    sources = tuple((path, 1) for path in tiles.paths(look.file))
    return Scene(Path(look.file).stem, look.header.height, look.header.width, look.georeference, sources, fills)


def _of_files(files: Sequence[Path], bands: Sequence[str] | None, problems: list[str]) -> list[Scene]:
    """GeoTIFFs that hold all bands; an untagged nodata value is judged over all files of one call."""
    found: list[tuple[Header, list[int], list[Extremes]]] = []
    for file in files:
        try:
            with open_raster(file) as raster:
                numbers = _numbers(raster.header, bands)
                found.append((raster.header, numbers, [extremes(raster, number) for number in numbers]))
        except DataError as error:
            problems.append(f"{error.message}; {error.hint}")
    counts = {len(numbers) for _, numbers, _ in found}
    if len(counts) > 1:
        named = [f"{header.path} ({header.bands})" for header, _, _ in found]
        problems.append(f"the files don't have the same number of bands: {listed(named)}; predict them separately")
        return []
    lowest = [
        negative_fill(reduce(add, (own[at] for _, _, own in found), Extremes())) for at in range(max(counts, default=0))
    ]
    return [
        Scene(
            header.path.stem,
            header.height,
            header.width,
            header.georeference,
            tuple((header.path, number) for number in numbers),
            tuple(lowest),
        )
        for header, numbers, _ in found
    ]


def _numbers(header: Header, bands: Sequence[str] | None) -> list[int]:
    """Which bands of a file are meant, numbered from 1. Raises DataError."""
    if bands is None:
        return list(range(1, header.bands + 1))
    numbers = [band_number(name) or 0 for name in bands]
    lacking = [name for name, number in zip(bands, numbers, strict=True) if not 1 <= number <= header.bands]
    if lacking:
        raise DataError(
            f"{header.path}: no {listed(lacking)}, the file has {header.bands} bands",
            hint="name a file with all bands, or one tile in a BandK folder",
        )
    return numbers
