"""Which files of a folder are images of forgeries and their masks: names only, nothing of the files is read.

    train_images/authentic, train_images/forged   pictures; the name without its extension is the case_id
    train_masks/<case_id>.npy                     of every forged one (truth.py says what it holds)
    supplemental_images, supplemental_masks       more forged ones, optional
    groups.csv                                    case_id,group: what a split must not tear apart, optional
    test_images, sample_submission.csv            without labels
or
    index.csv                                     image,mask,forged and, for groups, scene
    images, masks                                 the files that it names
or a folder of such folders, which are read together: the case_id "tree" of the folder "photos" is "photos_tree" then,
and so is its group unless a file names it.

Promises: the layout of Recod.ai/LUC; a mask belongs to the image of exactly its name; what does not fit is a problem
that names the file, and all problems are collected.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from outlast.data.readers import EXTENSIONS
from outlast.errors import DataError, listed

LAYOUT = "train_images/{authentic,forged} and train_masks/<case_id>.npy, an index.csv, or folders of such"
INDEX, GROUPS, TESTS = "index.csv", "groups.csv", "test_images"
CLASSES = ("authentic", "forged")


@dataclass
class Found:
    """What lies in a folder: rows of (label, case_id, image, mask, group) with paths relative to it, and findings."""

    root: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def looks_like_forgeries(root: Path) -> bool:
    """Whether a folder has one of the two layouts. Cheap: reads names and the first line of a file."""
    if any((root / "train_images" / label).is_dir() for label in CLASSES):
        return True
    try:
        with (root / INDEX).open(encoding="utf-8-sig") as file:
            return {"image", "mask", "forged"} <= set(file.readline().strip().split(","))
    except (OSError, ValueError):
        return False


def has_test_set(root: Path) -> bool:
    """Whether a folder has pictures to be judged."""
    return (root / TESTS).is_dir()


def unlabelled_images(root: Path) -> list[Path]:
    """The pictures of test_images, by name. Raises DataError if there are none."""
    images = [root / name for name in _pictures(root, TESTS)]
    if not images:
        raise DataError(f"{root} has no pictures in {TESTS}", hint=f"name the folder that holds {TESTS}")
    return images


def find_images(root: Path) -> Found:
    """Every labelled image that lies under a folder. Raises DataError if neither it nor a folder in it has a layout."""
    if not root.is_dir():
        raise DataError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}", hint=f"expected {LAYOUT}")
    found = _found(root) if looks_like_forgeries(root) else _together(root)
    for row in found.rows:
        row["group"] = row["group"] or row["case_id"]
    _name_twins(found)
    if not found.rows and not found.problems:
        raise DataError(f"{root} has no picture in its folders", hint=f"expected {LAYOUT}")
    return found


def _found(root: Path) -> Found:
    found = Found(root)
    if (root / INDEX).is_file() and not (root / "train_images").is_dir():
        _from_index(found)
    else:
        _from_folders(found)
    return found


def _together(root: Path) -> Found:
    """The images of all folders in a folder. Raises DataError if none of them has a layout."""
    found = Found(root)
    for folder in _folders(root):
        for row in (part := _found(folder)).rows:
            label = row["id"].split("/")[0]
            image, mask = (f"{folder.name}/{row[name]}" if row[name] else "" for name in ("image", "mask"))
            found.rows.append(_row(label, f"{folder.name}_{row['case_id']}", image, mask, row["group"]))
        found.problems += [f"{folder.name}: {problem}" for problem in part.problems]
        found.notes += [f"{folder.name}: {note}" for note in (f"{len(part.rows)} labelled images", *part.notes)]
    if not found.rows and not found.problems:
        above = next((folder for folder in root.resolve().parents if looks_like_forgeries(folder)), None)
        raise DataError(
            f"{root} holds no images of forgeries", hint=f"did you mean {above}?" if above else f"expected {LAYOUT}"
        )
    return found


def _folders(root: Path) -> list[Path]:
    return [folder for folder in sorted(root.iterdir()) if folder.is_dir() and looks_like_forgeries(folder)]


def _from_folders(found: Found) -> None:
    for label, images, masks in (
        ("authentic", "train_images/authentic", ""),
        ("forged", "train_images/forged", "train_masks"),
        ("supplemental", "supplemental_images", "supplemental_masks"),
    ):
        known = _masks(found.root, masks) if masks else {}
        for image in _pictures(found.root, images):
            case_id = Path(image).stem
            mask = known.pop(case_id, "")
            if masks and not mask:
                found.problems.append(
                    f"{image}: a forged image without its mask {masks}/{case_id}.npy; add it, or remove the image"
                )
            found.rows.append(_row(label, case_id, image, mask))
        if known:
            found.notes.append(
                f"{len(known)} masks in {masks} belong to no forged image and are not used: {listed(sorted(known))}"
            )
    _apply_groups(found)


def _from_index(found: Found) -> None:
    listing = _read_csv(found.root / INDEX)
    scenes = next((listing[name] for name in ("scene", "group") if name in listing.columns), None)
    listing = listing.assign(_group="" if scenes is None else scenes.str.strip())
    repeated = listing.duplicated()
    if repeated.any():
        found.notes.append(f"{repeated.sum()} rows of {INDEX} stand there more than once and are used once")
    for row in listing[~repeated].to_dict("records"):
        name, mask_name, forged = (str(row[column]).strip() for column in ("image", "mask", "forged"))
        if forged not in ("0", "1"):
            found.problems.append(f"{INDEX}: {name} is {forged!r}, neither 1 (forged) nor 0; correct the row")
            continue
        image, mask = _listed_path(found.root, "images", name), _listed_path(found.root, "masks", mask_name)
        if not image:
            found.problems.append(f"{INDEX}: the image {name!r} does not exist; restore it or remove the row")
            continue
        if mask_name and not mask:
            found.problems.append(f"{INDEX}: {mask_name}, the mask of {name}, does not exist; restore it")
        elif forged == "1" and not mask:
            found.problems.append(f"{INDEX}: {name} is a forged image without a mask; name it, or remove the row")
        case_id = Path(name).stem
        found.rows.append(_row(CLASSES[int(forged)], case_id, image, mask, str(row["_group"])))


def _row(label: str, case_id: str, image: str, mask: str, group: str = "") -> dict[str, Any]:
    """group: '' where no file names one; at the end it is the case itself."""
    forged = int(label != "authentic")
    return {
        "id": f"{label}/{case_id}", "case_id": case_id, "forged": forged, "image": image, "mask": mask,
        "height": 0, "width": 0, "instances": 0, "group": group,
    }  # fmt: skip


def _pictures(root: Path, folder: str) -> list[str]:
    return [f"{folder}/{path.name}" for path in _visible(root / folder) if path.suffix.lower() in EXTENSIONS]


def _masks(root: Path, folder: str) -> dict[str, str]:
    """{case_id: path}, by the exact name without its extension."""
    return {path.stem: f"{folder}/{path.name}" for path in _visible(root / folder) if path.suffix.lower() == ".npy"}


def _listed_path(root: Path, folder: str, name: str) -> str:
    """The path of a file that an index names, relative to the root; '' if there is none."""
    written = name.replace("\\", "/")
    candidates = (f"{folder}/{written}", written) if written else ()
    return next((path for path in candidates if (root / path).is_file()), "")


def _visible(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{folder} can't be listed: {error.strerror}", hint="name a folder that may be read") from error


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})", hint="save it as UTF-8 with a header") from error


def _apply_groups(found: Found) -> None:
    source = found.root / GROUPS
    if not source.is_file():
        return
    listing = _read_csv(source)
    if not {"case_id", "group"} <= set(listing.columns):
        found.problems.append(f"{GROUPS}: its header must be case_id,group; correct it")
        return
    groups: dict[str, str] = {}
    for case_id, group in zip(listing["case_id"].tolist(), listing["group"].tolist(), strict=True):
        if groups.setdefault(case_id, group) != group:
            found.problems.append(f"{GROUPS}: {case_id} stands in two groups; keep one line")
    for row in found.rows:
        row["group"] = groups.get(row["case_id"]) or row["group"]


def _name_twins(found: Found) -> None:
    files = defaultdict(list)
    for row in found.rows:
        files[row["id"]].append(row["image"])
    found.problems += [
        f"{' and '.join(images)} are one case_id twice; keep one of them, or rename one and its mask"
        for images in files.values()
        if len(images) > 1
    ]
    both = {row["case_id"] for row in found.rows if row["forged"]} & {
        row["case_id"] for row in found.rows if not row["forged"]
    }
    if both:
        found.notes.append(f"{len(both)} case_ids are authentic and forged: both images of each stay in one split")
