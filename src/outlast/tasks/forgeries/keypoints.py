"""Keypoints of an image matched with themselves: how something may have been turned, scaled or mirrored and moved.

SIFT (Lowe 2004) by OpenCV, an extra. Each keypoint is compared with all others; its neighbours count as matches as long
as the next one is clearly worse (the generalised ratio test, g2NN, of Amerini et al., IEEE TIFS 6(3), 2011), so that
several copies of one source are found; the nearest, the keypoint itself, does not count. Similarities are taken out of
the matches one after the other by RANSAC. Images are enlarged before keypoints are looked for, which finds more of
them in small regions.
Promises: deterministic, on one thread; OpenCV's own number of threads is as before afterwards.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from outlast.errors import TaskError
from outlast.tasks.forgeries import geometry

Float32 = npt.NDArray[np.float32]

_CONTRAST = 0.008  # of a keypoint, at least; less than OpenCV's 0.04, for smooth regions
_ENLARGED, _ENLARGED_SIDE = 2.0, 1024.0  # how much at most, and up to which longer side in pixels
_NEIGHBOURS = 6
_RATIO = 0.75  # of the distance of a match to that of the next neighbour, at most
_TOLERANCE = 2.5  # pixels
_FEWEST = 4  # matches that agree
_MOST_MODELS = 12
_AT_ONCE = 1000  # keypoints whose distances are held at a time


class _Points(NamedTuple):
    """Places (N,) as complex numbers and descriptors (N, 128)."""

    places: geometry.Complex
    descriptors: Float32


Proposal = tuple[geometry.Similarity, npt.NDArray[np.int64], npt.NDArray[np.int64]]


def proposals(grey: Float32, *, nearest: float, most: int, mirrored: bool) -> list[Proposal]:
    """Similarities of a grey image (H, W), 0 to 255, with rows and columns of the matches that each explains.

    nearest: pixels that a match is away, at least. most: keypoints, the strongest. Raises TaskError without OpenCV.
    """
    cv2 = _opencv()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        plane = np.ascontiguousarray(grey.clip(0, 255).round().astype(np.uint8))
        points = _keypoints(cv2, plane, most)
        found = _models(*_matched(points, points, nearest, itself=True), mirrored=False)
        if mirrored:
            flipped = _keypoints(cv2, np.ascontiguousarray(plane[:, ::-1]), most)
            unflipped = _Points(plane.shape[1] - 1 - flipped.places.conj(), flipped.descriptors)
            found += _models(*_matched(points, unflipped, nearest, itself=False), mirrored=True)
    finally:
        cv2.setNumThreads(threads)
    return found


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise TaskError(
            "keypoints need OpenCV, which is not installed",
            hint='install it with: pip install "outlast[opencv]", or set classical.keypoints=false',
        ) from error
    return cv2


def _keypoints(cv2: ModuleType, plane: npt.NDArray[np.uint8], most: int) -> _Points:
    """The strongest keypoints of a plane (H, W), places in its own pixels."""
    height, width = plane.shape
    factor = min(_ENLARGED, _ENLARGED_SIDE / max(height, width))
    if factor > 1:
        size = (round(width * factor), round(height * factor))
        plane = cv2.resize(plane, size, interpolation=cv2.INTER_CUBIC)
    points, descriptors = cv2.SIFT_create(nfeatures=most, contrastThreshold=_CONTRAST).detectAndCompute(plane, None)
    if descriptors is None:
        return _Points(np.zeros(0, np.complex128), np.zeros((0, 128), np.float32))
    per_x, per_y = width / plane.shape[1], height / plane.shape[0]
    # Pixels are counted from the middle of the first one, which an enlarged image has elsewhere.
    x = np.array([(point.pt[0] + 0.5) * per_x - 0.5 for point in points])
    y = np.array([(point.pt[1] + 0.5) * per_y - 0.5 for point in points])
    # RootSIFT: distances of square roots are Hellinger distances (Arandjelovic and Zisserman, CVPR 2012).
    return _Points(x + 1j * y, np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6)))


def _matched(
    first: _Points, second: _Points, nearest: float, *, itself: bool
) -> tuple[geometry.Complex, geometry.Complex]:
    """Places of matches, from the first points and to the second ones. itself: both are the same."""
    neighbours = min(_NEIGHBOURS + itself, len(second.places))
    if neighbours < 2 + itself:
        return np.zeros(0, np.complex128), np.zeros(0, np.complex128)
    starts, ends = [], []
    for at in range(0, len(first.places), _AT_ONCE):
        descriptors, where = first.descriptors[at : at + _AT_ONCE], first.places[at : at + _AT_ONCE]
        squared = 2 - 2 * descriptors @ second.descriptors.T
        if itself:
            squared[np.arange(len(where)), np.arange(at, at + len(where))] = -1
        order = np.argpartition(squared, neighbours - 1, axis=1)[:, :neighbours]
        distances = np.take_along_axis(squared, order, axis=1)
        ranks = np.argsort(distances, axis=1, kind="stable")[:, int(itself) :]
        order, distances = np.take_along_axis(order, ranks, axis=1), np.take_along_axis(distances, ranks, axis=1)
        distances = np.sqrt(distances.clip(0))
        good = np.logical_or.accumulate((distances[:, :-1] < _RATIO * distances[:, 1:])[:, ::-1], axis=1)[:, ::-1]
        row, rank = np.nonzero(good)
        starts.append(where[row])
        ends.append(second.places[order[row, rank]])
    source, target = np.concatenate(starts), np.concatenate(ends)
    far = np.abs(target - source) >= nearest
    pairs = np.unique(np.column_stack([source[far], target[far]]), axis=0)  # a keypoint may have several directions
    return pairs[:, 0], pairs[:, 1]


def _models(source: geometry.Complex, target: geometry.Complex, *, mirrored: bool) -> list[Proposal]:
    """The similarities that explain the most matches, one after the other."""
    found: list[Proposal] = []
    while len(source) >= _FEWEST and len(found) < _MOST_MODELS:
        fitted = geometry.ransac(source, target, tolerance=_TOLERANCE, mirrored=mirrored, rounds=2000)
        if fitted is None or fitted[1].sum() < _FEWEST:
            break
        moved, inliers = fitted
        rows, columns = (np.rint(part[inliers]).astype(np.int64) for part in (source.imag, source.real))
        found.append((moved, rows, columns))
        # The same matches backwards say nothing new.
        backwards = np.abs(moved.inverse()(source) - target) <= _TOLERANCE
        source, target = source[~inliers & ~backwards], target[~inliers & ~backwards]
    return found
