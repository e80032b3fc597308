"""Figures about classes: the confusion matrix and the scores of every class.

Promises: readable from 2 to about 30 classes, drawn (without numbers in the cells) beyond; a class without images shows
empty, never as 0 % right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from outlast.report.formats import count, finite, number, percent, shorten, title_case
from outlast.report.look import Look, Theme, new_figure, quiet_axes, save, style
from outlast.report.records import Collected, Scores

COSTS = ("parameters", "megabytes", "milliseconds")  # no scores: they have no bars
TABLE = (
    "iou",
    "f1",
    "precision",
    "recall",
    "pauc",
    "pauc_interval",
    "both_above_pauc",
    "auc",
    "auc_interval",
    "both_above_auc",
    "best_epoch",
    "mcc",
    "class_mcc",
    "pixels",
    "pixel_f1",
    "image_auc",
    "of1",
    "images",
    "macro_f1",
    "macro_auc",
    "exact_match",
    *COSTS,
)  # columns of a class table, whose rows may be models too
NUMBERED = 40  # classes up to which the cells carry numbers
SCORED = (("precision", "s"), ("recall", "D"))  # drawn as marks beside the bar, which is f1


def confusion_matrix(
    run: Collected, scores: Scores, look: Look | None = None, title: str | None = "Confusion matrix"
) -> bytes | None:
    """Counts and the percent of each true class: blue where the model is right, orange where it is wrong."""
    look = look or Look()
    counts = np.asarray(scores.confusion, dtype=np.int64)
    if counts.size == 0:
        return None
    classes = len(counts)
    cell = float(np.clip(6.6 / classes, 0.3, 1.1)) if classes <= NUMBERED else max(9.5 / classes, 0.06)
    names = [shorten(name, 28) for name in scores.classes]
    margin = 0.55 + 0.072 * max(len(name) for name in names) + 0.45
    slanted = max(len(name) for name in names) * 0.08 > cell * 1.15
    below = 0.62 + (0.055 * max(len(name) for name in names) if slanted else 0.0)
    size = (max(cell * classes + margin + 0.3, 4.3), cell * classes + below)
    with style(look) as theme:
        figure = new_figure(size, look, title, confusion_finding(scores), run.synthetic)
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(_colours(shares, theme), aspect="equal", interpolation="nearest")
        quiet_axes(axes, grid=None)
        if classes <= NUMBERED:
            _cells(axes, counts, shares, cell, theme)
            axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
            axes.grid(True, which="minor", color=theme.surface, linewidth=2 if classes <= 12 else 1)
            axes.tick_params(which="minor", length=0)
            small = 9.0 if classes <= 12 else 8.0
        else:
            small = max(3.0, cell * 50)
        rows = [f"{name}  {count(int(total))}" for name, total in zip(names, counts.sum(axis=1), strict=True)]
        turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {"ha": "center"}
        axes.set_xticks(range(classes), names, **turned)
        axes.set_yticks(range(classes), rows)
        axes.tick_params(labelsize=small, colors=theme.text)
        axes.set_xlabel("predicted class")
        axes.set_ylabel(f"true class, number of {scores.unit}")
        return save(figure, look, run)


def confusion_finding(scores: Scores) -> str:
    """What the matrix shows, in a sentence."""
    counts = np.asarray(scores.confusion, dtype=np.int64)
    if counts.size == 0:
        return ""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    text = (
        f"{scores.split.upper()} split: {count(int(counts.trace()))} of {count(int(counts.sum()))} {scores.unit} right."
    )
    if wrong.sum():
        truth, predicted = np.unravel_index(int(wrong.argmax()), wrong.shape)
        text += (
            f" Most often, {scores.classes[truth]} was taken for {scores.classes[predicted]}"
            f" ({count(int(wrong.max()))} of {count(int(counts[truth].sum()))})."
        )
    empty = [name for name, total in zip(scores.classes, counts.sum(axis=1), strict=True) if total == 0]
    return text + (f" Of {', '.join(empty)} there are no {scores.unit}." if empty else "")


def per_class_bars(
    run: Collected, scores: Scores, look: Look | None = None, title: str | None = "Scores per class"
) -> bytes | None:
    """F1 of every class as a bar with precision and recall as marks, the weakest class first."""
    look = look or Look()
    rows = sorted(scores.per_class.items(), key=lambda row: (_weakness(row[1]), row[0]))
    drawn = ("f1", *(name for name, _ in SCORED))
    if not any(finite(values.get(name)) is not None for _, values in rows for name in drawn):
        return None
    size = (4.3 if look.narrow else 8.0, 0.36 * len(rows) + 0.75)
    with style(look) as theme:
        figure = new_figure(size, look, title, per_class_finding(scores), run.synthetic)
        axes = figure.subplots()
        quiet_axes(axes, grid="x")
        places = np.arange(len(rows))
        f1 = [finite(values.get("f1")) for _, values in rows]
        bars = [0.0 if value is None else value for value in f1]
        axes.barh(places, bars, height=0.62, color=theme.train, alpha=0.28, label="F1")
        for name, mark in SCORED:
            known = [(at, value) for at, (_, row) in enumerate(rows) if (value := finite(row.get(name))) is not None]
            colour = theme.validation if name == "precision" else theme.score
            axes.plot(
                [value for _, value in known], [at for at, _ in known], mark, color=colour, label=name,
                markersize=6, markeredgecolor=theme.surface, markeredgewidth=1, clip_on=False, zorder=3,
            )  # fmt: skip
        for at, value in enumerate(f1):
            axes.text(0.012, at, number(value), va="center", ha="left", fontsize=8.5, color=theme.text, zorder=4)
        most = 16 if look.narrow else 28
        names = [f"{shorten(name, most)}  {_images(values)}".rstrip() for name, values in rows]
        axes.set_yticks(places, names, color=theme.text)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"score on the {scores.split} split (0 to 1); number of images beside each class")
        if look.narrow:
            axes.set_xlabel(f"score on the {scores.split} split (0 to 1)")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderaxespad=0.1, handletextpad=0.4)
        return save(figure, look, run)


def per_class_finding(scores: Scores) -> str:
    """Which class is weakest and which strongest by F1."""
    known = [(value, name) for name, row in scores.per_class.items() if (value := finite(row.get("f1"))) is not None]
    if not known:
        return f"{scores.split.upper()} split."
    (low, weakest), (high, strongest) = min(known), max(known)
    return f"{scores.split.upper()} split: F1 from {number(low)} ({weakest}) to {number(high)} ({strongest})."


def class_table(
    run: Collected, scores: Scores, look: Look | None = None, title: str | None = "Scores per class"
) -> bytes | None:
    """Every class in a row with IoU, F1, precision, recall, AUC and MCC as numbers over faint bars."""
    look = look or Look()
    columns = table_columns(scores)
    if not columns:
        return None
    rows = list(scores.per_class.items())
    names = [shorten(name, 16 if look.narrow else 28) for name, _ in rows]
    first = 0.35 + 0.078 * max(len(name) for name in names)
    each = 0.68 if look.narrow else 1.15
    size = (max(first + each * len(columns), 4.3), 0.3 * (len(rows) + 1) + 0.1)
    with style(look) as theme:
        figure = new_figure(size, look, title, table_finding(scores), run.synthetic)
        axes = figure.subplots()
        quiet_axes(axes, grid=None)
        axes.set_xlim(0, first + each * len(columns))
        axes.set_ylim(len(rows) + 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        for place, column in enumerate(columns):
            right = first + each * (place + 1) - 0.08
            said = title_case(column.removeprefix("class_"))
            axes.text(right, 0, said, ha="right", va="center", fontsize=8.5, color=theme.muted)
            for row, (_, values) in enumerate(rows, start=1):
                known = finite(values.get(column))
                if known is not None and 0 <= known <= 1 and column not in COSTS:
                    width = (each - 0.16) * known
                    axes.barh(row + 0.36, width, 0.1, left=right - each + 0.16, color=theme.train, alpha=0.55)
                ink = theme.muted if known is None else theme.text
                axes.text(right, row - 0.06, number(values.get(column)), ha="right", va="center", color=ink)
        for row, name in enumerate(names, start=1):
            axes.text(0, row - 0.06, name, ha="left", va="center", color=theme.text)
            axes.axhline(row - 0.5, color=theme.grid, linewidth=0.8)
        return save(figure, look, run)


def table_columns(scores: Scores) -> tuple[str, ...]:
    """Which of the columns of a class table have a value for any class."""
    return tuple(name for name in TABLE if any(_shown(values.get(name)) for values in scores.per_class.values()))


def _shown(value: object) -> bool:
    """Whether a cell of a class table has something to show: a number, or a few words such as an interval."""
    return finite(value) is not None or (isinstance(value, str) and bool(value))


def table_finding(scores: Scores) -> str:
    """The class that is segmented worst, by IoU, and the classes that occur nowhere."""
    known = {name: value for name, row in scores.per_class.items() if (value := finite(row.get("iou"))) is not None}
    if not known:
        return f"{scores.split.upper()} split."
    low, high = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    text = f"{scores.split.upper()} split: IoU from {number(known[low])} ({low}) to {number(known[high])} ({high})."
    absent = [name for name in scores.per_class if name not in known]
    return text + (f" Neither in the truth nor predicted: {', '.join(absent)}." if absent else "")


def _weakness(values: Mapping[str, Any]) -> float:
    known = finite(values.get("f1"))
    return 2.0 if known is None else known


def _images(values: Mapping[str, Any]) -> str:
    return count(values["images"]) if finite(values.get("images")) is not None else ""


def _colours(shares: np.ndarray, theme: Theme) -> np.ndarray:
    """Share of the row -> colour: from the surface towards blue on the diagonal, towards orange elsewhere."""
    surface = np.asarray(to_rgb(theme.surface))
    empty = np.asarray(to_rgb(theme.band))
    right = np.eye(len(shares), dtype=bool)
    full = np.where(right[..., None], np.asarray(to_rgb(theme.right)), np.asarray(to_rgb(theme.wrong)))
    # Rare mistakes are what one looks for: their colour rises faster than their share.
    strength = np.where(right, 0.08 + 0.92 * shares, np.minimum(0.18 + 1.3 * shares, 1.0))[..., None]
    mixed = surface * (1 - strength) + full * strength
    return np.asarray(np.where((shares > 0)[..., None], mixed, empty))


def _cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, cell: float, theme: Theme) -> None:
    colours = _colours(shares, theme)
    two_lines = cell >= 0.55
    for (row, column), value in np.ndenumerate(counts):
        red, green, blue = colours[row, column]
        ink = "#1c2128" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"
        if value == 0:
            continue
        big = min(13.0, max(6.0, cell * 15))
        if two_lines:
            axes.text(column, row - 0.06, count(int(value)), ha="center", va="bottom", fontsize=big, color=ink)
            share = percent(shares[row, column].item())
            axes.text(column, row + 0.06, share, ha="center", va="top", fontsize=big * 0.66, color=ink)
        else:
            axes.text(column, row, count(int(value)), ha="center", va="center", fontsize=big, color=ink)
