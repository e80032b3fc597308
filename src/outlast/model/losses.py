"""Losses of semantic segmentation, each a pure function of logits and a mask.

For: every task that gives each pixel a class.
Promises: they compute in float32 at least, and stay finite for the largest half-precision logits; they are made of
elementwise operations, sums and maxima of float32, which autocast leaves as they are (a matrix product it would not);
what stands at pixels that don't count changes neither value nor gradient; where nothing counts, the loss is 0, its
gradient is 0, and the count that comes with it says so. Nothing waits for the device.
Does not: check masks. A pixel that counts and holds no class (say 42 of 4) makes every loss of class logits NaN, which
ends the run.

The shapes, everywhere here: logits (B, K, H, W), of any floating type; mask (B, H, W), integers. A loss over classes
(Dice, boundary, MCC) is taken over the whole batch, so that it couples the samples.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = 255
_ONE_CLASS = 1e-10  # a spread of predictions below this is one class: rounding would be larger than the correlation


class Term(NamedTuple):
    """A loss, and how many pixels or classes it is the mean of. Where that is 0 the loss is 0, and so is its gradient.

    Both are 0-dim; `counts` is a float, without gradient.
    """

    value: Tensor
    counts: Tensor


class Counted(TypedDict, total=False):
    """What every loss here may be told about which pixels and classes count.

    ignore_index  the mask's value where there is no label; default IGNORED
    valid         (B, H, W) bool: further pixels that don't count are False; default: none
    left_out      numbers of classes that the data has no labels for: they get no share of the softmax and no gradient,
                  and pixels that hold them don't count; default: none
    """

    ignore_index: int
    valid: Tensor | None
    left_out: tuple[int, ...]


def cross_entropy(
    logits: Tensor,
    mask: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    **counted: Unpack[Counted],
) -> Term:
    """Mean of -w_t log p_t over pixels, divided by the mean of w_t; counts pixels. Range: 0 and up, in nats.

    class_weights: (K,). Smoothing moves that share of the truth to all classes alike (Szegedy et al. 2016). Equals
    torch's, but is deterministic on CUDA.
    """
    pixels = _pixels(logits, mask, **counted)
    share = label_smoothing / len(pixels.kept)
    truth = (1 - label_smoothing) * pixels.one_hot + share * pixels.counted
    weights = pixels.per_class(class_weights)
    total = (weights * pixels.one_hot).sum()
    nothing = total == 0
    value = -(weights * truth * pixels.log_probabilities()).sum() / torch.where(nothing, 1, total)
    return Term(torch.where(nothing, 0 * value, value), torch.where(nothing, 0, pixels.counted.sum()))


def focal(
    logits: Tensor, mask: Tensor, gamma: float = 2.0, alpha: Tensor | None = None, **counted: Unpack[Counted]
) -> Term:
    """Mean of -a_t (1 - p_t)^gamma log p_t over pixels; counts pixels. Range: 0 and up, in nats.

    alpha: (K,), a_t of each class; none: 1. Source: Lin et al. 2017, equation 5, for several classes.
    """
    pixels = _pixels(logits, mask, **counted)
    log_p = (pixels.log_probabilities() * pixels.one_hot).sum(dim=1, keepdim=True)
    # 1 - p without cancellation; and not quite 0, where the power's derivative would be infinite for gamma < 1
    missing = (-torch.expm1(log_p)).clamp(min=1e-12)
    weight = (pixels.per_class(alpha) * pixels.one_hot).sum(dim=1, keepdim=True)
    return _mean(-weight * missing**gamma * log_p, pixels)


def dice(logits: Tensor, mask: Tensor, smooth: float = 1.0, **counted: Unpack[Counted]) -> Term:
    """1 - (2 sum(p y) + s) / (sum p + sum y + s), the sums over the batch; mean over the classes that occur in it.

    Counts classes. Range: 0 (perfect) to 1. smooth: s, in pixels. Source: Milletari et al. 2016, with p and y for
    their squares.
    """
    pixels = _pixels(logits, mask, **counted)
    probabilities = pixels.probabilities()
    overlap, predicted, true = map(_per_class, (probabilities * pixels.one_hot, probabilities, pixels.one_hot))
    occurs = true > 0
    # A class that is skipped may be 0/0 without smoothing.
    both = torch.where(occurs, predicted + true, 1)
    return _mean_of_classes(1 - (2 * overlap + smooth) / (both + smooth), occurs)


def surface(logits: Tensor, mask: Tensor, distance: Tensor, **counted: Unpack[Counted]) -> Term:
    """Mean of p_k phi_k over pixels and classes; counts pixels. Range: that of phi, negative where it is right.

    distance: (B, K, H, W), phi, in pixels: the signed distance to the boundary of the true class, negative inside
    (`data.distance.signed_distance`). Source: Kervadec et al. 2019 (MIDL).
    """
    pixels = _pixels(logits, mask, **counted)
    inside = pixels.of_classes(distance.to(pixels.logits.dtype))
    phi = torch.where(pixels.counted > 0, inside, 0)
    return _mean((pixels.probabilities() * phi).mean(dim=1, keepdim=True), pixels)


def boundary_f1(logits: Tensor, mask: Tensor, theta: int = 5, smooth: float = 1.0, **counted: Unpack[Counted]) -> Term:
    """1 - 2PR/(P + R) of soft boundaries; mean over the classes with a boundary in the batch. Range: 0 to 1.

    Counts classes. The boundary of y is maxpool3(1 - y) - (1 - y): pixels inside with a neighbour outside; pixels that
    don't count are neither. P is the part of the predicted boundary within the true one, dilated to theta pixels (odd);
    R the other way round. smooth: pixels added above and below in P and R; without it a model that predicts every pixel
    alike, and so no boundary at all, would have an infinite gradient. Source: Bokhovkin and Burnaev 2019, their
    theta_0 = 3; sums over the batch, not per image, so that an image without a class weighs nothing.
    """
    pixels = _pixels(logits, mask, **counted)
    predicted = _soft_boundary(pixels.probabilities(), pixels.counted)
    true = _soft_boundary(pixels.one_hot, pixels.counted)

    def part_within(boundary: Tensor, other: Tensor) -> Tensor:
        near = functional.max_pool2d(other, theta, stride=1, padding=theta // 2)
        length = _per_class(boundary) + smooth
        return (_per_class(boundary * near) + smooth) / torch.where(length == 0, 1, length)

    precision, recall = part_within(predicted, true), part_within(true, predicted)
    both = precision + recall
    f1 = 2 * precision * recall / torch.where(both == 0, 1, both)
    return _mean_of_classes(1 - f1, _per_class(true) > 0)


def mcc(logits: Tensor, mask: Tensor, **counted: Unpack[Counted]) -> Term:
    """1 - R_K, the correlation of truth and prediction over several classes, of the soft confusion matrix Y^T P.

    Range: 0 (perfect) to 2; equals 1 - scikit-learn's `matthews_corrcoef` where predictions are certain. Counts 1; or
    0 if truth or prediction is one class only, which is 0/0. Source: Gorodkin 2004.
    """
    pixels = _pixels(logits, mask, **counted)
    probabilities = pixels.probabilities()
    number = pixels.number()
    true, predicted = _per_class(pixels.one_hot) / number, _per_class(probabilities) / number
    # With counts divided by s, R_K = (c - sum p_k t_k) / sqrt((1 - sum p_k^2)(1 - sum t_k^2)). Each difference of
    # nearly equal numbers is written as the sum of what is missing: 1 - sum p_k^2 = sum over i != j of p_i p_j, and
    # 1 - c = the share of mass off the diagonal. So float32 is enough where one class is nearly everything.
    wrong = (probabilities * (pixels.counted - pixels.one_hot)).sum() / number
    spread = _off_diagonal(predicted, predicted) * _off_diagonal(true, true)
    one_class = (_off_diagonal(predicted, predicted) <= _ONE_CLASS) | (_off_diagonal(true, true) <= 0)
    correlation = (_off_diagonal(predicted, true) - wrong) / torch.where(one_class, 1, spread).sqrt()
    return Term(torch.where(one_class, 0 * correlation, 1 - correlation), (~one_class).to(correlation.dtype).detach())


def mcc_per_class(logits: Tensor, mask: Tensor, **counted: Unpack[Counted]) -> Term:
    """1 - the correlation of each class against the rest, from soft counts; mean over the classes. Range: 0 to 2.

    Counts classes; one that is nowhere or everywhere, in truth or prediction, is 0/0 and skipped. Source: Abhishek and
    Hamarneh 2021, whose loss of two classes this is, for each class in turn.
    """
    pixels = _pixels(logits, mask, **counted)
    number = pixels.number()
    inside, true = pixels.probabilities(), pixels.one_hot
    outside, false = pixels.counted - inside, pixels.counted - true
    tp, fp, fn, tn = (
        _per_class(product) / number for product in (inside * true, inside * false, outside * true, outside * false)
    )
    predicted, occurring = (tp + fp) * (tn + fn), (tp + fn) * (tn + fp)
    one_class = (predicted <= _ONE_CLASS) | (occurring <= 0)
    # Two roots, for their product of four small numbers could leave the range of float32.
    below = torch.where(one_class, 1, predicted).sqrt() * torch.where(one_class, 1, occurring).sqrt()
    return _mean_of_classes(1 - (tp * tn - fp * fn) / below, ~one_class)


def boundary_head(head_logits: Tensor, mask: Tensor, **counted: Unpack[Counted]) -> Term:
    """Mean binary cross entropy of a head that tells which pixels lie on a boundary; counts pixels. Range: 0 and up.

    head_logits: (B, 1, H, W). The truth is `boundaries` of the mask.
    """
    _check_shapes(head_logits, mask, channels=1)
    counts = counted_pixels(mask, **counted)[:, None]
    logits = torch.where(counts, _at_least_float32(head_logits), 0)
    truth = boundaries(mask, **counted)[:, None].to(logits.dtype)
    number = counts.sum()
    losses = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * counts
    return Term(losses.sum() / number.clamp(min=1), number.to(logits.dtype))


def boundaries(mask: Tensor, **counted: Unpack[Counted]) -> Tensor:
    """(B, H, W) bool: the pixels with a neighbour (of eight) of another class; pixels that don't count are none."""
    counts = counted_pixels(mask, **counted)
    numbers = mask.float()
    largest, negative_smallest = (
        functional.max_pool2d(torch.where(counts, signed, -torch.inf)[:, None], 3, stride=1, padding=1)[:, 0]
        for signed in (numbers, -numbers)
    )
    return counts & ((largest > numbers) | (-negative_smallest < numbers))


