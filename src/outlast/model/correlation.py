"""Self-correlation of a feature map: for each window, the windows elsewhere in the map that resemble it most.

For: finding what was copied within an image.
Promises: equal to correlating the unfolded windows (largest error below 1e-5 of the largest value in float32; half
precision is computed in float32 and rounded once, 2^-11 of it in float16 and 2^-8 in bfloat16 on top), but the unfolded
windows are never built; forward and backward stay within `budget_bytes` for any size of map; the same on every run, the
gradient too; autocast changes nothing.
Does not: subtract means. On CUDA float32 is as exact as torch's matrix products are told to be (no TF32 by default).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from outlast.errors import ModelError
from outlast.model import correlation_windows
from outlast.model.correlation_search import SORTED_BYTES, Best, better, ordered, scattered, scores_of
from outlast.model.correlation_windows import Part, Windows

_CACHE_BYTES = 2**20  # of the products of one row: what is summed right after it was multiplied


class Matches(NamedTuple):
    """The best matches of each window, best first, for a map that has `rows` x `columns` windows.

    values   (B, top, rows, columns), of the features' type: the correlation; 0 where `found` is False
    offsets  (B, top, 2, rows, columns) int64: (dy, dx) from the window to its match, in positions of the map
    found    (B, top, rows, columns) bool: False where fewer than `top` windows could be matched
    """

    values: Tensor
    offsets: Tensor
    found: Tensor


def self_correlation(
    features_BCHW: Tensor,
    *,
    top: int,
    patch: int = 1,
    stride: int = 1,
    radius: int = 0,
    valid_BHW: Tensor | None = None,
    normalised: bool = True,
    budget_bytes: int = 2**30,
) -> Matches:
    """The `top` windows that correlate most with each patch x patch window; differentiable in the features.

    patch, stride   in positions of the map; windows as `unfold` has them
    radius          windows at most so many positions away in both directions are no match; 0 excludes the window itself
    valid_BHW       bool, False on padding: a window with any such position neither is a match nor has one
    normalised      divide by the norms of both windows; a window of zeros correlates 0. Otherwise the inner product.
    budget_bytes    of memory beyond features, results and their gradients

    Raises ModelError if the map is smaller than a window or the budget too small, ValueError for other wrong arguments.
    """
    _check(features_BCHW, valid_BHW, top=top, patch=patch, stride=stride, radius=radius)
    height, width = features_BCHW.shape[-2:]
    windows = correlation_windows.windows_of(height, width, patch, stride)
    settings = _Settings(windows, top, radius, normalised, budget_bytes)
    values, keys, found = _SelfCorrelation.apply(features_BCHW, valid_BHW, settings)
    return Matches(_as_maps(values, windows), _offsets(keys, found, windows), _as_maps(found, windows))


class _Settings(NamedTuple):
    windows: Windows
    top: int
    radius: int
    normalised: bool
    budget_bytes: int


class _SelfCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features_BCHW: Tensor, valid_BHW: Tensor | None, settings: _Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(features_BCHW.device.type, enabled=False):
            found = [
                _forward(features_CHW, _one(valid_BHW, number), settings)
                for number, features_CHW in enumerate(features_BCHW)
            ]
        values, keys, is_found = (torch.stack(tensors) for tensors in zip(*found, strict=True))
        ctx.settings = settings
        ctx.save_for_backward(features_BCHW, valid_BHW, values, keys, is_found)
        ctx.mark_non_differentiable(keys, is_found)
        return values.to(features_BCHW.dtype), keys, is_found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_values: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        features_BCHW, valid_BHW, values, keys, found = ctx.saved_tensors
        with torch.autocast(features_BCHW.device.type, enabled=False):
            gradients = [
                _backward(
                    features_CHW,
                    _one(valid_BHW, number),
                    values[number],
                    keys[number],
                    torch.where(found[number], of_values[number].to(values.dtype), 0),
                    ctx.settings,
                )
                for number, features_CHW in enumerate(features_BCHW)
            ]
        return torch.stack(gradients), None, None


def _forward(features_CHW: Tensor, valid_HW: Tensor | None, settings: _Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Values, keys and found (windows, top) of one sample."""
    windows = settings.windows
    parts = _parts(features_CHW, valid_HW, windows)
    number = _distances_at_once(parts, settings)
    weights = _weights(parts, settings)
    excluded = _excluded(valid_HW, windows)
    shape = (windows.number, settings.top)
    lowest = torch.finfo(weights.dtype).min
    best = Best(weights.new_full(shape, lowest), torch.zeros(shape, dtype=torch.long, device=weights.device))
    for first in range(0, windows.rows, number):
        distances = range(first, min(first + number, windows.rows))
        products = correlation_windows.products(parts, windows, first, len(distances))
        for downwards in (True, False):
            scores = scores_of(products, weights, excluded, distances, downwards, windows, settings.radius)
            best = better(best, scores, distances, downwards, windows)
            del scores  # before the next are made
    found = best.scores != lowest  # NaN was found
    if excluded is not None:
        found &= ~excluded.reshape(-1, 1)
    values = torch.where(found, best.scores * weights.view(-1, 1), 0)
    return values, torch.where(found, best.keys, 0), found


