"""The decoder of `copy_move`: from cues at half resolution to a logit for each pixel, on valid pixels alone.

Promises: what stands on padding reaches nothing: every convolution is given zeros there, as it is beyond the border, so
that an image gives the same logits on a larger canvas; means over rows and columns are of valid positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position: unlike that of a batch, it knows of no neighbour."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, planes_BCHW: Tensor) -> Tensor:
        """See the class."""
        normed: Tensor = self.norm(planes_BCHW.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two 3 x 3 convolutions with a way around them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.norm = ChannelNorm(after)
        self.second = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, planes: Tensor, mask: Tensor) -> Tensor:
        """(B, before, h, w) and a mask (B, 1, h, w) of 0 and 1 to (B, after, h, w)."""
        planes = planes * mask
        inner = F.gelu(self.norm(self.first(planes))) * mask
        out: Tensor = (self.around(planes) + self.second(inner)) * mask
        return out


class StripPooling(nn.Module):
    """Adds what is known of the whole row and the whole column of a position (Hou et al., "Strip Pooling", 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rows = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.columns = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, planes: Tensor, mask: Tensor) -> Tensor:
        """(B, C, h, w) and its mask to (B, C, h, w)."""
        planes = planes * mask
        rows = planes.sum(dim=3, keepdim=True) / mask.sum(dim=3, keepdim=True).clamp(min=1)
        columns = planes.sum(dim=2, keepdim=True) / mask.sum(dim=2, keepdim=True).clamp(min=1)
        both = F.gelu(self.rows(rows) + self.columns(columns))
        out: Tensor = planes * (1 + torch.tanh(self.gate(both))) * mask
        return out


class Decoder(nn.Module):
    """A small U-Net: cues at half resolution, tokens at a quarter, strips at an eighth, a stem at the full one.

    cues, tokens, stem: channels of what comes in. width: channels at half resolution, twice as many below it.
    """

    def __init__(self, cues: int, tokens: int, stem: int, width: int, full: int) -> None:
        super().__init__()
        self.at_half = Block(cues, width)
        self.at_quarter = Block(width + tokens, 2 * width)
        self.at_eighth = Block(2 * width, 2 * width)
        self.strips = StripPooling(2 * width)
        self.back_quarter = Block(4 * width, 2 * width)
        self.back_half = Block(3 * width, width)
        self.stem = Block(stem, full)
        self.back_full = Block(width + full, full)
        self.logits = nn.Conv2d(full, 1, 1)

    def forward(self, cues: Tensor, tokens: Tensor, stem: Tensor, mask: Tensor) -> Tensor:
        """Cues (B, c, H/2, W/2), tokens (B, t, H/4, W/4), stem (B, s, H, W), mask (B, 1, H, W) to logits (B, H, W)."""
        masks = [mask]
        for _ in range(3):
            masks.append(F.max_pool2d(masks[-1], 2))
        half = self.at_half(cues, masks[1])
        quarter = self.at_quarter(torch.cat((_mean_of(half, masks[1]), tokens), dim=1), masks[2])
        eighth = self.strips(self.at_eighth(_mean_of(quarter, masks[2]), masks[3]), masks[3])
        quarter = self.back_quarter(torch.cat((_twice(eighth), quarter), dim=1), masks[2])
        half = self.back_half(torch.cat((_twice(quarter), half), dim=1), masks[1])
        full = self.back_full(torch.cat((_twice(half), self.stem(stem, mask)), dim=1), mask)
        logits: Tensor = self.logits(full)[:, 0]
        return logits


def _mean_of(planes: Tensor, mask: Tensor) -> Tensor:
    """Half the resolution: the mean of the valid of four positions."""
    share = F.avg_pool2d(mask, 2)
    return F.avg_pool2d(planes * mask, 2) / share.clamp(min=0.25)


def _twice(planes: Tensor) -> Tensor:
    return F.interpolate(planes, scale_factor=2.0, mode="nearest")
