"""The tables of training and test lesions: read, checked, folded, and kept for the stages that need them.

Promises: only columns that both tables have and that are no leaks are kept (data.columns); ids join table, folds and
images, never the order of rows; all that is wrong with tables and images is found at once and named. Folds are
decided for all rows before a quick test takes its part of them. No image is decoded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.base.files import read_json, write_json, write_text
from outlast.data.columns import Columns, Declared, choose_columns, encode, read_table
from outlast.data.hdf5 import Images, hash_images, match_ids, open_images
from outlast.data.patients import patient_folds, read_folds
from outlast.data.randomness import uniforms
from outlast.data.sampler import shuffled
from outlast.data.table import Examples
from outlast.errors import DataError, listed
from outlast.tasks.lesions import layout
from outlast.tasks.lesions.config import DataConfig, QuickTest
from outlast.tasks.lesions.layout import ID, PATIENT, TARGET

TEST_FOLD = -1  # the fold of test rows
CLASSES = ("benign", "malignant")
TABLE, COLUMNS = "table.csv", "columns.json"  # what the stage `folds` keeps for others, beside FOLDS
FOLDS = "folds.csv"
_NO_LABEL = -1
Found = TypeVar("Found")


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
    train = _collected(problems, lambda: read_table(root / layout.TRAIN_TABLE, declared, labelled=True))
    test = _collected(problems, lambda: read_table(root / layout.TEST_TABLE, declared, labelled=False))
    if train is not None and test is not None:
        _collected(problems, lambda: _check_sample(root, test))
        _collected(problems, lambda: _check_apart(train, test))
    _raise(problems, f"the tables in {root} can't be used as they are")
    assert train is not None
    assert test is not None
    columns = choose_columns(train, test, declared, config.data.columns)
    notes = list(columns.notes)
    for name, table in ((layout.TRAIN_TABLE, train), (layout.TEST_TABLE, test)):
        notes += [f"{name}: {note}" for note in encode(table, columns, declared)[1]]
    return Tables(train, test, columns, declared, tuple(notes))


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
    numbers = uniforms(seed, 0, np.arange(len(train)), 1)[:, 0]
    for fold in np.unique(folds):
        others = np.flatnonzero((folds == fold) & (train["label"].to_numpy() == 0))
        chosen[others[np.argsort(numbers[others], kind="stable")[:negatives]]] = True
    return np.where(chosen, folds, TEST_FOLD).astype(np.int64)


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
    known = read_json(folds / COLUMNS)
    columns = Columns(
        tuple(known["numeric"]), {name: tuple(values) for name, values in known["categories"].items()},
        tuple(known["notes"]),
    )  # fmt: skip
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

        hashes = _collected(problems, hashed)
        if hashes is not None:
            rows["hash"] = hashes
    _raise(problems, f"tables and images in {root} do not fit together", "; data.unlisted_images=allow leaves images "
           "without a row out")  # fmt: skip
    return notes


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


def _collected(problems: list[DataError], act: Callable[[], Found]) -> Found | None:
    try:
        return act()
    except DataError as error:
        problems.append(error)
        return None


def _raise(problems: list[DataError], sentence: str, besides: str = "") -> None:
    """One DataError for all of them; the only one as it is."""
    if len(problems) == 1 and not besides:
        raise problems[0]
    if problems:
        lines = [line for error in problems for line in (error.message, *error.details)]
        hints = dict.fromkeys(error.hint for error in problems if error.hint)
        raise DataError(sentence, hint="; ".join(hints) + besides, details=lines)
