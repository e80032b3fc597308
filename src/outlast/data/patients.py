"""Lesions beside the other lesions of their patient, and folds that keep patients whole.

A lesion is suspicious when it looks unlike its neighbours (the "ugly duckling"), so every number is also given relative
to the patient's own. Promises: features depend on no label and on no other patient, nor (but for rounding) on the order
of rows; missing stays missing; folds are written once, known by a hash, and obeyed.
Does not do: choose columns (columns.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.data.split import assign_folds, check_split, freeze, obey
from outlast.data.table import fingerprint
from outlast.errors import DataError, listed

_NOTHING = 1e-9  # of the largest value: a mean below this is what rounding left of values that cancel


def patient_features(
    table: pd.DataFrame,
    *,
    patient: str,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
) -> pd.DataFrame:
    """Float64 features of each row relative to the rows of the same patient, with the table's index.

    Of each numeric column NAME: NAME_z (z-score, ddof 1; 0 if all of the patient's values are equal, NaN if there is
    one only), NAME_rank (share of the patient's values that are not above it, ties averaged), NAME_from_median (the
    difference), NAME_ratio (to the patient's mean; NaN if that is 0 but for rounding). Of each categorical column
    NAME_count: lesions of the patient with the same value. And patient_lesions.

    Missing values count for nothing and stay missing. Give whole patients: a table that was cut to some of
    their rows has other means.
    Raises DataError if a row has no patient.
    """
    codes = _codes(table, patient)
    made: dict[str, npt.NDArray[np.float64]] = {
        "patient_lesions": np.bincount(codes)[codes].astype(np.float64) if len(codes) else np.zeros(0)
    }
    for name in numeric:
        made |= _relative(table[name], codes)
    for name in categorical:
        made[f"{name}_count"] = _same_kind(table[name], codes)
    return pd.DataFrame(made, index=table.index)


def patient_folds(table: pd.DataFrame, folds: int, seed: int, *, patient: str, target: str) -> pd.Series[int]:
    """Fold numbers 0..folds-1 (int64), patients whole, both classes in each; the same in any order of rows.

    Raises DataError with the counts if there are too few patients with positives.
    """
    _codes(table, patient)
    return assign_folds(table, folds, seed, label=target, group=patient)


def hash_folds(ids: Sequence[str], folds: Sequence[int]) -> str:
    """SHA-256 (hex) of which id is in which fold, in any order of rows: what a stage is known by."""
    return fingerprint(list(ids), [str(int(fold)) for fold in folds])


def write_folds(path: Path, table: pd.DataFrame, folds: pd.Series[int], *, id: str, patient: str, target: str) -> str:
    """Write id, label, group and fold of every row, atomically; returns the hash of the folds.

    Raises DataError that names the patients who stand in two folds.
    """
    known = _renamed(table, id, patient, target).assign(fold=folds.to_numpy())
    check_split(known, split="fold")
    freeze(known, path, decided=("fold",))
    return hash_folds(known["id"].tolist(), known["fold"].tolist())


def read_folds(
    path: Path, table: pd.DataFrame, *, id: str, patient: str, target: str, expected: str | None = None
) -> pd.Series[int]:
    """The folds that `write_folds` wrote, for the rows of this table in its order.

    expected: the hash that they were written with. Raises DataError that names rows that were added, are gone, or have
    another patient or target since; patients in two folds; a fold without one of the classes; and folds that were
    changed since.
    """
    known = obey(_renamed(table, id, patient, target), path, decided=("fold",))
    if known["fold"].dtype != np.int64:
        raise DataError(f"{path}: the folds are not whole numbers", hint="restore it from a copy of the run")
    check_split(known, split="fold")
    kinds = known.groupby("fold", sort=True)["label"].nunique()
    poor = kinds.index[kinds < known["label"].nunique()].tolist()
    if poor:
        raise DataError(
            f"{path}: fold {listed(poor)} lacks a class, so it has no score", hint="restore it from a copy of the run"
        )
    found = hash_folds(known["id"].tolist(), known["fold"].tolist())
    if expected is not None and found != expected:
        raise DataError(
            f"{path} is not the folds that this run was made with (hash {found[:12]}, expected {expected[:12]})",
            hint="restore it from a copy of the run, or start a new run with another --out",
        )
    return pd.Series(known["fold"].to_numpy(), index=table.index, name="fold")


def _relative(column: pd.Series[float], codes: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    values = column.astype(np.float64)
    grouped = values.groupby(codes)
    mean, median = grouped.transform("mean"), grouped.transform("median")
    spread = grouped.transform("std")
    # Equal values may have a spread of some 1e-17, and then a z-score of anything.
    low, high = grouped.transform("min"), grouped.transform("max")
    equal = (low == high) & spread.notna() & values.notna()
    largest = np.maximum(low.abs(), high.abs())
    name = str(column.name)
    features = {
        f"{name}_z": ((values - mean) / spread.where(~equal)).mask(equal, 0.0),
        f"{name}_rank": grouped.rank(pct=True),
        f"{name}_from_median": values - median,
        f"{name}_ratio": values / mean.where(mean.abs() > _NOTHING * largest),
    }
    return {key: feature.to_numpy(np.float64) for key, feature in features.items()}


def _same_kind(column: pd.Series[str], codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    kinds, names = pd.factorize(column)
    both, place = np.unique(codes * (len(names) + 1) + kinds, return_inverse=True)
    counts = np.bincount(place, minlength=len(both))[place].astype(np.float64)
    return np.where(kinds < 0, np.nan, counts)


def _codes(table: pd.DataFrame, patient: str) -> npt.NDArray[np.int64]:
    if patient not in table.columns:
        raise DataError(f"the table has no column {patient!r}", hint=f"it has: {listed(table.columns.tolist(), 40)}")
    codes = np.asarray(pd.factorize(table[patient])[0], dtype=np.int64)
    if (codes < 0).any():
        raise DataError(
            f"{int((codes < 0).sum())} of {len(codes)} rows have no {patient}, such as row "
            f"{int(np.flatnonzero(codes < 0)[0])}",
            hint="fill it in: without it, lesions of one patient could stand in two folds",
        )
    return codes


def _renamed(table: pd.DataFrame, id: str, patient: str, target: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"id": table[id].to_numpy(), "label": table[target].to_numpy(), "group": table[patient].to_numpy()}
    )
