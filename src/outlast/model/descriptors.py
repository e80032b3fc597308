"""Descriptors of small windows of an image, by the discrete cosine transform: what copied pixels are recognised by.

Promises: a descriptor does not change with brightness (the mean is left out), and on a window that is all one colour it
is zero; low frequencies alone make it tolerant of compression and of copies that lie between pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from outlast.model.repeatable import convolved

# Luma (ITU-R BT.601) and two differences of colours.
_COLOURS = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
_FINE = 0.6, 1.6, 3.0  # pixels: of the band, from and to, and of its local deviation
_QUIET = 0.25  # of 255 grey values: a deviation below that is no texture
_FAINT = 0.1  # of the deviation of texture, which is about 1
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
    planes = convolved(F.pad(images_B3HW, (before, after, before, after)), kernels)
    squared = planes.square().sum(dim=1)
    return planes / (squared + (_FLAT * side) ** 2).sqrt()[:, None], squared.sqrt()


def whitened(images_B3HW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Fine texture (B, H, W) of luma, of about deviation 1 everywhere: a band-pass divided by its local deviation.

    Edges and shading are taken out, which similar things share; what is left is what only copies share. Padding has no
    part in it.
    """
    luma = (images_B3HW * images_B3HW.new_tensor(_COLOURS[0])[:, None, None]).sum(dim=1) * 255
    fine = _blurred(luma, valid_BHW, _FINE[0]) - _blurred(luma, valid_BHW, _FINE[1])
    deviation = _blurred(fine * fine, valid_BHW, _FINE[2]).clamp(min=0).sqrt()
    return torch.where(valid_BHW, fine / (deviation + _QUIET), 0)


def windows(planes_BHW: Tensor, side: int) -> Tensor:
    """(B, side * side, H, W): the window around each pixel, as `described` has it, without its mean and of norm 1.

    The inner product of two is their normalised cross-correlation; that of a window with little in it is less.
    """
    before, after = side // 2, (side - 1) // 2
    height, width = planes_BHW.shape[1:]
    values = F.unfold(F.pad(planes_BHW[:, None], (before, after, before, after)), side)
    values = values.view(-1, side * side, height, width)
    values = values - values.mean(dim=1, keepdim=True)
    return values / (values.square().sum(dim=1, keepdim=True) + (_FAINT * side) ** 2).sqrt()


def windows_inside(valid_BHW: Tensor, side: int) -> Tensor:
    """(B, H, W) bool: whether the window of `described` around a pixel holds valid pixels only."""
    before, after = side // 2, (side - 1) // 2
    outside = F.pad((~valid_BHW).float()[:, None], (before, after, before, after), value=1.0)
    return F.max_pool2d(outside, side, stride=1)[:, 0] == 0


def _blurred(planes_BHW: Tensor, valid_BHW: Tensor, sigma: float) -> Tensor:
    """Gaussian mean over valid pixels."""
    reach = math.ceil(3 * sigma)
    places = torch.arange(-reach, reach + 1, device=planes_BHW.device, dtype=planes_BHW.dtype)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    mask = valid_BHW.to(planes_BHW.dtype)
    both = torch.stack((planes_BHW * mask, mask), dim=1).flatten(0, 1)[:, None]
    both = convolved(F.pad(both, (reach, reach, 0, 0)), kernel.view(1, 1, 1, -1))
    both = convolved(F.pad(both, (0, 0, reach, reach)), kernel.view(1, 1, -1, 1))
    total, share = both.view(-1, 2, *planes_BHW.shape[1:]).unbind(dim=1)
    return total / share.clamp(min=1e-6)


def _cosines(side: int, orders: int) -> list[Tensor]:
    """Orthonormal cosines (side, side) with 0 < i + j < orders (DCT-II)."""
    places = torch.arange(side, dtype=torch.float64) + 0.5
    rows = [
        torch.cos(math.pi * order * places / side) * math.sqrt((2 if order else 1) / side) for order in range(orders)
    ]
    return [torch.outer(rows[i], rows[j]).float() for i in range(orders) for j in range(orders) if 0 < i + j < orders]
