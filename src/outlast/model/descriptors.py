"""Descriptors of small windows of an image, by the discrete cosine transform: what copied pixels are recognised by.

Promises: a descriptor does not change with brightness (the mean is left out), and on a window that is all one colour it
is zero; low frequencies alone make it tolerant of compression and of copies that lie between pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Luma (ITU-R BT.601) and two differences of colours.
_COLOURS = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
_FLAT = 0.02  # of the range of an image: windows that deviate less count as less alike


def cosine_kernels(side: int, luma: int, chroma: int) -> Tensor:
    """Kernels (K, 3, side, side) over RGB in 0..1: cosines of luma with i + j < `luma`, of both colours < `chroma`."""
    kernels = []
    for colour, orders in zip(_COLOURS, (luma, chroma, chroma), strict=True):
        for plane in _cosines(side, orders):
            kernels.append(torch.tensor(colour)[:, None, None] * plane)
    return torch.stack(kernels)


def described(images_B3HW: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Descriptors (B, K, H, W) of the window around each pixel, and their norms (B, H, W) before they were divided.

    They are divided by sqrt(norm^2 + e), so that a flat window resembles nothing. Around pixel p lie p - side // 2 up
    to p + (side - 1) // 2; beyond the image is black.
    """
    side = kernels.shape[-1]
    before, after = side // 2, (side - 1) // 2
    planes = F.conv2d(F.pad(images_B3HW, (before, after, before, after)), kernels)
    squared = planes.square().sum(dim=1)
    return planes / (squared + (_FLAT * side) ** 2).sqrt()[:, None], squared.sqrt()


def windows_inside(valid_BHW: Tensor, side: int) -> Tensor:
    """(B, H, W) bool: whether the window of `described` around a pixel holds valid pixels only."""
    before, after = side // 2, (side - 1) // 2
    outside = F.pad((~valid_BHW).float()[:, None], (before, after, before, after), value=1.0)
    return F.max_pool2d(outside, side, stride=1)[:, 0] == 0


def _cosines(side: int, orders: int) -> list[Tensor]:
    """Orthonormal cosines (side, side) with 0 < i + j < orders (DCT-II)."""
    places = torch.arange(side, dtype=torch.float64) + 0.5
    rows = [
        torch.cos(math.pi * order * places / side) * math.sqrt((2 if order else 1) / side) for order in range(orders)
    ]
    return [torch.outer(rows[i], rows[j]).float() for i in range(orders) for j in range(orders) if 0 < i + j < orders]
