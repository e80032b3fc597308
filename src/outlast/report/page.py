"""The report: one HTML file that tells everything about a run and needs nothing else, not even a network.

Promises: written atomically; no request leaves the page (a content security policy forbids it); names from data are
escaped; TEST and VALIDATION stand apart; SYNTHETIC is not to be overlooked; what is missing reads "n/a". It shows what
`collect` found and computes no metric. The layout is in page.html.j2 and style.html.j2.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from outlast.base.files import write_text
from outlast.report import formats
from outlast.report.advice import advice
from outlast.report.class_curves import class_lines
from outlast.report.classes import COSTS, table_columns
from outlast.report.collect import collect
from outlast.report.look import Look
from outlast.report.parts import read_mistakes, read_scores
from outlast.report.pictures import grid_finding
from outlast.report.plots import KINDS, draw_for, explain
from outlast.report.records import Collected, Mistake, Scores
from outlast.report.text import headline, machine, summary
from outlast.report.timeline import length, pauses, repeated, strip
from outlast.task import Figure

MOST_MISTAKES = 24
MANY_TRAININGS = 3  # above this their validation scores stand in one table
MOST_BYTES = 8 * 2**20  # of one picture that a stage made; a page is to be mailed
ALSO_NARROW = ("curves", "per_class_curves")
PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}


@dataclass(frozen=True)
class Shown:
    """A figure as the page shows it: pictures (a picture per colour scheme and width), or a table, or tiles."""

    kind: str
    title: str
    caption: str
    finding: str
    alt: str
    anchor: str
    pictures: Mapping[str, str]  # {"light", "dark", "light_narrow", "dark_narrow"}: data URIs
    width: float | None = None  # CSS pixels of the wide picture
    scores: Scores | None = None
    columns: tuple[str, ...] = ()
    tiles: tuple[tuple[Mistake, str | None], ...] = ()
    more: int = 0
    missing: str | None = None


def write(run: Path, figures: Sequence[Figure] = (), to: Path | None = None) -> Path:
    """Write the report of the run and return its path (default: report.html in the run folder).

    `figures` are the task's; without any, those that the run's files allow. Raises RunError if the folder is no run.
    """
    collected = collect(run)
    target = to if to is not None else run / "report.html"
    page = render(collected, figures)
    write_text(target, page.encode("utf-8", "replace").decode("utf-8"))  # a path of undecodable bytes must not stop it
    return target


def render(run: Collected, figures: Sequence[Figure] = ()) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        {name: getattr(formats, name) for name in ("count", "duration", "moment", "number", "percent", "title_case")}
    )
    now = run.touched if run.status == "running" else None
    return environment.get_template("page.html.j2").render(
        run=run,
        figures=[_shown(figure, run, place) for place, figure in enumerate(figures or default_figures(run))],
        headline=headline(run),
        many_trainings=MANY_TRAININGS,
        costs=COSTS,
        machine=machine(run),
        bars=strip(run.sessions, now),
        session_rows=_session_rows(run),
        trained_seconds=sum(length(session, now) or 0.0 for session in run.sessions),
        paused_seconds=sum(gap or 0.0 for gap in pauses(run.sessions)),
        splits=list(run.split_totals),
        steps=advice(run),
        text=summary(run),
    )


def default_figures(run: Collected) -> list[Figure]:
    """The figures that can be drawn from what lies in the run folder."""
    trained = run.trained
    found = [
        Figure(
            "curves", f"{stage.name}/metrics.jsonl", "Training curves" + (f": {stage.name}" if len(trained) > 1 else "")
        )
        for stage in trained
        if stage.rows
    ]
    found += [
        Figure("per_class_curves", f"{stage.name}/metrics.jsonl", f"Classes during the training ({stage.name})")
        for stage in trained
        if class_lines(run, stage)
    ]
    for scores in run.scores:
        where = f" ({scores.split})" if scores.split != "test" else ""
        if scores.confusion:
            found.append(Figure("confusion_matrix", scores.source, f"Confusion matrix{where}"))
        if scores.per_class:
            kind = "class_table" if "iou" in table_columns(scores) else "per_class"
            found.append(Figure(kind, scores.source, f"Scores per class{where}"))
    for name, kind, title in (
        ("examples.npz", "segmentation_examples", "Predictions next to truth"),
        ("boundary.json", "boundary_error", "Errors near boundaries"),
    ):
        sources = sorted(path.relative_to(run.run).as_posix() for path in run.run.glob(f"*/{name}"))
        found += [Figure(kind, source, title) for source in sources]
    if run.mistakes:
        for source in sorted(run.run.glob("*/mistakes.json")):
            found.append(Figure("image_grid", source.relative_to(run.run).as_posix(), "Worst mistakes"))
    return found


def _shown(figure: Figure, run: Collected, place: int) -> Shown:
    plain: dict[str, Any] = {
        "kind": figure.kind,
        "title": figure.title,
        "caption": figure.caption,
        "anchor": f"figure-{place + 1}",
        "pictures": {},
        "finding": "",
        "alt": figure.title,
    }
    if figure.kind not in KINDS:
        return Shown(**plain, missing=f"This version draws no figure of the kind {figure.kind!r}.")
    plain["finding"], plain["alt"] = explain(figure, run)
    if figure.kind in ("per_class", "class_table"):
        scores = read_scores(run.run, figure.source)
        if scores is not None and scores.per_class:
            names = tuple(dict.fromkeys(name for values in scores.per_class.values() for name in values))
            names = table_columns(scores) if figure.kind == "class_table" else names
            return Shown(**plain, scores=scores, columns=names)
    elif figure.kind == "image_grid":
        mistakes = read_mistakes(run.run, figure.source)
        if mistakes:
            shown = tuple((one, _embedded(one.thumbnail)) for one in mistakes[:MOST_MISTAKES])
            plain["finding"] = grid_finding(len(shown), len(mistakes))
            return Shown(**plain, tiles=shown, more=len(mistakes) - len(shown))
    elif figure.kind == "image":
        data = draw_for(figure, run, Look(), None)
        embedded = _data_uri(data) if data else None
        if embedded:
            plain["pictures"] = {"light": embedded}
            return Shown(**plain)
    else:
        plain["pictures"], width = _pictures(figure, run)
        if plain["pictures"]:
            return Shown(**plain, width=width, scores=_confusion(figure, run))
    return Shown(**plain, missing="Nothing to show yet: " + figure.source + " holds no values.")


def _pictures(figure: Figure, run: Collected) -> tuple[dict[str, str], float | None]:
    """The figure for light and dark pages; curves also for a phone. Others keep their width and scroll."""
    found: dict[str, str] = {}
    width = None
    for narrow in (False, True) if figure.kind in ALSO_NARROW else (False,):
        for dark in (False, True):
            data = draw_for(figure, run, Look(dark=dark, narrow=narrow, form="svg"), None)
            if data is None:
                return {}, None
            found[("dark" if dark else "light") + ("_narrow" if narrow else "")] = _data_uri(data) or ""
            if figure.kind not in ALSO_NARROW:
                width = _svg_width(data)
    return found, width


def _confusion(figure: Figure, run: Collected) -> Scores | None:
    """The scores that stand below a confusion matrix as a table."""
    return read_scores(run.run, figure.source) if figure.kind == "confusion_matrix" else None


def _svg_width(data: bytes) -> float:
    """The width of an SVG of ours in CSS pixels (it says points)."""
    start = data.index(b"<svg ")
    points = data[data.index(b'width="', start) + 7 :].split(b"pt", 1)[0]
    return float(points) * 96 / 72


def _embedded(path: Path | None) -> str | None:
    try:
        return _data_uri(path.read_bytes()) if path else None
    except OSError:
        return None


def _data_uri(data: bytes) -> str | None:
    """A picture as a data URI, or None if these bytes are no picture (of a size to embed)."""
    kind = next((kind for magic, kind in PICTURES.items() if data.startswith(magic)), None)
    if kind is None and b"<svg" in data[:1000]:
        kind = "image/svg+xml"
    if kind is None or len(data) > MOST_BYTES:
        return None
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _session_rows(run: Collected) -> list[dict[str, Any]]:
    gaps = [None, *pauses(run.sessions)]
    now = run.touched if run.status == "running" else None
    return [
        {
            "session": session,
            "seconds": length(session, now),
            "pause": gaps[place],
            "repeated": repeated(run.sessions, place),
        }
        for place, session in enumerate(run.sessions)
    ]
