"""Each loss equals its definition on cases done by hand, and keeps what all of them promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef
from torch import Tensor
from torch.nn import functional

from outlast.data.distance import signed_distance
from outlast.model import losses
from outlast.model.losses import Term

CLASSES = 4
MANY = 1e4  # a logit so large that its softmax is exactly 0 or 1


def distances(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([signed_distance(one.numpy(), CLASSES) for one in mask]))


# name -> the loss of (logits, mask); `boundary_head` takes the first class's logits as those of its head
ALL: dict[str, Callable[..., Term]] = {
    "cross_entropy": losses.cross_entropy,
    "cross_entropy_weighted": lambda logits, mask, **counted: losses.cross_entropy(
        logits, mask, torch.tensor([1.0, 2.0, 3.0, 0.5]), 0.1, **counted
    ),
    "focal": losses.focal,
    "focal_alpha": lambda logits, mask, **counted: losses.focal(
        logits, mask, 0.5, torch.tensor([1.0, 2.0, 3.0, 0.5]), **counted
    ),
    "dice": losses.dice,
    "surface": lambda logits, mask, **counted: losses.surface(logits, mask, distances(mask), **counted),
    "boundary_f1": losses.boundary_f1,
    "mcc": losses.mcc,
    "mcc_per_class": losses.mcc_per_class,
    "boundary_head": lambda logits, mask, **counted: losses.boundary_head(logits[:, :1], mask, **counted),
}
OF_CLASSES = [name for name in ALL if name != "boundary_head"]
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)


def example(seed: int = 0, dtype: torch.dtype = torch.float32, size: int = 9) -> tuple[Tensor, Tensor]:
    """Logits and a mask in blobs of several classes, a fifth of it without label."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, CLASSES, size, size, generator=generator, dtype=torch.float64).to(dtype)
    coarse = torch.randint(0, CLASSES, (3, 1, 3, 3), generator=generator).float()
    mask = functional.interpolate(coarse, (size, size))[:, 0].long()
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = 255
    return logits.requires_grad_(), mask


def certain(labels: list[list[int]], classes: int = CLASSES) -> Tensor:
    """Logits that leave no doubt about the labels (H, W)."""
    return MANY * functional.one_hot(torch.tensor(labels), classes).permute(2, 0, 1)[None].float()


def from_probabilities(rows: list[list[float]]) -> Tensor:
    """Logits (1, K, 1, N) of the probabilities given for each of N pixels."""
    return torch.tensor(rows).log().T[None, :, None]


# By hand


def test_focal_by_hand() -> None:
    logits, mask = from_probabilities([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), torch.tensor([[[0, 1]]])
    value = losses.focal(logits, mask, 2.0).value
    assert float(value) == pytest.approx((0.25 * math.log(2) + 0.04 * -math.log(0.8)) / 2, rel=1e-6)
    weighted = losses.focal(logits, mask, 2.0, torch.tensor([0.25, 4.0, 9.0])).value
    expected = (0.25 * 0.25 * math.log(2) + 4 * 0.04 * -math.log(0.8)) / 2
    assert float(weighted) == pytest.approx(expected, rel=1e-6)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, mask = example()
    torch.testing.assert_close(losses.focal(logits, mask, 0.0).value, losses.cross_entropy(logits, mask).value)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0]])
def test_cross_entropy_equals_torch(weights: list[float] | None, smoothing: float) -> None:
    logits, mask = example()
    tensor = None if weights is None else torch.tensor(weights)
    expected = functional.cross_entropy(logits, mask, tensor, ignore_index=255, label_smoothing=smoothing)
    ours = losses.cross_entropy(logits, mask, tensor, smoothing)
    torch.testing.assert_close(ours.value, expected)
    assert int(ours.counts) == int((mask != 255).sum())


def test_dice_by_hand_over_the_batch_without_absent_classes() -> None:
    rows = [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]
    logits = from_probabilities(rows).permute(3, 1, 2, 0)  # three images of one pixel: sums are over the batch
    mask = torch.tensor([0, 1, 0])[:, None, None]
    first = 1 - (2 * (0.5 + 0.6) + 1) / ((0.5 + 0.2 + 0.6) + 2 + 1)
    second = 1 - (2 * 0.7 + 1) / ((0.3 + 0.7 + 0.3) + 1 + 1)
    ours = losses.dice(logits, mask, smooth=1.0)
    assert float(ours.value) == pytest.approx((first + second) / 2, rel=1e-6)
    assert int(ours.counts) == 2


