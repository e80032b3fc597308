"""The classical baseline as evidence: keypoints of an image that resemble others of it, and agree on one motion."""

from __future__ import annotations

from typing import Any

import numpy as np

from outlast.tasks.forgeries.evidence import Evidence


def classical(image: np.ndarray, side: int) -> Evidence:
    """What speaks for a forgery in an image uint8 (H, W, 3); one with a longer side than `side` is scaled down."""
    import cv2

    tool: Any = cv2
    grey = tool.cvtColor(image, tool.COLOR_RGB2GRAY)
    keypoints, descriptors = tool.SIFT_create(contrastThreshold=0.02).detectAndCompute(grey, None)
    mask = np.zeros(grey.shape, np.float32)
    if descriptors is None or len(keypoints) < 8:
        return Evidence(mask, 0.0)
    places = np.array([point.pt for point in keypoints])
    found = tool.BFMatcher().knnMatch(descriptors, descriptors, k=4)
    pairs = []
    for number, row in enumerate(found):
        row = [m for m in row if np.abs(places[m.trainIdx] - places[number]).max() > 16]
        if len(row) > 1 and row[0].distance < 0.6 * row[1].distance:
            pairs.append((number, row[0].trainIdx))
    count = 0
    if len(pairs) >= 4:
        a, b = places[[p[0] for p in pairs]], places[[p[1] for p in pairs]]
        _, inliers = tool.estimateAffinePartial2D(a, b, ransacReprojThreshold=2.0)
        chosen = inliers[:, 0] > 0 if inliers is not None else np.zeros(len(a), bool)
        count = int(chosen.sum())
        for x, y in np.concatenate([a[chosen], b[chosen]]):
            tool.circle(mask, (round(x), round(y)), 6, 1.0, -1)
    return Evidence(mask, count / (count + 10))
