"""Which columns of a patient table a model may see, and in what form: the guard against leaks.

Promises: what gives the answer away is declared per data set, never guessed, and is left out or, where somebody asks
for it, refused; only columns of both training and test table are used; whatever is left out, missing or unseen is said.
A missing value stays missing (NaN; boosted trees handle it), it is never filled; a category that the training table
does not have is missing too. Does not do: compare lesions of one patient (patients.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from outlast.errors import DataError, did_you_mean, listed

MOST_CATEGORIES = 200
_MOST_NAMED = 5  # ids in one line of an error


@dataclass(frozen=True)
class Declared:
    """What is known of a data set's columns before it is read.

    id, patient, target: their names. leaks: {column: why it gives the answer away}. left_out: columns that describe the
    record and not the lesion, such as its licence.
    """

    id: str
    patient: str
    target: str
    leaks: Mapping[str, str]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """The columns that a model sees: numeric ones, and {categorical one: its categories in the training table}.

    notes: sentences on what was left out, to print and to record.
    """

    numeric: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, numeric ones first."""
        return (*self.numeric, *self.categories)


def read_table(path: Path, declared: Declared, *, labelled: bool) -> pd.DataFrame:
    """A CSV table with one row per lesion; ids and patients as text, the target (if labelled) as int64 0 or 1.

    Raises one DataError with everything that is wrong: columns that are not there, ids that are missing or stand twice,
    rows without a patient, targets other than 0 and 1.
    """
    try:
        text = dict.fromkeys((declared.id, declared.patient), str)
        table = pd.read_csv(path, dtype=text, low_memory=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable CSV table ({error})", hint="check the path; copy it again from its source"
        ) from error
    needed = [declared.id, declared.patient, *([declared.target] if labelled else [])]
    absent = [name for name in needed if name not in table.columns]
    if absent or table.empty:
        what = f"has no column {listed(absent)}" if absent else "has no rows"
        raise DataError(f"{path} {what}", hint=f"its columns are {listed(table.columns.tolist(), 40)}")
    problems = _row_problems(table, declared, labelled)
    if problems:
        raise DataError(f"{path} can't be used as it is", hint="see the remedy in each line", details=problems)
    if labelled:
        table[declared.target] = table[declared.target].astype(np.int64)
    return table


def choose_columns(
    train: pd.DataFrame, test: pd.DataFrame, declared: Declared, wanted: Sequence[str] | None = None
) -> Columns:
    """The columns that both tables have, without ids, target and leaks; or those of them that are wanted.

    Raises DataError with every wanted column that is a leak, an id, unknown, or not in both tables.
    """
    own = {declared.id, declared.patient, declared.target, *declared.left_out}
    usable = [name for name in train.columns if name in test.columns and name not in own and name not in declared.leaks]
    if wanted is not None:
        _check_wanted(wanted, usable, train, test, declared)
        usable = list(dict.fromkeys(wanted))
    notes = _notes(train, test, declared, own)
    numeric, categories = [], {}
    for name in usable:
        column = train[name].dropna()
        if column.empty:
            notes.append(f"{name} is left out: no training row has it")
        elif _is_numeric(column):
            numeric.append(name)
        elif column.nunique() > MOST_CATEGORIES:
            notes.append(f"{name} is left out: text with {column.nunique()} values is no category")
        else:
            categories[name] = tuple(sorted(column.astype(str).unique().tolist()))
    return Columns(tuple(numeric), categories, tuple(notes))


