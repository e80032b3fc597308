"""Boosted trees (LightGBM) over a table of numbers and categories, stopped by the official pAUC.

How many trees there are is chosen by cross-validation within the training rows (`choose_rounds`), then all of these
are fitted with so many (`fit`). Promises: the same rows in the same order, settings and seed give the same model, byte
for byte, on the same machine with the same number of threads; missing numbers and categories are left to the trees,
nothing is filled in; what the trees start from (`start`) is part of every prediction.
Does not: decide which rows may train together, or make columns. Source: Ke et al. 2017 (LightGBM).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.errors import DataError, ModelError, listed
from outlast.model.boosting_settings import BoostingSettings
from outlast.model.partial_auc import partial_auc

if TYPE_CHECKING:
    import lightgbm

Float64 = npt.NDArray[np.float64]
_NOT_IN_A_NAME = re.compile(r"[^0-9A-Za-z_]")  # LightGBM refuses some of these and changes others


@dataclass(frozen=True)
class Rows:
    """What a model is fitted to: columns (N), labels (N,) 0 or 1, and start (N,), the log-odds that trees add to.

    rising: columns that may only raise the prediction when they rise.
    """

    columns: pd.DataFrame
    labels: npt.NDArray[np.int64]
    start: Float64
    rising: Collection[str] = ()


@dataclass(frozen=True)
class Chosen:
    """How many trees are best, the mean pAUC over the parts with so many, and with what they start from alone."""

    rounds: int
    pauc: float
    pauc_of_start: float


@dataclass(frozen=True)
class Boosted:
    """A fitted model: its text (LightGBM's own format, which needs no code of ours to be read) and its columns."""

    text: str
    names: tuple[str, ...]

    def predict(self, columns: pd.DataFrame, start: Float64) -> Float64:
        """(N,) probabilities of label 1. Raises ModelError if the columns are not those that it was fitted to."""
        if tuple(columns.columns) != self.names:
            raise ModelError(
                f"the model was fitted to {len(self.names)} columns, {listed(self.names)}, and not to "
                f"{listed(columns.columns.tolist())}",
                hint="give the same columns in the same order",
            )
        raw = start + np.asarray(_open(self.text).predict(_named(columns), raw_score=True), dtype=np.float64)
        return np.asarray(1 / (1 + np.exp(-raw)), dtype=np.float64)

    def gain(self) -> dict[str, float]:
        """{column: its share of all that the splits have gained}; zeros if there is no split."""
        gained = np.asarray(_open(self.text).feature_importance("gain"), dtype=np.float64)
        return dict(zip(self.names, (gained / max(gained.sum(), 1e-300)).tolist(), strict=True))


def choose_rounds(
    rows: Rows, parts: npt.NDArray[np.int64], settings: BoostingSettings, seed: int, threads: int
) -> Chosen:
    """How many trees to fit: those with the best pAUC, on average over parts (N,) each left out once.

    Patience counts trees without a gain in that average. Raises DataError as `partial_auc` does.
    """
    import lightgbm

    left_out = [np.flatnonzero(parts == part) for part in np.unique(parts)]
    found = lightgbm.cv(
        _parameters(rows, settings, seed, threads),
        _dataset(rows),
        num_boost_round=settings.rounds,
        folds=[(np.flatnonzero(~np.isin(np.arange(len(parts)), part)), part) for part in left_out],
        feval=_pauc,
        callbacks=[lightgbm.early_stopping(settings.patience_rounds, verbose=False)],
    )
    curve = found["valid pauc-mean"]
    best = int(np.argmax(curve))
    start = float(np.mean([partial_auc(rows.labels[part], rows.start[part]) for part in left_out]))
    return Chosen(best + 1, float(curve[best]), start)


def fit(rows: Rows, rounds: int, settings: BoostingSettings, seed: int, threads: int) -> Boosted:
    """A model of so many trees on all rows. Raises DataError if there is one class only."""
    import lightgbm

    model = lightgbm.train(_parameters(rows, settings, seed, threads), _dataset(rows), num_boost_round=rounds)
    return Boosted(model.model_to_string(), tuple(rows.columns.columns))


def _parameters(rows: Rows, settings: BoostingSettings, seed: int, threads: int) -> dict[str, Any]:
    return {
        "objective": "binary", "metric": "None", "verbosity": -1, "boost_from_average": False,
        "learning_rate": settings.learning_rate, "num_leaves": settings.leaves,
        "min_data_in_leaf": settings.leaf_rows, "lambda_l2": settings.l2,
        "bagging_fraction": settings.rows_fraction, "bagging_freq": int(settings.rows_fraction < 1),
        "feature_fraction": settings.columns_fraction,
        "monotone_constraints": [int(name in rows.rising) for name in rows.columns.columns],
        # Exact: without these the order in which threads add up could decide a split.
        "deterministic": True, "force_row_wise": True, "num_threads": threads, "seed": seed,
    }  # fmt: skip


def _dataset(rows: Rows) -> lightgbm.Dataset:
    import lightgbm

    positives = int(rows.labels.sum())
    if not 0 < positives < len(rows.labels):
        raise DataError(
            f"boosted trees need both classes, but of {len(rows.labels)} rows {positives} are positive",
            hint="use fewer folds or parts, so that each has both classes",
        )
    # A small table would lose columns that can't be split under the default; what is chosen is decided by settings.
    return lightgbm.Dataset(
        _named(rows.columns), label=rows.labels, init_score=rows.start,
        params={"feature_pre_filter": False, "verbosity": -1},
    )  # fmt: skip


def _pauc(scores: npt.NDArray[Any], rows: lightgbm.Dataset) -> tuple[str, float, bool]:
    """The official score as LightGBM asks for it: name, value, whether more is better."""
    return "pauc", partial_auc(np.asarray(rows.get_label()), scores), True


def _named(columns: pd.DataFrame) -> pd.DataFrame:
    """The columns under names that LightGBM takes. Raises ModelError if two become the same."""
    names = [_NOT_IN_A_NAME.sub("_", str(name)) for name in columns.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ModelError(
            f"two columns are called {listed(twice)} but for characters that are no letters, digits or _",
            hint="rename one of them in the table",
        )
    return columns.set_axis(names, axis=1)


def _open(text: str) -> lightgbm.Booster:
    import lightgbm

    return lightgbm.Booster(model_str=text)
