"""A sweep as a picture and a page: every seed a dot, their mean a mark with its standard deviation.

Promises: drawn from what `report.sweep.read` gives; a combination without a finished cell keeps its row and says why
it is empty; the page needs nothing else and asks nothing of a network.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.axes import Axes

from outlast.base.files import write_bytes, write_text
from outlast.report import formats, sweep
from outlast.report.formats import shorten
from outlast.report.look import Look, Theme, new_figure, quiet_axes, save_as, style

_ROW = 0.34  # inches
_MOST_LETTERS = 44  # of a combination's name


def write(folder: Path) -> dict[str, Any]:
    """Write sweep.csv, sweep-table.csv, sweep.png and sweep.html into the sweep's folder; returns what they show."""
    found = sweep.read(folder)
    write_text(folder / "sweep.csv", sweep.cells_csv(found))
    write_text(folder / "sweep-table.csv", sweep.table_csv(found))
    write_bytes(folder / "sweep.png", draw(found))
    write_text(folder / "sweep.html", render(found))
    return found


def draw(found: Mapping[str, Any], look: Look | None = None, *, titled: bool = True) -> bytes:
    """A panel per measure that is shown, a row per combination. PNG or SVG bytes."""
    look = look or Look()
    shown, rows = found["shown"] or ["no score yet"], found["rows"]
    title = f"Sweep of {found['task']}, preset {found['preset']}" if titled else None
    finding = sweep.told(found)[-1]
    with style(look) as theme:
        size = (3.0 + 2.6 * len(shown), 0.7 + _ROW * max(len(rows), 1))
        figure = new_figure(size, look, title, finding, found["synthetic"])
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, shown, strict=True):
            quiet_axes(axes, grid="x")
            axes.set_xlabel(shorten(name, 40))
            for place, row in enumerate(rows):
                _row(axes, place, row, row["measures"].get(name), theme)
        names = [shorten(" ".join(row["values"].values()) or "all", _MOST_LETTERS) for row in rows]
        panels[0].set_yticks(range(len(rows)), names)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        said = f"sweep of task {found['task']}; preset {found['preset']}; {len(found['cells'])} cells"
        return save_as(figure, look, said.encode("ascii", "backslashreplace").decode("ascii"))


def _row(axes: Axes, place: int, row: Mapping[str, Any], summary: Mapping[str, Any] | None, theme: Theme) -> None:
    if summary is None:
        words = sweep.FAILED if row["failed"] else "not finished"
        colour = theme.alarm if row["failed"] else theme.muted
        axes.text(0.02, place, words, transform=axes.get_yaxis_transform(), color=colour, fontsize=8, va="center")
        return
    mean, deviation = summary["mean"], summary["deviation"] or 0.0
    axes.plot([mean - deviation, mean + deviation], [place, place], color=theme.train, linewidth=2)
    axes.plot(summary["values"], [place] * summary["number"], "o", color=theme.muted, markersize=3.5, alpha=0.7)
    mark = theme.alarm if row["failed"] else theme.train
    axes.plot([mean], [place], "D", color=mark, markersize=6)


def render(found: Mapping[str, Any]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pictures = {
        name: "data:image/svg+xml;base64,"
        + base64.b64encode(draw(found, Look(dark=name == "dark", form="svg"), titled=False)).decode("ascii")
        for name in ("light", "dark")
    }
    head, *body = sweep.grid(found)
    return environment.get_template("sweep.html.j2").render(
        found=found, told=sweep.told(found), head=head, body=body, pictures=pictures, failures=sweep.failures(found),
        fallbacks=sweep.fallbacks(found), label=sweep.label, number=formats.number,
    )  # fmt: skip
