"""Grids of images with what the model said about them.

Promises: an image that is missing or damaged leaves an empty, crossed tile with its text; it never stops a report.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from outlast.report.formats import percent, shorten
from outlast.report.look import Look, Theme, new_figure, quiet_axes, save, style
from outlast.report.records import Collected, Mistake

SIDE = 160  # pixels that a tile is reduced to
BELOW = 0.66  # inches for the text below a tile


def image_grid(
    run: Collected,
    mistakes: Sequence[Mistake],
    look: Look | None = None,
    title: str | None = "Worst mistakes",
    most: int = 15,
) -> bytes | None:
    """The first `most` mistakes: the image, the class that was predicted with its probability, and the truth."""
    look = look or Look()
    shown = list(mistakes[:most])
    if not shown:
        return None
    columns = min(len(shown), 2 if look.narrow else 5)
    rows = math.ceil(len(shown) / columns)
    tile = 1.72 if not look.narrow else 1.85
    gap = 0.12
    width = max(columns * tile + (columns - 1) * gap + 2 * look.padding, 4.3 if not look.narrow else 4.0)
    with style(look) as theme:
        figure = new_figure(
            (width, rows * (tile + BELOW)), look, title, grid_finding(len(shown), len(mistakes)), run.synthetic
        )
        figure.set_layout_engine("none")
        height = figure.get_figheight()
        for place, mistake in enumerate(shown):
            row, column = divmod(place, columns)
            left = look.padding + column * (tile + gap)
            bottom = look.padding + (rows - row) * (tile + BELOW) - tile
            axes = figure.add_axes((left / width, bottom / height, tile / width, tile / height))
            quiet_axes(axes, grid=None)
            axes.set_xticks([])
            axes.set_yticks([])
            _tile(axes, mistake, theme)
        return save(figure, look, run)


def grid_finding(shown: int, known: int) -> str:
    """How to read the grid."""
    which = f"The {shown} most confident of {known}" if known > shown else "All"
    return f"{which} wrong predictions. In orange the predicted class and its probability, below it the truth."


def _tile(axes: Axes, mistake: Mistake, theme: Theme) -> None:
    pixels = load(mistake.thumbnail)
    if pixels is None:
        axes.imshow(np.ones((1, 1, 3)) * 0.5, extent=(0, SIDE, SIDE, 0), alpha=0.15)
        axes.text(SIDE / 2, SIDE / 2, "no picture", ha="center", va="center", fontsize=8.5, color=theme.muted)
    else:
        axes.imshow(pixels, extent=(0, SIDE, SIDE, 0), interpolation="lanczos")
    lines = (
        (f"{shorten(mistake.predicted, 20)} {percent(mistake.probability)}", theme.validation, "bold", 0.03),
        (f"truth: {shorten(mistake.truth, 19)} {percent(mistake.truth_probability)}", theme.text, "normal", 0.14),
        (shorten(mistake.id, 26), theme.muted, "normal", 0.245),
    )
    for text, colour, weight, below in lines:
        size = 7 if text == lines[2][0] else 8
        axes.text(
            0,
            -below,
            text,
            transform=axes.transAxes,
            fontsize=size,
            ha="left",
            va="top",
            color=colour,
            fontweight=weight,
        )


def load(path: Path | None) -> np.ndarray | None:
    """The image as (SIDE, SIDE, 3) uint8, fitted into a square; None if it can't be read."""
    if path is None:
        return None
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # a damaged thumbnail is no reason to stop
            square = image.convert("RGB")
            square.thumbnail((SIDE, SIDE))
            canvas = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
            canvas.paste(square, ((SIDE - square.width) // 2, (SIDE - square.height) // 2))
            if max(image.size) < SIDE:  # small pictures fill the tile instead of floating in it
                scale = SIDE / max(square.size)
                size = (max(1, round(square.width * scale)), max(1, round(square.height * scale)))
                canvas.paste((128, 128, 128), (0, 0, SIDE, SIDE))
                canvas.paste(square.resize(size), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return np.asarray(canvas)
