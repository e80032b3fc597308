"""The files of a run, each read by itself: evaluations, scores, mistakes, the split.

Promises: a file that is missing, torn or damaged gives what can be read of it; what can't is added to `problems`.
A path that a record names is only followed inside the run folder. Values of a wrong type count as missing.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from outlast.report.formats import finite
from outlast.report.records import Mistake, Scores

PerLabel = dict[str, dict[str, tuple[int, int]]]
Split = tuple[PerLabel, dict[str, tuple[int, int]], tuple[str, ...]]
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def read_scores(run: Path, source: str, problems: list[str] | None = None) -> Scores | None:
    """The scores in one metrics.json under the run folder; None if there are none."""
    record = as_mapping(read_json(run / source, [] if problems is None else problems))
    metrics = as_mapping(record.get("metrics"))
    if not metrics and not record.get("confusion"):
        return None
    classes = tuple(str(name) for name in as_list(record.get("classes")))
    scalars = {name: value for name, value in metrics.items() if value is None or isinstance(value, int | float)}
    return Scores(
        source=source,
        split=as_text(record.get("split")) or "unknown split",
        images=as_whole(record.get("images")),
        metrics=scalars,
        per_class=_per_class(metrics, classes),
        classes=classes,
        confusion=_matrix(record.get("confusion"), len(classes)),
        unit=as_text(record.get("unit")) or "images",
    )


def read_rows(path: Path, problems: list[str] | None = None) -> tuple[dict[str, Any], ...]:
    """The rows of a metrics.jsonl by rising step. Of a step that was done twice, the later row counts; a torn line is
    left out and named in `problems`."""
    found: dict[int, dict[str, Any]] = {}
    for place, line in enumerate(read_text(path, problems).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = clean(json.loads(line))
        except ValueError:
            row = None
        step = as_whole(row.get("step")) if isinstance(row, dict) else None
        if isinstance(row, dict) and step is not None:
            found[step] = row
        elif problems is not None:
            problems.append(f"{path.parent.name}/{path.name}, line {place}: not a whole row, left out")
    return tuple(found[step] for step in sorted(found))


def read_mistakes(run: Path, source: str, problems: list[str] | None = None) -> tuple[Mistake, ...]:
    """The mistakes in a mistakes.json under the run folder, worst first as they were written."""
    record = as_mapping(read_json(run / source, [] if problems is None else problems))
    return tuple(
        Mistake(
            id=str(part.get("id", "")),
            truth=str(part.get("truth", "")),
            predicted=str(part.get("predicted", "")),
            probability=finite(part.get("probability")),
            truth_probability=finite(part.get("truth_probability")),
            thumbnail=inside(run, part.get("thumbnail")),
        )
        for part in as_list(record.get("mistakes"))
        if isinstance(part, dict)
    )


def inside(run: Path, named: object) -> Path | None:
    """The file under the run folder that a record names; None if it is not there or lies elsewhere."""
    if not isinstance(named, str) or not named:
        return None
    try:
        path = (run / named).resolve()
        return path if path.is_relative_to(run.resolve()) and path.is_file() else None
    except (OSError, ValueError):
        return None


def read_split(path: Path, problems: list[str]) -> Split:
    """Images and groups per label and split, and per split; and the groups that stand in more than one split."""
    images: Counter[tuple[str, str]] = Counter()
    groups: dict[tuple[str, str], set[str]] = {}
    text = read_text(path, problems) if path.is_file() else ""
    for row in csv.DictReader(io.StringIO(text, newline="")):
        key = (row.get("label") or "(no label)", row.get("split") or "(no split)")
        images[key] += 1
        groups.setdefault(key, set()).add(row.get("group") or row.get("id") or str(images[key]))
    order = {"train": 0, "val": 1, "test": 2}
    splits = sorted({split for _, split in images}, key=lambda name: (order.get(name, 3), name))
    labels = sorted({label for label, _ in images})
    table = {
        label: {split: (images[label, split], len(groups.get((label, split), ()))) for split in splits}
        for label in labels
    }
    totals = {
        split: (
            sum(images[label, split] for label in labels),
            len(set().union(*(groups.get((label, split), set()) for label in labels))),
        )
        for split in splits
    }
    places: dict[str, set[str]] = {}
    for (_, split), named in groups.items():
        for group in named:
            places.setdefault(group, set()).add(split)
    return table, totals, tuple(sorted(group for group, found in places.items() if len(found) > 1))


def _per_class(metrics: Mapping[str, Any], classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """{class: {metric: value}}, from `per_class`, from {metric: {class: value}} and from {class: {metric: value}}."""
    table: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for name, part in metrics.items():
        if not isinstance(part, dict):
            continue
        if name == "per_class":
            for row, values in part.items():
                table.setdefault(str(row), {}).update(as_mapping(values))
        elif classes and set(part) <= set(classes):
            for row, value in part.items():
                table[row][name] = value
        else:
            table.setdefault(str(name), {}).update(part)
    return {name: values for name, values in table.items() if values}


def _matrix(value: object, size: int) -> tuple[tuple[int, ...], ...]:
    rows = [[as_whole(cell) for cell in row] for row in as_list(value) if isinstance(row, list)]
    square = bool(rows) and all(len(row) == len(rows) for row in rows) and len(rows) == size
    return tuple(tuple(cell or 0 for cell in row) for row in rows) if square else ()


def read_json(path: Path, problems: list[str]) -> object:
    if not path.is_file():
        return None
    try:
        return clean(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
        return None


def clean(value: Any) -> Any:
    """The same JSON value without characters that no file in UTF-8 or XML can hold (lone surrogates, control codes)."""
    if isinstance(value, str):
        return UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [clean(part) for part in value]
    if isinstance(value, dict):
        return {clean(key): clean(part) for key, part in value.items()}
    return value


def read_text(path: Path, problems: list[str] | None) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        if problems is not None:
            problems.append(f"{path.name} cannot be read: {error.strerror or error}")
        return ""


def as_time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)


def as_text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def as_whole(value: object) -> int | None:
    known = finite(value)
    return None if known is None else int(known)


def as_mapping(value: object) -> dict[str, Any]:
    return {str(key): part for key, part in value.items()} if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
