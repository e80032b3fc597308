"""Metrics of semantic segmentation, from one confusion matrix: pixels are counted batch by batch and never kept.

Promises: counts are exact for any number of pixels; `mcc` is the multi-class R_K and equals scikit-learn's
`matthews_corrcoef`; matrices of several processes add up to that of one. A class that stands neither in the truth nor
among the predictions is NaN and left out of means, never 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outlast.errors import DataError
from outlast.model.losses import IGNORED


class Segmentation:
    """Accumulates a confusion matrix; `compute` gives what a segmenter is judged by.

    `update(outputs, batch)` takes outputs["logits"] or, without them, outputs["probabilities"] (B, K, H, W), and
    batch["mask"] (B, H, W), IGNORED where there is no label. left_out: names of classes that the data has no labels
    for: they are never predicted, their pixels don't count, and their own numbers are NaN.
    """

    def __init__(self, classes: Sequence[str], left_out: Sequence[str] = ()) -> None:
        self.classes = list(classes)
        self.left_out = [self.classes.index(name) for name in left_out]
        self.confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)

    def update(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Take in one batch. Raises DataError if a mask holds what is no class."""
        scores = outputs["logits"] if "logits" in outputs else outputs["probabilities"]
        if self.left_out:
            scores = scores.clone()
            scores[:, self.left_out] = -torch.inf
        self.confusion += confusion_matrix(scores.argmax(dim=1), batch["mask"], len(self.classes), self.left_out)

    def merge(self, other: Segmentation) -> None:
        """Take in what another process accumulated."""
        self.confusion += other.confusion

    def compute(self) -> dict[str, Any]:
        """See `segmentation`."""
        return segmentation(self.confusion, self.classes)


def confusion_matrix(predicted: Tensor, mask: Tensor, classes: int, left_out: Sequence[int] = ()) -> np.ndarray:
    """int64 (K, K) of the labelled pixels, rows = truth, of integers of equal shape on any device.

    Raises DataError if a mask holds what is no class.
    """
    counted = mask != IGNORED
    for number in left_out:
        counted &= mask != number
    pairs = mask[counted].long() * classes + predicted[counted].long()
    counts = torch.bincount(pairs, minlength=classes * classes).cpu().numpy()
    if len(counts) > classes * classes:
        raise DataError(
            f"a mask holds {(len(counts) - 1) // classes}, but there are {classes} classes",
            hint=f"masks hold 0 to {classes - 1}, and {IGNORED} where there is no label",
        )
    return counts.reshape(classes, classes)


def segmentation(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of a confusion matrix (K, K), rows = truth.

    mcc (R_K), accuracy, mean_iou, macro_f1 (means over the classes that occur in truth or prediction), pixels; iou,
    precision, recall, f1, class_mcc (that class against the rest) as {class: value}; confusion. Without a single pixel
    all are NaN. Precision is NaN for a class that is never predicted, recall for one that never occurs; F1 and IoU of
    either are 0, by their definitions 2TP/(2TP+FP+FN) and TP/(TP+FP+FN).
    """
    counts = [[int(value) for value in row] for row in confusion]
    pixels = sum(map(sum, counts))
    right = [row[number] for number, row in enumerate(counts)]
    true, predicted = [sum(row) for row in counts], [sum(column) for column in zip(*counts, strict=True)]
    iou = [_ratio(r, t + p - r) for r, t, p in zip(right, true, predicted, strict=True)]
    f1 = [_ratio(2 * r, t + p) for r, t, p in zip(right, true, predicted, strict=True)]

    def by_class(values: Sequence[float]) -> dict[str, float]:
        return dict(zip(classes, values, strict=True))

    return {
        "mcc": mcc_from_confusion(confusion),
        "accuracy": _ratio(sum(right), pixels),
        "mean_iou": _mean(iou),
        "macro_f1": _mean(f1),
        "pixels": pixels,
        "iou": by_class(iou),
        "precision": by_class([_ratio(r, p) for r, p in zip(right, predicted, strict=True)]),
        "recall": by_class([_ratio(r, t) for r, t in zip(right, true, strict=True)]),
        "f1": by_class(f1),
        "class_mcc": by_class([_binary_mcc(*one, pixels) for one in zip(right, true, predicted, strict=True)]),
        "confusion": counts,
    }


def mcc_from_confusion(confusion: np.ndarray) -> float:
    """R_K (Gorodkin 2004) of a confusion matrix (K, K) of counts; computed in whole numbers, so exact for any.

    0 if truth or prediction is one class only, as scikit-learn has it; NaN without a single pixel.
    """
    counts = [[int(value) for value in row] for row in confusion]
    right = sum(row[number] for number, row in enumerate(counts))
    true, predicted = [sum(row) for row in counts], [sum(column) for column in zip(*counts, strict=True)]
    pixels = sum(true)
    together = right * pixels - sum(t * p for t, p in zip(true, predicted, strict=True))
    return _correlation(
        together, pixels**2 - sum(t * t for t in true), pixels**2 - sum(p * p for p in predicted), pixels
    )


def boundary_f1(predicted: np.ndarray, truth: np.ndarray, classes: int, tolerance: float = 2.0) -> np.ndarray:
    """float64 (K,): F1 of each class's boundary in one image; a pixel within `tolerance` pixels of the other is right.

    predicted and truth: (H, W) integers; pixels whose truth is IGNORED don't count. The boundary of a class is its
    pixels with a neighbour (of eight) of another; distances are Euclidean, between pixel centres. 0 if one of the two
    has no boundary, NaN if neither has one. Source: Csurka et al. 2013.
    """
    counted = truth != IGNORED
    return np.array(
        [
            _boundary_f1(_boundary(predicted == number, counted), _boundary(truth == number, counted), tolerance)
            for number in range(classes)
        ]
    )


def _boundary_f1(predicted: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    from scipy.ndimage import distance_transform_edt

    if not predicted.any() or not truth.any():
        return 0.0 if predicted.any() or truth.any() else math.nan
    precision = float((distance_transform_edt(~truth)[predicted] <= tolerance).mean())
    recall = float((distance_transform_edt(~predicted)[truth] <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(inside: np.ndarray, counted: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return np.asarray(inside & counted & binary_dilation(~inside & counted, np.ones((3, 3))))


def _binary_mcc(right: int, true: int, predicted: int, pixels: int) -> float:
    """Of one class against the rest; NaN if it is nowhere."""
    if true + predicted == 0:
        return math.nan
    return _correlation(
        right * pixels - true * predicted, true * (pixels - true), predicted * (pixels - predicted), pixels
    )


def _correlation(together: int, true: int, predicted: int, pixels: int) -> float:
    if pixels == 0:
        return math.nan
    return together / math.sqrt(true * predicted) if true and predicted else 0.0


def _ratio(above: int, below: int) -> float:
    return above / below if below else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