def test_surface_by_hand() -> None:
    logits, mask = from_probabilities([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[[0, 1]]])
    distance = torch.tensor([[[[-1.0, 1.0]], [[1.0, -1.0]]]])
    ours = losses.surface(logits, mask, distance)
    assert float(ours.value) == pytest.approx((0.5 * -1 + 0.5 * 1 + 0.25 * 1 + 0.75 * -1) / 4, rel=1e-6)
    distance[..., 1] = torch.nan
    alone = losses.surface(logits, torch.tensor([[[0, 255]]]), distance)
    assert float(alone.value) == pytest.approx(0, abs=1e-6) and float(alone.counts) == 1


def test_boundary_f1_by_hand() -> None:
    """Left half against right half of a row; the prediction puts the edge four pixels further right."""
    truth, predicted = [[0] * 6 + [1] * 6], [[0] * 10 + [1] * 2]
    ours = losses.boundary_f1(certain(predicted, 2), torch.tensor([truth]), smooth=1e-12)
    # Class 0: boundary at 5, predicted at 9; class 1: at 6, predicted at 10: more than 2 pixels (theta = 5) apart.
    assert float(ours.value) == pytest.approx(1, abs=1e-6)
    nearer = losses.boundary_f1(certain([[0] * 8 + [1] * 4], 2), torch.tensor([truth]), smooth=1e-12)
    assert float(nearer.value) == pytest.approx(0, abs=1e-6)
    # One class has a boundary that is right, and one of the same length that is wrong: P = 1/2, R = 1, F1 = 2/3.
    both = losses.boundary_f1(certain([[0] * 6 + [1] * 4 + [0] * 2], 2), torch.tensor([truth]), smooth=1e-12)
    assert float(both.value) == pytest.approx(1 / 3, abs=1e-6)
    smoothed = losses.boundary_f1(certain([[0] * 6 + [1] * 4 + [0] * 2], 2), torch.tensor([truth]), smooth=1.0)
    assert float(smoothed.value) == pytest.approx(1 - 2 * (2 / 3) / (2 / 3 + 1), abs=1e-6)


def test_soft_boundary_is_the_rise_to_the_highest_neighbour() -> None:
    """Two pixels of the inside, each beside one pixel of the other class, predicted with 0.9 and 0.8 as theirs."""
    logits = from_probabilities([[0.9, 0.1], [0.2, 0.8]])
    mask = torch.tensor([[[0, 1]]])
    # Outside of class 0: 0.1, 0.8 -> boundary 0.7, 0; of class 1: 0.9, 0.2 -> 0, 0.7. All within the true one: P = 1.
    # The truth's boundary has 1 pixel a class; the prediction's, dilated, is 0.7 there: R = 0.7.
    ours = losses.boundary_f1(logits, mask, smooth=1e-12)
    assert float(ours.value) == pytest.approx(1 - 2 * 0.7 / 1.7, rel=1e-5)


def test_there_is_no_boundary_against_pixels_without_label() -> None:
    mask = torch.tensor([[[0, 0, 0, 255, 1, 1, 1]]])
    assert float(losses.boundary_f1(torch.zeros(1, 2, 1, 7), mask).counts) == 0
    logits = certain([[0, 0, 0, 0, 1, 1, 0]], 2)  # an edge is predicted at 5 and 6, and there is none
    mask = torch.tensor([[[0, 1, 255, 1, 1, 1, 1]]])  # an edge at 0 and 1, and none is predicted
    assert float(losses.boundary_f1(logits, mask, theta=1, smooth=1e-12).value) == pytest.approx(1, abs=1e-6)
    # Either class: a true boundary of 1 pixel, a predicted one of 2, none in common: P = 1/3, R = 1/2.
    assert float(losses.boundary_f1(logits, mask, theta=1, smooth=1.0).value) == pytest.approx(1 - 0.4, abs=1e-6)


