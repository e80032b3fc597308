"""Dense self-matching: which small patches of an image look the same as others, and which agree on one shift.

For copies that are only moved, down to a few pixels, also in smooth regions where no keypoints are. Promises:
deterministic; float32; single-threaded. Shading is taken out and contrast made even first (see `whitened`), so that
what is compared is fine texture and noise, which a copy shares and a similar thing does not.
Sources: nearest neighbours by a kd-tree on principal components of patches, as in Christlein et al., "An evaluation of
popular copy-move forgery detection approaches", IEEE TIFS 7(6), 2012; but here neighbours have to agree.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

PATCH = 9  # pixels
_COMPONENTS = 12
_SAMPLES = 8000  # patches from which the components are computed
_NEIGHBOURS = 8
_APPROXIMATION = 2.0  # the kd-tree may answer with a neighbour so much (1 + this) further away
_REACH, _SLACK = 8, 1.5  # pixels: matches so near, whose shifts differ by so little, agree
_FEWEST = 3  # that agree
_MOST_LINENESS = 0.6


class Support(NamedTuple):
    """Matches that agree: their shift (dy, dx), and where they start (N, 2), rows and columns."""

    shift: tuple[int, int]
    places: Int64


def whitened(grey: Float32) -> Float32:
    """Fine texture (H, W), of about deviation 1 everywhere: a band-pass divided by its local deviation."""
    from scipy.ndimage import gaussian_filter

    fine = gaussian_filter(grey, 0.6) - gaussian_filter(grey, 1.6)
    return np.asarray(fine / (np.sqrt(gaussian_filter(fine * fine, 3.0)) + 0.25), np.float32)


def supports(texture: Float32, *, stride: int, nearest: int, most: int) -> list[Support]:
    """Groups of matches that agree on a shift, the largest first, at most `most` of them.

    texture: of `whitened`. stride: pixels from one compared patch to the next. nearest: a match is at least so many
    pixels away. A shift and its reverse are one.
    """
    matches = _matches(texture, stride, nearest)
    matches = matches[_lineness(texture)[matches[:, 0], matches[:, 1]] < _MOST_LINENESS]
    if len(matches) < _FEWEST:
        return []
    matches = matches[_agreeing(matches) >= _FEWEST]
    back = (matches[:, 2] < 0) | ((matches[:, 2] == 0) & (matches[:, 3] < 0))
    matches[back] = np.column_stack([matches[back, :2] + matches[back, 2:], -matches[back, 2:]])
    return _grouped(matches, most)


def _lineness(texture: Float32) -> Float32:
    """How much the texture around each pixel runs in one direction, 0 to 1: along an edge everything looks the same."""
    from scipy.ndimage import gaussian_filter

    down, right = np.gradient(texture)
    yy, xx, yx = (gaussian_filter(product, 2.0) for product in (down * down, right * right, down * right))
    return np.asarray(np.sqrt((yy - xx) ** 2 + 4 * yx * yx) / (yy + xx + 1e-6))


def _matches(texture: Float32, stride: int, nearest: int) -> Int64:
    """(N, 4): row, column of the middle of a patch, and the shift (dy, dx) to one of its nearest neighbours."""
    from scipy.spatial import cKDTree

    if min(texture.shape) < PATCH + stride:
        return np.zeros((0, 4), np.int64)
    features = _features(texture)
    rows, columns, size = features.shape
    tree = cKDTree(features.reshape(-1, size), balanced_tree=False, compact_nodes=False)
    queries = features[::stride, ::stride].reshape(-1, size)
    _, found = tree.query(queries, k=_NEIGHBOURS, eps=_APPROXIMATION)
    y, x = (part.reshape(-1, 1) for part in np.mgrid[0:rows:stride, 0:columns:stride])
    known = found < rows * columns
    dy, dx = found // columns - y, found % columns - x
    far = known & (np.maximum(np.abs(dy), np.abs(dx)) >= nearest)
    y, x = np.broadcast_to(y, far.shape)[far], np.broadcast_to(x, far.shape)[far]
    return np.column_stack([y + PATCH // 2, x + PATCH // 2, dy[far], dx[far]]).astype(np.int64)


def _features(texture: Float32) -> Float32:
    """Principal components of every patch, (rows, columns, components)."""
    windows = np.lib.stride_tricks.sliding_window_view(texture, (PATCH, PATCH))
    rows, columns = windows.shape[:2]
    every = max(1, math.isqrt(rows * columns // _SAMPLES))
    sample = windows[::every, ::every].reshape(-1, PATCH * PATCH).astype(np.float64)
    _, vectors = np.linalg.eigh(sample.T @ sample)
    main = vectors[:, ::-1][:, :_COMPONENTS].astype(np.float32)
    features = np.empty((rows, columns, main.shape[1]), np.float32)
    for row in range(rows):  # all patches at once would be 81 images
        features[row] = windows[row].reshape(columns, -1) @ main
    return features


def _agreeing(matches: Int64) -> Int64:
    """With how many matches (itself among them) each agrees in place and shift."""
    from scipy.spatial import cKDTree

    scaled = matches / np.array([_REACH, _REACH, _SLACK, _SLACK])
    return np.asarray(cKDTree(scaled).query_ball_point(scaled, 1.0, p=np.inf, return_length=True), np.int64)


def _grouped(matches: Int64, most: int) -> list[Support]:
    """One group for each shift and place; those of shifts that nearly agree are one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if not len(matches):
        return []
    scaled = matches / np.array([_REACH, _REACH, _SLACK, _SLACK])
    pairs = cKDTree(scaled).query_pairs(1.0, p=np.inf, output_type="ndarray")
    edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(matches), len(matches)))
    number, group = connected_components(edges, directed=False)
    sizes = np.bincount(group, minlength=number)
    found = []
    for chosen in np.argsort(-sizes, kind="stable")[:most]:
        own = matches[group == chosen]
        shifts, counts = np.unique(own[:, 2:], axis=0, return_counts=True)
        dy, dx = shifts[counts.argmax()].tolist()
        found.append(Support((dy, dx), own[:, :2]))
    return found
