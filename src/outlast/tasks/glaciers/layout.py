"""The competition layout on disk: folders Band1 ... BandK with the same .tif names in each, and label/ or labels/.

Promises: reads names only; every file that is missing, doubled or left over is named in one error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from outlast.data.folders import SPLITS
from outlast.data.raster import EXTENSIONS
from outlast.errors import DataError, listed

LAYOUT = "folders Band1, Band2, ... with the same .tif names in each, and label/ with a mask per name"
INDEX = "index.csv"
CLASSES = ("background", "ice", "debris", "lake")
IGNORED = 255
_BAND = re.compile(r"band[ _-]?(\d+)", re.IGNORECASE)
_LABELS = ("label", "labels")


@dataclass(frozen=True)
class Tiles:
    """What is where. bands: names of the folders, by number; label: that of the masks, "" for none; files: sorted."""

    root: Path
    bands: tuple[str, ...]
    label: str
    files: tuple[str, ...]

    def paths(self, file: str) -> list[Path]:
        """The files of one tile: its bands, then its mask."""
        return [self.root / folder / file for folder in (*self.bands, *([self.label] if self.label else []))]


def looks_like_tiles(root: Path) -> bool:
    """Whether a folder has BandK folders. Cheap: reads names only."""
    return bool(_band_folders(root))


def band_folders(root: Path, bands: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the BandK folders, by number; `bands` chooses among them, however they are spelled ("band3").

    Raises DataError: no such folder, or a number twice.
    """
    found = _band_folders(root)
    if not found:
        raise DataError(f"{root} holds no tiles: it has no folder Band1", hint=_hint(root))
    twice = [f"{' and '.join(names)} in {root}" for names in found.values() if len(names) > 1]
    if twice:
        raise DataError(f"one band in two folders: {listed(twice)}", hint="keep one folder per band number")
    ordered = {number: found[number][0] for number in sorted(found)}
    if bands is None:
        return tuple(ordered.values())
    wanted = [band_number(name) for name in bands]
    unknown = [name for name, number in zip(bands, wanted, strict=True) if number not in ordered]
    if unknown or not wanted:
        raise DataError(
            f"{root} has no band {listed(unknown) or '(none was chosen)'}", hint=f"it has {listed([*ordered.values()])}"
        )
    return tuple(ordered[number] for number in wanted if number is not None)


def find_tiles(root: Path, *, labelled: bool = True, bands: Sequence[str] | None = None) -> Tiles:
    """The tiles below a folder, whole: each in every band and, if `labelled`, with its mask.

    Raises one DataError that names every band or mask that is missing, and every mask without its tile.
    """
    if not root.is_dir():
        raise DataError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}", hint=f"expected {LAYOUT}")
    folders = band_folders(root, bands)
    inside = {folder: _rasters(root / folder) for folder in folders}
    files = sorted(set().union(*inside.values()))
    if not files:
        raise DataError(f"there is no .tif in {listed(folders)} of {root}", hint=f"expected {LAYOUT}")
    problems = []
    for folder, own in inside.items():
        lacking = [file for file in files if file not in own]
        if lacking:
            problems.append(
                f"{folder} has no {listed(lacking)} ({len(lacking)} of {len(files)}); "
                "add these files, or remove them from the other bands"
            )
    label = _label_folder(root) if labelled else ""
    if labelled:
        problems += _mask_problems(root, label, files)
    if problems:
        raise DataError(f"the tiles in {root} are not whole", hint="see the remedy in each line", details=problems)
    return Tiles(root, folders, label, tuple(files))


def read_index(root: Path, files: Sequence[str]) -> dict[str, str] | None:
    """{file: train|val|test|""} of index.csv (columns file, split), or None where there is none.

    Raises one DataError: a split of another name, a file that is listed and missing, present and not listed, or twice.
    """
    source = root / INDEX
    if not source.is_file():
        return None
    try:
        listing = pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError, OSError) as error:
        raise DataError(f"{source}: not a readable CSV file ({error})", hint="save it as UTF-8: file,split") from error
    if not {"file", "split"} <= set(listing.columns):
        raise DataError(
            f"{source}: the columns file and split are needed, it has {', '.join(listing.columns)}",
            hint="correct the header",
        )
    known = {Path(file).stem: file for file in files} | {file: file for file in files}
    splits: dict[str, str] = {}
    missing, twice, strange = [], [], []
    for name, word in zip(listing["file"].tolist(), listing["split"].tolist(), strict=True):
        split = SPLITS.get(word.strip().lower(), "") if word.strip() else ""
        name = name.strip()
        file = known.get(name)
        if word.strip() and not split:
            strange.append(f"{name}: {word!r}")
        if file is None:
            missing.append(name)
        elif file in splits and splits[file] != split:
            twice.append(name)
        else:
            splits[file] = split
    unlisted = [file for file in files if file not in splits and file not in twice]
    problems = [
        f"{sentence}: {listed(names)}; {remedy}"
        for sentence, names, remedy in (
            ("listed, but there is no such tile", missing, "restore the files, or remove the lines"),
            ("not listed", unlisted, "add a line for each, with an empty split if it has none"),
            ("listed with two splits", twice, "keep one line"),
            ("a split that is none of train, val, test", strange, "correct it"),
        )
        if names
    ]
    if problems:
        raise DataError(f"{source} doesn't fit the tiles", hint="see the remedy in each line", details=problems)
    return splits


def band_number(name: str) -> int | None:
    """K of a folder or band called BandK (band3, Band_3, BAND 3), None for any other name."""
    match = _BAND.fullmatch(name)
    return int(match[1]) if match else None


def _band_folders(root: Path) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for path in _visible(root):
        number = band_number(path.name)
        if number is not None and path.is_dir():
            found[number].append(path.name)
    return found


def _label_folder(root: Path) -> str:
    found = [path.name for path in _visible(root) if path.name.lower() in _LABELS and path.is_dir()]
    if len(found) > 1:
        raise DataError(f"{root} has {listed(found)}", hint="keep the folder whose masks count")
    return found[0] if found else ""


def _mask_problems(root: Path, label: str, files: Sequence[str]) -> list[str]:
    if not label:
        return ["there is no folder label/ with the masks; add it (unlabelled tiles can only be predicted)"]
    masks = _rasters(root / label)
    without = [file for file in files if file not in masks]
    alone = sorted(masks - set(files))
    problems = []
    if without:
        problems.append(
            f"{label} has no {listed(without)} ({len(without)} of {len(files)}); add these masks, or remove the tiles"
        )
    if alone:
        problems.append(f"masks without a tile: {listed(alone)}; add their bands, or remove them from {label}")
    return problems


def _rasters(folder: Path) -> set[str]:
    """Names of the rasters in a folder. Raises DataError for two that differ in their extension only."""
    names = [path.name for path in _visible(folder) if path.suffix.lower() in EXTENSIONS]
    stems = defaultdict(list)
    for name in names:
        stems[Path(name).stem].append(name)
    twice = [" and ".join(same) for same in stems.values() if len(same) > 1]
    if twice:
        raise DataError(f"{folder}: one tile in two files: {listed(twice)}", hint="keep one of each")
    return set(names)


def _hint(root: Path) -> str:
    if band_number(root.name) is not None:
        return f"this is one band; name the folder above: {root.parent}"
    nested = [path for path in _visible(root) if path.is_dir() and _band_folders(path)]
    return f"did you mean {nested[0]}?" if nested else f"expected {LAYOUT}"


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{folder} can't be listed: {error.strerror}", hint="name a folder that may be read") from error
