"""Embeddings drawn: a picture (PNG or SVG), and one interactive HTML file that needs no network.

Promises: a panel per stage, side by side, with one legend for all; every group has its own colour and marker, and one
that no sample has stands in the legend as empty; names from data are drawn as they are, never read as TeX or HTML; the
HTML's own security policy forbids every request. SYNTHETIC is not to be overlooked.
"""

from __future__ import annotations

import html as markup
import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from outlast.errors import TaskError, UsageError, listed
from outlast.report.formats import shorten
from outlast.report.look import SYNTHETIC, Look, new_figure, quiet_axes, save_as, style
from outlast.task import Mark

MARKERS = {  # ours: (matplotlib's, plotly's)
    "circle": ("o", "circle"),
    "square": ("s", "square"),
    "triangle": ("^", "triangle-up"),
    "diamond": ("D", "diamond"),
    "cross": ("X", "x"),
    "pentagon": ("p", "pentagon"),
    "triangle-down": ("v", "triangle-down"),
    "star": ("*", "star"),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#59636e", "#857a00")
LARGER = {"star": 1.9, "cross": 1.3, "pentagon": 1.3}  # so that all look equally large in a picture
PANEL = 4.4  # inches
MOST_BELOW = 8  # groups whose legend stands below the panels; that of more stands beside them
ROWS = 20  # of a legend beside the panels
MOST_CHARACTERS = 28  # of a group's name


# Nothing leaves the reader's machine: no link to the maker, no button that sends the data away.
_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False}


@dataclass(frozen=True)
class Panel:
    """One stage's samples: coordinates (N, 2), their ids, and the group of each."""

    title: str
    points: np.ndarray
    ids: Sequence[str]
    names: Sequence[str]


@dataclass(frozen=True)
class Embedding:
    """What is drawn. marks: every group in the order of the legend. said: where it comes from, in one line."""

    title: str
    finding: str
    panels: Sequence[Panel]
    marks: Mapping[str, Mark]
    synthetic: bool
    said: str

    def __post_init__(self) -> None:
        unknown = sorted({mark.marker for mark in self.marks.values()} - set(MARKERS))
        if unknown:
            raise TaskError(f"there is no marker {listed(unknown)}", hint=f"choose among {', '.join(MARKERS)}")
        unmarked = sorted({name for panel in self.panels for name in panel.names} - set(self.marks))
        if unmarked:
            raise TaskError(f"groups without a mark: {listed(unmarked)}", hint="give every group a colour and a marker")


