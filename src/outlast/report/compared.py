"""The comparison of runs as text (a column per run) and as CSV (a line per run, plain numbers).

Takes the values that `compare` returns; knows nothing of how they were read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlast.report.formats import MISSING, count, duration, number, shorten

_WIDEST = 44  # letters of a cell
_HASH = 12  # letters of a hash: enough to tell two apart


@dataclass(frozen=True)
class _Line:
    """One fact of all runs: its label for people and for CSV, a value per run, and how people read it."""

    label: str
    column: str
    values: Sequence[Any]
    show: Callable[[Any], str] = str


def table(comparison: Mapping[str, Any]) -> str:
    """The warnings, what every run is and reached, then the settings that differ."""
    lines = _lines(comparison["runs"])
    settings = [_Line(key, key, values) for key, values in comparison["differences"].items()]
    rows = [_cells(line) for line in lines]
    rows += [[""], ["settings that differ"], *map(_cells, settings)] if settings else [[""], ["no setting differs"]]
    columns = 1 + len(comparison["runs"])
    widths = [max(len(row[place]) for row in rows if len(row) == columns) for place in range(columns)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join([*(f"warning: {sentence}" for sentence in comparison["warnings"]), *text])


def as_csv(comparison: Mapping[str, Any]) -> str:
    """A line per run; what a run does not have is empty."""
    lines = _lines(comparison["runs"])
    lines += [_Line(key, f"config {key}", values) for key, values in comparison["differences"].items()]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([line.column for line in lines])
    writer.writerows(zip(*(line.values for line in lines), strict=True))
    return written.getvalue()


def _cells(line: _Line) -> list[str]:
    shown = (MISSING if value is None else line.show(value) for value in line.values)
    return [line.label, *(shorten(text, _WIDEST) for text in shown)]


def _lines(runs: Sequence[Mapping[str, Any]]) -> list[_Line]:
    def each(key: str) -> list[Any]:
        return [run[key] for run in runs]

    def by_name(key: str, label: str, column: str, show: Callable[[Any], str]) -> list[_Line]:
        return [
            _Line(label.format(name), column.format(name), [run[key].get(name) for run in runs], show)
            for name in _names(run[key] for run in runs)
        ]

    marks = [f"{run['task']} (SYNTHETIC)" if run["synthetic"] else run["task"] for run in runs]
    return [
        _Line("run", "run", each("run")),
        _Line("task", "task", marks),
        _Line("preset", "preset", each("preset")),
        _Line("status", "status", each("status")),
        *by_name("rung", "rung [{}]", "rung {}", str),
        *(
            _Line(f"wanted rung [{stage}]", f"wanted rung {stage}", [_wanted(run, stage) for run in runs])
            for stage in _names(run["rungs"] for run in runs)
        ),
        *_scores(runs),
        *by_name("metrics", "{}", "{}", number),
        *by_name("epochs", "epochs [{}]", "epochs {}", count),
        *by_name("train_seconds", "training [{}]", "training seconds {}", duration),
        _Line("GPU hours", "gpu hours", each("gpu_hours"), _hours),
        _Line("quota hours", "quota hours", each("quota_hours"), _hours),
        *by_name("data", "data [{}]", "data {}", _hash),
        _Line("split", "split", each("split"), _hash),
    ]


def _scores(runs: Sequence[Mapping[str, Any]]) -> list[_Line]:
    """The best validation score of every stage, and whether more is to come."""
    lines = []
    for stage in _names(run["scores"] for run in runs):
        found = [run["scores"].get(stage, {}) for run in runs]
        name = next(one["score"] for one in found if one)
        lines.append(_Line(f"VALIDATION {name} [{stage}]", f"val {name} {stage}", [one.get("value") for one in found],
                           number))  # fmt: skip
        if not all(one.get("finished", True) for one in found):
            states = [None if not one else "finished" if one["finished"] else "so far" for one in found]
            lines.append(_Line(f"stage [{stage}]", f"stage {stage}", states))
    return lines


def _names(parts: Any) -> list[str]:
    """The names in any of the mappings, in the order in which they come."""
    return list(dict.fromkeys(name for part in parts for name in part))


def _wanted(run: Mapping[str, Any], stage: str) -> str | None:
    rung = run["rungs"].get(stage)
    return rung["wanted"] if rung else None


def _hours(hours: float) -> str:
    return f"{hours:.2f} h"


def _hash(value: str) -> str:
    return value[:_HASH]
