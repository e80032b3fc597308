"""Choices that come out the same in every runtime: what they hang on is computed in float64, and rounded.

For: networks that are deployed and choose by comparing (`copy_move`). In float32 a convolution differs between runtimes
(and between processors, and sizes of batches) by some 1e-7, and two windows of smooth areas are as alike as two others
to within that: which is taken would be chance, and what follows from it differs a lot.
Promises: float64 numbers that differ by rounding alone become equal, and of equals the first is taken. Only operators
are used that ONNX Runtime has for float64, and none that goes through the images of a batch in Python.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from outlast.model.correlation import Matches

_STEP = 2.0**-29  # far above rounding in float64 (2^-52), far below what float32 tells apart
_PLACE = 2.0**-50  # what a place further back costs: 2^20 of them together less than half a step
_NONE = -4.0  # below every cosine
_PAIRS = 2**23  # cosines of one image that are there at once, unless a single row has more


def settled(values: Tensor) -> Tensor:
    """Float64 values, of magnitude 1 or so, to the nearest step; values of other types as they are."""
    return (values / _STEP).round() * _STEP if values.dtype == torch.float64 else values


def convolved(planes_BCHW: Tensor, kernels: Tensor, stride: int = 1) -> Tensor:
    """`conv2d` without padding; of float64 as a product of matrices."""
    if planes_BCHW.dtype != torch.float64:
        return F.conv2d(planes_BCHW, kernels, stride=stride)
    side = kernels.shape[2:]
    rows, columns = ((size - length) // stride + 1 for size, length in zip(planes_BCHW.shape[2:], side, strict=True))
    product = kernels.to(torch.float64).flatten(1) @ F.unfold(planes_BCHW, side, stride=stride)
    return product.view(-1, len(kernels), rows, columns)


def self_correlation(features_BCHW: Tensor, *, top: int, radius: int, valid_BHW: Tensor) -> Matches:
    """What `correlation.self_correlation` finds of single positions, normalised; of equals the first in rows.

    Some rows are compared with all positions at a time. features: float64. No gradient, and at most 2^20 positions.
    """
    rows, columns = features_BCHW.shape[2:]
    number, device = rows * columns, features_BCHW.device
    vectors_BNC = F.normalize(features_BCHW * valid_BHW[:, None], dim=1).flatten(2).transpose(1, 2)
    valid_BN = valid_BHW.flatten(1)
    y, x = torch.arange(rows, device=device), torch.arange(columns, device=device)
    near_rows, near_columns = ((place[:, None] - place).abs() <= radius for place in (y, x))
    behind = torch.arange(number, device=device) * _PLACE
    parts, at_once = [], max(1, _PAIRS // (number * columns))
    for first in range(0, rows, at_once):
        last = min(first + at_once, rows)
        alike = vectors_BNC[:, first * columns : last * columns] @ vectors_BNC.transpose(1, 2)
        alike = torch.where(valid_BN[:, None], settled(alike), _NONE) - behind
        pairs = alike.view(-1, last - first, columns, rows, columns)
        # One after the other: both together would be a constant as large as the pairs.
        pairs = torch.where(
            near_columns[:, None], torch.where(near_rows[first:last, None, :, None], _NONE, pairs), pairs
        )
        parts.append(pairs.flatten(3).flatten(1, 2).topk(min(top, number), dim=2))
    missing = (0, max(0, top - number))
    values = F.pad(torch.cat([part.values for part in parts], dim=1), missing, value=_NONE)
    keys = F.pad(torch.cat([part.indices for part in parts], dim=1), missing)
    found = (values > _NONE / 2) & valid_BN[:, :, None]
    own = torch.arange(number, device=device)[:, None]
    offsets = torch.stack((keys // columns - own // columns, keys % columns - own % columns), dim=3)

    def as_maps(each_BNK: Tensor) -> Tensor:
        return each_BNK.transpose(1, 2).reshape(-1, top, rows, columns)

    of_found = [as_maps(torch.where(found, offset, 0)) for offset in offsets.unbind(dim=3)]
    return Matches(as_maps(torch.where(found, settled(values), 0)), torch.stack(of_found, dim=2), as_maps(found))
