"""The tables of training and test lesions: read, checked, and kept for the stages that need them.

Promises: only columns that both tables have and that are no declared leaks are kept (data.columns); a column that no
declaration names, and that alone tells nearly all malignant lesions from the others, is told; what is wrong with the
tables is found at once and named. Ids join table and folds, never the order of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.base.files import read_json, write_json, write_text
from outlast.data.columns import Columns, Declared, choose_columns, encode, read_table
from outlast.data.patients import read_folds
from outlast.errors import DataError, listed
from outlast.model.partial_auc import auc
from outlast.tasks.lesions import layout
from outlast.tasks.lesions.config import DataConfig
from outlast.tasks.lesions.layout import ID, PATIENT, TARGET

TEST_FOLD = -1  # the fold of test rows
TABLE, COLUMNS = "table.csv", "columns.json"  # what the stage `folds` keeps for others, beside FOLDS
FOLDS = "folds.csv"
Found = TypeVar("Found")
_SUSPICIOUS = 0.98  # AUC of a single column
_ROWS_PER_CATEGORY = 50


@dataclass(frozen=True)
class Tables:
    """Both tables as they were read, the columns that may be used, and what is to be said about them."""

    train: pd.DataFrame
    test: pd.DataFrame
    columns: Columns
    declared: Declared
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Features:
    """The table as models get it: `rows` has ID, PATIENT, TARGET (NaN in test) and fold (-1 in test), and `values` in
    the same order and with the same index the chosen columns: float64, and categories with the same codes everywhere.
    """

    rows: pd.DataFrame
    values: pd.DataFrame
    columns: Columns

    @property
    def test(self) -> npt.NDArray[np.bool_]:
        """Which rows are test rows."""
        return np.asarray(self.rows["fold"] == TEST_FOLD)


def read_tables(root: Path, config: DataConfig) -> Tables:
    """Both tables with their chosen columns. Raises DataError with everything that is wrong with them."""
    declared = layout.declared(root, config.data.leaks)
    problems: list[DataError] = []
    train = collected(problems, lambda: read_table(root / layout.TRAIN_TABLE, declared, labelled=True))
    test = collected(problems, lambda: read_table(root / layout.TEST_TABLE, declared, labelled=False))
    if train is not None and test is not None:
        collected(problems, lambda: _check_sample(root, test))
        collected(problems, lambda: _check_apart(train, test))
    raise_all(problems, f"the tables in {root} can't be used as they are")
    assert train is not None
    assert test is not None
    columns = choose_columns(train, test, declared, config.data.columns)
    notes = list(columns.notes)
    for name, table in ((layout.TRAIN_TABLE, train), (layout.TEST_TABLE, test)):
        notes += [f"{name}: {note}" for note in encode(table, columns, declared)[1]]
    return Tables(train, test, columns, declared, (*notes, *suspicions(train, columns)))


def suspicions(train: pd.DataFrame, columns: Columns) -> list[str]:
    """Sentences on columns that are no declared leaks and look like one, by values or by what is missing."""
    labels, found = train[TARGET].to_numpy(), []
    for name in columns.names:
        values = train[name]
        if name in columns.numeric:
            scores = values.rank().fillna(0.0)
        elif len(columns.categories[name]) <= len(train) / _ROWS_PER_CATEGORY:
            known = values.astype(str).where(values.notna(), "")
            scores = train.groupby(known)[TARGET].transform("mean")
        else:
            continue  # so many categories name single rows
        area = auc(labels, scores.to_numpy(np.float64))
        if max(area, 1 - area) >= _SUSPICIOUS:
            found.append(
                f"{name} alone tells malignant from benign (AUC {max(area, 1 - area):.3f}): if it is known only once "
                f"the diagnosis is, name it in data.leaks='[{name}]'"
            )
    return found


def keep_features(out: Path, tables: Tables, folds: pd.Series[int]) -> None:
    """Write TABLE and COLUMNS into `out`: the chosen columns of the training rows in `folds` (by id) and of test."""
    train = tables.train.set_index(ID, drop=False).loc[folds.index]
    train = train.assign(fold=folds.to_numpy())
    test = tables.test.assign(fold=TEST_FOLD, **{TARGET: np.nan})
    kept = pd.concat([part[[ID, PATIENT, TARGET, "fold", *tables.columns.names]] for part in (train, test)])
    write_text(out / TABLE, kept.to_csv(index=False, lineterminator="\n"))
    write_json(
        out / COLUMNS,
        {
            "numeric": list(tables.columns.numeric),
            "categories": {name: list(values) for name, values in tables.columns.categories.items()},
            "notes": list(tables.notes),
        },
    )


def read_features(folds: Path) -> Features:
    """The table that the stage `folds` has kept in its folder, training rows with their folds and test rows.

    Raises DataError if it is damaged, or does not fit the folds beside it.
    """
    columns = read_columns(folds)
    numeric = dict.fromkeys((TARGET, *columns.numeric), np.float64)
    try:
        # Numbers are read as text and made of it one by one, to the last bit, whatever the version of pandas.
        rows = pd.read_csv(folds / TABLE, dtype=str).astype({**numeric, "fold": np.int64})
    except (OSError, ValueError) as error:
        raise DataError(f"{folds / TABLE} can't be read ({error})", hint="restore it from a copy of the run") from error
    declared = Declared(id=ID, patient=PATIENT, target=TARGET, leaks={})
    values, _ = encode(rows, columns, declared)
    train = rows[rows["fold"] != TEST_FOLD]
    written = read_folds(folds / FOLDS, train.astype({TARGET: np.int64}), id=ID, patient=PATIENT, target=TARGET)
    if not (written == train["fold"]).all():
        raise DataError(
            f"{folds / TABLE} and {folds / FOLDS} disagree about the folds", hint="restore both from a copy of the run"
        )
    return Features(rows[[ID, PATIENT, TARGET, "fold"]], values, columns)


def read_columns(folds: Path) -> Columns:
    """The columns that models see, as the stage `folds` has kept them in its folder."""
    known = read_json(folds / COLUMNS)
    categories = {name: tuple(values) for name, values in known["categories"].items()}
    return Columns(tuple(known["numeric"]), categories, tuple(known["notes"]))


def _check_sample(root: Path, test: pd.DataFrame) -> None:
    """The test table and the sample submission must name the same ids."""
    sample = read_sample(root)
    wanted, known = set(sample[ID]), set(test[ID])
    lines = [
        f"{name}: in {one}, not in {other}"
        for ids, one, other in (
            (wanted - known, layout.SAMPLE, layout.TEST_TABLE), (known - wanted, layout.TEST_TABLE, layout.SAMPLE),
        )
        for name in sorted(ids)[:5]
    ]  # fmt: skip
    if lines:
        raise DataError(
            f"{layout.SAMPLE} and {layout.TEST_TABLE} in {root} name other ids ({len(wanted ^ known)} differ)",
            hint="take both from the same release of the data set",
            details=lines,
        )


def read_sample(root: Path) -> pd.DataFrame:
    """sample_submission.csv with its ids as text. Raises DataError."""
    path = root / layout.SAMPLE
    try:
        sample = pd.read_csv(path, dtype={ID: str}, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV table ({error})", hint="copy it again from its source") from error
    if list(sample.columns) != [ID, TARGET]:
        raise DataError(
            f"{path} has the columns {listed(sample.columns.tolist())}", hint=f"its columns must be {ID},{TARGET}"
        )
    twice = sample[ID][sample[ID].duplicated()].unique().tolist()
    if twice or sample[ID].isna().any() or sample.empty:
        what = f"the ids {listed(twice)} twice" if twice else "a row without an id, or no rows"
        raise DataError(f"{path} has {what}", hint="copy it again from its source")
    return sample


def _check_apart(train: pd.DataFrame, test: pd.DataFrame) -> None:
    both = sorted(set(train[ID]) & set(test[ID]))
    if both:
        raise DataError(
            f"{len(both)} lesions are in both tables: {listed(both)}", hint=f"take them out of {layout.TRAIN_TABLE}"
        )


def collected(problems: list[DataError], act: Callable[[], Found]) -> Found | None:
    try:
        return act()
    except DataError as error:
        problems.append(error)
        return None


def raise_all(problems: list[DataError], sentence: str, besides: str = "") -> None:
    """One DataError for all of them; the only one as it is."""
    if len(problems) == 1 and not besides:
        raise problems[0]
    if problems:
        lines = [line for error in problems for line in (error.message, *error.details)]
        hints = dict.fromkeys(error.hint for error in problems if error.hint)
        raise DataError(sentence, hint="; ".join(hints) + besides, details=lines)
