"""Class-folder trees as a table: `<root>/<class>/*`, or the same below train, val and test.

Promises: ids are paths relative to the root (posix, NFC), so the same data has the same ids and fingerprint anywhere;
what leaks (exact duplicates or one group on two sides) and what contradicts (one image in two classes, groups.csv) is
found here, and all problems are shown together. Does not do: decode the images (the cache does), or split.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from outlast.data.readers import EXTENSIONS, hash_files, list_images
from outlast.data.table import Examples
from outlast.errors import DataError, listed

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LAYOUT = "one folder per class with its images inside, or the same below train/, val/ and test/"
_MOST_PROBLEMS = 50


def looks_like_classes(root: Path) -> bool:
    """Whether a folder has images in class folders, directly or below train/val/test. Cheap: reads names only."""
    base, splits = _splits(root)
    homes = list(splits.values()) if splits else [base]
    return any(_holds_image(folder) for home in homes for folder in _subfolders(home))


def class_folders(root: Path, *, memo: Path | None = None, threads: int = 2) -> Examples:
    """Every image of a class-folder tree.

    Columns: id, path (relative to the root, as on disk), label (int64, position in the sorted class names), class,
    split ('' where the tree gives none), group, hash (SHA-256 of the file). Facts: classes, channels = 3.
    memo: where hashes are remembered between runs (readers.hash_files).
    Raises one DataError with everything that is wrong: no or one class, a class with a single image, empty files, one
    image under two classes or in two splits, a groups.csv that doesn't fit.
    """
    base, splits = _splits(root)
    notes: list[str] = []
    problems: list[str] = []
    rows = _list_rows(root, base, splits, notes)
    if not rows:
        raise DataError(
            f"{root} holds no images in class folders", hint=f"expected {LAYOUT} ({', '.join(sorted(EXTENSIONS))})"
        )
    table = pd.DataFrame(rows)
    problems += _name_problems(table)
    classes = sorted(set(table["class"].tolist()))
    table["label"] = np.asarray([classes.index(name) for name in table["class"]], dtype=np.int64)
    problems += _class_problems(table, classes, notes)

    table["hash"] = hash_files([root / path for path in table["path"]], memo=memo, threads=threads)
    table["group"] = table["id"]
    problems += _apply_groups(table, root, base, notes)
    problems += _duplicate_problems(table, notes)
    problems += _leaking_groups(table)
    if problems:
        shown = problems[:_MOST_PROBLEMS]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise DataError(
            f"the data in {root} can't be used as it is", hint="see the remedy in each line", details=shown + more
        )
    columns = ["id", "path", "label", "class", "split", "group", "hash"]
    table = table.sort_values("id", ignore_index=True)[columns]
    return Examples(table, root, {"classes": classes, "channels": 3}, ("label",), tuple(notes))


def labelled_folders(root: Path, *, memo: Path | None = None, threads: int = 2) -> Examples:
    """Every image of a class-folder tree as `class_folders` gives it, to be scored and not trained on.

    Groups, splits, duplicates and the number of images per class don't matter there. Raises DataError if there are
    none.
    """
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {reason}", hint=f"give the folder that holds the data: {LAYOUT}")
    base, splits = _splits(root)
    rows = _list_rows(root, base, splits, [])
    if not rows:
        raise DataError(
            f"{root} holds no images in class folders", hint=f"expected {LAYOUT} ({', '.join(sorted(EXTENSIONS))})"
        )
    table = pd.DataFrame(rows)
    problems = _name_problems(table)
    if problems:
        raise DataError(f"the names of files in {root} can't be used", hint="rename them", details=problems)
    classes = sorted(set(table["class"].tolist()))
    table["label"] = np.asarray([classes.index(name) for name in table["class"]], dtype=np.int64)
    table["hash"] = hash_files([root / path for path in table["path"]], memo=memo, threads=threads)
    table = table.sort_values("id", ignore_index=True)[["id", "path", "label", "class", "hash"]]
    return Examples(table, root, {"classes": classes, "channels": 3}, ("label",))


def _splits(root: Path) -> tuple[Path, dict[str, Path]]:
    """(the folder that counts, {train|val|test: folder}); the dictionary is empty where no split is given."""
    for base in (root, root / "datasets"):
        found = {SPLITS[folder.name.lower()]: folder for folder in _subfolders(base) if folder.name.lower() in SPLITS}
        if "train" in found and any(_subfolders(found["train"])):
            return base, found
    return root, {}


def _list_rows(root: Path, base: Path, splits: dict[str, Path], notes: list[str]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    outside, empty = 0, []
    for split, home in (splits or {"": base}).items():
        folders = _subfolders(home)
        outside += sum(1 for path in _files(home) if path.suffix.lower() in EXTENSIONS)
        for folder in folders:
            images = list_images(folder)
            if not images and not splits:
                empty.append(folder.name)
            for path in images:
                relative = path.relative_to(root).as_posix()
                rows.append({"id": _nfc(relative), "path": relative, "class": _nfc(folder.name), "split": split})
    if splits:
        ignored = [folder.name for folder in _subfolders(base) if folder not in splits.values()]
        if ignored:
            notes.append(f"the split of the folders {', '.join(splits)} is kept; not used: {listed(ignored)}")
    if empty:
        notes.append(f"folders without images are not classes: {listed(empty)}")
    if outside:
        notes.append(f"{outside} images lie outside the class folders and are not used")
    return rows


def _name_problems(table: pd.DataFrame) -> list[str]:
    problems = []
    for path in table["path"]:
        try:
            path.encode()
        except UnicodeEncodeError:
            problems.append(f"{path!r}: the name is not valid UTF-8; rename the file")
    for name, count in Counter(table["id"].tolist()).items():
        if count > 1:
            problems.append(f"{name}: {count} files differ only in how their name is encoded; keep one of them")
    return problems


def _class_problems(table: pd.DataFrame, classes: Sequence[str], notes: list[str]) -> list[str]:
    problems = []
    if len(classes) == 1:
        problems.append(f"there is one class only ({classes[0]}); add a folder with images of another class")
    counts = Counter(zip(table["split"].tolist(), table["class"].tolist(), strict=True))
    given = [split for split in dict.fromkeys(table["split"].tolist()) if split]
    if not given:
        for name in classes:
            if counts["", name] == 1:
                problems.append(
                    f"class {name} has a single image, which can't be split; add images or remove the folder"
                )
    for split in given:
        missing = [name for name in classes if not counts[split, name]]
        if missing and split == "train":
            problems.append(f"the training folder has no class {listed(missing)}; add images or remove it elsewhere")
        elif missing:
            notes.append(f"the given {split} split has no image of {listed(missing)}")
    return problems


def _apply_groups(table: pd.DataFrame, root: Path, base: Path, notes: list[str]) -> list[str]:
    """Set `group` from groups.csv; an image that it doesn't list keeps a group of its own."""
    source = next((path for path in (root / "groups.csv", base / "groups.csv") if path.is_file()), None)
    if source is None:
        return []
    try:
        listing = pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        return [f"{source}: not a readable CSV file ({error}); save it as UTF-8 with the header file,label,group"]
    if not {"file", "group"} <= set(listing.columns):
        return [f"{source}: the columns file and group are needed, it has {', '.join(listing.columns)}; fix the header"]
    problems: list[str] = []
    position = {name: at for at, name in enumerate(table["id"].tolist())}
    prefix = source.parent.relative_to(root).as_posix()
    seen: dict[str, str] = {}
    groups, missing = table["group"].tolist(), []
    labels = listing["label"].tolist() if "label" in listing.columns else [""] * len(listing)
    for file, label, group in zip(listing["file"].tolist(), labels, listing["group"].tolist(), strict=True):
        name = str(PurePosixPath(prefix, _nfc(file.strip().replace("\\", "/"))))
        at = position.get(name)
        if at is None:
            missing.append(file)
        elif seen.setdefault(name, group) != group:
            problems.append(f"{source.name}: {file} stands in two groups ({seen[name]}, {group}); keep one line")
        elif label and _nfc(label) != table["class"].iat[at]:
            problems.append(
                f"{source.name}: {file} is labelled {label}, but lies in {table['class'].iat[at]}; correct one"
            )
        elif group:
            groups[at] = group
    problems += [f"{source.name}: {file} doesn't exist; restore the file or remove the line" for file in missing]
    table["group"] = groups
    if len(seen) < len(table):
        notes.append(f"{len(table) - len(seen)} images are not in {source.name}: each is a group of its own")
    return problems


