"""Inner products of all pairs of windows of a feature map, and what they hand back to the map, without the windows.

For: `correlation`. The inner product of two p x p windows is a sum over p x p shifts of inner products of single
positions, both shifted alike. So positions are multiplied, once each pair, and the products summed along the shifts.

- A stride s becomes 1 by moving the s x s residues of the positions into channels. Only pairs at distances that are
  multiples of s are then multiplied: N^2 C / s^2 products for N positions. A patch that s does not divide makes up to
  four parts, for its windows hold one more row (or column) of some residues than of others.
- Pairs are grouped by the distance of their rows: along the rows a window then sums products of one group, and so any
  number of distances can be done at a time, with nothing done twice. A distance and its negative share their products.
- A sum over k shifts is done in as many passes as k has prime factors (12 = 2 * 2 * 3: four additions). There is no
  cumulative sum and so no cancellation: errors are those of adding k numbers.

Shapes: features_CHW of one sample; products (rows, columns, distances, columns): [y, x, d, z] is that of the windows
(y, x) and (y + d, z), meaningless where y + d is beyond the last row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """The windows of a map: how many rows and columns of them there are, and their size and stride in positions."""

    rows: int
    columns: int
    patch: int
    stride: int

    @property
    def number(self) -> int:
        return self.rows * self.columns


class Part(NamedTuple):
    """Residues of which every window holds the same number of rows and columns, as features (height, width, channels).

    first_y, last_y, first_x, last_x: the residues (the last ones are not among them). rows, columns: how many of each
    residue a window holds.
    """

    first_y: int
    last_y: int
    first_x: int
    last_x: int
    rows: int
    columns: int
    features: Tensor


def windows_of(height: int, width: int, patch: int, stride: int) -> Windows:
    """Those that fit into a map, as `unfold` has them."""
    return Windows((height - patch) // stride + 1, (width - patch) // stride + 1, patch, stride)


def split(features_CHW: Tensor, windows: Windows, dtype: torch.dtype) -> list[Part]:
    """The parts of a map, in `dtype`: together they take no more room than the map."""
    return [
        Part(*residues, *held, _gathered(features_CHW, residues, held, windows, dtype))
        for residues, held in _kinds(windows.patch, windows.stride)
    ]


def joined(parts: list[Part], like_CHW: Tensor, windows: Windows) -> Tensor:
    """The map of which these are the parts, 0 where no window reaches."""
    features_CHW = torch.zeros_like(like_CHW)
    for part in parts:
        residues = _residues(features_CHW, part[:4], (part.rows, part.columns), windows)
        height, width, _ = part.features.shape
        by_residue = part.features.view(height, width, residues.shape[3], residues.shape[0], residues.shape[4])
        residues.copy_(by_residue.permute(3, 0, 1, 2, 4))
    return features_CHW


def squared_norms(parts: list[Part]) -> Tensor:
    """(rows, columns) of the windows."""
    boxes = [_box(torch.linalg.vector_norm(part.features, dim=2).square(), part.rows, part.columns) for part in parts]
    return torch.stack(boxes).sum(dim=0)


def add_squared_norms_gradient(gradients: list[Part], parts: list[Part], of_norms: Tensor) -> None:
    """Add what `of_norms` (rows, columns), the gradient of `squared_norms`, means for the features."""
    rows, columns = of_norms.shape
    for gradient, part in zip(gradients, parts, strict=True):
        spread = part.features.new_zeros(part.features.shape[:2])
        for y in range(part.rows):
            for x in range(part.columns):
                spread[y : y + rows, x : x + columns] += of_norms
        gradient.features.addcmul_(part.features, spread[:, :, None], value=2)


def products(parts: list[Part], windows: Windows, first: int, number: int) -> Tensor:
    """The products of all pairs of windows whose rows are `first` to `first + number - 1` apart."""
    total = None
    for part in parts:
        along_rows = _summed_along_columns(part, windows, first, number)
        _sum_along_rows(along_rows, part.rows)
        if total is None:
            total = along_rows[: windows.rows]
        else:
            total += along_rows[: windows.rows]
        del along_rows  # before the next is made
    assert total is not None
    return total


def add_products_gradient(
    gradients: list[Part], parts: list[Part], windows: Windows, first: int, of_products: Tensor
) -> None:
    """Add what `of_products`, the gradient of `products(parts, windows, first, number)`, means for the features.

    of_products: (rows + the most rows that a part's windows hold - 1, columns, number, columns), the rows after those
    of the windows 0; it is destroyed if there is only one part.
    """
    for gradient, part in zip(gradients, parts, strict=True):
        height, width, channels = part.features.shape
        spread = of_products[:height] if len(parts) == 1 else of_products[:height].clone()
        _spread_along_rows(spread, part.rows)
        for y in range(height - first):
            number = min(spread.shape[2], height - first - y)
            weights = _spread_along_columns(spread[y, :, :number], part.columns).reshape(width, number * width)
            near, far = part.features[y], part.features[y + first :][:number].view(-1, channels)
            gradient.features[y].addmm_(weights, far)
            gradient.features[y + first :][:number].view(-1, channels).addmm_(weights.T, near)


def _kinds(patch: int, stride: int) -> list[tuple[tuple[int, int, int, int], tuple[int, int]]]:
    """Ranges of residues (first_y, last_y, first_x, last_x), and how many rows and columns of each a window holds."""
    whole, rest = divmod(patch, stride)
    ranges = [(0, rest, whole + 1), (rest, stride, whole)]
    held = [(first, last, number) for first, last, number in ranges if last > first and number > 0]
    return [((y0, y1, x0, x1), (rows, columns)) for y0, y1, rows in held for x0, x1, columns in held]


def _gathered(
    features_CHW: Tensor,
    residues: tuple[int, int, int, int],
    held: tuple[int, int],
    windows: Windows,
    dtype: torch.dtype,
) -> Tensor:
    # The order of the channels is ours to choose, and this one is copied fastest.
    values = _residues(features_CHW, residues, held, windows).permute(1, 2, 3, 0, 4)
    return torch.empty(values.shape, dtype=dtype, device=values.device).copy_(values).flatten(2)


def _residues(
    features_CHW: Tensor, residues: tuple[int, int, int, int], held: tuple[int, int], windows: Windows
) -> Tensor:
    """The positions of these residues as a view (channels, height, width, rows, columns)."""
    first_y, last_y, first_x, last_x = residues
    height, width = windows.rows + held[0] - 1, windows.columns + held[1] - 1
    rows = features_CHW[:, first_y:, first_x:].unfold(1, last_y - first_y, windows.stride)[:, :height]
    return rows.unfold(2, last_x - first_x, windows.stride)[:, :, :width]


def _box(values_HW: Tensor, rows: int, columns: int) -> Tensor:
    return values_HW.unfold(0, rows, 1).unfold(1, columns, 1).sum(dim=(2, 3))


def _summed_along_columns(part: Part, windows: Windows, first: int, number: int) -> Tensor:
    """(height, columns, number, columns) of a part: a matrix product for each row, summed while it is in the cache."""
    height, width, channels = part.features.shape
    summed = part.features.new_zeros(height, windows.columns, number, windows.columns)
    for y in range(height - first):
        there = min(number, height - first - y)
        far = part.features[y + first :][:there].view(there * width, channels)
        pairs = torch.mm(part.features[y], far.T).view(width, there, width)
        summed[y, :, :there] = _sum_along_columns(pairs, part.columns)
    return summed


def _sum_along_columns(pairs: Tensor, length: int) -> Tensor:
    """[x, d, z] becomes the sum of [x + i, d, z + i] for i < length."""
    for factor, step in _passes(length):
        size = (len(pairs) - (factor - 1) * step, pairs.shape[2] - (factor - 1) * step)
        summed = pairs[: size[0], :, : size[1]]
        for shift in range(step, factor * step, step):
            shifted = pairs[shift : shift + size[0], :, shift : shift + size[1]]
            summed = summed + shifted if shift == step else summed.add_(shifted)
        pairs = summed
    return pairs


def _spread_along_columns(sums: Tensor, length: int) -> Tensor:
    """The transpose of `_sum_along_columns`."""
    for factor, step in reversed(_passes(length)):
        rows, number, columns = sums.shape
        reach = (factor - 1) * step
        spread = sums.new_zeros(rows + reach, number, columns + reach)
        for shift in range(0, factor * step, step):
            spread[shift : shift + rows, :, shift : shift + columns] += sums
        sums = spread
    return sums


def _sum_along_rows(values: Tensor, length: int) -> None:
    """[y] becomes the sum of [y + i] for i < length, in place; the last length - 1 become meaningless."""
    size = len(values)
    for factor, step in _passes(length):
        size -= (factor - 1) * step
        for y in range(size):  # upwards: what is added was not changed yet
            for shift in range(step, factor * step, step):
                values[y] += values[y + shift]


def _spread_along_rows(values: Tensor, length: int) -> None:
    """The transpose of `_sum_along_rows`, in place, where the last length - 1 are 0."""
    for factor, step in reversed(_passes(length)):
        for y in range(len(values) - 1, step - 1, -1):
            for shift in range(step, min(factor * step, y + 1), step):
                values[y] += values[y - shift]


def _passes(length: int) -> list[tuple[int, int]]:
    """(f, step): adding f values that are `step` apart, pass after pass, adds up `length` values."""
    passes, step = [], 1
    factor = 2
    while step < length:
        if length // step % factor == 0:
            passes.append((factor, step))
            step *= factor
        else:
            factor += 1
    return passes
