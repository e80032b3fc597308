"""Whether a part of an image really is a copy of another, once it is known how it would have been moved.

The two parts are laid onto each other (to a fraction of a pixel) and compared by what a copy shares and things that
only look alike do not: the change of brightness along their edges. Across an edge any two straight edges agree; along
it only noise and fine structure are left, and these agree only in copies.
Promises: deterministic; float32 images; single-threaded. The evidence is in nats: the mutual information of two
Gaussian variables with the correlation found, -log(1 - r^2) / 2, summed over pixels (neighbours are not independent, so
it is no probability, but it grows with area and likeness as one). It counts only as far as the inner part of a region
is alike throughout: windows of one house resemble each other here and there, a copy does everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from outlast.tasks.forgeries.geometry import Complex, Similarity, places

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_WINDOW = 7  # pixels over which the correlation is computed
_CORRELATED = 0.5  # from which a pixel is taken for a copy
_AROUND = 20  # pixels around the matches that are compared
_SMALLEST = 9  # pixels of a region
_INNER = 0.3  # share of a region that lies furthest from its border; at the border windows see beyond the copy
_LEAST_INNER = 0.85  # median correlation of the inner part, or it is no region
_NARROW, _SURE = 5, 0.7  # the windows that say where a region ends, in pixels, and their correlation inside
_UNLIKE, _ALIKE = 0.94, 0.965  # of the same: at the first nothing counts, from the second all
_MOST_SHIFT = 2.0  # pixels by which the first guess may be corrected
_STEPS = 4
_MOST_OVERLAP = 0.15  # of a region with its own copy: what repeats itself overlaps, a copy lies elsewhere


class Prefiltered(NamedTuple):
    """A grey image (H, W) and the coefficients of the cubic spline through it."""

    grey: Float32
    spline: Float32


class Region(NamedTuple):
    """A region that was found twice: source and copy as masks with the place of their first pixel, and the evidence.

    information: in nats, before it was judged by how alike the inner part is.
    """

    evidence: float
    information: float
    source: Mask
    source_at: tuple[int, int]
    copy: Mask
    copy_at: tuple[int, int]
    moved: Similarity


def prefiltered(grey: Float32) -> Prefiltered:
    """What `compare` needs of an image."""
    from scipy.ndimage import spline_filter

    return Prefiltered(grey, np.asarray(spline_filter(grey, 3, output=np.float32)))


def compare(image: Prefiltered, moved: Similarity, rows: npt.ArrayLike, columns: npt.ArrayLike) -> list[Region]:
    """The regions around the given places (N,), in pixels, that are copies of where `moved` leads from there."""
    height, width = image.grey.shape
    y, x = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
    top, bottom = max(0, int(y.min()) - _AROUND), min(height, int(y.max()) + _AROUND + 1)
    left, right = max(0, int(x.min()) - _AROUND), min(width, int(x.max()) + _AROUND + 1)
    if min(bottom - top, right - left) < _WINDOW + 2:
        return []
    part = image.grey[top:bottom, left:right]
    matched = np.zeros(part.shape, bool)
    matched[y - top, x - left] = True
    matched = _grown(matched, _WINDOW)
    moved, other, inside = _aligned(image, moved, part, matched, (top, left))
    wide, narrow = (np.where(inside, correlation, 0) for correlation in _along_edges(part, other))
    return _regions(wide, narrow, matched, moved, (top, left), (height, width))


def _aligned(
    image: Prefiltered, moved: Similarity, part: Float32, matched: Mask, at: tuple[int, int]
) -> tuple[Similarity, Float32, Mask]:
    """The map corrected by a shift, what it leads to (h, w), and where that lies inside the image.

    Lucas and Kanade 1981: the shift is solved for by least squares over the matched pixels, a few times.
    """
    wanted = _detail(part)
    shift = np.zeros(2)
    other, inside = _warped(image, moved, part.shape, at)
    for _ in range(_STEPS):
        detail = _detail(other)
        down, across = (np.asarray(change)[matched].astype(np.float64) for change in np.gradient(detail))
        error = (detail - wanted)[matched].astype(np.float64)
        normal = np.array([[down @ down, down @ across], [down @ across, across @ across]])
        normal += 1e-3 * len(error) * np.eye(2)
        step = -np.linalg.solve(normal, np.array([down @ error, across @ error]))
        before = shift
        shift = (shift + step).clip(-_MOST_SHIFT, _MOST_SHIFT)
        corrected = _shifted(moved, shift)
        other, inside = _warped(image, corrected, part.shape, at)
        if np.abs(shift - before).max() < 0.02:
            break
    return _shifted(moved, shift), other, inside


def _shifted(moved: Similarity, shift: Float64) -> Similarity:
    """The map that first moves by (dy, dx) and then as before."""
    first = complex(shift[1], shift[0])
    return Similarity(moved.turn, complex(moved(np.array([first]))[0]), moved.mirrored)


def _warped(image: Prefiltered, moved: Similarity, shape: tuple[int, ...], at: tuple[int, int]) -> tuple[Float32, Mask]:
    """What the map leads to from each pixel of a part, by cubic splines, and where it lies inside the image."""
    from scipy.ndimage import affine_transform

    sign = -1.0 if moved.mirrored else 1.0
    cos, sin = moved.turn.real, moved.turn.imag
    matrix = np.array([[cos * sign, sin], [-sin * sign, cos]])  # of (row, column)
    start = complex(moved(places([at[0]], [at[1]]))[0])
    offset = np.array([start.imag, start.real], np.float64)
    other = affine_transform(
        image.spline, matrix, offset, output_shape=shape, order=3, mode="nearest", prefilter=False, output=np.float32
    )
    row = offset[0] + matrix[0, 0] * np.arange(shape[0])[:, None] + matrix[0, 1] * np.arange(shape[1])
    column = offset[1] + matrix[1, 0] * np.arange(shape[0])[:, None] + matrix[1, 1] * np.arange(shape[1])
    height, width = image.grey.shape
    return np.asarray(other), (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)


def _detail(part: Float32) -> Float32:
    """Without noise and without shading."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(part, 0.6)
    return np.asarray(smooth - gaussian_filter(smooth, 2.5))


