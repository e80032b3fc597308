"""Grey-level co-occurrence textures (GLCM): contrast and energy of the window around every pixel of one band.

Haralick, Shanmugam, Dinstein, "Textural features for image classification", IEEE Trans. SMC-3(6), 1973.

Promises: in every window the same numbers as the textbook matrix, normalised, averaged over distances and angles
(tested against scikit-image); all counting is in whole numbers, so that the size of the blocks in which an image is
worked through changes no bit; one thread; memory bounded by `working_bytes`, whatever the image and the levels.
Only pairs of pixels inside the window, inside the image and both observed (finite) count: nothing is mirrored or made
up at a border. A distance and angle without such a pair is left out of the average; a window without any gives NaN.
So the textures of a tile differ from those of its scene along the cut, in a rim of half a window.
Does not do: choose the range of values that the levels divide. It has to be one for all tiles, from training tiles.

How: the energy needs the sum of the squared entries of each window's matrix. That is the number of ways to choose two
pairs of pixels, one after the other, that hold the same two levels; and for a fixed step from one pair to the other it
is a box sum over a map of equalities. So there is one box sum per step, about twice the area of the window, and no
matrix: the cost does not depend on the levels.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from outlast.config.schema import Settings
from outlast.errors import DataError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Whole = npt.NDArray[np.unsignedinteger[Any]]

CHANNELS = ("contrast", "energy")
_WORKING_BYTES = 2**22
_BYTES_PER_PIXEL = 80  # of a block and its rim, at the highest point (measured)


class Texture(Settings):
    """How textures are computed. Every combination of a distance and an angle is one step from pixel to pixel."""

    window: int = Field(
        7, ge=3, le=63, description="pixels along a side of the window; odd; the cost grows with its area"
    )
    distances: tuple[int, ...] = Field((1,), min_length=1, description="pixels between the two of a pair, rounded")
    angles: tuple[float, ...] = Field(
        (0.0, 45.0, 90.0, 135.0), min_length=1, description="degrees from one pixel of a pair to the other"
    )
    levels: int = Field(16, ge=2, le=256, description="grey levels that the range of values is divided into")
    symmetric: bool = Field(True, description="a pair counts both ways round")

    def model_post_init(self, _: object) -> None:
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, not {self.window}")
        if min(self.distances) < 1:
            raise ValueError(f"distances must be at least 1 pixel, not {min(self.distances)}")
        longest = max(max(abs(down), abs(right)) for down, right in self.steps)
        if longest >= self.window:
            raise ValueError(f"a pair {longest} pixels apart does not fit into a window of {self.window}")

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) from a pixel to its partner, for every distance and angle, rounded as scikit-image does."""
        return tuple(
            (_rounded(math.sin(math.radians(angle)) * distance), _rounded(math.cos(math.radians(angle)) * distance))
            for distance, angle in product(self.distances, self.angles)
        )


def _rounded(number: float) -> int:
    return math.floor(number + 0.5) if number > 0 else math.ceil(number - 0.5)


def with_texture(
    bands: npt.NDArray[Any], settings: Texture, band_index: int, value_range: tuple[float, float]
) -> Float32:
    """Bands (C, H, W) with contrast and energy of one of them behind: float32 (C + 2, H, W)."""
    textures = glcm(bands[band_index], settings, value_range)
    return np.concatenate([bands.astype(np.float32, copy=False), textures])


