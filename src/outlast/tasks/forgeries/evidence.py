"""What speaks for a forgery in an image, by whichever model, and how it becomes regions and a decision.

Promises: network, classical baseline and both together are decided by the same rules; masks are of the original image.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.model.copy_move import FLOW
from outlast.tasks.forgeries.instances import InstanceSettings, instances_of
from outlast.tasks.forgeries.instances import regions as numbered

Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
_LEAST = 0.01  # a score nearer to 0 or 1 says no more than this
AGREED = 0.25  # share of neighbours from which a match counts as one


@dataclass(frozen=True)
class Evidence:
    """map: float32 (H, W), the probability of each pixel; score: that of the image.

    flow: float32 (3, h, w) as `CopyMove` gives it, of a model that knows what matches what; cell: pixels of the image
    from one of its positions to the next.
    """

    map: Float32
    score: float
    flow: Float32 | None = None
    cell: float = FLOW


@dataclass(frozen=True)
class Rule:
    """How evidence is decided.

    weight: share of the classical baseline in the map, 0 (the network alone) to 1. score_weight: in the score: which of
    the two says best where something is need not be the one that says best whether. threshold: of the map.
    minimum_area: of a region in pixels. authentic: an image whose score is below it is authentic, whatever its map
    says. separate: regions that do not match each other are several instances; otherwise all of an image are one.
    """

    weight: float
    score_weight: float
    threshold: float
    minimum_area: int
    authentic: float
    separate: bool = False

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def together(network: Evidence, classical: Evidence, weight: float, score_weight: float) -> Evidence:
    """The weighted mean of both maps, and of the logits of both scores; the weights are those of the baseline."""
    return Evidence(
        np.asarray((1 - weight) * network.map + weight * classical.map, np.float32),
        mixed_score(network.score, classical.score, score_weight),
        network.flow,
        network.cell,
    )


def mixed_score(network: float, classical: float, weight: float) -> float:
    """The probability whose logit is the weighted mean of both; `weight` is that of the classical baseline."""
    logits = [math.log(score / (1 - score)) for score in (_inside(network), _inside(classical))]
    return 1 / (1 + math.exp(-((1 - weight) * logits[0] + weight * logits[1])))


def _inside(score: float) -> float:
    return min(max(score, _LEAST), 1 - _LEAST)


def regions(evidence: Evidence, threshold: float, minimum_area: int) -> Mask:
    """(H, W): the pixels above the threshold, in connected regions that are large enough."""
    return np.asarray(numbered(evidence.map >= threshold, minimum_area)[0] > 0)


def decided(evidence: Evidence, rule: Rule) -> Mask:
    """The instances (N, H, W) of an image: none if it is authentic."""
    if rule.separate and evidence.flow is not None:
        settings = InstanceSettings(pixel_threshold=rule.threshold, minimum_area=rule.minimum_area)
        offsets, found = evidence.flow[None, :2] / FLOW, evidence.flow[2:] >= AGREED
        return instances_of(
            evidence.map, evidence.score, rule.authentic, settings, offsets=offsets, found=found, cell=evidence.cell
        ).astype(bool)
    mask = regions(evidence, rule.threshold, rule.minimum_area)
    if evidence.score < rule.authentic or not mask.any():
        return np.zeros((0, *mask.shape), bool)
    return mask[None]
