"""Which patch of a scene goes into which split, so that no piece of ground lies in two of them.

Patches overlap, and scenes overlap too. So patches are first given away by units of ground, whole scenes or square
blocks; then a patch that shares ground with a kept patch of a split that goes first (test, then val, then train) is
dropped. Ground is compared as boxes in one coordinate reference system. Pure functions: the same windows and seed give
the same split.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from outlast.errors import DataError

Box = tuple[float, float, float, float]  # left, bottom, right, top, in the common coordinate reference system

FIRST = ("test", "val", "train")  # who keeps ground that patches of two splits share


class Window(NamedTuple):
    """A patch to be: the number of its scene, its upper left pixel there, its ground, how many pixels are glacier."""

    scene: int
    y: int
    x: int
    box: Box
    glacier: int


class Place(NamedTuple):
    """Where a patch belongs: its split ('': it is dropped) and the unit of ground that it was given away with."""

    split: str
    group: str


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Where the patches of a side begin: every size - overlap pixels, and one more that ends at the edge."""
    found = list(range(0, length - size + 1, size - overlap))
    return found if found[-1] + size == length else [*found, length - size]


def block_of(box: Box, side: tuple[float, float]) -> str:
    """The square block of ground, `side` (width, height) large, in which the middle of a box lies."""
    column = math.floor((box[0] + box[2]) / 2 / side[0])
    row = math.floor((box[1] + box[3]) / 2 / side[1])
    return f"block {column} {row}"


def place(windows: Sequence[Window], units: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[Place]:
    """A place for each window, given its unit of ground. Raises DataError if there are too few units for the splits."""
    splits = share_out(Counter(units), fractions, seed)
    wanted = np.asarray([splits[unit] for unit in units])
    boxes = np.asarray([window.box for window in windows], np.float64).reshape(-1, 4)
    kept = np.ones(len(windows), bool)
    for rank, split in enumerate(FIRST):
        before = boxes[kept & np.isin(wanted, FIRST[:rank])]
        for at in np.flatnonzero(wanted == split):
            kept[at] = not meets(boxes[at], before).any()
    return [Place(splits[unit] if keep else "", unit) for unit, keep in zip(units, kept.tolist(), strict=True)]


def share_out(amounts: Mapping[str, int], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for each unit, in an order that the seed shuffles: to the split that lacks most; none stays empty."""
    wanted = {name: share for name, share in fractions.items() if share > 0}
    if len(amounts) < len(wanted):
        raise DataError(
            f"all glacier lies in {len(amounts)} scene or block, too few for the splits {', '.join(wanted)}",
            hint="split by smaller blocks, or give the fraction 0 to a split",
        )
    total = sum(amounts.values()) / sum(wanted.values())
    lacking = {name: share * total for name, share in wanted.items()}
    result: dict[str, str] = {}
    for unit in sorted(amounts, key=lambda name: _hash(seed, name)):
        split = max(lacking, key=lambda name: lacking[name])
        result[unit] = split
        lacking[split] -= amounts[unit]
    for split in wanted:
        if split not in result.values():
            largest = Counter(result.values()).most_common(1)[0][0]
            inside = [unit for unit in result if result[unit] == largest]
            result[min(inside, key=lambda unit: (amounts[unit], unit))] = split
    return result


def meets(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether a box (4,) shares ground with each of others (N, 4); a common edge is none."""
    across = (others[:, 0] < box[2]) & (others[:, 2] > box[0])
    return np.asarray(across & (others[:, 1] < box[3]) & (others[:, 3] > box[1]))


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).hexdigest()
