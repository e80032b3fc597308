"""Segmentation metrics equal scikit-learn's on all pixels, though no pixel is kept."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, matthews_corrcoef, precision_score, recall_score
from torch import Tensor

from outlast.errors import DataError
from outlast.model.segmentation_metrics import Segmentation, boundary_f1, mcc_from_confusion, segmentation

CLASSES = ("background", "ice", "debris", "lake")
BATCHES = 3


def example(seed: int = 0, classes: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and masks of a few batches; a tenth without label."""
    generator = torch.Generator().manual_seed(seed)
    logits, masks = [], []
    for _ in range(BATCHES):
        mask = torch.randint(0, classes, (2, 12, 10), generator=generator)
        noise = torch.randn(2, 4, 12, 10, generator=generator)
        logits.append(noise + torch.nn.functional.one_hot(mask, 4).permute(0, 3, 1, 2))
        masks.append(mask.masked_fill(torch.rand(mask.shape, generator=generator) < 0.1, 255))
    return logits, masks


def accumulated(metric: Segmentation, logits: list[Tensor], masks: list[Tensor]) -> Segmentation:
    for one, mask in zip(logits, masks, strict=True):
        metric.update({"logits": one}, {"mask": mask})
    return metric


def labelled(logits: list[Tensor], masks: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    predicted, truth = torch.cat(logits).argmax(dim=1), torch.cat(masks)
    return truth[truth != 255].numpy(), predicted[truth != 255].numpy()


def test_equals_scikit_learn() -> None:
    logits, masks = example()
    ours = accumulated(Segmentation(CLASSES), logits, masks).compute()
    truth, predicted = labelled(logits, masks)
    assert ours["mcc"] == pytest.approx(matthews_corrcoef(truth, predicted), abs=1e-12)
    assert ours["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-12)
    assert ours["pixels"] == len(truth)
    for name, score in {
        "iou": jaccard_score,
        "precision": precision_score,
        "recall": recall_score,
        "f1": f1_score,
    }.items():
        reference = score(truth, predicted, average=None)
        assert ours[name] == pytest.approx(dict(zip(CLASSES, reference, strict=True)), abs=1e-12)
    assert ours["mean_iou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"), abs=1e-12)
    assert ours["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)
    for number, name in enumerate(CLASSES):
        reference = matthews_corrcoef(truth == number, predicted == number)
        assert ours["class_mcc"][name] == pytest.approx(reference, abs=1e-12)


def test_processes_add_up_to_one_also_when_sent() -> None:
    logits, masks = example()
    alone = accumulated(Segmentation(CLASSES), logits, masks)
    first = accumulated(Segmentation(CLASSES), logits[:1], masks[:1])
    second = accumulated(Segmentation(CLASSES), logits[1:], masks[1:])
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.compute() == alone.compute()


def test_probabilities_do_as_well_and_ignored_pixels_do_not_matter() -> None:
    logits, masks = example()
    wanted = accumulated(Segmentation(CLASSES), logits, masks).compute()
    metric = Segmentation(CLASSES)
    with torch.inference_mode():
        for one, mask in zip(logits, masks, strict=True):
            spoiled = one.masked_fill((mask == 255)[:, None], torch.nan)
            metric.update({"probabilities": spoiled.softmax(dim=1)}, {"mask": mask.to(torch.uint8)})
    assert metric.compute() == wanted


def test_a_class_that_is_nowhere_is_nan_and_left_out_of_means() -> None:
    metric = Segmentation(CLASSES)
    outputs = torch.nn.functional.one_hot(torch.tensor([[[0, 0, 1, 1]]]), 4).permute(0, 3, 1, 2).float()
    metric.update({"logits": outputs}, {"mask": torch.tensor([[[0, 1, 1, 2]]])})
    found = metric.compute()
    for name in ("iou", "precision", "recall", "f1", "class_mcc"):
        assert math.isnan(found[name]["lake"])
    # debris occurs and is never predicted: no precision, but IoU, F1 and correlation are 0
    assert math.isnan(found["precision"]["debris"]) and found["recall"]["debris"] == 0
    assert found["iou"] == pytest.approx(
        {"background": 1 / 2, "ice": 1 / 3, "debris": 0, "lake": math.nan}, nan_ok=True
    )
    assert found["mean_iou"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_a_class_that_is_left_out_is_neither_predicted_nor_counted() -> None:
    logits, masks = example()
    found = accumulated(Segmentation(CLASSES, left_out=("lake",)), logits, masks).compute()
    three = accumulated(
        Segmentation(CLASSES[:3]), [one[:, :3] for one in logits], [mask.masked_fill(mask == 3, 255) for mask in masks]
    ).compute()
    assert math.isnan(found["iou"].pop("lake"))
    assert found["iou"] == three["iou"]
    for name in ("mcc", "accuracy", "mean_iou", "macro_f1", "pixels"):
        assert found[name] == three[name]


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize(("truth", "predicted"), [([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [1, 1, 1]), ([1, 1], [1, 1])])
def test_one_class_alone_has_no_correlation_as_in_scikit_learn(truth: list[int], predicted: list[int]) -> None:
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    assert mcc_from_confusion(matrix) == matthews_corrcoef(truth, predicted) == 0.0


def test_without_a_pixel_everything_is_nan() -> None:
    metric = Segmentation(CLASSES)
    metric.update({"logits": torch.zeros(1, 4, 2, 2)}, {"mask": torch.full((1, 2, 2), 255)})
    found = metric.compute()
    assert found["pixels"] == 0
    assert all(math.isnan(found[name]) for name in ("mcc", "accuracy", "mean_iou", "macro_f1"))


def test_billions_of_pixels_are_counted_exactly() -> None:
    """Products of such counts leave int64, and float64 would round their difference to nothing."""
    n = 3_000_000_000
    matrix = np.array([[n * n // 4 + 1, n * n // 4], [n * n // 4, n * n // 4 + 1]])
    a, b, c, d = (int(value) for value in matrix.ravel())
    squared = Fraction((a * d - b * c) ** 2, (a + b) * (a + c) * (d + b) * (d + c))
    assert mcc_from_confusion(matrix) == pytest.approx(math.sqrt(squared), rel=1e-12)
    assert mcc_from_confusion(matrix) > 0
    assert segmentation(matrix, ("a", "b"))["class_mcc"]["a"] == pytest.approx(math.sqrt(squared), rel=1e-12)


def test_a_mask_that_holds_no_class_is_refused() -> None:
    with pytest.raises(DataError, match="a mask holds 42, but there are 4 classes"):
        Segmentation(CLASSES).update({"logits": torch.zeros(1, 4, 1, 2)}, {"mask": torch.tensor([[[0, 42]]])})


def test_boundary_f1_counts_what_lies_within_the_tolerance() -> None:
    truth = np.array([[0] * 6 + [1] * 6] * 4, np.uint8)
    for shift, expected in ((0, 1.0), (2, 1.0), (3, 0.0)):
        predicted = np.array([[0] * (6 + shift) + [1] * (6 - shift)] * 4, np.uint8)
        np.testing.assert_allclose(boundary_f1(predicted, truth, 3), [expected, expected, math.nan])
    assert boundary_f1(predicted, truth, 2, tolerance=3.0).tolist() == [1.0, 1.0]


def test_boundary_f1_of_a_part() -> None:
    """A square that is right, and as long a boundary where there is none."""
    truth = np.zeros((12, 40), np.uint8)
    truth[4:8, 4:8] = 1
    predicted = truth.copy()
    predicted[4:8, 24:28] = 1
    assert boundary_f1(predicted, truth, 2)[1] == pytest.approx(2 / 3)  # P = 1/2, R = 1


def test_boundary_f1_without_a_boundary_or_a_label() -> None:
    square = np.zeros((8, 8), np.uint8)
    square[3:6, 3:6] = 1
    nothing = np.zeros((8, 8), np.uint8)
    np.testing.assert_array_equal(boundary_f1(nothing, square, 3), [0.0, 0.0, math.nan])
    np.testing.assert_array_equal(boundary_f1(square, nothing, 3), [0.0, 0.0, math.nan])
    unlabelled = square.copy()
    unlabelled[3:6, 3:6] = 255
    # No edge against what has no label, and none where the prediction's square is hidden.
    assert np.isnan(boundary_f1(square, unlabelled, 3)).all()