def _duplicate_problems(table: pd.DataFrame, notes: list[str]) -> list[str]:
    """Same contents: an error across classes or given splits, one group within a class."""
    empty = _EMPTY_SHA256
    problems = [
        f"{name}: the file is empty (0 bytes); copy it again or delete it"
        for name in table["id"][table["hash"] == empty].tolist()
    ]
    same: dict[str, list[int]] = defaultdict(list)
    for at, value in enumerate(table["hash"].tolist()):
        same[value].append(at)
    twins = [rows for value, rows in same.items() if len(rows) > 1 and value != empty]
    ids, names, splits = table["id"].tolist(), table["class"].tolist(), table["split"].tolist()
    groups, joined = table["group"].tolist(), 0
    renamed: dict[str, str] = {}
    for rows in twins:
        who = " = ".join(ids[row] for row in rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
        if len({names[row] for row in rows}) > 1:
            problems.append(f"{who}: the same image in several classes; keep it in the right one")
        elif len({splits[row] for row in rows}) > 1:
            problems.append(f"{who}: the same image in several splits (a leak); keep it in one")
        else:
            joined += len(rows) - 1
            first = _final(renamed, groups[rows[0]])
            for row in rows[1:]:
                other = _final(renamed, groups[row])
                if other != first:
                    renamed[other] = first
    table["group"] = [_final(renamed, group) for group in groups]
    if joined:
        notes.append(f"{joined} exact duplicates were put into the group of their first copy")
    return problems


def _leaking_groups(table: pd.DataFrame) -> list[str]:
    sides: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(table["group"].tolist(), table["split"].tolist(), strict=True):
        sides[group].add(split)
    return [
        f"group {group} stands in {' and '.join(sorted(splits))} (a leak); move its images to one side"
        for group, splits in sides.items()
        if len(splits) > 1
    ]


def _final(renamed: dict[str, str], group: str) -> str:
    while group in renamed:
        group = renamed[group]
    return group


def _subfolders(folder: Path) -> list[Path]:
    """Folders inside, in the order of names; a link that leads back up is none."""
    inside = [path for path in _visible(folder) if path.is_dir()]
    here = Path(os.path.realpath(folder))
    return [path for path in inside if not (path.is_symlink() and here.is_relative_to(os.path.realpath(path)))]


def _files(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_file()]


def _visible(folder: Path) -> list[Path]:
    try:
        inside = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise DataError(f"{folder}: no permission to list the folder", hint=f"run: chmod u+rx '{folder}'") from error
    return [path for path in inside if not path.name.startswith(".") and path.name != "__MACOSX"]


def _holds_image(folder: Path) -> bool:
    return any(path.suffix.lower() in EXTENSIONS for path in _visible(folder))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


_EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
