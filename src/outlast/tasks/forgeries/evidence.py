"""What speaks for a forgery in an image, by whichever model, and how it becomes regions and a decision.

Promises: network, classical baseline and both together are decided by the same rules; masks are of the original image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """map: float32 (H, W), the probability of each pixel; score: that of the image."""

    map: Float32
    score: float


@dataclass(frozen=True)
class Rule:
    """How evidence is decided.

    weight: share of the classical baseline, 0 (the network alone) to 1. threshold: of the map. minimum_area: of a
    region in pixels. authentic: an image whose score is below it is authentic, whatever its map says.
    """

    weight: float
    threshold: float
    minimum_area: int
    authentic: float

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def together(network: Evidence, classical: Evidence, weight: float) -> Evidence:
    """The weighted mean of both; `weight` is that of the classical baseline."""
    return Evidence(
        np.asarray((1 - weight) * network.map + weight * classical.map, np.float32),
        (1 - weight) * network.score + weight * classical.score,
    )


def regions(evidence: Evidence, threshold: float, minimum_area: int) -> Mask:
    """(H, W): the pixels above the threshold, in connected regions that are large enough."""
    from scipy.ndimage import label

    marked = evidence.map >= threshold
    numbers, count = label(marked, np.ones((3, 3)))
    if not count:
        return marked
    large = np.bincount(numbers.ravel(), minlength=count + 1) >= minimum_area
    large[0] = False
    return np.asarray(large[numbers])


def decided(evidence: Evidence, rule: Rule) -> Mask:
    """The instances (N, H, W) of an image: none if it is authentic."""
    mask = regions(evidence, rule.threshold, rule.minimum_area)
    if evidence.score < rule.authentic or not mask.any():
        return np.zeros((0, *mask.shape), bool)
    return mask[None]
