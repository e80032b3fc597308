"""RGB and infrared pairs in the layout of FLAME 2: found, checked, and read.

Promises: whatever is wrong with the pairs is named in one error with the remedy for each (a missing half, sizes or
frame numbers that do not match, ids that stand twice, labels that are neither 0 nor 1, files that are no pictures);
images that no row names are counted in a note; paths may be names, relative or absolute, also those of another machine.
The thermal level is kept: grey values as they are, 16 bits scaled by a range that is the same for every image.
Does not do: register the two cameras with each other, split (split.py), or augment.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import Field

from outlast.config.schema import Settings
from outlast.data.look import UNREADABLE, look_at
from outlast.data.readers import hash_files, list_images, read_image, resize
from outlast.data.table import Examples
from outlast.errors import DataError
from outlast.tasks.wildfires.labels import (
    CLASSES,
    COMBINATIONS,
    LAYOUT,
    Labels,
    add_scenes,
    find_labels,
    frame_number,
    read_labels,
)
from outlast.tasks.wildfires.split import Splitting, split_pairs

_MODALITY = {"rgb": re.compile(r"\b(rgb|visible)\b", re.I), "ir": re.compile(r"\b(ir|thermal|infrared)\b", re.I)}
_CALLED = {"rgb": "RGB", "ir": "infrared"}
_MOST_PROBLEMS = 50
_USUAL = 0.9  # of the pairs have the same frame number in both names: then the others are mistakes
_DEEP = frozenset({".png", ".tif", ".tiff"})  # what may hold 16 bits

Row = Mapping[str, Any]


class Thermal(Settings):
    """How thermal pictures of 16 bits become 8 bits. One range for all of them: the level of an image is kept."""

    coldest: int = Field(0, ge=0, le=65534, description="value of a 16-bit thermal picture that becomes 0")
    hottest: int = Field(65535, ge=1, le=65535, description="value of a 16-bit thermal picture that becomes 255")

    def model_post_init(self, _: object) -> None:
        if self.coldest >= self.hottest:
            raise ValueError(f"coldest must be below hottest, not {self.coldest} and {self.hottest}")


def looks_like_pairs(root: Path) -> bool:
    """Whether a folder has the label file of the layout. Cheap: reads the first lines of files."""
    try:
        return find_labels(root) is not None
    except DataError:  # several candidates: `examples` says so
        return True


def examples(root: Path, splitting: Splitting, *, memo: Path | None = None, threads: int = 2) -> Examples:
    """Every pair with labels, scene and split. Raises one DataError with everything that is wrong.

    Columns: id, hash (SHA-256 of both files), rgb, ir (relative to the root, or absolute outside of it), fire, smoke
    (int64), scene, order (int64, frame number or rank), split, group (= scene); frames in a guard gap are left out.
    Facts: classes, combinations, split (the account of split.split_pairs). memo: a folder that remembers hashes and
    headers between runs.
    """
    table, notes = _pairs(root, memo, threads)
    split = split_pairs(table, [root / path for path in table["rgb"]], splitting, threads=threads)
    return _finished(split.table, root, {**_facts(), "split": split.account}, (*notes, *split.notes))


def labelled(
    root: Path, facts: Mapping[str, Any] | None = None, *, memo: Path | None = None, threads: int = 2
) -> Examples:
    """Every pair below a folder as `examples` gives it, to be scored: without a split, scenes as far as they are named.

    facts: those of the run, which the result carries.
    """
    table, notes = _pairs(root, memo, threads)
    return _finished(table.assign(group=table["scene"]), root, dict(facts or _facts()), notes)


def read(root: Path, row: Row, *, side: int, thermal: Thermal) -> dict[str, np.ndarray]:
    """{"rgb": uint8 (3, S, S), "ir": uint8 (1, S, S)}: decoded and resized to S = `side` pixels, levels kept.

    A row without infrared ("ir" is '') gives zeros there: for a student, which does not look at it.
    """
    rgb = resize(read_image(root / row["rgb"], at_least=(side, side)), (side, side))
    ir = resize(read_thermal(root / row["ir"], thermal, side), (side, side)) if row["ir"] else rgb[:, :, :1] * 0
    return {"rgb": np.ascontiguousarray(rgb.transpose(2, 0, 1)), "ir": np.ascontiguousarray(ir.transpose(2, 0, 1))}


def read_thermal(path: Path, thermal: Thermal, side: int) -> np.ndarray:
    """A thermal picture, uint8 (H, W, 1): grey, grey saved as RGB, or 16 bits scaled by the given range."""
    if path.suffix.lower() in _DEEP:
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I"):
                    values = np.asarray(image).astype(np.int64)
                    span = thermal.hottest - thermal.coldest
                    scaled = ((values - thermal.coldest).clip(0, span) * 255 + span // 2) // span
                    return scaled.astype(np.uint8)[:, :, None]
        except UNREADABLE:
            pass  # read_image says what is wrong with it
    return read_image(path, channels=1, at_least=(side, side))


def _facts() -> dict[str, Any]:
    return {"classes": list(CLASSES), "combinations": list(COMBINATIONS)}


def _finished(table: pd.DataFrame, root: Path, facts: Mapping[str, Any], notes: Sequence[str]) -> Examples:
    columns = ["id", "hash", "rgb", "ir", "fire", "smoke", "scene", "order", "split", "group"]
    table = table[[name for name in columns if name in table.columns]].reset_index(drop=True)
    return Examples(table, root, facts, CLASSES, tuple(notes))


def _pairs(root: Path, memo: Path | None, threads: int) -> tuple[pd.DataFrame, list[str]]:
    """Every pair with paths, labels, scene, order and hash, in the order of time; and notes. Raises DataError."""
    source = find_labels(root) if root.is_dir() else None
    if source is None:
        raise DataError(f"{root} has no label file of wildfires", hint=f"expected {LAYOUT}")
    labels = read_labels(source)
    files = _Files(root)
    if labels.intervals:
        _from_intervals(labels, files)
    else:
        _resolve(labels, files)
    add_scenes(labels, root)
    whole = labels.table["rgb"].ne("") & labels.table["ir"].ne("")
    _compare_names(labels, whole)
    _compare_headers(labels, root, whole, memo)
    _raise(labels, root)
    table = _in_time(labels.table)
    paths = [root / path for path in [*table["rgb"], *table["ir"]]]
    hashes = hash_files(paths, memo=memo / "hashes.json" if memo else None, threads=threads)
    both = zip(hashes[: len(table)], hashes[len(table) :], strict=True)
    table["hash"] = [hashlib.sha256(f"{rgb}\0{ir}".encode()).hexdigest() for rgb, ir in both]
    return table, [*labels.notes, *_notes(table, files)]


class _Files:
    """The images below a root, relative to it (posix), by path and by name and modality."""

    def __init__(self, root: Path) -> None:
        self.roots = tuple(dict.fromkeys((root, root.absolute(), root.resolve())))
        start = len(root.as_posix().rstrip("/")) + 1 if root.parts else 0
        self.listed = {path.as_posix()[start:] for path in list_images(root)}
        self.by_name: dict[tuple[str, str], list[str]] = {}
        self.used: set[str] = set()
        for path in sorted(self.listed):
            self.by_name.setdefault((_modality(path), unicodedata.normalize("NFC", _name(path))), []).append(path)

    def find(self, cell: str, modality: str) -> list[str]:
        """The paths that a cell may mean: as it stands, else by the end of the path, else by the name alone."""
        written = cell.replace("\\", "/")
        if written in self.listed:
            return [written]
        path = Path(written)
        if path.is_absolute() and path.is_file():
            inside = next((root for root in self.roots if path.is_relative_to(root)), None)
            return [path.relative_to(inside).as_posix() if inside else written]
        parts = PurePosixPath(written).parts
        for start in range(len(parts) - 1):
            if "/".join(parts[start:]) in self.listed:
                return ["/".join(parts[start:])]
        name = unicodedata.normalize("NFC", parts[-1]) if parts else ""
        return self.by_name.get((modality, name), []) or self.by_name.get(("", name), [])


def _modality(path: str) -> str:
    """'rgb' or 'ir' by the nearest folder (or the file's own name) that says so; '' where none does."""
    *folders, name = path.split("/")
    for folder in reversed(folders):
        if said := _folder_says(folder):
            return said
    return _says(name)


def _says(part: str) -> str:
    words = part.replace("_", " ")
    said = [name for name, pattern in _MODALITY.items() if pattern.search(words)]
    return said[0] if len(said) == 1 else ""


_folder_says = functools.cache(_says)  # few folders hold many files


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _resolve(labels: Labels, files: _Files) -> None:
    """Turn the cells rgb and ir into paths, '' where there is a problem."""
    ids = labels.table["id"].tolist()
    for modality, called in _CALLED.items():
        found, owner = [], dict[str, str]()
        for name, cell in zip(ids, labels.table[modality].tolist(), strict=True):
            paths = files.find(cell, modality) if cell else []
            if len(paths) == 1 and paths[0] in owner:
                labels.problems.append(
                    f"id {name}: the {called} frame {cell} is that of id {owner[paths[0]]} too; correct one of the rows"
                )
            elif len(paths) > 1:
                labels.problems.append(
                    f"id {name}: {cell} could be {paths[0]} or {paths[1]}; write the folder into the label file"
                )
            elif not paths:
                labels.problems.append(_half_missing(name, called, cell))
            path = paths[0] if len(paths) == 1 else ""
            owner.setdefault(path, name)
            found.append(path)
        files.used.update(found)
        labels.table[modality] = found


def _half_missing(name: str, called: str, cell: str) -> str:
    if not cell:
        return f"id {name}: the row names no {called} frame; fill it in or remove the row"
    return f"id {name}: the {called} frame {cell} does not exist; restore the file or remove the row"


def _from_intervals(labels: Labels, files: _Files) -> None:
    """Fill the table with a row for every frame number of the intervals; the id is the number."""
    numbered: dict[str, dict[int, str]] = {"rgb": {}, "ir": {}}
    for path in sorted(files.listed):
        modality, number = _modality(path), frame_number(path)
        if not modality or number is None:
            continue
        before = numbered[modality].setdefault(number, path)
        if before != path:
            labels.problems.append(f"frame {number}: {before} and {path} have the same number; keep one of them")
    rows = []
    for first, last, fire, smoke in labels.intervals:
        absent: dict[str, list[int]] = {"rgb": [], "ir": []}
        for number in range(first, last + 1):
            halves = {modality: paths.get(number, "") for modality, paths in numbered.items()}
            for modality in (modality for modality, path in halves.items() if not path):
                absent[modality].append(number)
            rows.append({"id": str(number), **halves, "fire": fire, "smoke": smoke, "scene": ""})
            files.used.update(halves.values())
        labels.problems += [
            f"the interval {first} to {last}: {len(numbers)} {_CALLED[modality]} frames do not exist "
            f"({_ranges(numbers)}); restore the files or correct the interval"
            for modality, numbers in absent.items()
            if numbers
        ]
    labels.table = pd.DataFrame(rows)


def _ranges(numbers: Sequence[int], most: int = 4) -> str:
    """'1 to 5, 9' for whole numbers that grow."""
    starts = [at for at, number in enumerate(numbers) if at == 0 or number != numbers[at - 1] + 1]
    ends = [*(start - 1 for start in starts[1:]), len(numbers) - 1]
    found = [
        str(numbers[start]) if start == end else f"{numbers[start]} to {numbers[end]}"
        for start, end in zip(starts, ends, strict=True)
    ]
    return ", ".join([*found[:most], *([f"and {len(found) - most} more"] if len(found) > most else [])])


def _compare_names(labels: Labels, whole: pd.Series[bool]) -> None:
    """Halves of different moments: where frame numbers agree as a rule, those that do not are problems."""
    table = labels.table[whole]
    numbers = [
        (name, frame_number(rgb), frame_number(ir))
        for name, rgb, ir in zip(table["id"], table["rgb"], table["ir"], strict=True)
    ]
    known = [item for item in numbers if item[1] is not None and item[2] is not None]
    different = [item for item in known if item[1] != item[2]]
    if known and len(different) <= (1 - _USUAL) * len(known):
        labels.problems += [
            f"id {name}: frame {rgb} is paired with infrared frame {ir}, another moment; correct the row"
            for name, rgb, ir in different
        ]
    elif different:
        labels.notes.append(
            f"the two cameras number their frames differently ({len(different)} of {len(known)} pairs): "
            "that the halves are of the same moment could not be checked"
        )


def _compare_headers(labels: Labels, root: Path, whole: pd.Series[bool], memo: Path | None) -> None:
    """Halves that are no pictures or of different sizes, by their headers."""
    table = labels.table[whole]
    paths = [str(root / path) for path in [*table["rgb"], *table["ir"]]]
    looks = look_at(paths, memo=memo / "headers.json" if memo else None)
    for name, rgb, ir in zip(table["id"], looks[: len(table)], looks[len(table) :], strict=True):
        broken = [called for called, look in ((_CALLED["rgb"], rgb), (_CALLED["ir"], ir)) if not look.format]
        if broken:
            labels.problems.append(
                f"id {name}: the {' and the '.join(broken)} frame is no readable image; copy it again or remove the row"
            )
        elif (rgb.width, rgb.height) != (ir.width, ir.height):
            labels.problems.append(
                f"id {name}: RGB is {rgb.width}x{rgb.height} and infrared {ir.width}x{ir.height} pixels; "
                "register and resize them to one size"
            )


def _raise(labels: Labels, root: Path) -> None:
    problems = labels.problems
    if problems:
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise DataError(
            f"the pairs in {root} can't be used as they are: {len(problems)} problems",
            hint="see the remedy in each line",
            details=[*problems[:_MOST_PROBLEMS], *more],
        )


def _in_time(table: pd.DataFrame) -> pd.DataFrame:
    """Sorted by scene and time; `order` is the frame number, or the rank where numbers repeat within a scene."""
    keys = [(scene, *_natural(path)) for scene, path in zip(table["scene"], table["rgb"], strict=True)]
    position = sorted(range(len(table)), key=keys.__getitem__)
    table = table.iloc[position].reset_index(drop=True)
    numbers = pd.Series([frame_number(path) for path in table["rgb"]], dtype="Int64")
    usable = numbers.notna().all() and not pd.DataFrame({"scene": table["scene"], "n": numbers}).duplicated().any()
    ranks = table.groupby("scene", sort=False).cumcount()
    table["order"] = (numbers if usable else ranks).astype(np.int64)
    return table.sort_values(["scene", "order"], kind="stable", ignore_index=True)


def _natural(path: str) -> tuple[tuple[int, str], ...]:
    """A key by which 'Frame (2)' comes before 'Frame (10)'."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path))


def _notes(table: pd.DataFrame, files: _Files) -> list[str]:
    notes = []
    orphans = sorted(files.listed - files.used)
    if orphans:
        notes.append(f"{len(orphans)} images stand in no row of the label file and are not used (such as {orphans[0]})")
    combination = table["fire"] + 2 * table["smoke"]
    absent = [name for number, name in enumerate(COMBINATIONS) if not (combination == number).any()]
    meaning = {"NN": "neither fire nor smoke", "YN": "fire without smoke", "NY": "smoke without fire", "YY": "both"}
    if absent:
        notes.append(f"no pair shows {', '.join(f'{meaning[name]} ({name})' for name in absent)}")
    notes.append(f"{len(table)} pairs, {table['fire'].sum()} with fire, {table['smoke'].sum()} with smoke")
    return notes
