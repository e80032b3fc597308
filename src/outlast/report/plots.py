"""The figures of a report, drawn by kind: what a task names in `figures` becomes PNG or SVG bytes here.

Kinds: curves, confusion_matrix, per_class, image_grid, image (a picture that a stage has made, as it is); for
segmentation per_class_curves (a metrics.jsonl), class_table (a metrics.json), segmentation_examples (an examples.npz)
and boundary_error (a boundary.json), both written with `outlast.data.pictures`; for boosted trees importance (an
importance.json).
Promises: what is not there (yet) gives None, an unknown kind raises TaskError. SYNTHETIC stands in every figure of a
synthetic run. A new kind is one function and one line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from outlast.errors import TaskError, did_you_mean
from outlast.report.class_curves import class_curves_finding, per_class_curves
from outlast.report.classes import (
    class_table,
    confusion_finding,
    confusion_matrix,
    per_class_bars,
    per_class_finding,
    table_finding,
)
from outlast.report.collect import collect
from outlast.report.curves import curves, describe, finding
from outlast.report.importance import importance_bars, importance_finding, load_importance
from outlast.report.look import Look
from outlast.report.parts import inside, read_mistakes, read_scores
from outlast.report.pictures import image_grid
from outlast.report.records import Collected, Stage
from outlast.report.segmentation import (
    boundary_error,
    boundary_finding,
    examples_finding,
    load_boundary,
    load_examples,
    segmentation_examples,
)
from outlast.task import Figure

__all__ = ["KINDS", "Look", "confusion_matrix", "curves", "draw", "draw_for", "explain", "image_grid", "per_class_bars"]


def draw(figure: Figure, run: Path, look: Look | None = None) -> bytes | None:
    """The figure of the run in that folder as PNG (or SVG, if `look` says so); None if there is nothing to show.

    Raises RunError if the folder is no run and TaskError if the kind is unknown.
    """
    return draw_for(figure, collect(run), look or Look(), figure.title)


def draw_for(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    """As `draw`, for a run that is already collected, under another title or none."""
    if figure.kind not in KINDS:
        raise TaskError(
            f"there is no kind of figure {figure.kind!r}.{did_you_mean(figure.kind, list(KINDS))}",
            hint=f"choose one of {', '.join(KINDS)} in the task's figures",
        )
    return KINDS[figure.kind](figure, run, look, title)


def explain(figure: Figure, run: Collected) -> tuple[str, str]:
    """What is to be seen in the figure, in a sentence, and the alternative text of its picture."""
    stage = stage_of(figure, run) if figure.kind in ("curves", "per_class_curves") else None
    if stage is not None and figure.kind == "curves":
        return finding(run, stage), describe(run, stage)
    told = class_curves_finding(run, stage) if stage is not None else _told(figure, run)
    return told, f"{figure.title}. {told or figure.caption}".strip()


def _told(figure: Figure, run: Collected) -> str:
    """What is to be seen in a figure that shows no stage."""
    if figure.kind == "segmentation_examples":
        examples = load_examples(run.run, figure.source)
        return examples_finding(examples) if examples else ""
    if figure.kind == "boundary_error":
        errors = load_boundary(run.run, figure.source)
        return boundary_finding(errors) if errors else ""
    if figure.kind == "importance":
        known = load_importance(run.run, figure.source)
        return importance_finding(known) if known else ""
    findings = {"confusion_matrix": confusion_finding, "per_class": per_class_finding, "class_table": table_finding}
    scores = read_scores(run.run, figure.source) if figure.kind in findings else None
    return findings[figure.kind](scores) if scores else ""


def stage_of(figure: Figure, run: Collected) -> Stage | None:
    """The stage whose metrics.jsonl (or folder) a figure of curves names."""
    source = PurePosixPath(figure.source)
    name = source.parent.name if source.suffix else source.name
    return next((stage for stage in run.stages if stage.name == name), None)


def _curves(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    stage = stage_of(figure, run)
    return curves(run, stage, look, title) if stage else None


def _confusion_matrix(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    scores = read_scores(run.run, figure.source)
    return confusion_matrix(run, scores, look, title) if scores else None


def _per_class(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    scores = read_scores(run.run, figure.source)
    return per_class_bars(run, scores, look, title) if scores else None


def _class_table(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    scores = read_scores(run.run, figure.source)
    return class_table(run, scores, look, title) if scores else None


def _per_class_curves(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    stage = stage_of(figure, run)
    return per_class_curves(run, stage, look, title) if stage else None


def _segmentation_examples(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    examples = load_examples(run.run, figure.source)
    return segmentation_examples(run, examples, look, title) if examples else None


def _boundary_error(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    errors = load_boundary(run.run, figure.source)
    return boundary_error(run, errors, look, title) if errors else None


def _importance(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    known = load_importance(run.run, figure.source)
    return importance_bars(run, known, look, title) if known else None


def _image_grid(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    return image_grid(run, read_mistakes(run.run, figure.source), look, title)


def _image(figure: Figure, run: Collected, look: Look, title: str | None) -> bytes | None:
    path = inside(run.run, figure.source)
    return path.read_bytes() if path else None


KINDS: dict[str, Callable[[Figure, Collected, Look, str | None], bytes | None]] = {
    "curves": _curves,
    "confusion_matrix": _confusion_matrix,
    "per_class": _per_class,
    "image_grid": _image_grid,
    "image": _image,
    "per_class_curves": _per_class_curves,
    "class_table": _class_table,
    "segmentation_examples": _segmentation_examples,
    "boundary_error": _boundary_error,
    "importance": _importance,
}
