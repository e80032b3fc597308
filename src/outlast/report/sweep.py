"""A sweep as one table: its cells, and the mean and standard deviation of their scores over the seeds.

Promises: reads only; a cell counts in a mean only when it is finished; one that failed or is missing is shown as such,
with its reason, and never left out silently. The standard deviation is that of a sample (n - 1). Imports no torch.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from outlast.base.files import read_json
from outlast.errors import RunError
from outlast.report.collect import collect
from outlast.report.compare import metrics, rungs
from outlast.report.formats import finite, number
from outlast.report.records import Collected

NAME = "sweep.json"
FAILED = "FAILED"
MOST_SHOWN = 4  # measures in the printed table and the picture; the CSV files hold all


def is_sweep(folder: Path) -> bool:
    """Whether the folder holds a sweep."""
    return (folder / NAME).is_file()


def load(folder: Path) -> dict[str, Any]:
    """The record of the sweep in `folder`. Raises RunError if there is none."""
    record = read_json(folder / NAME)
    if not isinstance(record, dict) or not {"task", "axes", "cells"} <= set(record):
        raise RunError(f"{folder / NAME} is not the record of a sweep", hint="restore it from a copy")
    return record


def list_sweeps(folder: Path) -> list[dict[str, Any]]:
    """The records of the sweeps in a folder, each with its own "folder"."""
    return [{"folder": str(path.parent), **load(path.parent)} for path in sorted(folder.glob(f"*/{NAME}"))]


def read(folder: Path) -> dict[str, Any]:
    """The sweep's record with the scores of its cells.

    Adds to each cell "measures" ({name: value}, empty unless it is finished) and "fallbacks", and to the whole
    "measures" (all names, those that are shown first), "shown" (those that the task's trainings go by), "rows" (a dict
    per combination) and "synthetic".
    """
    record = load(folder)
    names, main, synthetic = dict[str, None](), dict[str, None](), False
    cells = []
    for cell in record["cells"]:
        run = folder / cell["cell"]
        found: dict[str, float] = {}
        fallbacks: list[str] = []
        if (run / "run.json").is_file():
            known = collect(run)
            synthetic |= known.synthetic
            if cell["status"] == "finished":
                found = _measures(known)
                main.update(dict.fromkeys(_main(known, found)))
                fallbacks = [f"{stage}: {used} in place of {wanted}" for stage, (used, wanted) in rungs(known).items()
                             if used != wanted]  # fmt: skip
        names.update(dict.fromkeys(found))
        cells.append({**cell, "measures": found, "fallbacks": fallbacks})
    shown = [*main][:MOST_SHOWN] or [*names][:MOST_SHOWN]
    rows = list(_rows(cells, record.get("over"), [*names]))
    ordered = [*dict.fromkeys((*shown, *names))]
    return {**record, "cells": cells, "measures": ordered, "shown": shown, "rows": rows, "synthetic": synthetic}


def _measures(run: Collected) -> dict[str, float]:
    """Best validation scores by training stage, then whatever was measured on a split."""
    best = {f"val {stage.score} [{stage.name}]": finite(stage.best.get("value")) for stage in run.trained}
    return {**{name: value for name, value in best.items() if value is not None}, **metrics(run)}


def _main(run: Collected, found: Mapping[str, float]) -> list[str]:
    """Of what was tested, the scores that the trainings go by; where nothing was, their validation scores."""
    scores = {stage.score for stage in run.trained}
    tested = [name for name in found if not name.startswith("val ") and set(name.split()) & scores]
    return tested or [name for name in found if name.startswith("val ")]


def _rows(cells: Sequence[Mapping[str, Any]], over: str | None, names: Sequence[str]) -> Iterable[dict[str, Any]]:
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        key = tuple((name, text) for name, text in cell["values"].items() if name != over)
        groups.setdefault(key, []).append(cell)
    for key, group in groups.items():
        yield {
            "values": dict(key),
            "cells": len(group),
            "finished": sum(cell["status"] == "finished" for cell in group),
            "failed": sum(cell["status"] == "failed" for cell in group),
            "measures": {name: summed for name in names if (summed := _summary(group, name)) is not None},
        }


def _summary(group: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    values = [cell["measures"][name] for cell in group if name in cell["measures"]]
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "number": len(values), "values": values}


def cells_csv(found: Mapping[str, Any]) -> str:
    """A line per cell: its values, how it stands and why, and everything that was measured."""
    axes = [axis["name"] for axis in found["axes"]]
    head = [*axes, "status", "reason", "run", *found["measures"]]
    lines = [
        [*(cell["values"][name] for name in axes), cell["status"], cell["reason"] or "", cell["cell"]]
        + [_exact(cell["measures"].get(name)) for name in found["measures"]]
        for cell in found["cells"]
    ]
    return _csv([head, *lines])


def table_csv(found: Mapping[str, Any]) -> str:
    """A line per combination: mean, standard deviation and number of every measure."""
    axes = [axis["name"] for axis in found["axes"] if axis["name"] != found.get("over")]
    parts = ("mean", "deviation", "number")
    head = [*axes, "cells", "finished", "failed", *(f"{name} ({part})" for name in found["measures"] for part in parts)]
    lines = [
        [*row["values"].values(), row["cells"], row["finished"], row["failed"]]
        + [_exact(row["measures"].get(name, {}).get(part)) for name in found["measures"] for part in parts]
        for row in found["rows"]
    ]
    return _csv([head, *lines])


def text(found: Mapping[str, Any]) -> str:
    """The table for people, then what failed and why."""
    lines = [" ".join(told(found))]
    head, *body = grid(found)
    widths = [max(len(row[place]) for row in (head, *body)) for place in range(len(head))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
              for row in (head, *body)]  # fmt: skip
    lines += [f"{FAILED}: {name}: {reason}" for name, reason in failures(found)]
    lines += [f"A SMALLER MODEL: {name}: {what}" for name, what in fallbacks(found)]
    return "\n".join(lines)


def status(found: Mapping[str, Any]) -> str:
    """The table, how each cell stands that is not finished, and what to type next."""
    waiting = [f"{cell['status']}: {label(cell)}" for cell in found["cells"] if cell["status"] != "finished"]
    command = found.get("next_command")
    return "\n".join([text(found), *waiting, *([f"next: {command}"] if command else [])])


def grid(found: Mapping[str, Any]) -> list[list[str]]:
    """Head and lines of the table: the combination, how many of its cells are finished, mean ± standard deviation."""
    axes = [axis["name"] for axis in found["axes"] if axis["name"] != found.get("over")]
    rows = [[*axes, "finished", *found["shown"]]]
    for row in found["rows"]:
        state = f"{row['finished']} of {row['cells']}" + (f", {row['failed']} {FAILED}" if row["failed"] else "")
        rows.append([*row["values"].values(), state, *(_spread(row["measures"].get(name)) for name in found["shown"])])
    return rows


def told(found: Mapping[str, Any]) -> list[str]:
    """What this is and how it stands, in sentences."""
    counts = {name: sum(cell["status"] == name for cell in found["cells"]) for name in ("finished", "failed")}
    states = f"{counts['finished']} of {len(found['cells'])} cells finished"
    states += f", {counts['failed']} {FAILED}" if counts["failed"] else ""
    reason = f" ({found['reason']})" if found.get("reason") else ""
    sentences = [f"sweep of {found['task']}, preset {found['preset']}: {found['status']}{reason}, {states}."]
    if found.get("synthetic"):
        sentences.append("SYNTHETIC data: the numbers say nothing about real data.")
    if found.get("over"):
        sentences.append(f"Mean ± standard deviation (n - 1) over {found['over']}, of finished cells only.")
    return sentences


def failures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(cell, why) of each that failed."""
    return [(label(cell), cell["reason"] or "") for cell in found["cells"] if cell["status"] == "failed"]


def fallbacks(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(cell, stage and models) of each that did not train the model that was wanted."""
    return [(label(cell), "; ".join(cell["fallbacks"])) for cell in found["cells"] if cell["fallbacks"]]


def label(cell: Mapping[str, Any]) -> str:
    """'teacher=resnet18 loss=kl_bce seed=1'."""
    return " ".join(f"{name}={value}" for name, value in cell["values"].items())


def _spread(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "n/a"
    deviation = f" ± {number(summary['deviation'])}" if summary["deviation"] is not None else ""
    return f"{number(float(summary['mean']))}{deviation}"


def _exact(value: object) -> str:
    return "" if value is None else repr(value)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
