"""The partial area under the ROC curve above 80 % true positive rate (pAUC), the official score of lesions.

Promises: equal to the definition (ISIC 2024: labels and scores are flipped, the area under the curve up to a false
positive rate of 0.2 is taken, the point at 0.2 interpolated) to 1e-12, ties and tiny scores included: scores are only
compared, never computed with. Pairs are counted in whole numbers, from one sort. Range 0 to 0.2, chance is 0.02.
Parts that several processes took in add up to what one would have taken in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from outlast.errors import DataError

SHARE = 0.2  # of the positives, those with the lowest scores: what lies above 80 % true positive rate

Int64 = npt.NDArray[np.int64]


class PartialAUC:
    """Accumulates one score and one label per sample; `compute` gives pAUC and AUC.

    `update(outputs, batch)` takes outputs["logits"] (B,) or (B, 1), or outputs["probabilities"] without them, and
    batch["label"] (B,), 0 or 1. Logits are better: probabilities near 1 are equal in 32 bits long before their logits.
    A sample takes 5 bytes (9 with scores of 64 bits).
    """

    def __init__(self) -> None:
        self.scores: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def update(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Take in one batch. Raises DataError if there is not one score per label, or a label is neither 0 nor 1."""
        scores = outputs["logits"] if "logits" in outputs else outputs["probabilities"]
        exact = scores if scores.element_size() >= 4 else scores.float()  # numpy has no bfloat16
        labels = batch["label"].reshape(-1).cpu().numpy()
        flat = exact.reshape(-1).cpu().numpy()
        if len(flat) != len(labels):
            raise DataError(
                f"{len(labels)} labels came with scores of the shape {tuple(scores.shape)}",
                hint="give one score per sample: the logit of the positive class",
            )
        self.labels.append(_flags(labels))
        self.scores.append(flat)

    def merge(self, other: PartialAUC) -> None:
        """Take in what another process accumulated."""
        self.scores += other.scores
        self.labels += other.labels

    def compute(self) -> dict[str, Any]:
        """pauc, auc, images and positives. Raises DataError as `partial_auc` does."""
        none = np.zeros(0)
        labels = np.concatenate([none.astype(bool), *self.labels])
        scores = np.concatenate(self.scores or [none])
        return {
            "pauc": partial_auc(labels, scores),
            "auc": auc(labels, scores),
            "images": len(labels),
            "positives": int(labels.sum()),
        }


def partial_auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area above 80 % true positive rate (0 to 0.2) of scores (N,), higher for label 1, and labels (N,), 0 or 1.

    Source: the score of the ISIC 2024 challenge. Raises DataError if there is one class only, a label is neither 0 nor
    1, or a score is not finite.
    """
    return _area(labels, scores, SHARE)


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The whole area under the ROC curve (0 to 1); otherwise as `partial_auc`."""
    return _area(labels, scores, 1.0)


def checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], np.ndarray]:
    """Labels as bool (N,) and scores (N,) in their own precision. Raises DataError as `partial_auc` does."""
    flags, values = _flags(np.asarray(labels)), np.asarray(scores)
    if values.shape != flags.shape or flags.ndim != 1:
        raise DataError(
            f"labels of the shape {flags.shape} and scores of the shape {values.shape} do not belong together",
            hint="give one label and one score per sample",
        )
    unknown = int((~np.isfinite(values)).sum())
    if unknown:
        raise DataError(
            f"{unknown} of {len(values)} scores are not finite, so they have no rank",
            hint="find out what made them NaN or infinite; they are not to be replaced",
        )
    positives = int(flags.sum())
    if not 0 < positives < len(flags):
        raise DataError(
            f"the area under a ROC curve needs both classes, but of {len(flags)} samples {positives} are positive",
            hint="score more rows, or rows of other patients, so that positives and negatives are among them",
        )
    return flags, values


def _area(labels: npt.ArrayLike, scores: npt.ArrayLike, share: float) -> float:
    """The curve runs through the positives from the lowest score up: each is as wide as its share of all of them, and
    as high as the share of the negatives below it; between tied positives and negatives it is a straight line."""
    flags, values = checked(labels, scores)
    negatives = np.sort(values[~flags])
    distinct, tied = np.unique(values[flags], return_counts=True)
    needed = int(np.searchsorted(np.cumsum(tied), share * flags.sum())) + 1
    distinct, tied = distinct[:needed], tied[:needed]
    below = np.searchsorted(negatives, distinct, side="left")
    equal = np.searchsorted(negatives, distinct, side="right") - below
    area = area_of_counts(tied[None], below[None], equal[None], share * int(flags.sum()))
    return float(area[0]) / int(flags.sum()) / len(negatives)


def area_of_counts(
    tied: np.ndarray, below: np.ndarray, equal: np.ndarray, limit: float | np.ndarray
) -> npt.NDArray[np.float64]:
    """float64 (B,): pairs of a positive and a lower negative, for the `limit` positives with the lowest scores.

    tied, below and equal: (B, K) for K distinct scores of positives in ascending order: how many positives have it, how
    many negatives have a lower one, how many the same. Divided by positives * negatives this is the area.
    """
    width = np.clip(np.reshape(limit, (-1, 1)) - (np.cumsum(tied, axis=1) - tied), 0, tied)
    part = np.divide(width, tied, out=np.zeros(tied.shape), where=tied > 0)
    return np.asarray((width * (below + 0.5 * equal * part)).sum(axis=1), dtype=np.float64)


def _flags(labels: np.ndarray) -> npt.NDArray[np.bool_]:
    flags = labels == 1
    others = labels[~flags & (labels != 0)]
    if others.size:
        raise DataError(
            f"{others.size} labels are neither 0 nor 1, such as {others.flat[0]}",
            hint="1 is the class that is looked for (malignant), 0 everything else",
        )
    return np.asarray(flags, dtype=np.bool_)
