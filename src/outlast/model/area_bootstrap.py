"""How sure a pAUC or AUC is: a bootstrap that resamples patients, not lesions, of one score or of two compared.

Promises: the lesions of a patient stay together (they are alike, so resampling lesions would look too sure); two scores
are compared on the same resamples; the same patients, labels, scores and seed give the same numbers, in any order of
rows. All resamples come from one sort: negatives are counted once per patient between neighbouring positives.
Source: Field and Welsh 2007 (cluster bootstrap); percentile intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.errors import DataError
from outlast.model.partial_auc import SHARE, area_of_counts, auc, checked, partial_auc

Area = Literal["pauc", "auc"]

RESAMPLES = 2000
LEVEL = 0.95
_MOST_NUMBERS = 4_000_000  # of a table of counts that is held at once


@dataclass(frozen=True)
class Interval:
    """A value, the interval that holds it at `level`, and how it came about.

    above_zero: share of the resamples with a value above 0. resamples: those that had both classes, and so counted.
    """

    value: float
    low: float
    high: float
    level: float
    above_zero: float
    resamples: int


def bootstrap(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    patients: npt.ArrayLike,
    *,
    area: Area = "pauc",
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The area of scores (N,) against labels (N,) with its interval over resampled patients (N,).

    Raises DataError as `partial_auc` does, and if a class comes from one patient only: then nothing can be said.
    """
    curve = _Curve(labels, scores, patients, area)
    made = np.concatenate([curve.areas(drawn) for drawn in curve.draws(seed, resamples)])
    return _interval(curve.value, made, level)


def paired_bootstrap(
    labels: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    patients: npt.ArrayLike,
    *,
    area: Area = "pauc",
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """By how much the area of the scores `first` is above that of `second`, both (N,), on the same resamples.

    An interval above 0 says that `first` is better. Raises DataError as `bootstrap` does.
    """
    one, other = _Curve(labels, first, patients, area), _Curve(labels, second, patients, area)
    wide = max((one, other), key=lambda curve: curve.columns)
    made = [one.areas(drawn) - other.areas(drawn) for drawn in wide.draws(seed, resamples)]
    return _interval(one.value - other.value, np.concatenate(made), level)


class _Curve:
    """The ROC curve of all rows, taken apart by patient; `areas` puts it together again for resampled patients."""

    def __init__(self, labels: npt.ArrayLike, scores: npt.ArrayLike, patients: npt.ArrayLike, area: Area) -> None:
        self.value = (partial_auc if area == "pauc" else auc)(labels, scores)
        self.share = SHARE if area == "pauc" else 1.0
        flags, values = checked(labels, scores)
        whose = _codes(patients, flags)
        self.patients = int(whose.max()) + 1
        distinct, own = np.unique(values[flags], return_inverse=True)
        kinds = len(distinct)
        # Negatives by where they lie: 2k between the distinct positives k-1 and k, 2k+1 at k.
        lies = values[~flags]
        place = np.searchsorted(distinct, lies, side="left") + np.searchsorted(distinct, lies, side="right")
        self.columns = 2 * kinds + 1
        self.positives = _counts(own, whose[flags], kinds, self.patients)
        self.negatives = _counts(place, whose[~flags], self.columns, self.patients)

    def draws(self, seed: int, resamples: int) -> Iterator[npt.NDArray[np.float64]]:
        """How often each patient is drawn, (patients, some of the resamples); the size of a part changes nothing."""
        generator = np.random.default_rng(seed)
        size = max(1, _MOST_NUMBERS // max(self.columns, self.patients))
        for start in range(0, resamples, size):
            count = min(size, resamples - start)
            drawn = generator.integers(0, self.patients, (count, self.patients))
            flat = drawn + self.patients * np.arange(count)[:, None]
            times = np.bincount(flat.reshape(-1), minlength=count * self.patients)
            yield np.ascontiguousarray(times.reshape(count, self.patients).T, dtype=np.float64)

    def areas(self, drawn: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(B,) areas of the resamples drawn (patients, B); NaN for one without both classes."""
        tied = np.asarray(self.positives @ drawn).T
        lying = np.asarray(self.negatives @ drawn).T
        below = np.cumsum(lying, axis=1)[:, :-1:2]
        positives, negatives = tied.sum(axis=1), lying.sum(axis=1)
        pairs = area_of_counts(tied, below, lying[:, 1::2], self.share * positives)
        possible = positives * negatives
        known = np.full(len(pairs), np.nan)
        known[possible > 0] = pairs[possible > 0] / possible[possible > 0]
        return known


def _counts(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(height, width))


def _codes(patients: npt.ArrayLike, flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    codes = np.asarray(pd.factorize(np.asarray(patients), sort=True)[0], dtype=np.int64)
    if len(codes) != len(flags) or (codes < 0).any():
        raise DataError(
            f"{len(flags)} rows need a patient each; {len(codes)} were given, {int((codes < 0).sum())} of them missing",
            hint="give the patient of every row",
        )
    for name, rows in (("positives", flags), ("negatives", ~flags)):
        if len(np.unique(codes[rows])) < 2:
            raise DataError(
                f"all {name} are of one patient, so resampling patients says nothing about them",
                hint="score the rows of more patients",
            )
    return codes


def _interval(value: float, made: npt.NDArray[np.float64], level: float) -> Interval:
    valid = made[~np.isnan(made)]
    low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, float((valid > 0).mean()), len(valid))
