"""A U-Net that keeps the full resolution from its first convolution on: for small tiles and fine structures.

The ResNet encoders halve the image before their first block, and a class that is a few pixels wide is gone by then. On
64 px tiles of one Landsat scene this one, with a million parameters, was ahead of a ResNet18 U-Net with fourteen
(LOG.md). Ronneberger et al., "U-Net", MICCAI 2015, with normalisation and with padding instead of cropping.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.model.normalised import BoundaryHead, Outputs, SegmentationNet


class PlainUnet(SegmentationNet):
    """Two convolutions at each of depth + 1 resolutions on the way down, and two on the way up."""

    training_only = ("boundary",)

    def __init__(
        self, width: int, depth: int, channels: int, classes: int, *, boundary_head: bool, dropout: float
    ) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _two(before, after) for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _two(widths[level] + widths[level + 1], widths[level]) for level in reversed(range(depth))
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(width, classes, 1)
        self.boundary: nn.Module | None = BoundaryHead(width) if boundary_head else None
        self.multiple = 2**depth
        self.channel_tensors = {"down.0.0.weight": 1}
        self.class_tensors = {"head.weight": 0, "head.bias": 0}

    def forward(self, images_BCHW: Tensor) -> Outputs:
        """Map complete images to logits (B, K, H, W) and boundary logits (B, 1, H, W)."""
        planes, skipped = images_BCHW, []
        for level, block in enumerate(self.down):
            planes = block(F.max_pool2d(planes, 2) if level else planes)
            skipped.append(planes)
        planes = self.dropout(skipped.pop())
        for block in self.up:
            wider = F.interpolate(planes, scale_factor=2.0, mode="nearest")
            planes = block(torch.cat((wider, skipped.pop()), dim=1))
        outputs: Outputs = {"logits": self.head(planes)}
        if self.boundary is not None:
            outputs["boundary"] = self.boundary(planes)
        return outputs


def _two(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)
