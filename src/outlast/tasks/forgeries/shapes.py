"""Outlines of copied regions, as functions of a place: rectangles, ellipses, polygons and blobs.

Promises: the same bits for the same numbers on any machine (only + - * / and square roots); one outline can be asked at
the pixels of its source and, through an affine map, at those of its copies, so that no mask is ever resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

NUMBERS = 12  # that an outline is made of
KINDS = ("rectangle", "ellipse", "polygon", "blob")
_SIDES = 7  # of a polygon, at most
_ROUGHNESS = 0.16  # of each of a blob's waves, relative to its radius
_OCTAGON = ((1.0, 0.0), (0.6, 0.8), (-0.28, 0.96), (-0.936, 0.352), (-0.8, -0.6), (0.0, -1.0), (0.8, -0.6))


@dataclass(frozen=True)
class Shape:
    """An outline around (0, 0). half_height, half_width: of its box in pixels; numbers (12,) make the rest."""

    kind: str
    half_height: float
    half_width: float
    numbers: Float64

    def depth(self, y: Float64, x: Float64) -> Float64:
        """How far inside the outline each place is, about in pixels; negative outside, and beyond the box everywhere.

        y, x: pixels from the middle, arrays that broadcast against each other.
        """
        box = np.minimum(self.half_height - np.abs(y), self.half_width - np.abs(x))
        if self.kind == "rectangle":
            return np.asarray(box)
        v, u = y / self.half_height, x / self.half_width
        unit = min(self.half_height, self.half_width)
        if self.kind == "polygon":
            return np.asarray(np.minimum(box, unit * self._within_sides(v, u)))
        radius = np.sqrt(v * v + u * u)
        reach = self._reach(v, u, radius) if self.kind == "blob" else 1.0
        return np.asarray(np.minimum(box, unit * (reach - radius)))

    def _within_sides(self, v: Float64, u: Float64) -> Float64:
        """Inside each of 3 to 7 lines, whose distances from the middle vary."""
        count = 3 + int((_SIDES - 2) * self.numbers[0])
        directions = [_OCTAGON[side * _SIDES // count] for side in range(count)]
        distances = 0.55 + 0.4 * self.numbers[1 : 1 + count]
        sides = [
            distance - (across * u + down * v)
            for (across, down), distance in zip(directions, distances.tolist(), strict=True)
        ]
        return np.asarray(np.minimum.reduce(np.broadcast_arrays(*sides)))

    def _reach(self, v: Float64, u: Float64, radius: Float64) -> Float64:
        """The radius of a blob in each direction: five waves around it, by the recurrence of cos and sin."""
        cos, sin = u / np.maximum(radius, 1e-9), v / np.maximum(radius, 1e-9)
        even, odd = cos, sin
        reach = np.full(radius.shape, 0.8)
        for wave in range(5):
            even, odd = even * cos - odd * sin, odd * cos + even * sin
            first, second = self.numbers[2 * wave : 2 * wave + 2].tolist()
            reach = reach + _ROUGHNESS * ((first - 0.5) * even + (second - 0.5) * odd)
        return reach


def shape_of(numbers: Float64, side: float, elongation: float) -> Shape:
    """An outline of about `side` pixels: numbers[0] chooses the kind, numbers[1] how long it is."""
    kind = KINDS[int(len(KINDS) * numbers[0])]
    longer = np.sqrt(1 + (elongation - 1) * abs(2 * numbers[1] - 1))
    height, width = (side * longer, side / longer) if numbers[1] < 0.5 else (side / longer, side * longer)
    return Shape(kind, float(height) / 2, float(width) / 2, np.asarray(numbers[2:]))