def glcm(
    image: npt.NDArray[Any],
    settings: Texture,
    value_range: tuple[float, float],
    *,
    working_bytes: int = _WORKING_BYTES,
) -> Float32:
    """Contrast and energy, float32 (2, H, W), of the window around each pixel of an image (H, W).

    value_range: (low, high) is cut into equal levels; values beyond it belong to the first or last level, values that
    are not finite to none. Contrast is the mean of (i - j)^2 in levels^2, energy the root of the sum of p_ij^2, in
    (0, 1]. working_bytes: memory beside image and result, at least what a single window takes; changes nothing else.
    Raises DataError for an image that has not two dimensions or an empty range.
    """
    low, high = value_range
    if image.ndim != 2:
        raise DataError(f"texture needs one band (H, W), this has shape {image.shape}", hint="name a single band")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(
            f"texture cannot divide the range {low} to {high} into grey levels",
            hint="give the lowest and the highest value of the training tiles; a constant band has no texture",
        )
    height, width = image.shape
    result = np.empty((2, height, width), np.float32)
    side = max(1, math.isqrt(working_bytes // _BYTES_PER_PIXEL) - settings.window + 1)
    for top, left in product(range(0, height, side), range(0, width, side)):
        bottom, right = min(top + side, height), min(left + side, width)
        levels = _levels_around(image, (top, bottom), (left, right), settings, (low, high))
        result[:, top:bottom, left:right] = _block(levels, settings)
    return result


def quantised(image: npt.NDArray[Any], levels: int, value_range: tuple[float, float]) -> npt.NDArray[np.uint16]:
    """Grey levels (H, W) of an image, 0 to levels - 1; `levels` itself where the value is not finite."""
    low, high = value_range
    values = image.astype(np.float64)
    observed = np.isfinite(values)
    scaled = (np.where(observed, values, low) - low) * (levels / (high - low))
    return np.where(observed, np.clip(np.floor(scaled), 0, levels - 1), levels).astype(np.uint16)


def _levels_around(
    image: npt.NDArray[Any],
    rows: tuple[int, int],
    columns: tuple[int, int],
    settings: Texture,
    value_range: tuple[float, float],
) -> npt.NDArray[np.uint16]:
    """The levels of a block with half a window around it; "not observed" where that lies outside of the image."""
    half = settings.window // 2
    (top, bottom), (left, right) = rows, columns
    inside = image[max(top - half, 0) : bottom + half, max(left - half, 0) : right + half]
    short = [
        (max(half - start, 0), max(stop + half - size, 0))
        for (start, stop), size in zip((rows, columns), image.shape, strict=True)
    ]
    return np.pad(quantised(inside, settings.levels, value_range), short, constant_values=settings.levels)


class _Pairs(NamedTuple):
    """The pairs of one step, each at the upper left corner of the smallest box around its two pixels.

    code: which two levels, counted from 0; a pair that does not count has a code of its own. weight: 0 for that one;
    what its matrix entry adds to the sum of squares. contrast: squared difference of levels, 0 where it does not count.
    box: (rows, columns) of corners in a window.
    """

    code: Whole
    weight: npt.NDArray[np.uint8]
    contrast: npt.NDArray[np.uint32]
    box: tuple[int, int]


def _block(levels: npt.NDArray[np.uint16], settings: Texture) -> Float64:
    """Contrast and energy (2, h, w) of levels (h + window - 1, w + window - 1)."""
    rim = settings.window - 1
    total = np.zeros((2, levels.shape[0] - rim, levels.shape[1] - rim))
    steps_counted = np.zeros(total.shape[1:])
    for step in settings.steps:
        pairs = _pairs(levels, step, settings)
        count = _box_sum(np.minimum(pairs.weight, 1), pairs.box).astype(np.float64)
        there = count > 0
        count[~there] = 1  # what is divided by it is 0
        total[0] += _box_sum(pairs.contrast, pairs.box) / count
        # p_ij = n_ij / count; if a pair counts both ways round, p_ij = p_ji = n_ij / (2 count), and n_ii / count.
        total[1] += np.sqrt(_squares(pairs) / (count * count * (2 if settings.symmetric else 1)))
        steps_counted += there
    steps_counted[steps_counted == 0] = np.nan
    return total / steps_counted


def _pairs(levels: npt.NDArray[np.uint16], step: tuple[int, int], settings: Texture) -> _Pairs:
    down, right = step
    height, width = levels.shape[0] - abs(down), levels.shape[1] - abs(right)
    top, left, partner_top, partner_left = max(-down, 0), max(-right, 0), max(down, 0), max(right, 0)
    first = levels[top : top + height, left : left + width].astype(np.uint32)
    second = levels[partner_top : partner_top + height, partner_left : partner_left + width].astype(np.uint32)
    weight = ((first < settings.levels) & (second < settings.levels)).view(np.uint8)
    contrast = (first - second) ** 2 * weight  # modulo 2**32: the square of a negative difference is right
    if settings.symmetric:
        first, second = np.maximum(first, second), np.minimum(first, second)
        code, kinds = first * (first + 1) // 2 + second, settings.levels * (settings.levels + 1) // 2
    else:
        code, kinds = first * settings.levels + second, settings.levels**2
    code = np.where(weight, code, np.uint32(kinds)).astype(np.min_scalar_type(kinds))
    if settings.symmetric:
        weight[first == second] *= 2
    return _Pairs(code, weight, contrast, box=(settings.window - abs(down), settings.window - abs(right)))


def _squares(pairs: _Pairs) -> Whole:
    """The weighted sum of squared entries of each window's matrix: (h, w), whole numbers.

    That is a sum over all ordered couples of corners in the window with the same code: each with itself, and twice
    those of which one comes later, where `across` and `down` lead from one to the other.
    """
    code, weight, (rows, columns) = pairs.code, pairs.weight, pairs.box
    height, width = code.shape
    # How the sum changes as the window moves down and to the right. May wrap around; the sums over it do not.
    changes = np.zeros((height, width - columns + 1), np.min_scalar_type(2 * (rows * columns) ** 2))
    for across in range(1 - columns, columns):
        here = slice(max(-across, 0), width - max(across, 0))
        there = slice(max(across, 0), width - max(-across, 0))
        upper, lower = np.ascontiguousarray(code[:, here]), np.ascontiguousarray(code[:, there])
        # Couples by the row of their upper and of their lower corner. Moving down, a window gains those whose lower
        # corner is in the new row and loses those whose upper corner is in the row left behind.
        of_upper, of_lower = np.zeros(upper.shape, np.uint8), np.zeros(upper.shape, np.uint8)
        for down in range(0 if across > 0 else 1, rows):
            same = (upper[: height - down] == lower[down:]).view(np.uint8)
            above, below = of_upper[: height - down], of_lower[down:]
            above += same  # by name: assigning to a slice would copy it onto itself
            below += same
        couples = (of_lower * weight[:, there]).astype(changes.dtype)
        couples[rows:] -= (of_upper * weight[:, here])[:-rows]
        span = columns - abs(across)
        changes[:, 0] += couples[:, :span].sum(axis=1, dtype=changes.dtype)
        changes[:, 1:] += couples[:, span:]
        changes[:, 1:] -= couples[:, :-span]
    total = changes.cumsum(axis=0, dtype=changes.dtype)[rows - 1 :].cumsum(axis=1, dtype=changes.dtype)
    total *= 2
    total += _box_sum(weight, pairs.box).astype(total.dtype)
    return total


def _box_sum(values: Whole, box: tuple[int, int]) -> Whole:
    """Sums over boxes (rows, columns) of values (h + rows - 1, w + columns - 1): (h, w) uint32."""
    return _slide(_slide(values.astype(np.uint32), box[0], axis=0), box[1], axis=1)


def _slide(values: Whole, length: int, axis: int) -> Whole:
    """Sums of `length` neighbours along an axis, modulo the range of the type."""
    sums = np.moveaxis(np.add.accumulate(values, axis=axis, dtype=values.dtype), axis, 0)
    result = sums[length - 1 :].copy()
    result[1:] -= sums[:-length]
    return np.moveaxis(result, 0, axis)
