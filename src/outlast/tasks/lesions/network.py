"""The image model of lesions: a timm model, one logit on top of its features, its own normalisation inside.

Models with different normalisations can so be given the same pixels, and the bare weights need none from their user.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from outlast.model import backbone
from outlast.tasks.lesions.config import SMALL, Backbone


class LesionNet(nn.Module):
    """Images (B, 3, S, S) in [0, 1] to {"logits": (B,), "features": (B, F)}.

    Raises ModelError if the name is unknown, its weights can't be had or don't fit, or the size is too small.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Backbone, image_size: int) -> None:
        super().__init__()
        own = backbone.normalisation(settings.name)
        self.register_buffer("mean", torch.tensor(own.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(own.std)[:, None, None], persistent=False)
        self.backbone = backbone.extractor(
            settings.name, pretrained=settings.pretrained, weights=settings.weights, image_size=(image_size, image_size)
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(backbone.features(self.backbone), 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        # Convolutions on a CPU and in half precision are faster where the channels of a pixel lie side by side.
        pixels = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self.backbone(pixels)
        return {"logits": self.head(self.dropout(features)).squeeze(1), "features": features}


class Probability(nn.Module):
    """Images (B, 3, S, S) in [0, 1] to {"probabilities": (B,)} of malignant: the mean over models."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        each = torch.stack([network(images)["logits"].float().sigmoid() for network in self.networks])
        return {"probabilities": each.mean(dim=0)}


def rungs(settings: Backbone) -> tuple[str, ...]:
    """The wanted model, then a small one."""
    return tuple(dict.fromkeys((settings.name, SMALL)))


def of_rung(settings: Backbone, rung: str) -> Backbone:
    """The settings of one rung. Weights were asked for the wanted model: a smaller one has none."""
    if rung == settings.name:
        return settings
    return settings.model_copy(update={"name": rung, "pretrained": False, "weights": None, "backbone_rate": 1.0})