def _backward(
    features_CHW: Tensor, valid_HW: Tensor | None, values: Tensor, keys: Tensor, of_values: Tensor, settings: _Settings
) -> Tensor:
    """The gradient (C, H, W) of one sample."""
    windows = settings.windows
    parts = _parts(features_CHW, valid_HW, windows)
    number = _distances_at_once(parts, settings)
    weights = _weights(parts, settings).view(-1)
    gradients = [part._replace(features=torch.zeros_like(part.features)) for part in parts]
    queries = torch.arange(windows.number, device=keys.device)[:, None].expand_as(keys)
    if settings.normalised:
        # d v / d |a|^2 = -v / (2 |a|^2), for the window and for its match
        share = -0.5 * of_values * values
        of_norms = share.sum(dim=1) + _summed_by_key(share, keys, windows.number)
        of_norms = (of_norms * weights.square()).view(windows.rows, windows.columns)
        correlation_windows.add_squared_norms_gradient(gradients, parts, of_norms)
    of_products = of_values * weights[queries] * weights[keys]
    pairs = ordered(queries, keys, of_products, windows)
    for first in range(0, windows.rows, number):
        of_chunk = scattered(pairs, first, min(number, windows.rows - first), windows, parts)
        if of_chunk is not None:
            correlation_windows.add_products_gradient(gradients, parts, windows, first, of_chunk)
    gradient_CHW = correlation_windows.joined(gradients, features_CHW, windows)
    return gradient_CHW if valid_HW is None else torch.where(valid_HW, gradient_CHW, 0)


def _parts(features_CHW: Tensor, valid_HW: Tensor | None, windows: Windows) -> list[Part]:
    features_CHW = features_CHW.detach()
    # What stands on padding may be NaN, and 0 times NaN would reach the gradient.
    known = features_CHW if valid_HW is None else torch.where(valid_HW, features_CHW, 0)
    half = features_CHW.dtype in (torch.float16, torch.bfloat16)
    return correlation_windows.split(known, windows, torch.float32 if half else features_CHW.dtype)


def _weights(parts: list[Part], settings: _Settings) -> Tensor:
    """(rows, columns): what a window's products are multiplied with."""
    if not settings.normalised:
        return parts[0].features.new_ones(settings.windows.rows, settings.windows.columns)
    squared = correlation_windows.squared_norms(parts)
    return torch.where(squared == 0, 0, squared.rsqrt())


def _excluded(valid_HW: Tensor | None, windows: Windows) -> Tensor | None:
    """(rows, columns) bool: the windows with padding."""
    if valid_HW is None:
        return None
    patch, stride = windows.patch, windows.stride
    return ~valid_HW.unfold(0, patch, stride).unfold(1, patch, stride).all(dim=3).all(dim=2)


def _summed_by_key(share: Tensor, keys: Tensor, number: int) -> Tensor:
    summed = share.new_zeros(number)
    if summed.is_cuda:  # of the two, each device has one that adds in the same order every time
        return summed.index_put_((keys.reshape(-1),), share.reshape(-1), accumulate=True)
    return summed.index_add_(0, keys.reshape(-1), share.reshape(-1))


def _distances_at_once(parts: list[Part], settings: _Settings) -> int:
    """How many distances of rows are done together within the budget. Raises ModelError if not one can be."""
    windows = settings.windows
    item = parts[0].features.element_size()
    height, width = (max(part.features.shape[axis] for part in parts) for axis in (0, 1))
    # The parts, what padding was set to 0 in, their gradient; some ten numbers for each match.
    features = 3 * sum(part.features.numel() for part in parts) * item
    fixed = features + 80 * windows.number * settings.top + SORTED_BYTES
    # The products (and those of another part) and their scores, of which a part may be sorted at a time.
    each = (2 + (len(parts) > 1)) * height * windows.columns**2 * item
    each += windows.rows * windows.columns**2 * item // 4 + 4 * width**2 * item
    if fixed + each > settings.budget_bytes:
        raise ModelError(
            f"self-correlation of {windows.rows} x {windows.columns} windows needs {(fixed + each) / 2**20:.0f} MB, "
            f"but the budget is {settings.budget_bytes / 2**20:.0f} MB",
            hint="allow more memory, or take a larger stride or a smaller image",
        )
    return min(windows.rows, (settings.budget_bytes - fixed) // each, max(1, _CACHE_BYTES // (width**2 * item)))


def _as_maps(values_BNK: Tensor, windows: Windows) -> Tensor:
    return values_BNK.transpose(1, 2).reshape(len(values_BNK), -1, windows.rows, windows.columns)


def _offsets(keys_BNK: Tensor, found_BNK: Tensor, windows: Windows) -> Tensor:
    queries = torch.arange(windows.number, device=keys_BNK.device)[:, None]
    dy = keys_BNK // windows.columns - queries // windows.columns
    dx = keys_BNK % windows.columns - queries % windows.columns
    return torch.stack([_as_maps(torch.where(found_BNK, d * windows.stride, 0), windows) for d in (dy, dx)], dim=2)


def _one(tensors: Tensor | None, number: int) -> Tensor | None:
    return None if tensors is None else tensors[number].bool()


def _check(features_BCHW: Tensor, valid_BHW: Tensor | None, **numbers: int) -> None:
    if features_BCHW.dim() != 4 or not features_BCHW.is_floating_point():
        raise ValueError(f"features are (B, C, H, W) and floating, not {tuple(features_BCHW.shape)}")
    batch, _, height, width = features_BCHW.shape
    if valid_BHW is not None and valid_BHW.shape != (batch, height, width):
        raise ValueError(f"valid {tuple(valid_BHW.shape)} does not fit features {tuple(features_BCHW.shape)}")
    wrong = [f"{name} {number}" for name, number in numbers.items() if number < (0 if name == "radius" else 1)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: radius is 0 or more, the others 1 or more")
    if min(height, width) < numbers["patch"]:
        raise ModelError(
            f"a map of {height} x {width} positions holds no window of {numbers['patch']} x {numbers['patch']}",
            hint="take a smaller patch or enlarge (or pad) the image",
        )
