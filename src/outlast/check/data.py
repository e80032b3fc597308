"""Is the data there, enough of every class, and fairly split? What its table says, before any decoding."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from outlast.check.columns import telling
from outlast.check.finding import CannotCheck, Finding, error, note, unchecked, warning
from outlast.check.reading import Reading
from outlast.check.subject import Subject
from outlast.data.find import mounts
from outlast.errors import listed

FEW = 10  # training examples of a class: with fewer, chance decides what is learned of it
IMBALANCED = 50  # times as many of one class as of another
_PIXELS = "pixels_"  # columns that count the pixels of each class in an example
_MOST_FOLDERS = 2000  # of a mount that are looked into
_WAIT = (
    "wait until `kaggle datasets status OWNER/SLUG` says ready (a further version is refused with 403 before), "
    "then attach the data set again in a new session"
)
# Columns that tie examples together wherever they occur: what one video or patient shows must stay on one side.
TOGETHER = ("group", "video", "video_id", "clip", "patient", "patient_id", "subject", "series", "scene", "flight")


def found(subject: Subject) -> Iterator[Finding]:
    """No data, or data whose folders and tables contradict each other; every problem by itself."""
    try:
        examples = subject.examples
    except CannotCheck as reason:
        problem = subject.problems.get("examples")
        if problem is None:
            raise
        if problem.message.startswith("no data found"):  # its details are the places where it looked
            places = "; ".join(problem.details)
            yield error(problem.message, evidence=f"looked in: {places}", remedy=problem.hint or "")
            return
        if not problem.details:
            yield error(problem.message, remedy=problem.hint or "")
        for detail in problem.details:
            yield error(detail, evidence=problem.message, remedy=problem.hint or str(reason))
        return
    for name, item in examples.items():
        if not len(item.table):
            yield error(f"{name}: there are no examples in {item.root}", remedy="give the folder with --data")
        for sentence in item.notes:
            yield note(sentence)


def still_processing(subject: Subject) -> Iterator[Finding]:
    """A Kaggle data set whose first version is still being processed: its mount is empty or lacks what a folder held.

    Kaggle's own answer (403 for a further version) is seen from outside only; here what is mounted is looked at.
    """
    on_kaggle, place = subject.machine.host.kind == "kaggle", subject.machine.kaggle_input
    try:
        roots = [item.root.resolve() for item in subject.examples.values()]
    except CannotCheck:
        roots = []
    mounted = mounts(place) if on_kaggle else []
    if not mounted and not roots:
        why = f"nothing is mounted in {place}" if on_kaggle else "this machine is not Kaggle's"
        yield unchecked(
            f"whether a Kaggle data set is still being processed: {why}, and no data was found", remedy=_WAIT
        )
    for mount in mounted:
        empty = _empty_folders(mount)
        if mount in empty:
            yield warning(
                f"the data set mounted in {mount} is empty: its first version may still be processed",
                remedy=_WAIT,
            )
        elif empty and (not roots or any(root.is_relative_to(mount.resolve()) for root in roots)):
            yield warning(
                f"the data set mounted in {mount} may be there in part only: it has folders without a file",
                evidence=listed([path.relative_to(mount) for path in empty]),
                remedy=_WAIT,
            )


def counts(subject: Subject) -> Iterator[Finding]:
    """How many examples each class has in each split."""
    for reading in subject.readings:
        table = reading.examples.table
        if "split" not in table.columns:
            yield note(f"{reading.learner.name}: {len(table)} examples in {reading.examples.root}")
            continue
        sizes = ", ".join(f"{size} {split}" for split, size in table["split"].value_counts(sort=False).items())
        per_class = _per_class(reading)
        evidence = "; ".join(
            f"{label}: " + ", ".join(f"{number} {split}" for split, number in row.items())
            for label, row in per_class.head(20).iterrows()
        )
        evidence += f"; and {len(per_class) - 20} more classes" if len(per_class) > 20 else ""
        yield note(
            f"{len(table)} examples of {reading.learner.name} in {reading.examples.root}: {sizes}", evidence=evidence
        )


def class_in_every_split(subject: Subject) -> Iterator[Finding]:
    """A class without training examples, or missing in another split."""
    for reading in subject.readings:
        for split, column in _per_class(reading).items():
            absent = [str(name) for name in column.index[column == 0]]
            if split != "train" and not column.any():
                continue  # a test set whose labels are kept back
            if absent and split == "train":
                # A rare class of pixels may lie in few scenes: the others can still be learned.
                yield (warning if _of_pixels(reading.examples.table) else error)(
                    f"no training example of {listed(absent)}",
                    remedy="add images of it to the training data, or take the class out of the other splits",
                )
            elif absent:
                yield warning(
                    f"the split {split!r} has no example of {listed(absent)}: it says nothing about it",
                    remedy="add images of other groups (plants, patients), or let the split be made anew",
                )


def few_of_a_class(subject: Subject) -> Iterator[Finding]:
    """Classes with a handful of training examples."""
    for reading in subject.readings:
        for name, number in _training_counts(reading).items():
            if 0 < number < FEW:
                yield warning(
                    f"{name} has {number} training examples; what is learned of it is chance",
                    evidence=f"fewer than {FEW}",
                    remedy="add images, or leave the class out",
                )


def imbalance(subject: Subject) -> Iterator[Finding]:
    """One class in masses, another hardly ever."""
    for reading in subject.readings:
        numbers = {name: number for name, number in _training_counts(reading).items() if number}
        if len(numbers) > 1 and max(numbers.values()) > IMBALANCED * min(numbers.values()):
            most, least = max(numbers, key=numbers.__getitem__), min(numbers, key=numbers.__getitem__)
            yield note(
                f"{most} has {numbers[most] // numbers[least]} times as many training examples as {least}",
                evidence=f"{numbers[most]} and {numbers[least]}",
                remedy="weight or balance the classes if the task can, and judge by a score per class, not by accuracy",
            )


def same_file_twice(subject: Subject) -> Iterator[Finding]:
    """Copies of one file across splits or classes."""
    for reading in subject.readings:
        table = reading.examples.table
        twins = table[table["hash"].duplicated(keep=False) & (table["hash"] != "")]
        for column, sentence, remedy in (
            ("split", "stand in several splits: the score would be too good", "keep each in one split"),
            ("label", "have several labels: at least one of them is wrong", "keep each where it belongs"),
        ):
            if column in table.columns and len(twins):
                ids = _across(twins, "hash", column)
                if ids:
                    yield error(
                        f"{len(ids)} files with the same contents {sentence}", evidence=listed(ids), remedy=remedy
                    )


def kept_together(subject: Subject) -> Iterator[Finding]:
    """A group, a video or a patient on several sides of the split."""
    for reading in subject.readings:
        table = reading.examples.table
        if "split" not in table.columns:
            continue
        for column in TOGETHER:
            if column not in table.columns:
                continue
            known = table[table[column].notna() & (table[column].astype(str) != "")]
            sides = known.groupby(column, sort=True)["split"].nunique()
            torn = sides.index[sides > 1].astype(str).tolist()
            if torn:
                yield error(
                    f"{len(torn)} of {len(sides)} values of {column!r} stand on several sides of the split (a leak)",
                    evidence=listed(torn),
                    remedy=f"put all examples with the same {column!r} into one split",
                )


def leaking_columns(subject: Subject) -> Iterator[Finding]:
    """A column of the table that gives the label away."""
    for reading in subject.readings:
        for column, right in telling(reading.examples.table):
            yield warning(
                f"the column {column!r} alone tells the label of {100 * right:.1f} % of the examples",
                remedy="keep it out of what the model sees, unless it is known before the answer is; "
                "if the model never sees it, look whether the pictures differ in the same way",
            )


def _per_class(reading: Reading) -> pd.DataFrame:
    """Numbers of examples: rows are classes (those that the facts name, by number), columns are splits.

    Where pixels have classes, examples that hold a pixel of a class; a class that stands nowhere is left out.
    """
    table, classes = reading.examples.table, reading.examples.facts.get("classes")
    if "split" not in table.columns or classes is None or not ("label" in table.columns or _of_pixels(table)):
        raise CannotCheck(f"the examples of {reading.learner.name} have no classes")
    if _of_pixels(table):
        held = table[[f"{_PIXELS}{number}" for number in range(len(classes))]] > 0
        numbers = held.groupby(table["split"]).sum().T
    else:
        numbers = pd.crosstab(table["label"], table["split"]).reindex(range(len(classes)), fill_value=0)
    numbers.index = pd.Index([str(name) for name in classes])
    if _of_pixels(table):
        numbers = numbers[numbers.sum(axis=1) > 0]
    order = [split for split in ("train", "val", "test") if split in numbers.columns]
    return numbers[[*order, *(split for split in numbers.columns if split not in order)]]


def _of_pixels(table: pd.DataFrame) -> bool:
    return f"{_PIXELS}0" in table.columns


def _training_counts(reading: Reading) -> dict[str, int]:
    per_class = _per_class(reading)
    if "train" not in per_class.columns:
        return {}
    return {str(name): int(number) for name, number in per_class["train"].items()}


def _across(table: pd.DataFrame, key: str, column: str) -> list[str]:
    """The ids of rows that share `key` and differ in `column`."""
    torn: Counter[Hashable] = Counter(table.drop_duplicates([key, column])[key].tolist())
    several = {value for value, number in torn.items() if number > 1}
    rows: Sequence[str] = table["id"][table[key].isin(several)].astype(str).tolist()
    return list(rows)


def _empty_folders(mount: Path) -> list[Path]:
    """The folders that hold nothing, among the first ones at and below a mount; itself if there is no file at all."""
    empty, files = [], False
    for folder, inside, names in itertools.islice(os.walk(mount), _MOST_FOLDERS):
        files = files or bool(names)
        if not inside and not names:
            empty.append(Path(folder))
    return empty if files else [mount]