def _along_edges(part: Float32, other: Float32) -> tuple[Float32, Float32]:
    """Correlation (h, w) of the changes along the edges of the first part, in wide and in narrow windows."""
    from scipy.ndimage import gaussian_filter

    down, right = np.gradient(gaussian_filter(part, 0.7))
    other_down, other_right = np.gradient(gaussian_filter(other, 0.7))
    yy, xx, yx = (gaussian_filter(product, 2.0) for product in (down * down, right * right, down * right))
    direction = 0.5 * np.arctan2(2 * yx, xx - yy) + np.pi / 2
    sin, cos = np.sin(direction), np.cos(direction)
    first, second = sin * down + cos * right, sin * other_down + cos * other_right
    first, second = first - gaussian_filter(first, 2.0), second - gaussian_filter(second, 2.0)
    # Strong structure must not outweigh the rest of a window.
    level = 0.1 + np.sqrt(np.maximum(gaussian_filter(first * first, 2.0), gaussian_filter(second * second, 2.0)))
    first, second = first / level, second / level
    return _correlation(first, second, _WINDOW), _correlation(first, second, _NARROW)


def _correlation(first: Float32, second: Float32, window: int) -> Float32:
    from scipy.ndimage import uniform_filter

    both, one, two = (
        uniform_filter(product, window, mode="constant") for product in (first * second, first * first, second * second)
    )
    return np.asarray(both / np.sqrt(np.maximum(one * two, 1e-3)))


def _regions(
    correlation: Float32, narrow: Float32, matched: Mask, moved: Similarity, at: tuple[int, int], size: tuple[int, int]
) -> list[Region]:
    from scipy.ndimage import binary_fill_holes, binary_opening, label

    labels, _ = label(correlation > _CORRELATED)
    found = []
    for number in np.unique(labels[matched & (labels > 0)]):
        region = labels == number
        if np.count_nonzero(region) < _SMALLEST:
            continue
        inner = _inner_likeness(correlation, region)
        if inner < _LEAST_INNER:
            continue
        # Wide windows see the edge of a copy from outside; where it lies, narrow ones say better.
        source = binary_fill_holes(binary_opening(region & (narrow > _SURE), np.ones((3, 3), bool)))
        if not source.any():
            continue
        copy, copy_at = _moved(source, at, moved, size)
        if overlap(source, at, copy, copy_at) <= _MOST_OVERLAP * np.count_nonzero(source):
            likeness = correlation[region].astype(np.float64).clip(0, 0.999)
            nats = float(-0.5 * np.log1p(-likeness * likeness).sum())
            share = min(1.0, max(0.0, (inner - _UNLIKE) / (_ALIKE - _UNLIKE)))
            found.append(Region(share * share * nats, nats, source, at, copy, copy_at, moved))
    return found


def _inner_likeness(correlation: Float32, region: Mask) -> float:
    """The median correlation of the pixels that lie deepest in a region, its holes filled."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    filled = binary_fill_holes(region)
    depth = distance_transform_edt(np.pad(filled, 1))[1:-1, 1:-1]
    inner = filled & (depth >= np.quantile(depth[filled], 1 - _INNER))
    return float(np.median(correlation[inner]))


def _moved(mask: Mask, at: tuple[int, int], moved: Similarity, size: tuple[int, int]) -> tuple[Mask, tuple[int, int]]:
    """Where a mask comes to lie: the pixels that the way back leads from into it."""
    row, column = np.nonzero(mask)
    there = moved(places(row + at[0], column + at[1]))
    top, left = max(0, int(there.imag.min())), max(0, int(there.real.min()))
    bottom, right = min(size[0], int(there.imag.max()) + 2), min(size[1], int(there.real.max()) + 2)
    y, x = np.mgrid[top : max(top, bottom), left : max(left, right)]
    back: Complex = moved.inverse()(places(y, x))
    row, column = np.rint(back.imag).astype(np.int64) - at[0], np.rint(back.real).astype(np.int64) - at[1]
    inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    return inside & mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)], (top, left)


def overlap(first: Mask, first_at: tuple[int, int], second: Mask, second_at: tuple[int, int]) -> int:
    """Pixels that two masks share."""
    top, left = max(first_at[0], second_at[0]), max(first_at[1], second_at[1])
    bottom = min(first_at[0] + first.shape[0], second_at[0] + second.shape[0])
    right = min(first_at[1] + first.shape[1], second_at[1] + second.shape[1])
    if bottom <= top or right <= left:
        return 0
    one = first[top - first_at[0] : bottom - first_at[0], left - first_at[1] : right - first_at[1]]
    other = second[top - second_at[0] : bottom - second_at[0], left - second_at[1] : right - second_at[1]]
    return int(np.count_nonzero(one & other))


def _grown(mask: Mask, side: int) -> Mask:
    """Every window of `side` pixels around a marked pixel marked."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(mask, np.ones((side, side), bool)))
