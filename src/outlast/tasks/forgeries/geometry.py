"""Similarities between places of one image: turned, scaled, moved and, if wanted, mirrored; also out of many outliers.

Promises: deterministic (its samples come from a fixed seed); the scale of what is found lies within given limits.
Places are complex numbers x + iy in pixels, so that a similarity is one product and one sum: a * z + b, or
a * conj(z) + b if it mirrors. RANSAC: Fischler and Bolles 1981; least squares over the inliers at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Complex = npt.NDArray[np.complex128]

_AT_ONCE = 2_000_000  # distances


@dataclass(frozen=True)
class Similarity:
    """z -> turn * z + shift, of conj(z) if `mirrored`. abs(turn) is the scale."""

    turn: complex
    shift: complex
    mirrored: bool = False

    def __call__(self, places: Complex) -> Complex:
        return np.asarray(self.turn * (places.conj() if self.mirrored else places) + self.shift)

    def inverse(self) -> Similarity:
        """The similarity that leads back."""
        if self.mirrored:
            turn = 1 / self.turn.conjugate()
            return Similarity(turn, -turn * self.shift.conjugate(), True)
        return Similarity(1 / self.turn, -self.shift / self.turn)


def places(rows: npt.ArrayLike, columns: npt.ArrayLike) -> Complex:
    """Complex places of rows and columns in pixels."""
    return np.asarray(columns, np.float64) + 1j * np.asarray(rows, np.float64)


def fit(source: Complex, target: Complex, *, mirrored: bool = False) -> Similarity:
    """The similarity with the least squared error over pairs (N,), N >= 2."""
    if mirrored:
        source = source.conj()
    middle, aim = source.mean(), target.mean()
    away = source - middle
    spread = float(np.square(np.abs(away)).sum())
    turn = complex((away.conj() * (target - aim)).sum() / spread) if spread else 1.0 + 0j
    return Similarity(turn, complex(aim - turn * middle), mirrored)


def ransac(
    source: Complex,
    target: Complex,
    *,
    tolerance: float,
    scales: tuple[float, float] = (0.5, 2.0),
    mirrored: bool = False,
    rounds: int = 300,
) -> tuple[Similarity, npt.NDArray[np.bool_]] | None:
    """The similarity that most of the pairs (N,) agree with to `tolerance` pixels, and which pairs do (N,).

    scales: limits of its scale. rounds: pairs of pairs that are tried. None if there are fewer than two pairs, or none
    gives a scale within the limits.
    """
    number = len(source)
    if number < 2:
        return None
    generator = np.random.default_rng(0)
    first = generator.integers(0, number, rounds)
    second = (first + generator.integers(1, number, rounds)) % number
    start = source.conj() if mirrored else source
    apart = start[second] - start[first]
    with np.errstate(divide="ignore", invalid="ignore"):
        turns = (target[second] - target[first]) / apart
    scale = np.abs(turns)
    possible = np.isfinite(turns) & (scale >= scales[0]) & (scale <= scales[1])
    if not possible.any():
        return None
    turns = turns[possible]
    shifts = target[first[possible]] - turns * start[first[possible]]
    step = max(1, _AT_ONCE // number)
    counts = np.concatenate(
        [
            np.count_nonzero(
                np.abs(turns[at : at + step, None] * start + shifts[at : at + step, None] - target) <= tolerance, axis=1
            )
            for at in range(0, len(turns), step)
        ]
    )
    best = int(counts.argmax())
    found = Similarity(complex(turns[best]), complex(shifts[best]), mirrored)
    inliers = np.abs(found(source) - target) <= tolerance
    for _ in range(3):
        refined = fit(source[inliers], target[inliers], mirrored=mirrored)
        agreeing = np.abs(refined(source) - target) <= tolerance
        if not scales[0] <= abs(refined.turn) <= scales[1] or agreeing.sum() < inliers.sum():
            break
        found, inliers = refined, agreeing
    return found, inliers
