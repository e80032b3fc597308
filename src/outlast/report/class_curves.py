"""Scores of every class over the course of a training: which class is learned when, and which one is lost again.

Promises: reads what evaluations logged, in any of the forms `val_iou: {class: value}`, `iou: {class: value}`,
`per_class: {class: {iou: value}}` and `val_iou_CLASS: value`; a class without a value leaves a gap; nothing gives None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from outlast.report.curves import boundaries, marks, session_bands, step_axis
from outlast.report.formats import count, finite, number, title_case
from outlast.report.look import Look, Theme, new_figure, quiet_axes, save, style
from outlast.report.records import Collected, Stage

METRICS = ("iou", "f1", "class_mcc", "recall", "precision")  # the first two that were logged are drawn
DASHES = ("-", "--", "-.", ":")
Lines = dict[str, dict[str, list[tuple[float, float]]]]  # {metric: {class: [(step, value or NaN)]}}


def per_class_curves(
    run: Collected, stage: Stage, look: Look | None = None, title: str | None = "Scores per class"
) -> bytes | None:
    """IoU and F1 of every class at every evaluation, with the sessions."""
    look = look or Look()
    lines = class_lines(run, stage)
    if not lines:
        return None
    classes = _classes(lines)
    size = (4.3 if look.narrow else 9.2, 2.4 * len(lines) + 0.35)
    with style(look) as theme:
        figure = new_figure(size, look, title, class_curves_finding(run, stage), run.synthetic)
        panels = list(figure.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0])
        for axes in panels:
            quiet_axes(axes)
        step_axis(panels, stage)
        for axes, (metric, found) in zip(panels, lines.items(), strict=True):
            _panel(axes, metric, found, classes, theme)
        below = 0.55 / (2.4 * 0.8)  # under the labels of the last panel
        panels[-1].legend(
            loc="upper left", bbox_to_anchor=(0, -below), ncols=2 if look.narrow else min(6, len(classes)),
            borderaxespad=0, handlelength=2.4, columnspacing=1.4,
        )  # fmt: skip
        session_bands(panels, boundaries(run, stage), theme, look)
        figure.align_ylabels()
        return save(figure, look, run)


def class_curves_finding(run: Collected, stage: Stage) -> str:
    """The weakest class at the last evaluation, and one that was better before."""
    lines = class_lines(run, stage)
    if not lines:
        return ""
    metric, found = next(iter(lines.items()))
    known = {name: [(step, value) for step, value in points if value == value] for name, points in found.items()}
    last = {name: points[-1][1] for name, points in known.items() if points}
    weakest = min(last, key=lambda name: last[name])
    text = f"At the last evaluation {weakest} has the lowest {title_case(metric)}, {number(last[weakest])}."
    step, best = {name: max(points, key=lambda point: point[1]) for name, points in known.items() if points}[weakest]
    if best - last[weakest] > 0.02:
        text += f" It had {number(best)} at step {count(step)}."
    return text


def class_lines(run: Collected, stage: Stage) -> Lines:
    """Up to two metrics with the values of every class; classes that never have one are left out."""
    classes = _known_classes(run, stage)
    found: Lines = {}
    for metric in METRICS:
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in stage.rows:
            for name, value in _values(row, metric, classes).items():
                known = finite(value)
                lines.setdefault(name, []).append((float(row["step"]), float("nan") if known is None else known))
        lines = {name: points for name, points in lines.items() if any(value == value for _, value in points)}
        if lines:
            found[metric] = lines
    return dict(list(found.items())[:2])


def _values(row: Mapping[str, Any], metric: str, classes: Sequence[str]) -> dict[str, Any]:
    """{class: value} of one metric in one row, whichever form it has."""
    for key in (f"val_{metric}", metric):
        if isinstance(row.get(key), dict):
            return {str(name): value for name, value in row[key].items()}
    for key in ("val_per_class", "per_class"):
        if isinstance(row.get(key), dict):
            return {
                str(name): values[metric]
                for name, values in row[key].items()
                if isinstance(values, dict) and metric in values
            }
    return {name: row[f"val_{metric}_{name}"] for name in classes if f"val_{metric}_{name}" in row}


def _known_classes(run: Collected, stage: Stage) -> list[str]:
    facts = run.facts.get(stage.name) or next((part for part in run.facts.values() if part.get("classes")), {})
    classes = facts.get("classes")
    return [str(name) for name in classes] if isinstance(classes, list) else []


def _classes(lines: Lines) -> list[str]:
    return list(dict.fromkeys(name for found in lines.values() for name in found))


def _panel(
    axes: Axes, metric: str, found: Mapping[str, list[tuple[float, float]]], classes: Sequence[str], theme: Theme
) -> None:
    for place, name in enumerate(classes):
        points = found.get(name, [])
        axes.plot(
            [step for step, _ in points], [value for _, value in points], DASHES[place % len(DASHES)],
            color=theme.classes[place % len(theme.classes)], label=name, linewidth=1.8,
            **marks(axes, len(points), "osD^v"[place % 5]),
        )  # fmt: skip
    values = [value for points in found.values() for _, value in points if value == value]
    axes.set_ylim(min(0.0, min(values)), 1.0 if max(values) <= 1 else None)
    axes.set_ylabel(f"validation\n{title_case(metric.removeprefix('class_'))}")