def marks(names: Sequence[str]) -> dict[str, Mark]:
    """A colour and a marker for each name; no two of the first 64 names share both."""
    kinds = list(MARKERS)
    return {name: Mark(COLOURS[number % 8], kinds[(number + number // 8) % 8]) for number, name in enumerate(names)}


def check_installed() -> None:
    """Raise UsageError if the package that draws the interactive file is missing."""
    if importlib.util.find_spec("plotly") is None:
        raise UsageError("the interactive figure needs plotly, which is not installed", hint="pip install plotly")


def picture(embedding: Embedding, look: Look | None = None) -> bytes:
    """The panels side by side as PNG (or SVG, if `look` says so)."""
    look = look or Look()
    labels = legend(embedding)
    beside = len(labels) > MOST_BELOW
    entry = 0.42 + 0.078 * max(map(len, labels.values()))  # inches
    width, height = len(embedding.panels) * PANEL, PANEL + (0.25 if len(embedding.panels) > 1 else 0)
    if beside:
        columns = math.ceil(len(labels) / ROWS)
        width += columns * entry
    else:
        columns = min(max(1, int(width / entry)), len(labels))
        height += 0.21 * math.ceil(len(labels) / columns)
    with style(look) as theme:
        size = (width + 2 * look.padding, height)
        figure = new_figure(size, look, embedding.title, embedding.finding, embedding.synthetic)
        every = np.atleast_1d(figure.subplots(1, len(embedding.panels)))
        for axes, panel in zip(every, embedding.panels, strict=True):
            quiet_axes(axes, grid=None)
            axes.set(xticks=[], yticks=[], facecolor=theme.band, box_aspect=1)
            axes.set_aspect("equal", adjustable="datalim")
            axes.set_anchor("W")
            axes.margins(0.04)
            if len(embedding.panels) > 1:
                axes.set_title(panel.title, fontsize=10, color=theme.text, loc="left")
            area = float(np.clip(9000 / max(len(panel.ids), 1), 12, 34))
            for name, points in _by_group(embedding, panel):
                mark = embedding.marks[name]
                axes.scatter(
                    points[:, 0], points[:, 1], s=area * LARGER.get(mark.marker, 1.0), c=mark.colour,
                    marker=MARKERS[mark.marker][0], alpha=0.8, linewidths=0.4, edgecolors=theme.surface,
                )  # fmt: skip
        handles = [_handle(embedding.marks[name], label, _is_empty(embedding, name)) for name, label in labels.items()]
        figure.legend(
            handles=handles,
            loc="outside right center" if beside else "outside lower left",
            ncols=columns,
            handletextpad=0.3,
            columnspacing=1.4,
            borderaxespad=0.2,
        )
        return save_as(figure, look, embedding.said.encode("ascii", "backslashreplace").decode("ascii"))


def page(embedding: Embedding) -> str:
    """One HTML file with everything in it, the drawing program too: zoom, ids under the pointer, groups on and off."""
    columns = len(embedding.panels)
    figure = importlib.import_module("plotly.subplots").make_subplots(
        rows=1, cols=columns, horizontal_spacing=0.03,
        subplot_titles=[markup.escape(panel.title) for panel in embedding.panels] if columns > 1 else None,
    )  # fmt: skip
    labels = legend(embedding)
    for column, panel in enumerate(embedding.panels, start=1):
        for name, label in labels.items():
            figure.add_trace(_trace(embedding, panel, name, label, first=column == 1), row=1, col=column)
    plain = {"showticklabels": False, "ticks": "", "zeroline": False, "gridcolor": "#e7eaee", "title": None}
    figure.update_xaxes(**plain)
    figure.update_yaxes(**plain)
    for column in range(1, columns + 1):
        figure.update_yaxes(scaleanchor=f"x{column if column > 1 else ''}", row=1, col=column)
    beside = len(labels) > MOST_BELOW
    place = {} if beside else {"orientation": "h", "yanchor": "top", "y": -0.02, "x": 0}
    figure.update_layout(
        height=640, margin={"l": 10, "r": 10, "t": 36, "b": 10}, paper_bgcolor="#ffffff", plot_bgcolor="#f2f5f9",
        font={"family": "system-ui, sans-serif", "color": "#1c2128"}, hoverlabel={"namelength": -1},
        legend={**place, "itemsizing": "constant"},
    )  # fmt: skip
    drawing = figure.to_html(full_html=False, include_plotlyjs=True, div_id="embedding", config=_CONFIG)
    title, finding, said = (markup.escape(text) for text in (embedding.title, embedding.finding, embedding.said))
    return _PAGE.format(
        title=title,
        finding=finding,
        said=said,
        synthetic=f"<p class='synthetic'>{SYNTHETIC}</p>" if embedding.synthetic else "",
        drawing=drawing,
        width=640 * columns + (320 if beside else 0),
    )


def legend(embedding: Embedding) -> dict[str, str]:
    """{group: what the legend says}: how many samples it has, or that it is empty."""
    found = {}
    for name in embedding.marks:
        counts = {sum(one == name for one in panel.names) for panel in embedding.panels}
        told = "empty" if counts == {0} else f"{counts.pop():,}" if len(counts) == 1 else None
        shown = shorten(name, MOST_CHARACTERS)
        found[name] = f"{shown} ({told})" if told else shown
    return found


def _trace(embedding: Embedding, panel: Panel, name: str, label: str, *, first: bool) -> Any:
    mark = embedding.marks[name]
    inside = np.flatnonzero(np.asarray(panel.names, dtype=object) == name)
    symbol = MARKERS[mark.marker][1] + ("-open" if _is_empty(embedding, name) else "")
    return importlib.import_module("plotly.graph_objects").Scatter(
        # A group without samples has one point nowhere, so that the legend shows it.
        x=panel.points[inside, 0].tolist() or [None],
        y=panel.points[inside, 1].tolist() or [None],
        text=[markup.escape(str(panel.ids[number])) for number in inside.tolist()],
        name=markup.escape(label),
        mode="markers",
        marker={"color": mark.colour, "symbol": symbol, "size": 7, "opacity": 0.8},
        legendgroup=markup.escape(name),
        showlegend=first,
        hovertemplate="%{text}<extra>" + markup.escape(name).replace("{", "&#123;") + "</extra>",
    )


def _by_group(embedding: Embedding, panel: Panel) -> list[tuple[str, np.ndarray]]:
    names = np.asarray(panel.names, dtype=object)
    return [(name, panel.points[names == name]) for name in embedding.marks]


def _is_empty(embedding: Embedding, name: str) -> bool:
    return all(name not in panel.names for panel in embedding.panels)


def _handle(mark: Mark, label: str, empty: bool) -> Line2D:
    return Line2D(
        [], [], linestyle="none", marker=MARKERS[mark.marker][0], markersize=6, label=label,
        markeredgecolor=mark.colour, markerfacecolor="none" if empty else mark.colour,
    )  # fmt: skip


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2128; margin: 1.5rem auto;
       max-width: {width}px; padding: 0 1rem }}
h1 {{ font-size: 1.3rem; margin: 0 }}
p {{ margin: .3rem 0; color: #59636e }}
.synthetic {{ color: #b3360b; font-weight: bold }}
footer {{ color: #59636e; font-size: .8rem; overflow-wrap: anywhere; margin-top: 1rem }}
</style>
</head>
<body>
<h1>{title}</h1>
{synthetic}
<p>{finding}</p>
{drawing}
<footer>{said}</footer>
</body>
</html>
"""
