"""The rows of a lesion data set: its tables joined with its images by id, folded, watched, or cut to a quick test.

Promises: ids join tables and images, never the order of rows; everything that does not fit is found at once and named;
folds are decided for all rows before a quick test takes its part of them. No image is decoded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.data.columns import read_table
from outlast.data.hdf5 import Images, hash_images, match_ids, open_images
from outlast.data.patients import patient_folds
from outlast.data.randomness import uniforms
from outlast.data.sampler import shuffled
from outlast.data.table import Examples
from outlast.errors import DataError
from outlast.tasks.lesions import layout
from outlast.tasks.lesions.config import DataConfig, QuickTest
from outlast.tasks.lesions.layout import ID, PATIENT, TARGET
from outlast.tasks.lesions.table import TEST_FOLD, collected, raise_all, read_tables

CLASSES = ("benign", "malignant")
_NO_LABEL = -1


def read_examples(root: Path, config: DataConfig) -> Examples:
    """Every training and test row: id, split, label (-1 in test), group, fold (-1 in test), watched, source, hash.

    watched: the fold whose training watches this row for early stopping, -1 where none does. source: where its image
    lies below `root`. Raises DataError.
    """
    layout.check_complete(root)
    tables = read_tables(root, config)
    source = layout.train_images(root)
    assert source is not None
    train = _rows(tables.train, "train", source)
    train["fold"] = patient_folds(
        tables.train, config.data.folds, config.data.split_seed, patient=PATIENT, target=TARGET
    ).to_numpy()
    train = quick_part(train, config.quick)
    train["watched"] = watched(train, config.data.validation_negatives, config.data.split_seed)
    test = _rows(tables.test, "test", layout.TEST_FILE).assign(fold=TEST_FOLD, watched=TEST_FOLD)
    cut = len(train) < len(tables.train)
    notes = [*tables.notes, *_match(root, config, train, test, cut=cut)]
    if cut:
        notes.append(f"quick test: {len(train)} of {len(tables.train)} training rows, and fold 0 alone")
    table = pd.concat([train, test], ignore_index=True)
    return Examples(table, root, facts_of(train, config), ("label",), tuple(notes))


def read_labelled(root: Path, facts: Mapping[str, Any]) -> Examples:
    """Every labelled row of a folder with a table and images of training; it need not have a test set."""
    source = layout.train_images(root)
    if source is None or not (root / layout.TRAIN_TABLE).is_file():
        raise DataError(
            f"{root} has no labelled lesions",
            hint=f"give a folder with {layout.TRAIN_TABLE} and {layout.TRAIN_FILE} or {layout.TRAIN_FOLDER}/",
        )
    rows = _rows(read_table(root / layout.TRAIN_TABLE, layout.declared(root), labelled=True), "train", source)
    images = open_images(root / source)
    match_ids(images, rows["id"].tolist(), str(root / layout.TRAIN_TABLE), unlisted_allowed=True)
    return Examples(rows.assign(hash=hash_images(images, rows["id"].tolist())), root, facts, ("label",))


def facts_of(train: pd.DataFrame, config: DataConfig) -> dict[str, Any]:
    """What models and metrics need to know of the data."""
    return {
        "classes": list(CLASSES), "channels": 3, "positives": int(train["label"].sum()), "rows": len(train),
        "folds": config.data.folds, "quick": config.quick.enabled,
    }  # fmt: skip


def quick_part(train: pd.DataFrame, quick: QuickTest) -> pd.DataFrame:
    """The part of folded rows that a quick test uses: whole patients, of each fold with positives and without."""
    if not quick.enabled or quick.rows >= len(train):
        return train
    patients = train.groupby("group", sort=True).agg(fold=("fold", "first"), sick=("label", "max"))
    taken: list[Any] = []
    for number, (_, kind) in enumerate(patients.groupby(["fold", "sick"], sort=True)):
        count = max(round(len(kind) * quick.rows / len(train)), 1)
        taken += kind.index[shuffled(len(kind), 0, number)[:count]].tolist()
    return train[train["group"].isin(taken)].reset_index(drop=True)


def watched(train: pd.DataFrame, negatives: int | None, seed: int) -> npt.NDArray[np.int64]:
    """(N,) the fold of each row that is watched for early stopping, else -1: all positives, `negatives` others a fold.

    The ROC curve takes positives and negatives apart, so a part of the negatives gives the same on average.
    """
    folds = train["fold"].to_numpy(np.int64)
    if negatives is None:
        return folds
    chosen = train["label"].to_numpy() == 1
    place = train["id"].rank(method="first").to_numpy(np.int64)  # the same draw in any order of rows
    numbers = uniforms(seed, 0, place, 1)[:, 0]
    for fold in np.unique(folds):
        others = np.flatnonzero((folds == fold) & (train["label"].to_numpy() == 0))
        chosen[others[np.argsort(numbers[others], kind="stable")[:negatives]]] = True
    return np.where(chosen, folds, TEST_FOLD).astype(np.int64)


def _rows(table: pd.DataFrame, split: str, source: str) -> pd.DataFrame:
    labels = table[TARGET].to_numpy(np.int64) if split == "train" else _NO_LABEL
    return pd.DataFrame(
        {"id": table[ID].to_numpy(), "split": split, "label": labels, "group": table[PATIENT].to_numpy(),
         "source": source}
    )  # fmt: skip


def _match(root: Path, config: DataConfig, train: pd.DataFrame, test: pd.DataFrame, *, cut: bool) -> list[str]:
    """Give both tables their column "hash"; what images without a row there are. Raises DataError with all problems."""
    notes: list[str] = []
    problems: list[DataError] = []
    for rows, name in ((train, layout.TRAIN_TABLE), (test, layout.TEST_TABLE)):
        ids, source = rows["id"].tolist(), str(rows["source"].iloc[0])
        allowed = config.data.unlisted_images == "allow" or (cut and name == layout.TRAIN_TABLE)

        def hashed(ids: list[str] = ids, source: str = source, name: str = name, allowed: bool = allowed) -> list[str]:
            images: Images = open_images(root / source)
            unlisted = match_ids(images, ids, str(root / name), unlisted_allowed=allowed)
            if unlisted and config.data.unlisted_images == "allow" and not cut:
                notes.append(f"{len(unlisted)} images in {source} have no row in {name}, and are not used")
            return hash_images(images, ids)

        hashes = collected(problems, hashed)
        if hashes is not None:
            rows["hash"] = hashes
    besides = "; data.unlisted_images=allow leaves images without a row out"
    raise_all(problems, f"tables and images in {root} do not fit together", besides)
    return notes
