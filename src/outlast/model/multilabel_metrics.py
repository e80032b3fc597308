"""Metrics of several independent labels per image, from all predictions at once; scikit-learn is the reference.

A label is predicted where its probability, the sigmoid of its logit, is at least its threshold. Thresholds are 0.5, or
those that `tuned_thresholds` found: on validation data, never on what is then scored with them. What the data can't
say is NaN with the reason beside it, and is left out of means: the AUC of a label of one class, the scores of a
combination of labels that never occurs. The confusion over combinations has 4 to the power of L cells: for few labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)
from torch import Tensor

from outlast.errors import DataError

THRESHOLD = 0.5
BINS = 15  # of the calibration error


class Multilabel:
    """Accumulates logits and labels; `compute` gives what a model of several labels is judged by.

    `update(outputs, batch)` takes outputs["logits"] (B, L) and batch["labels"] (B, L) of zeros and ones.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.logits: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def update(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Take in one batch."""
        self.logits.append(outputs["logits"].float().cpu().numpy())
        self.labels.append(batch["labels"].float().cpu().numpy())

    def merge(self, other: Multilabel) -> None:
        """Take in what another process accumulated."""
        self.logits += other.logits
        self.labels += other.labels

    def compute(self, thresholds: Sequence[float] | None = None) -> dict[str, Any]:
        """See `multilabel`. Raises ValueError if nothing was taken in."""
        return multilabel(np.concatenate(self.logits), np.concatenate(self.labels), self.names, thresholds)


def multilabel(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str], thresholds: Sequence[float] | None = None
) -> dict[str, Any]:
    """Metrics of logits (N, L) against labels (N, L) of zeros and ones; thresholds: a probability per label.

    {label: precision, recall, f1, auc, average_precision, ece, ece_equal_mass, support (images that have it),
    threshold, and reason where there is no AUC}; macro_f1, macro_auc, macro_average_precision, ece, ece_equal_mass
    (means over the labels), exact_match, hamming (share of wrong labels), loss (mean binary cross entropy, nats),
    images; combinations (confusion of the combinations of labels in the order of combination_names, rows = truth),
    per_combination {name: precision, recall, f1, images}, combination_macro_f1 and combination_balanced_accuracy (means
    over the combinations that occur) and empty_combinations (the others). Raises DataError for other labels.
    """
    truth = _checked(labels)
    cuts = np.full(len(names), THRESHOLD) if thresholds is None else np.asarray(thresholds, np.float64)
    probabilities = sigmoid(logits)
    predicted = probabilities >= cuts
    per_label = {
        name: _of_label(logits[:, place], probabilities[:, place], predicted[:, place], truth[:, place])
        | {"threshold": float(cuts[place])}
        for place, name in enumerate(names)
    }
    shared = ("f1", "auc", "average_precision", "ece", "ece_equal_mass")
    means = {name: _mean([values[name] for values in per_label.values()]) for name in shared}
    return {
        **per_label,
        "macro_f1": means["f1"],
        "macro_auc": means["auc"],
        "macro_average_precision": means["average_precision"],
        "ece": means["ece"],
        "ece_equal_mass": means["ece_equal_mass"],
        "exact_match": float((predicted == truth).all(axis=1).mean()),
        "hamming": float((predicted != truth).mean()),
        "loss": _cross_entropy(logits, truth),
        "images": len(truth),
        **_combinations(predicted, truth),
    }


def tuned_thresholds(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """The probability per label from which on to say yes, so that its F1 is largest; for VALIDATION data only.

    A threshold lies in the middle between the last probability that is a yes and the next lower one. Of several equally
    good ones the nearest to 0.5 is taken; a label of one class in the data keeps 0.5.
    """
    truth, probabilities = _checked(labels), sigmoid(logits)
    return [_best_threshold(probabilities[:, place], truth[:, place]) for place in range(truth.shape[1])]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, equal_mass: bool = False) -> float:
    """How far a label's probabilities (N,) are from how often it is there: mean over 15 bins, weighted by images.

    The bins have equal width (Naeini et al. 2015), or with equal_mass equally many images (adaptive).
    """
    if equal_mass:
        parts = np.array_split(np.argsort(probabilities, kind="stable"), BINS)
    else:
        bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probabilities)
        parts = [np.flatnonzero(bins == number) for number in range(BINS)]
    gaps = [abs(float((probabilities[part] - labels[part]).sum())) for part in parts if len(part)]
    return sum(gaps) / len(probabilities)


def combination_names(labels: int) -> list[str]:
    """A letter per label, Y or N, in the order of `combination_numbers`: NN, YN, NY, YY of two labels."""
    return ["".join("Y" if number >> place & 1 else "N" for place in range(labels)) for number in range(2**labels)]


def combination_numbers(labels: np.ndarray) -> np.ndarray:
    """int64 (N,): which combination of labels (N, L) each image has; the first label counts 1, the second 2, ..."""
    return np.asarray((labels > 0.5) @ (1 << np.arange(labels.shape[1])), np.int64)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)) in float64, without overflow."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.asarray(np.where(logits >= 0, 1.0, small) / (1 + small))


def _of_label(
    logits: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="binary", zero_division=np.nan)
    if truth.any() or predicted.any():
        f1 = np.nan_to_num(f1)  # 0 by its definition 2TP/(2TP+FP+FN), where precision or recall is not defined
    found: dict[str, Any] = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
    reason = _why_no_curve(logits, truth)
    known = reason is None
    finite = bool(np.isfinite(probabilities).all())
    found |= {
        "auc": float(roc_auc_score(truth, logits)) if known else math.nan,
        "average_precision": float(average_precision_score(truth, logits)) if known else math.nan,
        "ece": calibration_error(probabilities, truth) if finite else math.nan,
        "ece_equal_mass": calibration_error(probabilities, truth, equal_mass=True) if finite else math.nan,
        "support": int(truth.sum()),
    }
    return found if known else {**found, "reason": reason}


def _why_no_curve(logits: np.ndarray, truth: np.ndarray) -> str | None:
    """Why there is no AUC, or None if there is one."""
    if not np.isfinite(logits).all():
        return f"no AUC: {int((~np.isfinite(logits)).sum())} of {len(logits)} logits are not finite"
    if truth.all() or not truth.any():
        return f"no AUC: {'all' if truth.all() else 'none'} of the {len(truth)} images have the label"
    return None


def _best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    if truth.all() or not truth.any() or not np.isfinite(probabilities).all():
        return THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # of equal probabilities
    right = np.cumsum(truth[order])[last]
    f1 = 2 * right / (last + 1 + truth.sum())
    lower = np.append(ranked[last[:-1] + 1], 0.0)
    middle = (ranked[last] + lower) / 2
    cuts = np.where(middle > lower, middle, ranked[last])
    best = cuts[f1 >= f1.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - THRESHOLD))])


def _combinations(predicted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    names = combination_names(truth.shape[1])
    numbers = np.arange(len(names))
    true, guessed = combination_numbers(truth), combination_numbers(predicted)
    precision, recall, f1, support = precision_recall_fscore_support(
        true, guessed, labels=numbers, zero_division=np.nan
    )
    occurs = support > 0
    f1 = np.where(occurs, np.nan_to_num(f1), np.nan)
    return {
        "combinations": confusion_matrix(true, guessed, labels=numbers).tolist(),
        "combination_names": names,
        "per_combination": {
            name: {
                "precision": float(precision[number]),
                "recall": float(recall[number]),
                "f1": float(f1[number]),
                "images": int(support[number]),
            }
            for number, name in enumerate(names)
        },
        "combination_macro_f1": float(f1[occurs].mean()),
        "combination_balanced_accuracy": float(recall[occurs].mean()),
        "empty_combinations": [name for number, name in enumerate(names) if not occurs[number]],
    }


def _cross_entropy(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean over images and labels, from logits, so that it is finite for any finite logit."""
    values = logits.astype(np.float64)
    return float((np.maximum(values, 0) - values * truth + np.log1p(np.exp(-np.abs(values)))).mean())


def _checked(labels: np.ndarray) -> np.ndarray:
    """The labels as booleans. Raises DataError if they are anything but zeros and ones."""
    other = labels[(labels != 0) & (labels != 1)]
    if other.size:
        raise DataError(f"a label holds {other.flat[0]:g}", hint="independent labels are 0 (no) or 1 (yes)")
    return np.asarray(labels == 1)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
