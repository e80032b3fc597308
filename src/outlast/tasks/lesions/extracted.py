"""What extraction has stored, joined by id: out-of-fold logits of training rows, logits of test rows from every fold.

The folders of the stages `extract-<backbone>` (every model on the fold that it never saw) and `test-<backbone>` (every
model on all test rows) have a folder of shards for each fold's model, named after its training stage.
Promises: a row that no model has predicted, or one that a model has trained on, is an error that names it; rows are
given in the order of the folds file, whatever their order in the shards.
Embeddings of different folds live in different spaces: they are given fold by fold, never as one table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from outlast.data.shards import read_shards
from outlast.errors import DataError, listed
from outlast.tasks.lesions.table import FOLDS

_MARK = "-fold"


def training_stage(backbone: str, fold: int) -> str:
    """The name of the stage that trains a backbone for a fold; extraction calls its folder of shards the same."""
    return f"train-{backbone}{_MARK}{fold}"


def out_of_fold(extract: Path, folds: Path) -> pd.DataFrame:
    """id, fold, logit (float32) of every training row whose fold has a model, in the order of the folds file.

    extract: the folder of a stage extract-<backbone>; folds: that of the stage `folds`. Raises DataError.
    """
    listing = read_listing(folds)
    parts = []
    for fold, found in _by_fold(extract).items():
        wanted = listing[listing["fold"] == fold]
        _check(wanted["id"], found, f"fold {fold}", extract)
        trained = found.index.intersection(pd.Index(listing["id"][listing["fold"] != fold]))
        if len(trained):
            raise DataError(
                f"{extract}: the model of fold {fold} has predicted {listed(trained.tolist(), 5)}, of other folds",
                hint=f"remove {extract} and run the stage again",
            )
        parts.append(wanted.assign(logit=found.loc[wanted["id"], "logit"].to_numpy()))
    return pd.concat(parts).sort_index()[["id", "fold", "logit"]].reset_index(drop=True)


def of_test(tested: Path, ids: list[str]) -> pd.DataFrame:
    """id, fold, logit (float32): every test row `ids`, in this order, once for each fold's model. Raises DataError.

    tested: the folder of a stage test-<backbone>.
    """
    parts = []
    for fold, found in _by_fold(tested).items():
        _check(pd.Series(ids), found, "the test set", tested)
        strange = found.index.difference(pd.Index(ids))
        if len(strange):
            raise DataError(
                f"{tested}: predictions of rows that are not in the test table: {listed(strange.tolist(), 5)}",
                hint=f"remove {tested} and run the stage again",
            )
        parts.append(pd.DataFrame({"id": ids, "fold": fold, "logit": found.loc[ids, "logit"].to_numpy()}))
    return pd.concat(parts, ignore_index=True)


def embeddings(extract: Path, fold: int) -> pd.DataFrame:
    """(N, F) float32 features that the model of one fold gave the rows that it has predicted, by id."""
    folder = next((path for path in _folders(extract) if _fold(path) == fold), None)
    if folder is None:
        raise DataError(f"{extract} has no predictions of fold {fold}", hint="run the stage to its end")
    ids, arrays = read_shards(folder)
    return pd.DataFrame(arrays["features"], index=pd.Index(ids, name="id"))


def read_listing(folds: Path) -> pd.DataFrame:
    """id, label, group and fold of every training row, as the stage `folds` wrote them."""
    return pd.read_csv(folds / FOLDS, dtype={"id": str, "group": str})


def _by_fold(extract: Path) -> dict[int, pd.DataFrame]:
    """{fold: logits by id} of every model."""
    found = {}
    for folder in _folders(extract):
        ids, arrays = read_shards(folder)
        frame = pd.DataFrame({"logit": arrays["logits"].reshape(-1)}, index=pd.Index(ids, name="id"))
        twice = frame.index[frame.index.duplicated()].unique()
        unknown = frame.index[~np.isfinite(frame["logit"])]
        if len(twice) or len(unknown):
            what = f"twice: {listed(twice.tolist(), 5)}" if len(twice) else f"not finite: {listed(unknown.tolist(), 5)}"
            raise DataError(f"{folder}: predictions that are {what}", hint=f"remove {folder} and run the stage again")
        found[_fold(folder)] = frame
    if not found:
        raise DataError(f"{extract} has no predictions", hint="run the stage to its end")
    return found


def _folders(extract: Path) -> list[Path]:
    named = [path for path in extract.iterdir() if path.is_dir() and path.name.startswith("train-")]
    return sorted(named, key=_fold)


def _fold(folder: Path) -> int:
    return int(folder.name.rpartition(_MARK)[2])


def _check(wanted: pd.Series[str], found: pd.DataFrame, what: str, extract: Path) -> None:
    missing = wanted[~wanted.isin(found.index)]
    if len(missing):
        raise DataError(
            f"{extract} has no prediction of {len(missing)} rows of {what}: {listed(missing.tolist(), 5)}",
            hint=f"remove {extract} and run the stage again",
        )
