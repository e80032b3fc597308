"""Self-correlation equals its definition by unfolded windows, and keeps to its budget."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from outlast.errors import ModelError
from outlast.model.correlation import Matches, self_correlation

SHAPES = {
    "single positions": (1, 1, (5, 9)),
    "single positions, stride 2": (1, 2, (7, 10)),
    "patch 3": (3, 1, (9, 6)),
    "patch 3, stride 2": (3, 2, (8, 11)),
    "patch 3, stride 3": (3, 3, (9, 12)),
    "patch 3, stride 5": (3, 5, (19, 14)),
    "patch 12": (12, 1, (15, 18)),
    "patch 12, stride 4": (12, 4, (32, 25)),
    "patch 12, stride 5": (12, 5, (27, 33)),
    "patch 7, stride 3": (7, 3, (20, 17)),
}
every_shape = pytest.mark.parametrize(("patch", "stride", "size"), SHAPES.values(), ids=SHAPES)
both_kinds = pytest.mark.parametrize("normalised", [True, False], ids=["normalised", "plain"])
BOUNDS = {torch.float32: 1e-5, torch.float16: 2**-11 + 1e-5, torch.bfloat16: 2**-8 + 1e-5}


class Case(NamedTuple):
    """A map and what is asked about it."""

    features: Tensor
    patch: int
    stride: int
    radius: int
    normalised: bool
    valid: Tensor

    def found(self, top: int, **more: int) -> Matches:
        return self_correlation(
            self.features,
            top=top,
            patch=self.patch,
            stride=self.stride,
            radius=self.radius,
            valid_BHW=self.valid,
            normalised=self.normalised,
            **more,
        )


def features(
    size: tuple[int, int], dtype: torch.dtype = torch.float64, seed: int = 0, batch: int = 2, channels: int = 6
) -> Tensor:
    """Smooth values with a mean, as networks have them, so that windows resemble their neighbours."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    return (noise + functional.avg_pool2d(noise, 3, 1, 1) + 0.3).to(dtype)


def padded(size: tuple[int, int], batch: int = 2) -> Tensor:
    """The first sample has padding below and to the right, the others none."""
    valid = torch.ones(batch, *size, dtype=torch.bool)
    valid[0, -1:], valid[0, :, -2:] = False, False
    return valid


def by_definition(case: Case) -> Tensor:
    """(B, L, L) in float64: the correlation of unfolded windows, -inf where there is no match."""
    known = torch.where(case.valid[:, None], case.features.double(), 0)
    rows = functional.unfold(known, case.patch, stride=case.stride)
    if case.normalised:
        rows = functional.normalize(rows, dim=1)
    scores = rows.transpose(1, 2) @ rows
    whole = functional.unfold(case.valid[:, None].double(), case.patch, stride=case.stride).amin(dim=1) > 0
    columns = (known.shape[-1] - case.patch) // case.stride + 1
    place = torch.arange(scores.shape[1])
    y, x = place // columns * case.stride, place % columns * case.stride
    near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= case.radius
    return scores.masked_fill(near | ~whole[:, :, None] | ~whole[:, None, :], -torch.inf)


def rows_of(maps: Tensor) -> Tensor:
    """(B, top, rows, columns) to (B, L, top)."""
    return maps.flatten(2).transpose(1, 2)


