"""The convolutional bricks that the models share.

For: few parameters and a strong bias for small images.
Promises: plain torch layers, padded so that a stride of 1 keeps the size.
Does not: attend; see outlast.model.cluster.
"""

from __future__ import annotations

from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection; a residual where the shape stays (Sandler et al. 2018)."""

    def __init__(self, before: int, after: int, *, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        hidden = before * expansion
        self.layers = nn.Sequential(
            convolution(before, hidden, kernel_size=1),
            convolution(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.residual = stride == 1 and before == after

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        result: Tensor = self.layers(images_BCHW)
        return images_BCHW + result if self.residual else result


def convolution(before: int, after: int, *, kernel_size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, batch normalisation, SiLU; same padding."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.SiLU(),
    )
