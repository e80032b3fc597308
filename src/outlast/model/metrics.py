"""Metrics of classification, from all predictions at once; scikit-learn is the reference and does the work.

A class that stands neither in the truth nor among the predictions is left out of means; its own numbers are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score, confusion_matrix, precision_recall_fscore_support
from torch import Tensor


class Classification:
    """Accumulates logits and labels; `compute` gives what a classifier is judged by.

    `update(outputs, batch)` takes outputs["logits"] (B, classes), logits or log-probabilities, and batch["label"] (B,).
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.logits: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def update(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Take in one batch."""
        self.logits.append(outputs["logits"].float().cpu().numpy())
        self.labels.append(batch["label"].cpu().numpy())

    def merge(self, other: Classification) -> None:
        """Take in what another process accumulated."""
        self.logits += other.logits
        self.labels += other.labels

    def compute(self) -> dict[str, Any]:
        """See `classification`. Raises ValueError if nothing was taken in."""
        return classification(np.concatenate(self.logits), np.concatenate(self.labels), self.classes)


def classification(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of logits (N, classes) against labels (N,).

    accuracy (OA), balanced_accuracy (AA: mean recall of the classes that occur), kappa (Cohen), macro_f1, loss (mean
    negative log-likelihood, nats), per_class {class: precision, recall, f1, images}, confusion (rows = truth).
    """
    predicted = logits.argmax(axis=1)
    numbers = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=numbers, zero_division=np.nan
    )
    occurs = support > 0
    counted = occurs | np.isin(numbers, predicted)
    # A class that was predicted but never occurs has no recall; its F1 is 0 by the definition 2TP/(2TP+FP+FN).
    f1 = np.where(counted, np.nan_to_num(f1), np.nan)
    several = len(np.unique(np.concatenate([labels, predicted]))) > 1
    return {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(recall[occurs].mean()),
        "kappa": float(cohen_kappa_score(labels, predicted, labels=numbers)) if several else math.nan,
        "macro_f1": float(f1[counted].mean()),
        "loss": float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean()),
        "per_class": {
            name: {
                "precision": float(precision[number]),
                "recall": float(recall[number]),
                "f1": float(f1[number]),
                "images": int(support[number]),
            }
            for number, name in enumerate(classes)
        },
        "confusion": confusion_matrix(labels, predicted, labels=numbers).tolist(),
    }


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """log softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
