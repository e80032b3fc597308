"""Where tiles lie, blocks of neighbours, and folds: what keeps validation honest when neighbours look alike.

Blocks are contiguous: the area is cut in two across its longer side, each half again, until there are as many blocks
as wanted, each with its share of the labelled pixels. Nothing here is random but the order in which `folds` by tile
deals out the tiles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.data.raster import Georeference
from outlast.data.sampler import shuffled
from outlast.errors import DataError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# "r064_c128", "scene3_row2_col5", "y10-x20": the row and column of a tile in its scene.
_PLACE = re.compile(r"^(.*?)(?:r|row|y)_?(\d+)[_-]?(?:c|col|x)_?(\d+)(.*)$", re.IGNORECASE)
_FEW_TILES = 5  # fewer than this are big scenes: neighbours are then windows, not tiles
_TILES_PER_GROUP = 4


def places(names: Sequence[str], references: Sequence[Georeference]) -> tuple[list[Georeference], str]:
    """(where each tile lies in one common frame, a sentence that says how that is known).

    The frame is the one CRS that all share, or longitude and latitude where they differ; without georeferencing the row
    and column in the names (r064_c128); a single tile is its own frame; else it is not known, and the frames are empty.
    """
    if all(reference.transform is not None for reference in references):
        systems = {reference.crs for reference in references}
        if len(systems) == 1:
            return list(references), "their georeferencing"
        if "" not in systems:
            return [_in_degrees(reference) for reference in references], "their georeferencing"
    found = [_PLACE.match(name) for name in names]
    if all(found):
        return _from_names([match.groups() for match in found if match]), "the rows and columns in their names"
    if len(names) == 1:
        return [Georeference(transform=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0))], "their pixels"
    return [Georeference() for _ in names], ""


def groups(table: pd.DataFrame) -> list[str]:
    """A name per row: blocks of neighbouring tiles within each split; the tile itself where it may lie anywhere."""
    named = np.asarray(table["tile"].tolist(), dtype=object)
    if table["centre_x"].isna().any():
        return [str(name) for name in named]
    split = table["split"].to_numpy()
    for name in dict.fromkeys(split.tolist()):
        rows = np.flatnonzero(split == name)
        units = _units(table.iloc[rows], _FEW_TILES)
        points, weights = _gathered(table.iloc[rows], units, np.ones(len(rows)))
        parts = max(min(len(points), _FEW_TILES), round(len(points) / _TILES_PER_GROUP))
        numbers = _blocks(points, weights, min(parts, len(np.unique(points, axis=0))))[units]
        named[rows] = [f"{name or 'block'}-{number:03d}" for number in numbers]
    return [str(name) for name in named]


def folds(table: pd.DataFrame, k: int, by: str = "geography", seed: int = 0) -> Int64:
    """Fold numbers 0..k-1 (int64, one per row of the table); a tile is never torn, but see below.

    by "geography": contiguous blocks with about the same number of labelled pixels; the seed has no say. Where there
    are fewer tiles than folds, the blocks are of windows. by "tile": tiles are dealt out in an order that the seed
    gives, one kind after the other, so that each fold gets its part of each; a tile's kind is the class of which it
    holds the largest part of all there is.
    Raises DataError: too few tiles, a place that is not known, a fold without labelled pixels.
    """
    pixels = _labelled(table)
    if by == "geography":
        numbers = _by_geography(table, k, pixels.sum(axis=1))
    elif by == "tile":
        numbers = _by_tile(table, k, pixels, seed)
    else:
        raise DataError(f"folds can't be made by {by!r}", hint="choose geography or tile")
    empty = [fold for fold in range(k) if not pixels[numbers == fold].sum()]
    if empty:
        raise DataError(
            f"{len(empty)} of {k} folds would have no labelled pixel", hint="use fewer folds, or label more tiles"
        )
    return numbers


def _by_geography(table: pd.DataFrame, k: int, weights: Float64) -> Int64:
    if table["centre_x"].isna().any():
        raise DataError(
            "nothing says where the tiles lie: no georeferencing, and no row and column in their names",
            hint="make the folds by tile, or name the tiles like r064_c128.tif",
        )
    units = _units(table, k)
    points, per_unit = _gathered(table, units, weights)
    places = len(np.unique(points, axis=0))
    if places < k:
        raise DataError(f"{k} folds need at least {k} places, there are {places}", hint="use fewer folds")
    return _blocks(points, per_unit, k)[units]


def _by_tile(table: pd.DataFrame, k: int, pixels: Float64, seed: int) -> Int64:
    codes, tiles = pd.factorize(table["tile"], sort=True)
    if len(tiles) < k:
        raise DataError(f"{k} folds need at least {k} tiles, there are {len(tiles)}", hint="use fewer folds")
    per_tile = np.zeros((len(tiles), pixels.shape[1]))
    np.add.at(per_tile, codes, pixels)
    share = per_tile / np.maximum(per_tile.sum(axis=0), 1)
    kind = np.where(per_tile.sum(axis=1) > 0, share.argmax(axis=1), pixels.shape[1])
    order = shuffled(len(tiles), seed, 0)
    order = order[np.argsort(kind[order], kind="stable")]
    of_tile = np.empty(len(tiles), dtype=np.int64)
    of_tile[order] = np.arange(len(tiles)) % k
    return of_tile[codes]


def _units(table: pd.DataFrame, at_least: int) -> Int64:
    """What is never torn, numbered per row: the tile, or the window where there are fewer tiles than `at_least`."""
    codes, tiles = pd.factorize(table["tile"], sort=True)
    return np.asarray(codes if len(tiles) >= at_least else np.arange(len(table)), dtype=np.int64)


def _gathered(table: pd.DataFrame, units: Int64, weights: Float64) -> tuple[Float64, Float64]:
    """The middle (U, 2) and the weight (U,) of each unit."""
    centres = table[["centre_x", "centre_y"]].to_numpy(dtype=np.float64)
    sums = np.zeros((int(units.max()) + 1, 2))
    np.add.at(sums, units, centres)
    total = np.bincount(units, weights=weights).astype(np.float64)
    return sums / np.bincount(units)[:, None], total


def _blocks(points: Float64, weights: Float64, parts: int) -> Int64:
    """Block numbers (U,) of points (U, 2): contiguous, near in weight, none empty; one place is never torn."""
    where, place = np.unique(points, axis=0, return_inverse=True)
    heavy = np.bincount(place.reshape(-1), weights=weights).astype(np.float64)
    numbers = np.zeros(len(where), dtype=np.int64)
    _bisect(where, heavy, np.arange(len(where)), parts, 0, numbers)
    return numbers[place.reshape(-1)]


def _bisect(points: Float64, weights: Float64, chosen: Int64, parts: int, first: int, numbers: Int64) -> None:
    if parts <= 1:
        numbers[chosen] = first
        return
    here = points[chosen]
    longer = int(np.argmax(np.ptp(here, axis=0)))
    order = chosen[np.lexsort((here[:, 1 - longer], here[:, longer]))]
    lower = parts // 2
    running = np.cumsum(weights[order])
    wanted = running[-1] * lower / parts
    cut = int(np.argmin(np.abs(running - wanted))) + 1
    cut = min(max(cut, lower), len(order) - (parts - lower))  # each block gets at least one place
    _bisect(points, weights, order[:cut], lower, first, numbers)
    _bisect(points, weights, order[cut:], parts - lower, first + lower, numbers)


def _labelled(table: pd.DataFrame) -> Float64:
    columns = [column for column in table.columns if column.startswith("pixels_")]
    return table[columns].to_numpy(dtype=np.float64)


def _in_degrees(reference: Georeference) -> Georeference:
    """The same place in longitude and latitude, to first order around the upper left corner."""
    from rasterio.warp import transform

    corners = [reference.point(0, 0), reference.point(0, 1000), reference.point(1000, 0)]
    xs, ys = transform(reference.crs, "EPSG:4326", *map(list, zip(*corners, strict=True)))[:2]
    right, down = ((xs[at] - xs[0], ys[at] - ys[0]) for at in (1, 2))
    return Georeference(
        transform=(right[0] / 1000, down[0] / 1000, xs[0], right[1] / 1000, down[1] / 1000, ys[0]),
    )


def _from_names(parts: Sequence[tuple[str, ...]]) -> list[Georeference]:
    """Frames in the unit of the names; scenes (the rest of the names) lie side by side, far apart."""
    scenes = sorted({(before, after) for before, _, _, after in parts})
    rows, columns = [int(part[1]) for part in parts], [int(part[2]) for part in parts]
    apart = 4.0 * (max(columns) + 1)
    return [
        Georeference(transform=(0.0, 0.0, column + apart * scenes.index((part[0], part[3])), 0.0, 0.0, float(row)))
        for part, row, column in zip(parts, rows, columns, strict=True)
    ]