def encode(table: pd.DataFrame, columns: Columns, declared: Declared) -> tuple[pd.DataFrame, list[str]]:
    """(the columns in the form of `columns`, notes on what is missing): float64, and pandas categories whose codes are
    the same for every table. What is missing is NaN; an unseen category counts as missing.

    Raises one DataError that names the ids with text in a numeric column or an infinite number, and absent columns.
    """
    absent = [name for name in columns.names if name not in table.columns]
    if absent:
        raise DataError(
            f"the table has no column {listed(absent)}", hint="give a table with the columns of the training table"
        )
    made: dict[str, pd.Series] = {}
    notes, problems = [], []
    for name in columns.numeric:
        numbers = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
        problems += _bad_numbers(table, numbers, name, declared.id)
        made[name] = numbers
    for name, known in columns.categories.items():
        text = table[name].astype(str).where(table[name].notna())
        unseen = text[text.notna() & ~text.isin(known)]
        seen = text.where(text.isin(known)).astype(object)
        made[name] = pd.Series(pd.Categorical(seen, categories=list(known)), index=table.index)
        if len(unseen):
            values = listed(sorted(unseen.unique().tolist()))
            notes.append(f"{name}: {len(unseen)} rows have a category that training never saw ({values}): missing")
    if problems:
        raise DataError("the table holds what is no number", hint="correct these, or empty them", details=problems)
    for name, column in made.items():
        missing = int(table[name].isna().sum())
        if missing:
            notes.append(f"{name}: missing in {missing} of {len(column)} rows, and left missing")
    return pd.DataFrame(made, index=table.index), notes


def _row_problems(table: pd.DataFrame, declared: Declared, labelled: bool) -> list[str]:
    problems = []
    ids = table[declared.id]
    lines = pd.Series([f"line {number}" for number in np.flatnonzero(ids.isna()) + 2], dtype=object)
    if len(lines):
        problems.append(f"{listed(lines.tolist(), _MOST_NAMED)}: no {declared.id}; fill it in or remove the row")
    twice = ids[ids.notna() & ids.duplicated()].unique().tolist()
    if twice:
        problems.append(f"{listed(twice, _MOST_NAMED)}: two rows with this {declared.id}; keep one")
    alone = ids[table[declared.patient].isna()].tolist()
    if alone:
        problems.append(f"{listed(alone, _MOST_NAMED)}: no {declared.patient}; fill it in (one patient is one group)")
    if labelled:
        wrong = ids[~table[declared.target].isin([0, 1])].tolist()
        if wrong:
            problems.append(f"{listed(wrong, _MOST_NAMED)}: {declared.target} is neither 0 nor 1; correct it")
    return problems


def _check_wanted(
    wanted: Sequence[str], usable: Sequence[str], train: pd.DataFrame, test: pd.DataFrame, declared: Declared
) -> None:
    def reason(name: str) -> str:
        if name in declared.leaks:
            return f"it gives the answer away ({declared.leaks[name]})"
        if name == declared.target:
            return "it is the answer"
        if name in train.columns and name in test.columns:
            return "it is no property of the lesion"
        if name in train.columns:
            return "the test table does not have it"
        if name in test.columns:
            return "the training table does not have it"
        return f"there is no such column.{did_you_mean(name, usable)}"

    refused = [f"{name}: {reason(name)}" for name in dict.fromkeys(wanted) if name not in usable]
    if refused:
        raise DataError(
            f"{len(refused)} of the wanted columns can't be used",
            hint=f"choose from {listed(usable, 60)}",
            details=refused,
        )


def _notes(train: pd.DataFrame, test: pd.DataFrame, declared: Declared, own: set[str]) -> list[str]:
    leaks = [f"{name} ({why})" for name, why in declared.leaks.items() if name in train.columns or name in test.columns]
    notes = [f"left out as leaks: {listed(leaks, 20)}"] if leaks else []
    for these, those, what in ((train, test, "training"), (test, train, "test")):
        only = [name for name in these.columns if name not in {*those.columns, *own, *declared.leaks}]
        if only:
            notes.append(f"left out, as only the {what} table has it: {listed(only, 20)}")
    return notes


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _bad_numbers(table: pd.DataFrame, numbers: pd.Series, name: str, identifier: str) -> list[str]:
    problems = []
    for bad, what in ((numbers.isna() & table[name].notna(), "no number"), (np.isinf(numbers), "infinite")):
        if bad.any():
            rows = [f"{row[identifier]} ({row[name]})" for row in table.loc[bad, [identifier, name]].to_dict("records")]
            problems.append(f"{name} is {what}: {listed(rows, _MOST_NAMED)}")
    return problems
