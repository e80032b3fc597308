"""The scale of RGB that a pretrained model wants, where its input has ImageNet's.

For: models that are given the same pixels as others, and begin with weights of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from outlast.model import backbone

_IMAGENET = backbone.Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Renormalise(nn.Module):
    """RGB normalised by ImageNet's mean and std to what the timm model `name` was pretrained with.

    A teacher and its student are given the same pixels, so one of them may need another scale.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        own = backbone.normalisation(name)
        self.same = own == _IMAGENET
        given_mean, given_std, mean, std = (
            torch.tensor(values)[:, None, None] for values in (_IMAGENET.mean, _IMAGENET.std, own.mean, own.std)
        )
        self.register_buffer("scale", given_std / std, persistent=False)
        self.register_buffer("shift", (given_mean - mean) / std, persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 3, H, W)."""
        return rgb if self.same else rgb * self.scale + self.shift
