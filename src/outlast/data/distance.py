"""Signed distances to the boundaries of a mask's classes, for losses that weigh a mistake by how far off it is."""

from __future__ import annotations

import numpy as np

FARTHEST = 64.0  # pixels


def signed_distance(mask: np.ndarray, classes: int) -> np.ndarray:
    """float16 (K, H, W) for a mask (H, W) with values 0..K-1: the distance to each class's boundary, in pixels.

    Exact Euclidean distance between pixel centres: outside a class that to its nearest pixel, inside it minus that to
    the nearest pixel outside; so never between -1 and 1. Cut off at FARTHEST on either side (there float16 is exact to
    1/32 pixel). 0 everywhere for a class without a boundary: one that is nowhere, or everywhere. A pixel with any other
    value (no label) is outside every class.
    """
    from scipy.ndimage import distance_transform_edt

    distances = np.zeros((classes, *mask.shape), np.float16)
    for number in range(classes):
        inside = mask == number
        if inside.any() and not inside.all():
            signed = distance_transform_edt(~inside) - distance_transform_edt(inside)
            distances[number] = np.clip(signed, -FARTHEST, FARTHEST)
    return distances