def counted_pixels(mask: Tensor, **counted: Unpack[Counted]) -> Tensor:
    """(B, H, W) bool: the pixels that count."""
    counts = mask != counted.get("ignore_index", IGNORED)
    valid = counted.get("valid")
    if valid is not None:
        counts = counts & valid.bool()
    for number in counted.get("left_out", ()):
        counts = counts & (mask != number)
    return counts


class _Pixels(NamedTuple):
    """Logits (B, K, H, W) of the classes `kept` and their truth, both 0 where `counted` (B, 1, H, W) is 0, not 1."""

    logits: Tensor
    one_hot: Tensor
    counted: Tensor
    kept: tuple[int, ...]
    classes: int  # before any were left out

    def log_probabilities(self) -> Tensor:
        return functional.log_softmax(self.logits, dim=1)

    def probabilities(self) -> Tensor:
        """0 where a pixel does not count."""
        return functional.softmax(self.logits, dim=1) * self.counted

    def number(self) -> Tensor:
        """How many pixels count, and 1 if none does, to divide by."""
        return self.counted.sum().clamp(min=1)

    def of_classes(self, values_BKHW: Tensor) -> Tensor:
        """Those of the classes that are kept."""
        return values_BKHW if len(self.kept) == self.classes else values_BKHW[:, list(self.kept)]

    def per_class(self, values_K: Tensor | None) -> Tensor:
        """A number for each class as (1, K, 1, 1); 1 where none are given."""
        if values_K is None:
            return self.logits.new_ones(1, len(self.kept), 1, 1)
        return self.of_classes(values_K.to(self.logits)[None, :, None, None])


