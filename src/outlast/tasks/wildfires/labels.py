"""The label files of FLAME 2: a CSV with one row per pair, or the tab-separated intervals of the published set.

Promises: every row keeps its line number, so that a problem can be pointed at; labels are 0 or 1 and nothing else is
guessed; scenes come from the label file, from scenes.csv by id, or from scenes.csv by ranges of frame numbers.
Does not do: look at images (pairs.py), or find scenes that nobody named (split.py).
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from outlast.errors import DataError, listed

LAYOUT = (
    "labels.csv with the columns id,rgb_frame,ir_frame,fire,smoke beside the folders '254p RGB Images' and "
    "'254p IR Images' (or '254p Thermal Images'), or the tab-separated intervals 'first last XY' in place of the CSV"
)
CLASSES = ("fire", "smoke")
COMBINATIONS = ("NN", "YN", "NY", "YY")  # fire, smoke; number = fire + 2 x smoke

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "rgb": ("rgb_frame", "rgb_path", "rgb"),
    "ir": ("ir_frame", "ir_path", "ir", "thermal_frame", "thermal_path"),
    "fire": ("fire",),
    "smoke": ("smoke",),
}
_SCENE = ("scene", "video")
_TRUE, _FALSE = frozenset({"1", "true", "yes", "y", "1.0"}), frozenset({"0", "false", "no", "n", "0.0"})
_PLAIN = (".txt", ".tsv")  # endings of files of intervals
_NUMBER = re.compile(r"\d+")
_INTERVAL = re.compile(r"\s*(\d+)\s+(\d+)\s+([YN])\s*([YN])\s*$", re.IGNORECASE)


@dataclass
class Labels:
    """What a label file says: columns id, rgb, ir (as written), fire, smoke (-1: not readable), scene ('': not said).

    intervals: (first, last, fire, smoke) of frame numbers, where the file has no rows of its own.
    """

    source: Path
    table: pd.DataFrame
    intervals: list[tuple[int, int, int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_labels(root: Path) -> Path | None:
    """labels.csv, the only CSV file with the columns, or the only file of intervals; None where there is none.

    Raises DataError for several candidates. Cheap: reads the first lines of files directly in the folder.
    """
    for kind in (_tables(root), _interval_files(root)):
        if len(kind) > 1:
            raise DataError(
                f"{root} has {len(kind)} label files: {listed([path.name for path in kind])}",
                hint="keep one of them there, or call the right one labels.csv",
            )
        if kind:
            return kind[0]
    return None


def read_labels(path: Path) -> Labels:
    """The rows or the intervals of a label file. Raises DataError if it is not a readable table at all."""
    labels = _read_intervals(path) if path.suffix.lower() in _PLAIN else _read_rows(path)
    if not len(labels.table) and not labels.intervals and not labels.problems:
        raise DataError(f"{path} has no rows", hint=f"expected {LAYOUT}")
    return labels


def add_scenes(labels: Labels, root: Path) -> None:
    """Fill in the scenes that scenes.csv names, by id or by first,last frame number; what is missing is a problem."""
    source = root / "scenes.csv"
    if not source.is_file() or labels.table["scene"].ne("").all():
        return
    try:
        listing = read_table(source)
    except DataError as error:
        labels.problems.append(error.message)
        return
    column = next((name for name in _SCENE if name in listing.columns), None)
    if column is None or not ({"id"} <= set(listing.columns) or {"first", "last"} <= set(listing.columns)):
        labels.problems.append(f"{source.name}: its header must be id,scene or first,last,scene; correct it")
    elif "id" in listing.columns:
        known = dict(zip(listing["id"].tolist(), listing[column].tolist(), strict=True))
        labels.table["scene"] = labels.table["id"].map(known).fillna("")
    else:
        labels.table["scene"] = _by_range(labels, listing, column, source.name)
    without = labels.table["id"][labels.table["scene"].eq("")].tolist()
    if without and column is not None:
        labels.problems.append(
            f"{source.name} gives {len(without)} of {len(labels.table)} pairs no scene: {listed(without)}; add them"
        )


def frame_number(name: str) -> int | None:
    """The last whole number in a file name, which is the frame's: 12 in '254p RGB Frame (12).jpg'."""
    numbers = _NUMBER.findall(name.rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return int(numbers[-1]) if numbers else None


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file as text; comma, semicolon or tab; names of columns in small letters. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        separator = max(",;\t", key=first.count)
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})", hint="save it as UTF-8 with a header") from error
    table.columns = pd.Index([str(name).strip().lower().replace(" ", "_") for name in table.columns])
    return pd.DataFrame({name: table[name].str.strip() for name in table.columns})


def _tables(root: Path) -> list[Path]:
    named = root / "labels.csv"
    if named.is_file():
        return [named]
    return [path for path in _files(root, ".csv") if path.name != "scenes.csv" and _has_columns(path)]


