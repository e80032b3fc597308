"""The submission: the ensemble's predictions of the test rows, averaged over folds and seeds, checked before written.

The ensemble leaves test.csv: id, fold, seed, probability, every test row once for each fold and seed. Each fold has a
boosted model of its own on features of its own; only their probabilities (or ranks) meet, here.
Promises: the ids of sample_submission.csv in its order; every number finite and within 0 to 1; never a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.base.files import write_text
from outlast.base.log import say
from outlast.errors import DataError, listed
from outlast.task import Work
from outlast.tasks.lesions.layout import ID, TARGET
from outlast.tasks.lesions.table import read_sample

MAKES = ("submission.csv",)
PREDICTIONS = "test.csv"  # what the stage `ensemble` leaves for this one


def build(work: Work) -> Mapping[str, Any]:
    """Write submission.csv. Raises DataError if predictions and sample_submission.csv do not fit together."""
    assert work.examples is not None
    sample = read_sample(work.examples.root)
    # As text first: older pandas read a number with an error in its last bit.
    text = pd.read_csv(work.inputs["ensemble"] / PREDICTIONS, dtype={"id": str, "probability": str})
    found = text.astype({"probability": np.float64})
    submission = submit(found, sample[ID].tolist(), work.config.submission.average)
    write_text(work.out / "submission.csv", submission.to_csv(index=False, lineterminator="\n"))
    values = submission[TARGET]
    say(f"submission.csv: {len(submission)} rows, {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}")
    return {
        "rows": len(submission), "average": work.config.submission.average, "lowest": float(values.min()),
        "highest": float(values.max()), "mean": float(values.mean()), "synthetic": work.synthetic,
    }  # fmt: skip


def submit(predictions: pd.DataFrame, ids: Sequence[str], average: str) -> pd.DataFrame:
    """isic_id and target of the test rows `ids`, in this order, from id, fold, seed and probability.

    average: "probability", or "rank" (each fold and seed counts by its order alone, 0 to 1). Raises DataError.
    """
    _check_ids(predictions, ids)
    wide = predictions.pivot(index="id", columns=["fold", "seed"], values="probability")
    values = wide.loc[list(ids)].to_numpy(np.float64)
    gaps = [name for name, row in zip(ids, np.isfinite(values).all(axis=1), strict=True) if not row]
    if gaps:
        raise DataError(
            f"{len(gaps)} test rows lack a prediction of some fold or seed: {listed(gaps, 5)}",
            hint="remove the folder of the stage `ensemble`, and run it again",
        )
    if (values < 0).any() or (values > 1).any():
        raise DataError(
            f"predictions from {values.min():.4g} to {values.max():.4g} are no probabilities",
            hint="remove the folder of the stage `ensemble`, and run it again",
        )
    if average == "rank":
        values = np.column_stack([_ranks(column) for column in values.T])
    target = values.mean(axis=1)
    if len(target) > 1 and np.ptp(target) == 0:
        raise DataError(
            f"every test row gets the same number, {target[0]:.4g}: such a submission says nothing",
            hint="look at the scores of the stages before: what did the models learn?",
        )
    return pd.DataFrame({ID: list(ids), TARGET: target})


def _check_ids(predictions: pd.DataFrame, ids: Sequence[str]) -> None:
    twice = predictions[predictions.duplicated(["id", "fold", "seed"])]["id"].unique().tolist()
    missing = sorted(set(ids) - set(predictions["id"]))
    strange = sorted(set(predictions["id"]) - set(ids))
    problems = [
        (twice, "predicted twice by one model"), (missing, "in the sample submission, but not predicted"),
        (strange, "predicted, but not in the sample submission"),
    ]  # fmt: skip
    lines = [f"{listed(names, 5)}: {what}" for names, what in problems if names]
    if lines:
        raise DataError(
            "predictions and sample submission name other rows",
            hint="take test table and sample submission from one release of the data, and start a new run",
            details=lines,
        )


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N,) the share of values that are lower, ties averaged: 0 for the lowest, 1 for the highest."""
    return (pd.Series(values).rank().to_numpy() - 1) / max(len(values) - 1, 1)
