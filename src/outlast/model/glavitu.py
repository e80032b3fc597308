"""A GlaViTU-style hybrid: a vision transformer whose features a convolutional U-Net refines at full resolution.

For: glaciers, where a pixel's class depends on its surroundings (debris) and its outline on single pixels.
Promises: any size that is a multiple of `multiple`; samples never mix in evaluation; upsampling is nearest followed by
a convolution, and positions interpolate by a matrix product, so that on CUDA attention is the only operation whose
gradient needs another algorithm to repeat.
Does not: normalise, pad or hold a loss; see outlast.model.normalised.
Source: Maslov et al. 2023 and 2025 (GlaViTU: a SETR-like transformer, then a residual U-Net, both outputs supervised);
Zheng et al. 2021 (SETR's progressive upsampling). The idea is theirs; sizes, positions and blocks are ours.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.model.normalised import BoundaryHead, Outputs, SegmentationNet
from outlast.model.segmenter_settings import GlavituSettings


class Glavitu(SegmentationNet):
    """Complete images (B, C, H, W) to {"logits", "auxiliary": (the transformer's logits,)} and "boundary"."""

    training_only = ("boundary", "transformer_head")

    def __init__(
        self, settings: GlavituSettings, channels: int, classes: int, *, boundary_head: bool = True, dropout: float = 0
    ) -> None:
        super().__init__()
        self.multiple = max(settings.patch, 2 ** (settings.levels - 1))
        self.transformer = Transformer(settings, channels, dropout)
        self.transformer_head: nn.Module | None = nn.Conv2d(settings.features, classes, 1)
        self.unet = ResidualUnet(settings, channels, dropout)
        self.head = nn.Conv2d(settings.width, classes, 1)
        self.boundary: nn.Module | None = BoundaryHead(settings.width) if boundary_head else None
        self.channel_tensors = {"transformer.patches.weight": 1, "unet.from_image.weight": 1}
        heads = ("head", "transformer_head")
        self.class_tensors = {f"{head}.{kind}": 0 for head in heads for kind in ("weight", "bias")}

    def forward(self, images_BCHW: Tensor) -> Outputs:
        """Return full-size logits, those of the transformer alone as well."""
        features = self.transformer(images_BCHW)
        refined = self.unet(images_BCHW, features)
        outputs: Outputs = {"logits": self.head(refined)}
        if self.boundary is not None:
            outputs["boundary"] = self.boundary(refined)
        if self.transformer_head is not None:
            outputs["auxiliary"] = (self.transformer_head(features),)
        return outputs


class Transformer(nn.Module):
    """Patches to tokens, encoder layers, then a convolution after each doubling of the resolution."""

    def __init__(self, settings: GlavituSettings, channels: int, dropout: float) -> None:
        super().__init__()
        dim, patch = settings.dim, settings.patch
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.positions = Positions(settings.positions, dim)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, settings.heads, int(dim * settings.mlp_ratio), dropout) for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(dim)
        doublings = patch.bit_length() - 1
        widths = [max(settings.features, dim >> step) for step in range(doublings)] + [settings.features]
        self.doublings = nn.Sequential(
            *(
                nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), _convolution(before, after), nn.ReLU())
                for before, after in pairwise(widths)
            )
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to features (B, F, H, W)."""
        planes = self.patches(images_BCHW)
        height, width = planes.shape[-2:]
        tokens = planes.flatten(2).transpose(1, 2) + self.positions(height, width)
        for layer in self.layers:
            tokens = layer(tokens)
        planes = self.norm(tokens).transpose(1, 2).unflatten(2, (height, width))
        features: Tensor = self.doublings(planes)
        return features


class Positions(nn.Module):
    """A learned vector for each row and each column of a grid, interpolated linearly to grids of other sizes."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(nn.init.trunc_normal_(torch.empty(side, dim), std=0.02))
        self.columns = nn.Parameter(nn.init.trunc_normal_(torch.empty(side, dim), std=0.02))

    def forward(self, height: int, width: int) -> Tensor:
        """Return (height * width, dim)."""
        rows, columns = _interpolated(self.rows, height), _interpolated(self.columns, width)
        return (rows[:, None] + columns[None]).flatten(0, 1)


class EncoderLayer(nn.Module):
    """x + attention(LN x), then x + MLP(LN x)."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        # A bias of the keys would cancel in the softmax.
        self.queries, self.keys, self.values = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.project = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        tokens = tokens_BNC + self.dropout(self._attend(self.attention_norm(tokens_BNC)))
        mixed: Tensor = tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))
        return mixed

    def _attend(self, tokens_BNC: Tensor) -> Tensor:
        queries, keys, values = (
            layer(tokens_BNC).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        attended = F.scaled_dot_product_attention(queries, keys, values)
        result: Tensor = self.project(attended.transpose(1, 2).flatten(2))
        return result


class ResidualUnet(nn.Module):
    """Residual blocks at each resolution with skip connections; image and features enter at the full one."""

    def __init__(self, settings: GlavituSettings, channels: int, dropout: float) -> None:
        super().__init__()
        widths = [settings.width << level for level in range(settings.levels)]
        # Two convolutions, summed, are one over both inputs; apart, each input keeps a tensor of its own.
        self.from_image = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.from_features = nn.Conv2d(settings.features, widths[0], 3, padding=1, bias=False)
        self.entry = ResidualBlock(widths[0], widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(ResidualBlock(before, after, stride=2) for before, after in pairs)
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(ResidualBlock(before + after, before) for before, after in reversed(pairs))

    def forward(self, images_BCHW: Tensor, features_BFHW: Tensor) -> Tensor:
        """Return (B, width, H, W)."""
        planes = self.entry(self.from_image(images_BCHW) + self.from_features(features_BFHW))
        skipped = []
        for block in self.down:
            skipped.append(planes)
            planes = block(planes)
        planes = self.dropout(planes)
        for block, skip in zip(self.up, reversed(skipped), strict=True):
            planes = block(torch.cat((F.interpolate(planes, scale_factor=2.0, mode="nearest"), skip), dim=1))
        return F.relu(planes)


class ResidualBlock(nn.Module):
    """Normalise, activate, convolve, twice; beside it a 1x1 convolution (the full pre-activation of He et al. 2016)."""

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
        )
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, planes_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        result: Tensor = self.shortcut(planes_BCHW) + self.layers(planes_BCHW)
        return result


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))


def _interpolated(table_GD: Tensor, size: int) -> Tensor:
    """The table (G, D) at `size` places that are spread over it evenly, from the first entry to the last."""
    last = table_GD.shape[0] - 1
    entries = torch.arange(last + 1, device=table_GD.device, dtype=table_GD.dtype)
    places = torch.arange(size, device=table_GD.device, dtype=table_GD.dtype) * (last / max(size - 1, 1))
    weights = (1 - (places[:, None] - entries).abs()).clamp(min=0)  # (size, G): two neighbours share each place
    return weights @ table_GD
