"""The best matches of each window among products that come a few distances of rows at a time; and the way back.

For: `correlation`; the products, their shape and their distances are those of `correlation_windows`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from outlast.model.correlation_windows import Part, Windows

SORTED_BYTES = 2**20  # of scores: so many are sorted together however small the budget is


class Best(NamedTuple):
    """The best scores (windows, top) so far and the numbers of the windows that have them."""

    scores: Tensor
    keys: Tensor


def scores_of(
    products: Tensor,
    weights: Tensor,
    excluded: Tensor | None,
    distances: range,
    downwards: bool,
    windows: Windows,
    radius: int,
) -> Tensor:
    """(rows, columns, distances, columns): each window's products with those below (above), divided by their norms.

    The window's own norm divides them all alike. The lowest number stands where there is no match.
    """
    rows, columns, _, stride = windows
    place = torch.arange(columns, device=products.device) * stride
    near_columns = (place[:, None] - place).abs() <= radius
    scores = torch.empty_like(products, memory_format=torch.contiguous_format)
    lowest = torch.finfo(scores.dtype).min
    for number, distance in enumerate(distances):
        there = rows - distance
        below, above = slice(distance, rows), slice(0, there)
        if downwards:
            queries, keys, of_pairs = above, below, products[:there, :, number]
        else:
            queries, keys, of_pairs = below, above, products[:there, :, number].transpose(1, 2)
        of_distance = scores[:, :, number]
        if distance == 0 and not downwards:  # those beside it were all taken as below
            of_distance.fill_(lowest)
            continue
        torch.mul(of_pairs, weights[keys, None], out=of_distance[queries])
        of_distance[slice(there, rows) if downwards else slice(0, distance)] = lowest
        if distance * stride <= radius:
            of_distance.masked_fill_(near_columns, lowest)
        if excluded is not None:
            of_distance[queries].masked_fill_(excluded[keys, None], lowest)
    return scores


def better(best: Best, scores: Tensor, distances: range, downwards: bool, windows: Windows) -> Best:
    """The best of those so far and of `scores`. Few windows find better ones late, and only those are sorted."""
    scores = scores.view(windows.number, -1)
    top = best.scores.shape[1]
    rows = (~(scores.amax(dim=1) <= best.scores[:, -1])).nonzero()[:, 0]  # NaN is better
    at_once = max(len(scores) // 8, SORTED_BYTES // (scores.shape[1] * scores.element_size()), 1)
    for some in torch.split(rows, at_once):
        values, places = scores[some].topk(min(top, scores.shape[1]))
        distance = places // windows.columns + distances.start
        row = some[:, None] // windows.columns + (distance if downwards else -distance)
        keys = row * windows.columns + places % windows.columns
        values, order = torch.cat([best.scores[some], values], dim=1).topk(top)
        best.scores[some] = values
        best.keys[some] = torch.cat([best.keys[some], keys], dim=1).gather(1, order)
    return best


class Pairs(NamedTuple):
    """Pairs of windows, the upper (or left) one first, and the gradient of their product; each (number of pairs,)."""

    upper: Tensor
    lower: Tensor
    gradient: Tensor


def ordered(queries: Tensor, keys: Tensor, gradient: Tensor, windows: Windows) -> tuple[Pairs, Pairs]:
    """The pairs that were found downwards and those found upwards: none stands twice in the same of the two."""
    counts = gradient != 0
    downwards = counts & (keys // windows.columns >= queries // windows.columns)
    upwards = counts & ~downwards
    return (
        Pairs(queries[downwards], keys[downwards], gradient[downwards]),
        Pairs(keys[upwards], queries[upwards], gradient[upwards]),
    )


def scattered(
    pairs: tuple[Pairs, Pairs], first: int, number: int, windows: Windows, parts: list[Part]
) -> Tensor | None:
    """The gradient of `products`, with the rows that `add_products_gradient` wants; None if it is all 0."""
    height = max(len(part.features) for part in parts)
    columns = windows.columns
    chunk = None
    for upper, lower, gradient in pairs:
        distance = lower // columns - upper // columns - first
        here = (distance >= 0) & (distance < number)
        if not here.any():
            continue
        if chunk is None:
            chunk = gradient.new_zeros(height, columns, number, columns)
        upper, lower, distance = upper[here], lower[here], distance[here]
        where = (upper // columns, upper % columns, distance, lower % columns)
        chunk[where] += gradient[here]  # no place stands there twice, so this repeats on CUDA
    return chunk
