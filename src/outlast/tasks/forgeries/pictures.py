"""Pictures of what was found: the mask over the image, arrows from copies to their partners, the correlation map.

Promises: the same bytes for the same input; arrows are matches that the models made, not drawn from the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.base.files import write_bytes
from outlast.model.copy_move import FLOW
from outlast.tasks.forgeries.evidence import AGREED

Array = npt.NDArray[Any]
_MARKED, _TRUE = (230, 60, 20), (40, 200, 255)
_ARROWS = 24
_DPI = 100
_WIDEST_NAME = 28  # letters


@dataclass(frozen=True)
class Shown:
    """An image uint8 (H, W, 3) with its mask (H, W), its arrows (N, 4) from y, x to y, x, and its truth, if known.

    correlation: (h, w), how many neighbours agree on a match, 0 to 1; score: of the image.
    """

    name: str
    image: Array
    mask: Array
    arrows: Array
    correlation: Array
    score: float
    truth: Array | None = None


def overlay(image: Array, mask: Array, truth: Array | None = None) -> Array:
    """The image with the mask tinted, and the outline of the truth."""
    picture = image.astype(np.float32)
    picture[mask] = 0.45 * picture[mask] + 0.55 * np.array(_MARKED, np.float32)
    if truth is not None:
        picture[_outline(truth > 0)] = _TRUE
    return np.asarray(picture.round().astype(np.uint8))


def arrows(flow: Array, mask: Array, size: Sequence[int]) -> Array:
    """(N, 4) float: y, x of a match and of its partner, in pixels of an image of which `size` is that on the canvas.

    flow (3, h, w): see `CopyMove`. Of the matches inside the mask (H, W), spread over the strongest offsets.
    """
    scale_y, scale_x = mask.shape[0] / size[0], mask.shape[1] / size[1]
    rows, columns = -(-size[0] // FLOW), -(-size[1] // FLOW)
    dy, dx, strength = flow[:, :rows, :columns].astype(np.float64)
    y, x = np.nonzero(strength >= AGREED)
    from_y, from_x = (y * FLOW + 1) * scale_y, (x * FLOW + 1) * scale_x
    to_y, to_x = from_y + dy[y, x] * scale_y, from_x + dx[y, x] * scale_x
    inside = _on(mask, from_y, from_x) & _on(mask, to_y, to_x)
    found = np.stack([from_y, from_x, to_y, to_x], axis=1)[inside]
    if not len(found):
        return np.zeros((0, 4))
    # One arrow for each place and offset of some size, the strongest first.
    order = np.argsort(-strength[y, x][inside], kind="stable")
    found = found[order]
    reach = max(mask.shape) / 24
    _, first = np.unique((found // reach).astype(np.int64), axis=0, return_index=True)
    return found[np.sort(first)][:_ARROWS]


def write_overlay(path: Path, shown: Shown) -> None:
    """The image with its mask and arrows, pixel by pixel as large as the image and at least 256 pixels wide."""
    height, width = shown.image.shape[:2]
    figure, axes = _figure(max(width, 256) / _DPI, max(width, 256) / _DPI * height / width)
    panel = axes.add_axes((0, 0, 1, 1))
    _draw(panel, overlay(shown.image, shown.mask, shown.truth), shown.arrows)
    _save(figure, path)


def write_examples(path: Path, examples: Sequence[Shown]) -> None:
    """A sheet: for each image the mask with arrows (outline: the truth) beside the map of agreeing matches."""
    columns = min(len(examples), 3)
    rows = -(-len(examples) // columns)
    figure, _ = _figure(columns * 4.4, rows * 2.0)
    for place, shown in enumerate(examples):
        row, column = divmod(place, columns)
        for part in range(2):
            left = (column + 0.02 + 0.49 * part) / columns
            panel = figure.add_axes((left, 1 - (row + 0.98) / rows, 0.47 / columns, 0.84 / rows))
            if part:
                panel.imshow(shown.correlation, vmin=0, vmax=1, cmap="magma", aspect="equal", interpolation="nearest")
                panel.set_axis_off()
                panel.set_title("agreeing neighbours", fontsize=7, loc="left", pad=2)
            else:
                _draw(panel, overlay(shown.image, shown.mask, shown.truth), shown.arrows)
                panel.set_title(f"{_shortened(shown.name)}: {shown.score:.2f}", fontsize=7, loc="left", pad=2)
    _save(figure, path)


def _shortened(name: str) -> str:
    """A name that is no wider than its panel: of a long one the end, which tells it from others."""
    return name if len(name) <= _WIDEST_NAME else f"...{name[-(_WIDEST_NAME - 3) :]}"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure, figure


def _draw(panel: Any, picture: Array, found: Array) -> None:
    panel.imshow(picture, aspect="equal")
    for from_y, from_x, to_y, to_x in found.tolist():
        panel.annotate(
            "", xy=(to_x, to_y), xytext=(from_x, from_y),
            arrowprops={
                "arrowstyle": "->,head_length=0.25,head_width=0.12", "color": "#ffe000", "lw": 0.7, "shrinkA": 0,
                "shrinkB": 0,
            },
        )  # fmt: skip
    panel.set_xlim(-0.5, picture.shape[1] - 0.5)
    panel.set_ylim(picture.shape[0] - 0.5, -0.5)
    panel.set_axis_off()


def _save(figure: Any, path: Path) -> None:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _on(mask: Array, y: Array, x: Array) -> Array:
    rows, columns = y.round().astype(np.int64), x.round().astype(np.int64)
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    found: Array = inside & mask[rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1)]
    return found


def _outline(mask: Array) -> Array:
    from scipy.ndimage import binary_erosion

    inner: Array = mask & ~binary_erosion(mask)
    return inner