def _interval_files(root: Path) -> list[Path]:
    return [path for path in _files(root, *_PLAIN) if any(_INTERVAL.match(line) for line in _first_lines(path))]


def _has_columns(path: Path) -> bool:
    header = next(iter(_first_lines(path)), "").lower().strip().lstrip("\ufeff")
    names = {name.strip().strip('"').replace(" ", "_") for name in re.split(r"[,;\t]", header)}
    return all(names & set(aliases) for aliases in _COLUMNS.values())


def _first_lines(path: Path, most: int = 5) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line for line, _ in zip(file, range(most), strict=False)]
    except OSError:
        return []


def _files(root: Path, *suffixes: str) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    except OSError:
        return []


def _read_rows(path: Path) -> Labels:
    listing = read_table(path)
    found = {key: next((name for name in names if name in listing.columns), None) for key, names in _COLUMNS.items()}
    missing = [_COLUMNS[key][0] for key, name in found.items() if name is None]
    if missing:
        raise DataError(
            f"{path} lacks the columns {listed(missing)}; it has: {', '.join(listing.columns)}",
            hint=f"expected {LAYOUT}",
        )
    table = pd.DataFrame({key: listing[name] for key, name in found.items() if name is not None})
    table.insert(0, "id", listing["id"] if "id" in listing.columns else table["rgb"])
    scene = next((name for name in _SCENE if name in listing.columns), None)
    table["scene"] = listing[scene] if scene else ""
    labels = Labels(path, table)
    lines = np.arange(2, len(table) + 2)
    for name in CLASSES:
        values = table[name].str.lower()
        table[name] = np.where(values.isin(_TRUE), 1, np.where(values.isin(_FALSE), 0, -1)).astype(np.int64)
        labels.problems += [
            f"{path.name} line {line}: {name} is {value!r}; write 0 or 1 (or True/False, yes/no)"
            for line, value, number in zip(lines, values.tolist(), table[name].tolist(), strict=True)
            if number < 0
        ]
    labels.problems += _repeated(table["id"].tolist(), lines.tolist(), path.name)
    if scene and table["scene"].ne("").any() and table["scene"].eq("").any():
        without = table["id"][table["scene"].eq("")].tolist()
        labels.problems.append(f"{path.name}: the column {scene} is empty for the ids {listed(without)}; fill it in")
    return labels


def _repeated(ids: Sequence[str], lines: Sequence[int], source: str) -> Iterable[str]:
    where: dict[str, list[int]] = {}
    for name, line in zip(ids, lines, strict=True):
        where.setdefault(name, []).append(line)
    for name, at in where.items():
        if not name:
            yield f"{source}: the id is empty in line {listed(at)}; give every pair an id of its own"
        elif len(at) > 1:
            yield f"{source}: the id {name} stands in the lines {listed(at)}; give every pair an id of its own"


def _read_intervals(path: Path) -> Labels:
    """`first last XY` per line, X fire and Y smoke; lines before the first interval are a header."""
    labels = Labels(path, pd.DataFrame({name: [] for name in ("id", "rgb", "ir", "fire", "smoke", "scene")}))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable text file ({error})", hint="save it as UTF-8") from error
    last = 0
    for number, line in enumerate(lines, start=1):
        match = _INTERVAL.match(line)
        if match is None:
            if line.strip() and labels.intervals:
                labels.problems.append(f"{path.name} line {number}: {line!r} is not 'first last XY'; correct the line")
            continue
        first, end = int(match[1]), int(match[2])
        if first > end or (labels.intervals and first <= last):
            labels.problems.append(
                f"{path.name} line {number}: {first} to {end} is empty or overlaps the line before; correct it"
            )
        last = max(last, end)
        labels.intervals.append((first, end, int(match[3] in "Yy"), int(match[4] in "Yy")))
    return labels


def _by_range(labels: Labels, listing: pd.DataFrame, column: str, source: str) -> list[str]:
    ranges = []
    for line, (first, last, scene) in enumerate(listing[["first", "last", column]].itertuples(index=False), start=2):
        if first.isdigit() and last.isdigit() and int(first) <= int(last):
            ranges.append((int(first), int(last), scene))
        else:
            labels.problems.append(f"{source} line {line}: {first} to {last} is not a range of frames; correct it")
    ranges.sort()
    for (_, last, one), (first, _, two) in itertools.pairwise(ranges):
        if first <= last:
            labels.problems.append(f"{source}: the ranges of {one} and {two} overlap; correct them")
    numbers = [frame_number(name) for name in labels.table["rgb"]]
    starts = np.array([first for first, _, _ in ranges], dtype=np.int64)
    found = []
    for number in numbers:
        at = int(np.searchsorted(starts, number, side="right")) - 1 if number is not None else -1
        found.append(ranges[at][2] if at >= 0 and number is not None and number <= ranges[at][1] else "")
    return found