def test_mcc_by_hand_on_soft_counts() -> None:
    logits = from_probabilities([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    mask = torch.tensor([[[0, 1, 1]]])
    tp, fp, fn, tn = 0.4 + 0.7, 0.2, 0.6 + 0.3, 0.8  # of class 1
    r = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    # With two classes and soft predictions R_K is the binary form in each class.
    for loss in (losses.mcc, losses.mcc_per_class):
        assert float(loss(logits, mask).value) == pytest.approx(1 - r, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_mcc_equals_scikit_learn_on_certain_predictions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.choice(CLASSES, size=(2, 20, 20), p=[0.7, 0.2, 0.0975, 0.0025])
    wrong = generator.random(truth.shape) < 0.3
    predicted = np.where(wrong, generator.integers(0, CLASSES, truth.shape), truth)
    logits = torch.cat([certain(one.tolist()) for one in predicted])
    mask = torch.from_numpy(truth)
    reference = matthews_corrcoef(truth.ravel(), predicted.ravel())
    assert float(losses.mcc(logits, mask).value) == pytest.approx(1 - reference, abs=1e-6)
    per_class = [
        matthews_corrcoef(truth.ravel() == number, predicted.ravel() == number)
        for number in range(CLASSES)
        if (truth == number).any()
    ]
    ours = losses.mcc_per_class(logits, mask)
    assert float(ours.value) == pytest.approx(1 - np.mean(per_class), abs=1e-6)
    assert int(ours.counts) == len(per_class)


def test_mcc_keeps_its_precision_where_nearly_everything_is_one_class() -> None:
    """One pixel in 40,000 is of another class, and the model is nearly certain that none is."""
    mask = torch.zeros(1, 200, 200, dtype=torch.long)
    mask[0, 100, 100] = 1
    logits = torch.zeros(1, 2, 200, 200, dtype=torch.float64)
    logits[:, 0] = 12
    logits[0, 0, 100, 100] = 8
    single, double = losses.mcc(logits.float(), mask), losses.mcc(logits, mask)
    assert single.counts == 1
    torch.testing.assert_close(single.value.double(), double.value, atol=1e-5, rtol=0)


def test_boundary_head_by_hand() -> None:
    mask = torch.tensor([[[0, 0, 1, 1, 255, 2]]])
    at_edge, elsewhere = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    ours = losses.boundary_head(torch.full((1, 1, 1, 6), 2.0), mask)
    # Pixels 1 and 2 face each other; 3 and 5 face a pixel without label, which makes no edge.
    assert float(ours.value) == pytest.approx((2 * at_edge + 3 * elsewhere) / 5, rel=1e-6)


def test_boundaries_are_those_of_any_class() -> None:
    mask = torch.tensor([[[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, 0, 255, 0], [0, 0, 0, 0, 0]]])
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    expected[3, 3] = False
    assert torch.equal(losses.boundaries(mask)[0], expected)
    assert not losses.boundaries(mask, left_out=(3,)).any()


# What all of them promise


@every_loss
def test_gradient_is_that_of_the_value(loss: Callable[..., Term]) -> None:
    logits, mask = example(dtype=torch.float64, size=6)
    assert torch.autograd.gradcheck(lambda x: loss(x, mask).value, logits)


@every_loss
def test_what_stands_at_ignored_pixels_does_not_matter(loss: Callable[..., Term]) -> None:
    logits, mask = example()
    valid = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) > 0.2
    value, gradient = evaluated(loss, logits, mask, valid=valid)
    hidden = ~valid | (mask == 255)
    for other in (torch.nan, torch.inf, -1e30):
        spoiled = logits.detach().masked_fill(hidden[:, None], other).requires_grad_()
        value_now, gradient_now = evaluated(loss, spoiled, mask, valid=valid)
        assert torch.equal(value, value_now)
        assert torch.equal(gradient, gradient_now)
        assert not gradient_now[hidden[:, None].expand_as(gradient_now)].any()


@pytest.mark.parametrize("name", [name for name in ALL if name != "surface"])  # its distances are given
def test_the_mask_under_the_validity_mask_does_not_matter(name: str) -> None:
    loss = ALL[name]
    logits, mask = example()
    valid = mask != 255
    invented = mask.masked_fill(~valid, 2)
    assert torch.equal(loss(logits, mask).value, loss(logits, invented, valid=valid).value)
    torch.testing.assert_close(
        loss(logits, mask, ignore_index=255).value, loss(logits, mask.masked_fill(~valid, 9), ignore_index=9).value
    )


@every_loss
def test_nothing_labelled_is_zero_with_a_zero_gradient_and_counted_as_such(loss: Callable[..., Term]) -> None:
    logits, mask = example()
    term = loss(logits, torch.full_like(mask, 255))
    term.value.backward()
    assert float(term.value.detach()) == 0 and float(term.counts) == 0
    assert logits.grad is not None and not logits.grad.any()
    assert float(loss(logits, mask).counts) > 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_changes_nothing(loss: Callable[..., Term], dtype: torch.dtype) -> None:
    logits, mask = example()
    value, gradient = evaluated(loss, logits, mask)
    with torch.autocast("cpu", dtype):
        value_now, gradient_now = evaluated(loss, logits, mask)
    assert value_now.dtype == torch.float32
    assert torch.equal(value, value_now) and torch.equal(gradient, gradient_now)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_logits_are_computed_in_float32(loss: Callable[..., Term], dtype: torch.dtype) -> None:
    half = example(dtype=dtype)[0].detach().requires_grad_()
    mask = example()[1]
    value, gradient = evaluated(loss, half, mask)
    exact, exact_gradient = evaluated(loss, half.detach().float().requires_grad_(), mask)
    assert value.dtype == torch.float32 and torch.equal(value, exact)
    assert gradient.dtype == dtype and torch.equal(gradient, exact_gradient.to(dtype))


@every_loss
@pytest.mark.parametrize("scale", [1e4, -1e4, 65504])
def test_the_largest_half_precision_logits_give_finite_numbers(loss: Callable[..., Term], scale: float) -> None:
    noise, mask = example()
    for logits in (noise.detach().sign(), (noise > 1).float(), torch.ones_like(noise), torch.zeros_like(noise)):
        value, gradient = evaluated(loss, (scale * logits).half().requires_grad_(), mask)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("value", [0.0, 3.0, MANY])
@every_loss
def test_a_model_that_predicts_every_pixel_alike_gets_a_moderate_gradient(
    loss: Callable[..., Term], value: float
) -> None:
    _, mask = example()
    logits = torch.zeros(3, CLASSES, 9, 9)
    logits[:, 1] = value
    _, gradient = evaluated(loss, logits.requires_grad_(), mask)
    assert gradient.norm() < 10


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_class_that_is_left_out_gets_no_share_and_no_gradient(name: str) -> None:
    logits, mask = example(size=9)
    without = mask.masked_fill(mask == 3, 255)
    term = ALL[name](logits, mask, left_out=(3,))
    term.value.backward()
    assert logits.grad is not None and not logits.grad[:, 3].any() and logits.grad[:, :3].any()
    changed = logits.detach().clone()
    changed[:, 3] = torch.nan
    assert torch.equal(ALL[name](changed, mask, left_out=(3,)).value, term.value)
    if name in ("focal", "dice", "boundary_f1", "mcc", "mcc_per_class"):  # those without arguments for each class
        three = ALL[name](logits[:, :3], without)
        torch.testing.assert_close(term.value, three.value)
        assert term.counts == three.counts


@pytest.mark.parametrize("name", ["dice", "boundary_f1", "mcc_per_class"])
def test_absent_classes_are_not_counted(name: str) -> None:
    logits, mask = example()
    two = mask.masked_fill(mask == 3, 0).masked_fill(mask == 2, 1)
    assert int(ALL[name](logits, two).counts) == 2


@pytest.mark.parametrize("name", ["mcc", "mcc_per_class", "boundary_f1"])
def test_a_batch_of_one_class_is_skipped_and_keeps_its_graph(name: str) -> None:
    logits, mask = example()
    term = ALL[name](logits, torch.ones_like(mask))
    term.value.backward()
    assert float(term.value.detach()) == 0 and float(term.counts) == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", ["mcc", "mcc_per_class"])
def test_predictions_of_one_class_alone_are_skipped(name: str) -> None:
    _, mask = example()
    logits = torch.zeros(3, CLASSES, 9, 9)
    logits[:, 1] = MANY
    term = ALL[name](logits.requires_grad_(), mask)
    assert float(term.value.detach()) == 0 and float(term.counts) == 0


@pytest.mark.parametrize("name", [name for name in OF_CLASSES if name != "cross_entropy_weighted"])  # it is smoothed
def test_a_perfect_prediction_beats_every_other(name: str) -> None:
    noise, mask = example()
    right = MANY * functional.one_hot(mask.masked_fill(mask == 255, 0), CLASSES).permute(0, 3, 1, 2).float()
    best, uncertain, wrong = (float(ALL[name](logits, mask).value) for logits in (right, noise.detach(), -right))
    assert best < uncertain < wrong + 1e-6
    if name != "surface":
        assert best == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_what_is_no_number_is_never_skipped(name: str) -> None:
    logits, mask = example()
    broken = logits.detach().clone()
    broken[0, 0, mask[0] != 255] = torch.nan
    assert torch.isnan(ALL[name](broken, mask).value)
    assert torch.isnan(ALL[name](broken, torch.where(mask == 255, mask, 1)).value)


@pytest.mark.parametrize("name", [name for name in OF_CLASSES if name != "surface"])
def test_a_mask_that_holds_no_class_makes_the_loss_nan(name: str) -> None:
    logits, mask = example()
    mask[0, 0, 0] = 42
    assert torch.isnan(ALL[name](logits.detach(), mask).value)


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, mask = example()
    with pytest.raises(ValueError, match="don't fit the mask"):
        losses.focal(logits[:1], mask)  # would broadcast
    with pytest.raises(ValueError, match="don't fit the mask"):
        losses.boundary_head(logits, mask)
    with pytest.raises(ValueError, match="two at least must remain"):
        losses.dice(logits, mask, left_out=(0, 1, 2))
    with pytest.raises(ValueError, match="left out of 4"):
        losses.dice(logits, mask, left_out=(7,))


def evaluated(loss: Callable[..., Term], logits: Tensor, mask: Tensor, **counted: Any) -> tuple[Tensor, Tensor]:
    value = loss(logits, mask, **counted).value
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient
