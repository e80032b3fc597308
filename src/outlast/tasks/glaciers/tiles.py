"""Tiles in the competition layout as examples: checked, cut into windows, counted, and read.

Promises: every problem of every file is found before anything is trained, and all are named together; the table says
how many labelled pixels of each class a window holds and carries what band statistics need; what was never observed is
NaN in the bands, and is not labelled. Memory holds a strip of a tile per thread, never a whole scene.
Does not do: normalise, augment, or choose a split that index.csv doesn't give.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.data.masks import mask_of, read_mask
from outlast.data.raster import Georeference, Window, open_raster, read_bands
from outlast.data.readers import hash_files
from outlast.data.table import Examples
from outlast.errors import DataError, listed
from outlast.tasks.glaciers.agreement import Look, fills_of, look_at, notes_of
from outlast.tasks.glaciers.geography import folds, groups, places
from outlast.tasks.glaciers.layout import (
    CLASSES,
    IGNORED,
    Tiles,
    band_folders,
    find_tiles,
    looks_like_tiles,
    read_index,
)
from outlast.tasks.glaciers.moments import row_moments, statistics

__all__ = [
    "CLASSES",
    "IGNORED",
    "Tiles",
    "examples",
    "find_tiles",
    "folds",
    "looks_like_tiles",
    "read_window",
    "statistics",
]

Array = npt.NDArray[Any]

_MOST_PROBLEMS = 50


def examples(
    root: Path,
    *,
    window: int,
    labelled: bool = True,
    splits: bool = True,
    bands: Sequence[str] | None = None,
    memo: Path | None = None,
    threads: int = 2,
) -> Examples:
    """Every tile below a folder, cut into windows of `window` x `window` pixels.

    labelled: masks are needed and read; without, every pixel is IGNORED and no tile is left out. splits: obey
    index.csv (to score all that is there, don't). bands: names, none for all. memo: where hashes are remembered.

    Columns: id (the tile's name, with @y,x if it is cut), hash (of its files, the window and the fills), tile, file,
    mask_folder ("" where unlabelled), y, x, height, width (of the window, padded beyond the tile), tile_height,
    tile_width, split ("" unknown), group (neighbours, within a split), centre_x, centre_y (for folds), pixels_0 ..
    pixels_3, and per band: count_, sum_, scatter_ (for statistics) and fill_ (an untagged nodata value, else NaN).
    Facts: classes, bands (count), band_names. Raises one DataError with everything that is wrong.
    """
    if window < 1:
        raise DataError(f"windows of {window} pixels can't be cut", hint="use 64 or more")
    tiles = find_tiles(root, labelled=labelled, bands=bands)
    given = read_index(root, tiles.files) if labelled and splits else None
    with ThreadPoolExecutor(threads) as pool:
        looks = list(pool.map(partial(look_at, tiles), tiles.files))
        whole = [look for look in looks if not look.problems]
        fills = fills_of(whole, len(tiles.bands))
        measured = list(pool.map(partial(_measure, tiles, fills, window), whole))
    _refuse(root, looks, measured)
    notes = [*notes_of(tiles, looks, fills), *_value_notes(measured, len(tiles.bands))]
    table = _table(tiles, measured, fills, window, given, notes, memo, threads)
    facts = {
        "classes": list(CLASSES), "ignore": IGNORED, "gaps": ["bands"], "bands": len(tiles.bands),
        "band_names": list(tiles.bands),
    }  # fmt: skip
    return Examples(table, root, facts, notes=tuple(notes))


def read_window(
    root: Path, row: Mapping[str, Any], *, bands: Sequence[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """{"bands": float32 (C, height, width), "mask": uint8 (height, width)} of one row of `examples`.

    bands: as they were given to `examples`. Beyond the tile bands are NaN and the mask is IGNORED; so is the mask where
    no band was observed, or where the row has no mask. Raises DataError.
    """
    names = band_folders(root, bands)
    window = Window(int(row["y"]), int(row["x"]), int(row["height"]), int(row["width"]))
    fills = [None if math.isnan(row[f"fill_{name}"]) else float(row[f"fill_{name}"]) for name in names]
    values = np.concatenate(
        [
            read_bands(root / name / row["file"], window, bands=[1], fills=[fill])
            for name, fill in zip(names, fills, strict=True)
        ]
    )
    if not row["mask_folder"]:
        return {"bands": values, "mask": np.full(values.shape[1:], IGNORED, dtype=np.uint8)}
    mask = read_mask(root / row["mask_folder"] / row["file"], window, classes=len(CLASSES), ignored=IGNORED)
    mask[np.isnan(values).all(axis=0)] = IGNORED
    return {"bands": values, "mask": mask}


@dataclass
class _Measured:
    """A tile by its pixels."""

    look: Look
    rows: list[dict[str, Any]] = field(default_factory=list)
    infinite: int = 0
    infinite_files: int = 0
    unobserved: int = 0  # values
    values: int = 0
    problems: list[str] = field(default_factory=list)


def _measure(tiles: Tiles, fills: Sequence[float | None], window: int, look: Look) -> _Measured:
    """Go through a tile strip by strip: what does each window hold?"""
    found = _Measured(look)
    header = look.header
    assert header is not None
    try:
        with contextlib.ExitStack() as stack:
            rasters = [stack.enter_context(open_raster(path)) for path in tiles.paths(look.file)]
            bands = rasters[: len(tiles.bands)]
            for y in range(0, header.height, window):
                strip = Window(y, 0, min(window, header.height - y), header.width)
                values = np.stack([band.values(1, strip, fill) for band, fill in zip(bands, fills, strict=True)])
                unobserved = np.isnan(values)
                mask = np.full(values.shape[1:], IGNORED, dtype=np.uint8)
                if tiles.label:
                    mask = mask_of(rasters[-1], strip, classes=len(CLASSES), ignored=IGNORED)
                    mask[unobserved.all(axis=0)] = IGNORED
                found.values += values.size
                found.unobserved += int(unobserved.sum())
                for x in range(0, header.width, window):
                    part = np.s_[:, x : x + window]
                    found.rows.append(_row(tiles, look, (y, x, window), values[:, :, x : x + window], mask[part]))
            found.infinite = sum(band.infinite for band in bands)
            found.infinite_files = sum(band.infinite > 0 for band in bands)
    except DataError as error:
        found.problems.append(f"{error.message}; {error.hint}")
    return found


def _row(
    tiles: Tiles, look: Look, place: tuple[int, int, int], values: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]
) -> dict[str, Any]:
    y, x, window = place
    assert look.header is not None
    height, width = look.header.height, look.header.width
    name = Path(look.file).stem
    counts = np.bincount(mask.reshape(-1), minlength=256)
    return {
        "id": name if height <= window and width <= window else f"{name}@{y},{x}",
        "tile": name,
        "file": look.file,
        "mask_folder": tiles.label,
        "y": y,
        "x": x,
        "height": window,
        "width": window,
        "tile_height": height,
        "tile_width": width,
        **{f"pixels_{number}": int(counts[number]) for number in range(len(CLASSES))},
        **row_moments(values, tiles.bands),
    }


def _refuse(root: Path, looks: Sequence[Look], measured: Sequence[_Measured]) -> None:
    problems = [problem for look in looks for problem in look.problems]
    problems += [problem for one in measured for problem in one.problems]
    plain, stepped = (
        [look.file for look in looks if look.encodings == {encoding}] for encoding in ("numbers", "steps")
    )
    if plain and stepped:
        few, many = sorted((plain, stepped), key=len)
        problems.append(
            f"some masks hold classes as 1, 2, 3 and others as 85, 170, 255: {listed(few)} unlike {listed(many, 2)}; "
            "write all in the same way"
        )
    if problems:
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise DataError(
            f"the tiles in {root} can't be used as they are ({len(problems)} problems)",
            hint="see the remedy in each line",
            details=problems[:_MOST_PROBLEMS] + more,
        )


def _value_notes(measured: Sequence[_Measured], bands: int) -> list[str]:
    notes = []
    infinite, files = sum(one.infinite for one in measured), sum(one.infinite_files for one in measured)
    if infinite:
        notes.append(f"{infinite} infinite values in {files} files count as not observed")
    unobserved, values = sum(one.unobserved for one in measured), sum(one.values for one in measured)
    if unobserved:
        notes.append(f"{unobserved} of {values} values ({unobserved / values:.2%}) were not observed (nodata)")
    partly = []
    for one in measured:
        seen = np.sum([[row[name] for name in row if name.startswith("count_")] for row in one.rows], axis=0)
        if seen.any() and not seen.all():
            partly.append(f"{Path(one.look.file).stem} ({bands - int(np.count_nonzero(seen))} of {bands} bands)")
    if partly:
        notes.append(f"tiles with bands that hold no data at all: {listed(partly)}")
    return notes


def _table(
    tiles: Tiles,
    measured: Sequence[_Measured],
    fills: Sequence[float | None],
    window: int,
    given: Mapping[str, str] | None,
    notes: list[str],
    memo: Path | None,
    threads: int,
) -> pd.DataFrame:
    rows = [row for one in measured for row in one.rows]
    if tiles.label:
        rows = _observed(tiles.root, rows, notes)
    table = pd.DataFrame(rows)
    for name, fill in zip(tiles.bands, fills, strict=True):
        table[f"fill_{name}"] = math.nan if fill is None else fill
    hashes = _hashes(tiles, fills, window, memo, threads)
    table["hash"] = [_digest([hashes[row["file"]], str(row["y"]), str(row["x"])]) for row in rows]
    table["split"] = [given[row["file"]] if given else "" for row in rows]
    frames, known_by = places(
        [Path(one.look.file).stem for one in measured], [one.look.georeference for one in measured]
    )
    of_file = {one.look.file: frame for one, frame in zip(measured, frames, strict=True)}
    middles = [_middle(of_file[row["file"]], row) for row in rows]
    table["centre_x"], table["centre_y"] = ([middle[axis] for middle in middles] for axis in (0, 1))
    table["group"] = groups(table)
    if not known_by:
        notes.append("nothing says where the tiles lie: each is a group of its own, and neighbours may be split apart")
    if tiles.label:
        notes += _class_notes(table)
    first = ["id", "hash", "tile", "file", "mask_folder", "split", "group"]
    return table[[*first, *(column for column in table.columns if column not in first)]]


def _observed(root: Path, rows: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """The rows in which anything was observed; what is left out is said."""
    seen = [any(row[name] for name in row if name.startswith("count_")) for row in rows]
    kept = [row for row, any_seen in zip(rows, seen, strict=True) if any_seen]
    if not kept:
        raise DataError(
            f"nothing was observed in any tile of {root}: all values are nodata", hint="correct the nodata tags"
        )
    windows, remaining = Counter(row["tile"] for row in rows), Counter(row["tile"] for row in kept)
    empty = [tile for tile in windows if not remaining[tile]]
    if empty:
        notes.append(f"{len(empty)} tiles are left out, all of their values are nodata: {listed(empty)}")
    cut = len(rows) - len(kept) - sum(windows[tile] for tile in empty)
    if cut:
        notes.append(f"{cut} windows of other tiles are left out, all of their values are nodata")
    return kept


def _class_notes(table: pd.DataFrame) -> list[str]:
    pixels = [int(table[f"pixels_{number}"].sum()) for number in range(len(CLASSES))]
    total = max(sum(pixels), 1)
    notes = [
        "labelled pixels: "
        + ", ".join(f"{name} {count} ({count / total:.2%})" for name, count in zip(CLASSES, pixels, strict=True))
    ]
    absent = [name for name, count in zip(CLASSES, pixels, strict=True) if not count]
    return [*notes, f"no pixel is labelled {listed(absent)}"] if absent else notes


def _hashes(
    tiles: Tiles, fills: Sequence[float | None], window: int, memo: Path | None, threads: int
) -> dict[str, str]:
    """{file: hash of its bands and mask}, with all that decides how they are read: a cached sample hangs on it."""
    paths = [path for file in tiles.files for path in tiles.paths(file)]
    found = hash_files(paths, memo=memo, threads=threads)
    each = len(paths) // len(tiles.files)
    settings = [str(window), *(str(fill) for fill in fills)]
    return {file: _digest([*found[at * each : (at + 1) * each], *settings]) for at, file in enumerate(tiles.files)}


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _middle(frame: Georeference, row: Mapping[str, Any]) -> tuple[float, float]:
    if frame.transform is None:
        return math.nan, math.nan
    height = min(row["height"], row["tile_height"] - row["y"])
    width = min(row["width"], row["tile_width"] - row["x"])
    return frame.point(row["y"] + height / 2, row["x"] + width / 2)
