"""Random numbers and smooth noise for procedural pictures: the synthetic sets of the tasks are painted with them.

Promises: the same bits for the same seed with any numpy on any machine (every number comes from
`outlast.data.randomness` and goes only through operations that IEEE 754 defines to the bit: + - * / sqrt).
"""

from __future__ import annotations

import numpy as np

from outlast.data.randomness import uniforms

Array = np.ndarray


class Dice:
    """Numbers of one scene: every call gives new ones, always the same in the same order of calls."""

    def __init__(self, seed: int, scene: int) -> None:
        self.seed, self.stream = seed, scene << 20

    def __call__(self, *shape: int) -> Array:
        """Uniform in [0, 1)."""
        self.stream += 1
        return np.asarray(uniforms(self.seed, self.stream, [0], int(np.prod(shape)))[0].reshape(shape))

    def one(self, low: float, high: float) -> float:
        """One number in [low, high)."""
        return low + (high - low) * float(self(1)[0])

    def bell(self, *shape: int) -> Array:
        """Mean 0, deviation 1, nearly normal: the sum of four uniform numbers."""
        parts = self(4, *shape)
        return np.asarray((parts[0] + parts[1] + parts[2] + parts[3] - 2) * np.sqrt(3.0))

    def fractal(self, shape: tuple[int, int], cell: float, octaves: int, rough: float = 0.5) -> Array:
        """Smooth noise, about -1..1: cubic splines through random grids of `cell` pixels, then half of it, and on."""
        total: Array = np.zeros(shape)
        weight = 1.0
        for _ in range(octaves):
            total += weight * self._splines(shape, cell)
            cell, weight = cell / 2, weight * rough
        return total

    def _splines(self, shape: tuple[int, int], cell: float) -> Array:
        counts = [int(length / cell) + 5 for length in shape]
        grid = 3.2 * self(*counts) - 1.6
        (first, across), (second, along) = (_spline(length, cell, self.one(0, 1)) for length in shape)
        rows = sum(across[part][:, None] * grid[first + part] for part in range(4))
        return np.asarray(sum(along[part] * rows[:, second + part] for part in range(4)))


def _spline(length: int, cell: float, shift: float) -> tuple[Array, Array]:
    """The first of four grid points around each pixel, and their weights (4, length): uniform cubic B-splines."""
    place = np.arange(length) / cell + shift * 0.99
    first = place.astype(np.int64)
    t = place - first
    weights = (
        (1 - t) * (1 - t) * (1 - t),
        3 * t * t * t - 6 * t * t + 4,
        -3 * t * t * t + 3 * t * t + 3 * t + 1,
        t * t * t,
    )
    return first, np.stack(weights) / 6
