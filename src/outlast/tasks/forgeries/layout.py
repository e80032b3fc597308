"""The examples of forgeries: every labelled image of a folder (listing.py), checked, hashed, grouped and split.

Promises: reads headers of pictures and goes through every mask; all that is wrong is named in one error; a case_id that
is authentic and forged is one group, and so are copies of one file.
Does not do: decode pictures (data.readers.read_image does, also grey, RGBA and 16-bit ones).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from outlast.data.look import UNREADABLE, Look, look_at
from outlast.data.readers import hash_files
from outlast.data.split import FRACTIONS, complete_split
from outlast.data.table import Examples
from outlast.errors import DataError
from outlast.tasks.forgeries import truth
from outlast.tasks.forgeries.listing import CLASSES, Found, find_images

COLUMNS = ("id", "case_id", "forged", "image", "mask", "height", "width", "instances", "group", "split", "hash")
SMALLEST_SIDE, LARGEST_SIDE = 14, 8192  # pixels; unless told otherwise
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_MOST_PROBLEMS = 50


def examples(
    root: Path,
    *,
    seed: int,
    fractions: Mapping[str, float] = FRACTIONS,
    smallest_side: int = SMALLEST_SIDE,
    largest_side: int = LARGEST_SIDE,
    memo: Path | None = None,
    threads: int = 2,
) -> Examples:
    """Every labelled image, split by group. Raises one DataError with everything that is wrong.

    Columns: id ("forged/<case_id>", "authentic/<case_id>" or "supplemental/<case_id>"), case_id, forged (int64), image
    and mask (relative to the root; mask '' where authentic), height, width (int64, upright), instances (int64), group,
    split (train, val, test), hash (SHA-256 of image and mask).
    Facts: {"classes": [...]}. smallest_side, largest_side: sizes of pictures in pixels outside of which they are
    refused. memo: a folder that remembers hashes and headers between runs.
    """
    found = labelled(root, smallest_side=smallest_side, largest_side=largest_side, memo=memo, threads=threads)
    table = found.table.assign(split="")
    table["split"] = complete_split(table, fractions=fractions, seed=seed, label="forged")
    return Examples(table[list(COLUMNS)], root, found.facts, ("forged",), found.notes)


def labelled(
    root: Path,
    facts: Mapping[str, Any] | None = None,
    *,
    smallest_side: int = SMALLEST_SIDE,
    largest_side: int = LARGEST_SIDE,
    memo: Path | None = None,
    threads: int = 2,
) -> Examples:
    """Every labelled image as `examples` gives it, to be scored: without a split. facts: those of the run."""
    found = find_images(root)
    _look(found, smallest_side, largest_side, memo)
    _check_masks(found, threads)
    _raise(found)
    table = _hashed(found, memo, threads)
    counts = table["forged"].sum(), len(table) - table["forged"].sum()
    notes = (*found.notes, f"{counts[0]} forged and {counts[1]} authentic images in {table['group'].nunique()} groups")
    return Examples(table, root, dict(facts or {"classes": list(CLASSES)}), ("forged",), notes)


def _look(found: Found, smallest: int, largest: int, memo: Path | None) -> None:
    """Fill in height and width by the headers of the pictures."""
    paths = [str(found.root / row["image"]) for row in found.rows]
    for row, path, look in zip(
        found.rows, paths, look_at(paths, memo=memo / "headers.json" if memo else None), strict=True
    ):
        if not look.format:
            found.problems.append(f"{row['image']}: no readable image; copy it again, or remove it")
            continue
        row["height"], row["width"] = _upright(path, look)
        size = f"{row['height']} x {row['width']} pixels"
        if min(row["height"], row["width"]) < smallest:
            found.problems.append(
                f"{row['image']}: {size}, smaller than a patch of {smallest}; remove it, or enlarge image and mask"
            )
        elif max(row["height"], row["width"]) > largest:
            found.problems.append(
                f"{row['image']}: {size}, beyond the limit of {largest}; cut image and mask, or raise the limit"
            )


def _upright(path: str, look: Look) -> tuple[int, int]:
    """(height, width) as `read_image` gives them."""
    if look.format in ("JPEG", "TIFF", "WEBP"):
        try:
            with Image.open(path) as image:
                if image.getexif().get(_ORIENTATION, 1) in _TURNED:
                    return look.width, look.height
        except UNREADABLE:
            pass  # decoding it says what is wrong
    return look.height, look.width


def _check_masks(found: Found, threads: int) -> None:
    """Fill in the instances. A mask of an authentic image must mark nothing, and counts as none."""

    def check(row: dict[str, Any]) -> truth.Contents | str:
        try:
            return truth.contents(found.root / row["mask"], row["height"], row["width"])
        except DataError as error:
            return f"{error.message.removeprefix(f'{found.root}/')}; {error.hint}"

    rows = [row for row in found.rows if row["mask"] and row["height"]]
    with ThreadPoolExecutor(threads) as pool:
        seen = list(pool.map(check, rows))
    empty = 0
    for row, contents in zip(rows, seen, strict=True):
        if isinstance(contents, str):
            found.problems.append(contents)
        elif row["forged"] and not contents.instances:
            found.problems.append(
                f"{row['mask']}: marks no pixel of a forged image; correct it, or move the image to the authentic ones"
            )
        elif not row["forged"] and contents.instances:
            found.problems.append(f"{row['mask']}: marks pixels of an authentic image; correct the mask or the label")
        else:
            row["instances"] = contents.instances
            empty += contents.empty if row["forged"] else 0
        if not row["forged"]:
            row["mask"] = ""
    if empty:
        found.notes.append(f"{empty} instances without a single pixel are left out")


def _raise(found: Found) -> None:
    if found.problems:
        more = len(found.problems) - _MOST_PROBLEMS
        raise DataError(
            f"the images in {found.root} can't be used as they are: {len(found.problems)} problems",
            hint="see the remedy in each line",
            details=[*found.problems[:_MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])],
        )


def _hashed(found: Found, memo: Path | None, threads: int) -> pd.DataFrame:
    """The rows by id, with hash; images with the same contents in one group."""
    rows = sorted(found.rows, key=lambda row: row["id"])
    files = [row["image"] for row in rows] + [row["mask"] for row in rows if row["mask"]]
    hashes = hash_files(
        [found.root / name for name in files], memo=memo / "hashes.json" if memo else None, threads=threads
    )
    known = dict(zip(files, hashes, strict=True))
    table = pd.DataFrame(rows)
    table["hash"] = [
        hashlib.sha256(f"{known[row['image']]}\0{known.get(row['mask'], '')}".encode()).hexdigest() for row in rows
    ]
    images = [known[row["image"]] for row in rows]
    table["group"] = _joined(table["group"].tolist(), images)
    twins = len(images) - len(set(images))
    if twins:
        found.notes.append(f"{twins} images are exact copies of others and stay in the group of the first")
    forged = defaultdict(set)
    for row, image in zip(rows, images, strict=True):
        forged[image].add(row["forged"])
    if contradictions := sum(len(labels) > 1 for labels in forged.values()):
        found.notes.append(f"{contradictions} pictures are, byte for byte, both authentic and forged")
    return table.astype(dict.fromkeys(("forged", "height", "width", "instances"), np.int64))


def _joined(groups: Sequence[str], images: Sequence[str]) -> list[str]:
    """Groups in which every image stands with its exact copies: each is named by the first of those it was made of."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if max(Counter(images).values(), default=0) < 2:
        return list(groups)
    names = {name: number for number, name in enumerate(dict.fromkeys([*groups, *("\0" + image for image in images)]))}
    first = [names[group] for group in groups]
    second = [names["\0" + image] for image in images]
    edges = coo_array((np.ones(len(first)), (first, second)), shape=(len(names), len(names)))
    _, part = connected_components(edges, directed=False)
    called: dict[int, str] = {}
    return [called.setdefault(int(part[number]), group) for number, group in zip(first, groups, strict=True)]
