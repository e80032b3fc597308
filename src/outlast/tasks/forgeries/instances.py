"""From a map of probabilities and the matches of the correlation to instances: regions that show the same thing.

Promises: a region counts if it is large enough; two regions belong together if the matches between them agree with one
similarity (turned, scaled, moved, or mirrored), checked with the real offsets; the same input gives the same instances.
The threshold of "authentic" comes from outside, where it was calibrated.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from pydantic import Field

from outlast.config.schema import Settings
from outlast.tasks.forgeries import geometry

Float = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


class InstanceSettings(Settings):
    """What counts as a region, and when two of them belong together."""

    pixel_threshold: float = Field(0.5, ge=0, le=1, description="probability from which a pixel is marked")
    minimum_area: int = Field(24, ge=1, description="pixels of a region, at least")
    tolerance_cells: float = Field(
        0.75, gt=0, description="by which a match may miss the similarity of its region, in cells of the grid"
    )
    least_matches: int = Field(3, ge=2, description="that agree, for two regions to belong together")
    least_agreement: float = Field(0.4, ge=0, le=1, description="share of the matches between two regions that agree")
    scale_range: tuple[float, float] = Field((0.5, 2.0), description="of a copy, as a factor")
    keep_unmatched: bool = Field(
        True, description="regions without a partner make one instance; false: they are dropped"
    )


def instances_of(
    probability: Float,
    score: float,
    authentic_below: float,
    settings: InstanceSettings,
    *,
    offsets: npt.NDArray[np.generic] | None = None,
    found: Mask | None = None,
    cell: float = 1.0,
) -> UInt8:
    """The instances (N, H, W), uint8 of 0 and 1, of one image; N = 0: it is authentic.

    probability (H, W) that a pixel belongs to a forgery; score of the image: below `authentic_below` nothing is marked.
    offsets (K, 2, h, w): (dy, dx) from each position of the correlation's grid to its K matches, in positions; found
    (K, h, w): which of them are any. cell: pixels from one position to the next; the first lies in the middle of its
    cell. Without offsets all regions are one instance, which the copies of one source are.
    """
    height, width = probability.shape
    if score < authentic_below:
        return np.zeros((0, height, width), np.uint8)
    labels, count = regions(probability >= settings.pixel_threshold, settings.minimum_area)
    if not count:
        return np.zeros((0, height, width), np.uint8)
    if offsets is None:
        return np.asarray((labels > 0)[None], np.uint8)
    source, target = _pairs(labels, np.asarray(offsets), found, cell)
    parts = _joined(count, matched_regions(labels, source, target, settings, cell))
    sizes = np.bincount(parts, minlength=count)
    alone = _matches_itself(labels, source, target, settings, cell)
    groups = [parts == part for part in np.unique(parts) if sizes[part] > 1 or alone[np.flatnonzero(parts == part)[0]]]
    left = ~np.logical_or.reduce(groups) if groups else np.ones(count, bool)
    if settings.keep_unmatched and left.any():
        groups.append(left)
    members = [np.concatenate([[False], group])[labels] for group in groups]
    return np.stack(members).astype(np.uint8) if members else np.zeros((0, height, width), np.uint8)


def regions(mask: Mask, minimum_area: int) -> tuple[Int64, int]:
    """Numbers of the connected regions (H, W), 1 to N, 0 elsewhere, without those that are too small; and N."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    kept = np.flatnonzero(areas[1:] >= minimum_area) + 1
    numbers = np.zeros(count + 1, np.int64)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return numbers[labels], len(kept)


def matched_regions(
    labels: Int64, source: geometry.Complex, target: geometry.Complex, settings: InstanceSettings, cell: float
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of regions (counted from 0) whose matches agree with one similarity.

    source, target: complex places of matches (see geometry.places); those outside of a region, or within one, are left.
    """
    first, second = _region_at(labels, source), _region_at(labels, target)
    found = []
    for one, other in itertools.combinations(range(int(labels.max())), 2):
        there = (first == one + 1) & (second == other + 1)
        back = (first == other + 1) & (second == one + 1)
        starts = np.concatenate([source[there], target[back]])
        ends = np.concatenate([target[there], source[back]])
        if _agree(starts, ends, settings, cell):
            found.append((one, other))
    return found


def _agree(source: geometry.Complex, target: geometry.Complex, settings: InstanceSettings, cell: float) -> bool:
    """Whether enough matches agree with one similarity, mirrored or not."""
    if len(source) < settings.least_matches:
        return False
    needed = max(settings.least_matches, settings.least_agreement * len(source))
    for mirrored in (False, True):
        fitted = geometry.ransac(
            source, target, tolerance=settings.tolerance_cells * cell, scales=settings.scale_range, mirrored=mirrored
        )
        if fitted is not None and fitted[1].sum() >= needed:
            return True
    return False


def _matches_itself(
    labels: Int64, source: geometry.Complex, target: geometry.Complex, settings: InstanceSettings, cell: float
) -> Mask:
    """Which regions hold both a source and its copy, as those do that touch each other."""
    first, second = _region_at(labels, source), _region_at(labels, target)
    numbers = range(1, int(labels.max()) + 1)
    inside = [(first == number) & (second == number) for number in numbers]
    return np.array([_agree(source[here], target[here], settings, cell) for here in inside], bool)


def _pairs(
    labels: Int64, offsets: npt.NDArray[np.generic], found: Mask | None, cell: float
) -> tuple[geometry.Complex, geometry.Complex]:
    """Places in pixels of all matches that start in a region, and where they lead."""
    number, _, rows, columns = offsets.shape
    y, x = np.mgrid[0:rows, 0:columns]
    usable = np.ones((number, rows, columns), bool) if found is None else found.copy()
    usable &= _region_at(labels, geometry.places((y + 0.5) * cell - 0.5, (x + 0.5) * cell - 0.5)) > 0
    at = np.nonzero(usable)
    source = geometry.places((at[1] + 0.5) * cell - 0.5, (at[2] + 0.5) * cell - 0.5)
    moved = offsets[at[0], :, at[1], at[2]].astype(np.float64) * cell
    return source, source + geometry.places(moved[:, 0], moved[:, 1])


def _region_at(labels: Int64, where: geometry.Complex) -> Int64:
    """The number of the region at each place, 0 for none and beyond the image."""
    row, column = np.rint(where.imag).astype(np.int64), np.rint(where.real).astype(np.int64)
    height, width = labels.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(inside, labels[row.clip(0, height - 1), column.clip(0, width - 1)], 0)


def _joined(count: int, pairs: list[tuple[int, int]]) -> Int64:
    """The number of the group (count,) of each region, where pairs are in one group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(pairs, np.int64).reshape(-1, 2)
    edges = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(edges, directed=False)[1], np.int64)
