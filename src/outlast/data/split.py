"""Splits and folds: grouped, stratified, decided once, written down and obeyed.

Promises: no group on two sides; every class on every side, or an error with the counts; the same table and seed give
the same split; a frozen split is obeyed to the letter, and data that changed under it is named file by file.
Does not do: find groups (folders.py, a task), or touch a given test set.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.base.files import write_text
from outlast.data.sampler import shuffled
from outlast.errors import DataError, listed

Int64 = npt.NDArray[np.int64]

FRACTIONS: Mapping[str, float] = {"train": 0.70, "val": 0.15, "test": 0.15}
_ATTEMPTS = 20
_MOST_FOLDS = 20
_MOST_NAMED = 10  # files that changed, in an error
_COARSE = ((5, 1), (4, 1), (3, 1), (2, 1))  # small classes need few folds; tried where nothing finer covers all classes


def split_by_group(
    table: pd.DataFrame,
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int,
    label: str = "label",
    group: str = "group",
) -> pd.Series[str]:
    """The name of a split for every row; groups stay whole, classes keep their proportions.

    Each split after the first is cut off as the folds of a stratified group k-fold (sklearn's StratifiedGroupKFold)
    that come nearest to its fraction and to the class proportions. Raises DataError with the counts of groups per
    class if some class can't be in every split.
    """
    labels = _codes(table, label)
    groups = _codes(table, group)
    names = list(fractions)
    total = sum(fractions.values())
    result = np.full(len(table), names[0], dtype=object)
    remaining = np.arange(len(table), dtype=np.int64)
    share_left = 1.0
    for number, name in enumerate(names[1:], start=1):
        wanted = fractions[name] / total / share_left
        sides_left = len(names) - number  # what remains must still feed this many splits
        chosen = _cut(labels[remaining], groups[remaining], wanted, sides_left, (seed, number))
        if chosen is None:
            raise _too_few(table, label, group, f"the splits {', '.join(names)}", len(names))
        result[remaining[chosen]] = name
        remaining = remaining[~chosen]
        share_left -= fractions[name] / total
    return pd.Series(result, index=table.index, name="split")


def complete_split(
    table: pd.DataFrame,
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int,
    label: str = "label",
    group: str = "group",
) -> pd.Series[str]:
    """The given `split` column; what it lacks (val, test, or all of them) is cut off from the training rows.

    Splits that are given are kept as they are. Raises DataError like `split_by_group`.
    """
    given = table["split"].astype(object)
    present = {name for name in given.unique() if name}
    if not present:
        return split_by_group(table, fractions=fractions, seed=seed, label=label, group=group)
    lacking = {name: share for name, share in fractions.items() if name not in present}
    if not lacking:
        return given.rename("split")
    rows = given == "train"
    shares = {"train": fractions["train"], **lacking}
    given[rows] = split_by_group(table[rows], fractions=shares, seed=seed, label=label, group=group)
    return given.rename("split")


def assign_folds(
    table: pd.DataFrame, folds: int, seed: int, *, label: str = "label", group: str = "group"
) -> pd.Series[int]:
    """Fold numbers 0..folds-1 (int64), grouped and stratified; every class in every fold, or a DataError."""
    labels, groups = _codes(table, label), _codes(table, group)
    for attempt in range(_ATTEMPTS):
        numbers = _folds(labels, groups, folds, (seed, attempt))
        if numbers is not None and all(_covers(labels, numbers == fold) for fold in range(folds)):
            return pd.Series(numbers, index=table.index, name="fold")
    raise _too_few(table, label, group, f"{folds} folds", folds)


def check_split(table: pd.DataFrame, *, split: str = "split", group: str = "group") -> None:
    """Raises DataError naming the groups that stand in more than one split."""
    sides = table.groupby(group, sort=True)[split].nunique()
    leaking = sides.index[sides > 1].tolist()
    if leaking:
        raise DataError(
            f"{len(leaking)} groups stand on two sides of the split (a leak): {listed(leaking)}",
            hint="put all rows of a group into one split",
        )


def freeze(
    table: pd.DataFrame, path: Path, *, decided: Sequence[str] = ("split",), compared: Sequence[str] = ()
) -> None:
    """Write what was decided (split, folds) to a CSV file, atomically: id, label, group, the decided columns, hash.

    compared: columns that `obey` is to compare too.
    """
    names = dict.fromkeys(("id", "label", "group", *decided, *compared, "hash"))
    columns = [name for name in names if name in table.columns]
    write_text(path, table[columns].to_csv(index=False, lineterminator="\n"))


def obey(
    table: pd.DataFrame, path: Path, *, decided: Sequence[str] = ("split",), compared: Sequence[str] = ()
) -> pd.DataFrame:
    """A copy of the table with the columns that `freeze` wrote as decided.

    Raises DataError that names the files that were added, are gone, or changed since: contents, label, group or one
    of the columns `compared`.
    """
    try:
        frozen = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8").set_index("id", drop=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: not a readable split file ({error})", hint="restore it from a copy of the run"
        ) from error
    if not frozen.index.is_unique:
        raise DataError(f"{path}: an id stands there twice", hint="restore it from a copy of the run")
    _check_unchanged(table, frozen, path, dict.fromkeys(("hash", "label", "group", *compared)).keys() - set(decided))
    frozen = frozen.loc[table["id"].tolist()]
    result = table.copy()
    for column in [name for name in decided if name in frozen.columns]:
        values = frozen[column].tolist()
        whole = all(value.lstrip("-").isdigit() for value in values)
        result[column] = np.asarray(values, dtype=np.int64) if whole else values
    return result


def _check_unchanged(table: pd.DataFrame, frozen: pd.DataFrame, path: Path, compared: Collection[str]) -> None:
    ids = table["id"].tolist()
    added = sorted(set(ids) - set(frozen.index))
    gone = sorted(set(frozen.index) - set(ids))
    both = [name for name in ids if name in frozen.index]
    now = table.set_index("id", drop=False)
    changed: dict[str, list[str]] = {}
    for column in sorted(compared):
        if column in frozen.columns and column in table.columns:
            before, after = frozen.loc[both, column].tolist(), now.loc[both, column].astype(str).tolist()
            for name, old, new in zip(both, before, after, strict=True):
                if old != new:
                    changed.setdefault(name, []).append("contents" if column == "hash" else column)
    if added or gone or changed:
        details = [f"added: {name}" for name in added] + [f"gone: {name}" for name in gone]
        details += [f"changed {' and '.join(what)}: {name}" for name, what in changed.items()]
        more = [f"and {len(details) - _MOST_NAMED} more"] if len(details) > _MOST_NAMED else []
        raise DataError(
            f"the data changed since {path} was frozen: {len(added)} files added, {len(gone)} gone, "
            f"{len(changed)} changed",
            hint="bring back the data of this run, or start a new run with another --out",
            details=[*details[:_MOST_NAMED], *more],
        )


def _cut(
    labels: Int64, groups: Int64, wanted: float, sides_left: int, seed: tuple[int, int]
) -> npt.NDArray[np.bool_] | None:
    """Rows (mask) to cut off: near `wanted`, every class in it, and enough groups of every class left over."""
    best: tuple[float, npt.NDArray[np.bool_]] | None = None
    overall = np.bincount(labels) / len(labels)
    for attempt in range(_ATTEMPTS):
        for folds, taken in _nearest_ratios(wanted):
            if best is not None and (folds, taken) in _COARSE:
                break
            numbers = _folds(labels, groups, folds, (seed[0] * 100 + seed[1], attempt))
            if numbers is None:
                continue
            for start in range(0, folds - taken + 1, taken):
                mask = (numbers >= start) & (numbers < start + taken)
                if not _covers(labels, mask) or _fewest_groups(labels[~mask], groups[~mask], labels) < sides_left:
                    continue
                share = np.bincount(labels[mask], minlength=len(overall)) / len(labels)
                distance = float(np.abs(share - wanted * overall).sum())
                if best is None or distance < best[0] - 1e-12:
                    best = (distance, mask)
        if best is not None:
            return best[1]
    return None


def _nearest_ratios(wanted: float) -> list[tuple[int, int]]:
    """(folds, folds taken) whose ratio comes near `wanted`, the nearest first, few folds before many."""
    pairs = [(folds, taken) for folds in range(2, _MOST_FOLDS + 1) for taken in range(1, folds)]
    pairs = [pair for pair in pairs if np.gcd(*pair) == 1]
    near = sorted(pairs, key=lambda pair: (round(abs(pair[1] / pair[0] - wanted), 3), pair[0]))
    return near[:2] + [pair for pair in _COARSE if pair not in near[:2]]


def _folds(labels: Int64, groups: Int64, folds: int, seed: tuple[int, int]) -> Int64 | None:
    """Fold numbers (N,) of a stratified group k-fold, or None where there are too few groups or rows for it."""
    from sklearn.model_selection import StratifiedGroupKFold

    kinds = int(groups.max()) + 1 if len(groups) else 0
    if len(np.unique(groups)) < folds or np.bincount(labels).max() < folds:
        return None
    # The fold of a group depends on the order of groups only through ties: renaming groups at random is the shuffle
    # (sklearn's own shuffle=True spoiled the stratification in some versions).
    renamed = shuffled(kinds, seed[0], seed[1])[groups]
    numbers = np.empty(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y has only")  # checked by _covers
        folder: Any = StratifiedGroupKFold(n_splits=folds)
        cuts = folder.split(np.zeros((len(labels), 1)), labels, renamed)
        for number, (_, rows) in enumerate(cuts):
            numbers[rows] = number
    return numbers


def _covers(labels: Int64, mask: npt.NDArray[np.bool_]) -> bool:
    return len(np.unique(labels[mask])) == len(np.unique(labels))


def _fewest_groups(labels: Int64, groups: Int64, classes: Int64) -> int:
    return min(len(np.unique(groups[labels == value])) for value in np.unique(classes))


def _codes(table: pd.DataFrame, column: str) -> Int64:
    if column not in table.columns:
        raise DataError(f"the table has no column {column!r}", hint=f"it has: {', '.join(map(str, table.columns))}")
    return np.asarray(pd.factorize(table[column], sort=True)[0], dtype=np.int64)


def _too_few(table: pd.DataFrame, label: str, group: str, into: str, needed: int) -> DataError:
    name = "class" if label == "label" and "class" in table.columns else label
    counts = table.groupby(name, sort=True)[group].agg(["size", "nunique"])
    return DataError(
        f"every class must be in each of {into}, but the groups don't allow it",
        hint=f"add images of other groups (plants, patients), at least {needed} groups per class, or remove the class",
        details=[
            f"{value}: {int(row['size'])} rows in {int(row['nunique'])} groups" for value, row in counts.iterrows()
        ],
    )
