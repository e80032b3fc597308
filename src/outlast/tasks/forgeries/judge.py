"""How trainings are judged: pixels of forged images by F1, images by the area under the ROC curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from outlast.model.forgery_metrics import pixel_f1

Batch = dict[str, Any]

THRESHOLDS = tuple(number / 20 for number in range(2, 20))


def image_auc(scores: np.ndarray, forged: np.ndarray) -> float:
    """The share of pairs of a forged and an authentic image in the right order; a tie counts half. NaN without both."""
    positive, negative = scores[forged > 0], scores[forged == 0]
    if not len(positive) or not len(negative):
        return math.nan
    above = np.sign(positive[:, None] - negative[None, :])
    return float((above.mean() + 1) / 2)


class Judge:
    """pixel_f1 (at the threshold that is best for it, 0.1 to 0.95), image_auc, and `quality`: the mean of both.

    A score that is not defined, for want of forged or of authentic images, is left out of the mean, and none.
    """

    def __init__(self) -> None:
        self.f1: list[list[float]] = []
        self.scores: list[float] = []
        self.forged: list[int] = []

    def update(self, outputs: Batch, batch: Batch) -> None:
        """Take in a batch of whole images."""
        maps, masks, valid = (tensor.cpu().numpy() for tensor in (outputs["map"], batch["mask"], batch["valid"]))
        height, width = masks.shape[1:]
        for probability, mask, counted in zip(maps, masks, valid, strict=True):
            if mask.any():
                part = probability[:height, :width]
                self.f1.append([pixel_f1(part >= threshold, mask, counted) for threshold in THRESHOLDS])
        self.scores += outputs["score"].float().cpu().tolist()
        self.forged += batch["forged"].cpu().tolist()

    def merge(self, other: Judge) -> None:
        """Take in what another process accumulated."""
        self.f1 += other.f1
        self.scores += other.scores
        self.forged += other.forged

    def compute(self) -> dict[str, Any]:
        """See the class."""
        auc = image_auc(np.array(self.scores), np.array(self.forged))
        means = np.array(self.f1).mean(axis=0) if self.f1 else np.array([math.nan])
        best = int(means.argmax())
        found = {"pixel_f1": float(means[best]), "image_auc": auc}
        known = [value for value in found.values() if not math.isnan(value)]
        return {
            **{name: None if math.isnan(value) else value for name, value in found.items()},
            "quality": float(np.mean(known)) if known else 0.0,
            "threshold": THRESHOLDS[best] if self.f1 else None,
        }
