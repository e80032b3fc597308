"""What of the ensemble predicts: trees, what they start from, and by what the logits of each fold's model are measured.

The stage `ensemble` keeps it all in its folder `models` (LightGBM's own text of every model, and models.json), so that
another test set can be predicted without a single training row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.base.files import read_json, write_json, write_text
from outlast.errors import RunError
from outlast.model.boosting import Boosted
from outlast.tasks.lesions.ensemble_columns import Measures

MODELS, HOW = "models", "models.json"

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Start:
    """Log-odds that trees add to: a number, and so much of each of some columns."""

    intercept: float
    shares: Mapping[str, float]

    def of(self, columns: pd.DataFrame) -> Float64:
        """(N,) of each row; the same for a row whatever others there are."""
        total = np.full(len(columns), self.intercept, dtype=np.float64)
        for name, share in self.shares.items():
            total += share * columns[name].to_numpy(np.float64)
        return total


def fit_start(levels: pd.DataFrame, labels: npt.NDArray[np.int64]) -> Start:
    """A logistic regression on `levels`; where there are none, the share of positives for all."""
    if not len(levels.columns):
        share = float(labels.mean())
        return Start(float(np.log(share / (1 - share))), {})
    from sklearn.linear_model import LogisticRegression

    # Newton's method is exact for a handful of columns; scikit-learn 1.6 warns of its own call of SciPy's L-BFGS.
    regression = LogisticRegression(solver="newton-cholesky").fit(levels.to_numpy(), labels)
    shares = dict(zip(levels.columns, regression.coef_[0].tolist(), strict=True))
    return Start(float(regression.intercept_[0]), shares)


@dataclass(frozen=True)
class Unit:
    """The models of one fold and seed, {kind: model}, with what each starts from."""

    fold: int
    seed: int
    models: Mapping[str, Boosted]
    starts: Mapping[str, Start]

    @property
    def name(self) -> str:
        """What its files are called."""
        return unit_name(self.fold, self.seed)

    def predict(self, kind: str, columns: pd.DataFrame) -> Float64:
        """(N,) probabilities of a malignant lesion. Raises ModelError for other columns than it was fitted to."""
        return self.models[kind].predict(columns, self.starts[kind].of(columns))


@dataclass(frozen=True)
class Kept:
    """All that predicts."""

    measures: Measures
    units: Sequence[Unit]

    def write(self, ensemble: Path) -> None:
        """Write it into the folder of the stage `ensemble`."""
        (ensemble / MODELS).mkdir()
        for unit in self.units:
            for kind, model in unit.models.items():
                write_text(_text(ensemble, unit.name, kind), model.text)
        columns = {kind: list(model.names) for kind, model in self.units[0].models.items()}
        units = [
            {"fold": unit.fold, "seed": unit.seed, "starts": {kind: asdict(one) for kind, one in unit.starts.items()}}
            for unit in self.units
        ]
        write_json(ensemble / MODELS / HOW, {"columns": columns, "measures": self.measures.as_json(), "units": units})


def read(ensemble: Path) -> Kept:
    """What the stage `ensemble` has kept. Raises RunError if it is not there."""
    if not (ensemble / MODELS / HOW).is_file():
        raise RunError(
            f"{ensemble / MODELS / HOW} is not there: what the trees start from is not known",
            hint="bring the whole run (`outlast pack --all`); of a run of an older version remove the folder "
            f"{ensemble.name}, and train again: only what is missing is made",
        )
    told: Mapping[str, Any] = read_json(ensemble / MODELS / HOW)
    units = []
    for each in told["units"]:
        name = unit_name(each["fold"], each["seed"])
        models = {
            kind: Boosted(_text(ensemble, name, kind).read_text(encoding="utf-8"), tuple(names))
            for kind, names in told["columns"].items()
        }
        units.append(Unit(each["fold"], each["seed"], models, read_starts(each["starts"])))
    return Kept(Measures.from_json(told["measures"]), units)


def read_starts(told: Mapping[str, Any]) -> dict[str, Start]:
    """{kind: Start} out of JSON."""
    return {kind: Start(one["intercept"], one["shares"]) for kind, one in told.items()}


def unit_name(fold: int, seed: int) -> str:
    """What the unit of work and the files of a fold and seed are called."""
    return f"fold{fold}-seed{seed}"


def _text(ensemble: Path, unit: str, kind: str) -> Path:
    return ensemble / MODELS / f"{unit}-{kind}.txt"