def keys_of(matches: Matches, stride: int) -> Tensor:
    """(B, L, top): the number of the window that the offset leads to."""
    rows, columns = matches.values.shape[2:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    keys = (y + matches.offsets[:, :, 0] // stride) * columns + x + matches.offsets[:, :, 1] // stride
    return rows_of(keys)


@every_shape
@both_kinds
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_equals_the_unfolded_windows(
    patch: int, stride: int, size: tuple[int, int], normalised: bool, dtype: torch.dtype
) -> None:
    case = Case(features(size, dtype), patch, stride, 1, normalised, padded(size))
    expected = by_definition(case)
    matches = case.found(top=4)
    assert matches.values.dtype == dtype
    best, _ = functional.pad(expected, (0, 4), value=-torch.inf).topk(4)
    found = rows_of(matches.found)
    assert torch.equal(found, best > -torch.inf)
    largest = expected[expected > -torch.inf].abs().max()
    errors = rows_of(matches.values).double() - torch.where(found, best, 0)
    assert errors.abs().max() <= BOUNDS[dtype] * largest
    at_offsets = expected.gather(2, keys_of(matches, stride))
    assert ((at_offsets - best)[found].abs() <= 1e-5 * largest).all()
    assert (matches.offsets.movedim(2, -1)[~matches.found] == 0).all()


@every_shape
@both_kinds
def test_gradient_is_that_of_the_definition(patch: int, stride: int, size: tuple[int, int], normalised: bool) -> None:
    case = Case(features(size).requires_grad_(), patch, stride, 1, normalised, padded(size))
    matches = case.found(top=3)
    weights = torch.randn(matches.values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad((matches.values * weights).sum(), case.features)
    chosen = by_definition(case).gather(2, keys_of(matches, stride))
    total = (torch.where(rows_of(matches.found), chosen, 0) * rows_of(weights)).sum()
    (expected,) = torch.autograd.grad(total, case.features)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_a_smaller_budget_changes_no_match_and_no_gradient() -> None:
    size = (40, 36)
    case = Case(features(size, batch=1, channels=3).requires_grad_(), 4, 1, 2, True, padded(size, 1))
    results = []
    for budget in (2**30, 4_000_000):
        matches = case.found(top=3, budget_bytes=budget)
        results.append((*matches, *torch.autograd.grad(matches.values.square().sum(), case.features)))
    for large, small in zip(*results, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-12, atol=1e-14)


def test_too_small_a_budget_names_what_is_needed() -> None:
    with pytest.raises(ModelError, match=r"37 x 37 windows needs [1-9]\d* MB, but the budget is 0 MB"):
        self_correlation(torch.rand(1, 8, 40, 40), top=2, patch=4, budget_bytes=1000)


def test_finds_where_a_region_was_copied_from() -> None:
    image = features((30, 40), torch.float32, batch=1)
    image[:, :, 17:25, 22:32] = image[:, :, 3:11, 5:15]
    matches = self_correlation(image, top=1, patch=5, radius=3)
    assert torch.allclose(matches.values[0, 0, 3:7, 5:11], torch.tensor(1.0))
    assert (matches.offsets[0, 0, 0, 3:7, 5:11] == 14).all() and (matches.offsets[0, 0, 1, 3:7, 5:11] == 17).all()
    assert (matches.offsets[0, 0, 0, 17:21, 22:28] == -14).all()


def test_padding_matches_nothing_and_gets_no_gradient_even_if_it_is_nan() -> None:
    image = features((12, 12), torch.float32)
    valid = padded((12, 12))
    image = torch.where(valid[:, None], image, torch.nan).requires_grad_()
    matches = self_correlation(image, top=2, patch=3, valid_BHW=valid)
    torch.autograd.backward(matches.values.sum())
    assert not matches.found[0, :, -1].any() and matches.found[0, :, :-1, :-2].all() and matches.found[1].all()
    assert image.grad is not None
    assert (image.grad.movedim(1, -1)[~valid] == 0).all() and torch.isfinite(image.grad).all()
    assert (image.grad.movedim(1, -1)[valid] != 0).any()


def test_nan_inside_the_image_is_not_hidden() -> None:
    image = features((8, 8), torch.float32, batch=1)
    image[0, 0, 4, 4] = torch.nan
    assert self_correlation(image, top=1, patch=2).values.isnan().any()


def test_a_window_of_zeros_correlates_0_and_has_a_finite_gradient() -> None:
    image = features((8, 8), torch.float32, batch=1)
    image[:, :, :4] = 0
    image.requires_grad_()
    matches = self_correlation(image, top=60, patch=2)
    torch.autograd.backward(matches.values.sum())
    assert (matches.values[0, :, :3] == 0).all() and image.grad is not None and torch.isfinite(image.grad).all()


def test_where_no_window_is_far_enough_nothing_is_found() -> None:
    matches = self_correlation(torch.rand(1, 3, 6, 6, dtype=torch.float16), top=3, patch=3, radius=6)
    assert not matches.found.any() and (matches.values == 0).all() and (matches.offsets == 0).all()


def test_autocast_changes_nothing() -> None:
    image = features((10, 10), torch.float32).requires_grad_()
    plain = self_correlation(image, top=2, patch=3).values
    with torch.autocast("cpu", torch.bfloat16):
        cast = self_correlation(image, top=2, patch=3).values
    assert torch.equal(plain, cast)
    grads = [torch.autograd.grad(values.sum(), image)[0] for values in (plain, cast)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradient_of_half_precision_is_that_of_float32_rounded(dtype: torch.dtype) -> None:
    half = features((10, 12), dtype)
    grads = []
    for image in (half.requires_grad_(), half.detach().float().requires_grad_()):
        values = self_correlation(image, top=2, patch=3).values
        grads.append(torch.autograd.grad(values.float().sum(), image)[0])
    assert grads[0].dtype == dtype
    torch.testing.assert_close(grads[0].float(), grads[1], rtol=BOUNDS[dtype], atol=1e-5 * float(grads[1].abs().max()))


def test_half_precision_sums_do_not_overflow() -> None:
    image = torch.full((1, 400, 12, 12), 20.0, dtype=torch.float16)  # a window's squared norm is 640,000
    matches = self_correlation(image, top=1, patch=2, radius=2)
    assert torch.allclose(matches.values, torch.tensor(1.0, dtype=torch.float16))


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 2, 9)])
def test_a_map_without_a_window_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, ModelError), match=r"B, C, H, W|2 x 9 positions holds no window of 3 x 3"):
        self_correlation(torch.rand(shape), top=1, patch=3)


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="top 0, stride 0"):
        self_correlation(torch.rand(1, 3, 9, 9), top=0, stride=0)
    with pytest.raises(ValueError, match=r"valid \(1, 9, 8\)"):
        self_correlation(torch.rand(1, 3, 9, 9), top=1, valid_BHW=torch.ones(1, 9, 8, dtype=torch.bool))


MEASURE = """
import sys, resource, torch
from outlast.model.correlation import self_correlation
torch.set_num_threads(1)
features = torch.rand(1, 16, 96, 96, requires_grad=True)
self_correlation(features[..., :16, :16], top=4, patch=4).values.sum().backward()
features.grad = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
self_correlation(features, top=4, patch=8, budget_bytes=int(sys.argv[1])).values.sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_forward_and_backward_stay_within_the_budget() -> None:
    budget = 40_000_000  # all products would be 340 MB, the unfolded windows 32 MB, their correlations 251 MB
    command = [sys.executable, "-c", MEASURE, str(budget)]
    used = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert used <= budget + 4_000_000, f"{used} bytes"  # the gradient is a result; and torch's own
