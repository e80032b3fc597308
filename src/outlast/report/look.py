"""How figures look: one calm, colour-blind-safe style (Okabe and Ito's hues), light and dark, as PNG or SVG.

Promises: no global state of matplotlib is changed and no window is opened (object API, Agg canvas); the same figure
gives the same bytes; a name with any characters is drawn as it is, never read as TeX. SVG keeps text as text, so the
reader's own fonts show it. What is drawn in a figure is the business of the modules that use this one.
"""

from __future__ import annotations

import io
import logging
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine

from outlast.report.records import Collected

FONT = "DejaVu Sans"  # comes with matplotlib, so it is everywhere
WIDER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Noto Sans Devanagari", "Noto Sans Thai")
BROWSER_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans'"
PADDING = 0.14  # inches around a figure that stands alone
SYNTHETIC = "SYNTHETIC DATA"


@dataclass(frozen=True)
class Theme:
    """Colours by what they stand for."""

    surface: str
    text: str
    muted: str
    grid: str
    band: str
    train: str
    validation: str
    score: str
    rate: str
    right: str
    wrong: str
    alarm: str
    classes: tuple[str, ...]  # lines of the classes of a segmentation, by their numbers


LIGHT = Theme(
    surface="#ffffff", text="#1c2128", muted="#59636e", grid="#e7eaee", band="#f2f5f9", train="#0072b2",
    validation="#d55e00", score="#00795c", rate="#7a5ea8", right="#0072b2", wrong="#d55e00", alarm="#b3360b",
    classes=("#59636e", "#0b78b8", "#b97a00", "#b0508a", "#00795c", "#857a00", "#20459b", "#c24a00"),
)  # fmt: skip
DARK = Theme(
    surface="#161b22", text="#e6edf3", muted="#9aa4af", grid="#2b323b", band="#1d242d", train="#56b4e9",
    validation="#f0a04b", score="#41d3a2", rate="#bda4e6", right="#2f7fbd", wrong="#b5651d", alarm="#ff9a6b",
    classes=("#9aa4af", "#56b4e9", "#e69f00", "#e59ac4", "#41d3a2", "#f0e442", "#86a8ef", "#ff8a4c"),
)  # fmt: skip

ON_IMAGE = ("#8a949e", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#f0e442", "#0072b2", "#d55e00")  # classes on images


@dataclass(frozen=True)
class Look:
    """The form of a figure: for a light or dark page, wide or for a phone, PNG (at `dots` per inch) or SVG."""

    dark: bool = False
    narrow: bool = False
    form: Literal["png", "svg"] = "png"
    dots: int = 160

    @property
    def padding(self) -> float:
        """Inches around the figure; a page brings its own."""
        return PADDING if self.form == "png" else 0.03

    @property
    def theme(self) -> Theme:
        """The colours of this look."""
        return DARK if self.dark else LIGHT


@contextmanager
def style(look: Look) -> Iterator[Theme]:
    """Everything that is drawn and saved inside looks as `look` says; afterwards matplotlib is as it was."""
    theme = look.theme
    settings: Any = {  # Any: only matplotlib 3.11 types the keys
        "font.family": [FONT, *_wider_fonts()],
        "font.size": 9.5,
        "text.parse_math": False,
        "text.color": theme.text,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.surface,
        "axes.labelcolor": theme.muted,
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.unicode_minus": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.major.pad": 5,
        "ytick.major.pad": 5,
        "figure.facecolor": theme.surface,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "outlast",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A name in a script that no font of this machine covers shows as boxes in a PNG; that must not stop a report.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing from.*")
        warnings.filterwarnings("ignore", message=".*Matplotlib currently does not support.*natively.*")
        yield theme


def new_figure(size: tuple[float, float], look: Look, title: str | None, finding: str, synthetic: bool) -> Figure:
    """An empty figure of that size in inches below a header: title, what is to be seen, and SYNTHETIC if it is.

    Without a title there is no finding either: the page around the figure says both. To be used inside `style`.
    """
    width, height = size
    theme = look.theme
    finding_lines = (
        textwrap.wrap(finding, max(20, int((width - 2 * look.padding) / 0.076))) if title and finding else []
    )
    title_lines = textwrap.wrap(title, max(14, int((width - 2 * look.padding) / 0.115))) if title else []
    lines: list[tuple[str, dict[str, Any], float]] = []
    lines += [(line, {"fontsize": 12.5, "fontweight": "bold", "color": theme.text}, 0.26) for line in title_lines]
    if synthetic:
        lines.append((SYNTHETIC, {"fontsize": 8.5, "fontweight": "bold", "color": theme.alarm}, 0.2))
    lines += [(line, {"fontsize": 9, "color": theme.muted}, 0.19) for line in finding_lines]
    header = sum(step for _, _, step in lines) + (0.1 if lines else 0.0)
    total = height + header + 2 * look.padding
    rect = (look.padding / width, look.padding / total, 1 - 2 * look.padding / width, height / total)
    layout = ConstrainedLayoutEngine(rect=rect, w_pad=0, h_pad=0.04, hspace=0.02)
    figure = Figure(figsize=(width, total), layout=layout)
    FigureCanvasAgg(figure)
    below = total - look.padding
    for text, kind, step in lines:
        figure.text(look.padding / width, below / total, text, ha="left", va="top", **kind)
        below -= step
    return figure


def save(figure: Figure, look: Look, run: Collected) -> bytes:
    """The figure as PNG or SVG bytes, with the run's provenance in its metadata. To be used inside `style`."""
    return save_as(figure, look, provenance(run))


def save_as(figure: Figure, look: Look, said: str) -> bytes:
    """The figure as PNG or SVG bytes, with the ASCII line `said` in its metadata. To be used inside `style`."""
    buffer = io.BytesIO()
    with _quiet("matplotlib.font_manager"):
        if look.form == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "outlast", "Description": said})
            return buffer.getvalue().replace(f"'{FONT}'".encode(), BROWSER_FONTS.encode())
        figure.savefig(buffer, format="png", dpi=look.dots, metadata={"Software": "outlast", "Description": said})
    return buffer.getvalue()


def provenance(run: Collected) -> str:
    """Where a picture comes from, in one line of ASCII (all that PNG metadata takes everywhere)."""
    data = " ".join(str(part.get("fingerprint", "n/a")) for part in run.data.values()) or "n/a"
    text = (
        f"{SYNTHETIC + '; ' if run.synthetic else ''}task {run.task}; run {run.name}; config {run.config_hash}; "
        f"data {data}; split {run.split_hash}; outlast {run.outlast}"
    )
    return text.encode("ascii", "backslashreplace").decode("ascii")


def quiet_axes(axes: Axes, grid: Literal["x", "y", "both"] | None = "y") -> None:
    """Only what carries information: no frame, faint grid."""
    for side in axes.spines.values():
        side.set_visible(False)
    if grid:
        axes.grid(True, axis=grid)


@cache
def _wider_fonts() -> tuple[str, ...]:
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in WIDER_FONTS if name in installed)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
