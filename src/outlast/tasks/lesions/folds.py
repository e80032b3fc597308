"""The stage `folds`: which row is in which fold, written once and known by a hash, with the table that others use.

Every other stage needs this one, so that what they made is known by these folds. Writes folds.csv (id, label, group,
fold), folds.json (the hash, and what each fold holds), and table.csv with columns.json (table.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from outlast.base.files import write_json
from outlast.base.log import say
from outlast.data.patients import write_folds
from outlast.errors import DataError, listed
from outlast.task import Work
from outlast.tasks.lesions.table import FOLDS, TEST_FOLD, keep_features, read_tables

MAKES = (FOLDS, "folds.json", "table.csv", "columns.json")


def build(work: Work) -> Mapping[str, Any]:
    """Write the folds that the run has frozen. Raises DataError if a fold lacks a class, or a patient is in two."""
    assert work.examples is not None
    table = work.examples.table
    train = table[table["fold"] != TEST_FOLD].reset_index(drop=True)
    check_classes(train)
    found = write_folds(work.out / FOLDS, train, train["fold"], id="id", patient="group", target="label")
    keep_features(work.out, read_tables(work.examples.root, work.config), train.set_index("id")["fold"])
    counts = train.groupby("fold", sort=True).agg(
        rows=("id", "size"), positives=("label", "sum"), patients=("group", "nunique")
    )
    about = {
        "hash": found, "seed": work.config.data.split_seed, "quick": work.config.quick.enabled,
        "folds": counts.reset_index().to_dict("records"), "test_rows": int((table["fold"] == TEST_FOLD).sum()),
    }  # fmt: skip
    write_json(work.out / "folds.json", about)
    told = ", ".join(f"{row['rows']} rows ({row['positives']} malignant)" for row in about["folds"])
    say(f"folds of {train['group'].nunique()} patients, hash {found[:12]}: {told}")
    return about


def check_classes(train: pd.DataFrame) -> None:
    """Raises DataError that names folds without malignant, or without benign, lesions."""
    kinds = train.groupby("fold", sort=True)["label"].agg(["sum", "size"])
    poor = [
        f"fold {fold}: {int(row['sum'])} malignant of {int(row['size'])} rows"
        for fold, row in kinds.iterrows()
        if not 0 < row["sum"] < row["size"]
    ]
    if poor:
        raise DataError(
            f"{listed(poor)}: a fold without both classes has no score",
            hint="use fewer folds (data.folds=2), or add patients with malignant lesions",
        )