def _pixels(logits: Tensor, mask: Tensor, **counted: Unpack[Counted]) -> _Pixels:
    classes = logits.shape[1]
    _check_shapes(logits, mask, channels=classes)
    left_out = counted.get("left_out", ())
    kept = tuple(number for number in range(classes) if number not in left_out)
    if len(kept) != classes - len(left_out) or len(kept) < 2:
        raise ValueError(f"classes {left_out} can't be left out of {classes}: two at least must remain")
    if left_out:
        logits = logits[:, list(kept)]
    counts = counted_pixels(mask, **counted)[:, None]
    numbers = torch.tensor(kept, device=mask.device)[None, :, None, None]
    one_hot = (mask[:, None] == numbers) & counts
    # Selected, not multiplied: NaN where a pixel doesn't count must stay there. NaN is also what a mask gets that holds
    # no class, for to raise an error we would have to wait for the device.
    known = torch.where(counts, _at_least_float32(logits), 0)
    known = known.masked_fill(counts & ~one_hot.any(dim=1, keepdim=True), torch.nan)
    return _Pixels(known, one_hot.to(known.dtype), counts.to(known.dtype), kept, classes)


def _check_shapes(logits: Tensor, mask: Tensor, channels: int) -> None:
    if logits.shape != (len(mask), channels, *mask.shape[1:]):
        raise ValueError(f"logits {tuple(logits.shape)} don't fit the mask {tuple(mask.shape)}")


def _mean(losses_B1HW: Tensor, pixels: _Pixels) -> Term:
    return Term((losses_B1HW * pixels.counted).sum() / pixels.number(), pixels.counted.sum())


def _mean_of_classes(losses_K: Tensor, counts_K: Tensor) -> Term:
    number = counts_K.sum().to(losses_K.dtype)
    # Not 0 but 0 times it, so that NaN stays NaN where no class counts.
    return Term(torch.where(counts_K, losses_K, 0 * losses_K).sum() / number.clamp(min=1), number)


def _per_class(values_BKHW: Tensor) -> Tensor:
    return values_BKHW.sum(dim=(0, 2, 3))


def _off_diagonal(first_K: Tensor, second_K: Tensor) -> Tensor:
    """The sum over i != j of first_i second_j."""
    products = torch.outer(first_K, second_K)
    return products.triu(1).sum() + products.tril(-1).sum()


def _soft_boundary(inside: Tensor, counted: Tensor) -> Tensor:
    outside = counted - inside  # 0 where a pixel doesn't count: it is no outside either
    return (functional.max_pool2d(outside, 3, stride=1, padding=1) - outside) * counted


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
