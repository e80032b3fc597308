"""Classifiers over two registered images, RGB and infrared: one class over any timm model, fused at a stated point.

For: teachers that see more than the student that they teach.
Promises: the infrared branch takes one channel (its first kernel is the RGB one's, summed, where there are weights);
what is frozen stays in evaluation mode in training too, so that running statistics don't move either; every parameter
takes part in the training.
Does not: load what was never asked for, or hold a loss.

How a model is fused follows from how it is built:
stage   convolutional nets with stages (timm's ResNet, EfficientNet and MobileNet families): each image through its own
        stages down to 1/16 of its size (ResNet's layer3, EfficientNet's block 5), concatenated, a 1x1 convolution back
        to the channels of one, then one shared tail. The convolution begins as the mean of both, so that a tail with
        weights is given what it knows.
tokens  transformers with a class token: each image to tokens with a class token of its own, all of them through the
        same blocks; the features are both class tokens.
towers  everything else, such as Swin: two whole networks, concatenated, a layer back to the features of one.

Parameters with two labels, and features:
resnet-152             103,418,882   2048
efficientnet-b7         76,211,338   2560
swin-tiny               56,217,590    768
vit-b-16                86,151,170   1536
resnet18                14,085,378    512
mobilenetv3_small_100    1,714,794   1024
The originals of the first four have 103.4, 76.2, 56.2 and 86.5 million. That is the same but for vit-b-16, where
infrared patches have one channel, not the same one three times over: 393,216 less.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from outlast.model import backbone
from outlast.model.distillation_settings import TEACHERS, DualSettings, teacher_rung, teacher_rungs
from outlast.model.renormalise import Renormalise

__all__ = ["DualBranch", "DualSettings", "teacher_rung", "teacher_rungs"]

Fusion = Literal["stage", "tokens", "towers"]
_REDUCTION = 16  # of the stage after which branches are fused
# What goes with the stages that come before the cut, and with those after it
_AROUND_BLOCKS: dict[bool, tuple[str, ...]] = {True: ("conv_stem", "bn1"), False: ("conv_head", "bn2", "norm_head")}
_AROUND_LAYERS: dict[bool, tuple[str, ...]] = {
    True: ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"), False: ("layer4",)
}  # fmt: skip


class DualBranch(nn.Module):
    """RGB (B, 3, H, W), normalised by ImageNet's mean and std, and infrared (B, 1, H, W), of about unit variance.

    labels: how many, each on its own. image_size: (height, width), for models that are built for one. Raises
    ModelError if the name is unknown, or its weights can't be had or don't fit.
    """

    def __init__(self, settings: DualSettings, labels: int = 2, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        rgb, ir = (_branch(settings, channels, image_size) for channels in (3, 1))
        self.kind = fusion(rgb)
        self.pixels = Renormalise(settings.timm_name)
        self.fused: _Stage | _Tokens | _Towers = _KINDS[self.kind](rgb, ir)
        self.features = self.fused.features
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(self.features, labels)
        self._frozen = [getattr(self.fused, part) for part in _parts(settings.freeze) if hasattr(self.fused, part)]
        for part in self._frozen:
            part.requires_grad_(False)
        self.train()

    def forward(self, rgb: Tensor, ir: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (B, labels), "features": (B, F)}."""
        features = self.fused(self.pixels(rgb), ir)
        return {"logits": self.head(self.dropout(features)), "features": features}

    def train(self, mode: bool = True) -> DualBranch:
        """Set the mode of what learns; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self


def fusion(model: nn.Module) -> Fusion:
    """The way in which two of these timm models are fused."""
    layout = backbone.layout(model)
    if layout == "transformer":
        return "tokens"
    cut = layout != "other" and any(reduction == _REDUCTION for _, reduction, _ in backbone.stages(model)[:-1])
    return "stage" if cut else "towers"


class _Stage(nn.Module):
    """Two branches down to 1/16 of the size, a 1x1 convolution, a shared tail."""

    def __init__(self, rgb: nn.Module, ir: nn.Module) -> None:
        super().__init__()
        name, channels = next(
            (name, channels) for name, reduction, channels in reversed(backbone.stages(rgb)) if reduction == _REDUCTION
        )
        self.features = backbone.features(rgb)
        self.tail = _cut(copy.deepcopy(rgb), name, before=True)
        self.rgb, self.ir = _cut(rgb, name, before=False), _cut(ir, name, before=False)
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        half = torch.eye(channels)[:, :, None, None] / 2
        self.mix.load_state_dict({"weight": torch.cat((half, half), dim=1), "bias": torch.zeros(channels)})

    def forward(self, rgb: Tensor, ir: Tensor) -> Tensor:
        maps = torch.cat((self.rgb.forward_features(rgb), self.ir.forward_features(ir)), dim=1)
        features: Tensor = self.tail(self.mix(maps))
        return features


class _Tokens(nn.Module):
    """Tokens of both images, each with its class token and positions, through the same blocks."""

    def __init__(self, rgb: Any, ir: Any) -> None:
        super().__init__()
        self.features = 2 * backbone.features(rgb)
        self.tail = nn.Sequential(rgb.blocks, rgb.norm)
        for branch in (rgb, ir):  # without these, a transformer's features are its tokens before the first block
            branch.blocks, branch.norm = nn.Sequential(), nn.Identity()
        self.rgb, self.ir = rgb, ir

    def forward(self, rgb: Tensor, ir: Tensor) -> Tensor:
        ours, theirs = self.rgb.forward_features(rgb), self.ir.forward_features(ir)
        tokens = self.tail(torch.cat((ours, theirs), dim=1))
        return torch.cat((tokens[:, 0], tokens[:, ours.shape[1]]), dim=1)


class _Towers(nn.Module):
    """Two whole networks, and a layer over the features of both."""

    def __init__(self, rgb: nn.Module, ir: nn.Module) -> None:
        super().__init__()
        self.features = backbone.features(rgb)
        self.rgb, self.ir = rgb, ir
        self.mix = nn.Sequential(nn.Linear(2 * self.features, self.features), nn.GELU())

    def forward(self, rgb: Tensor, ir: Tensor) -> Tensor:
        features: Tensor = self.mix(torch.cat((self.rgb(rgb), self.ir(ir)), dim=1))
        return features


_KINDS: dict[Fusion, type[_Stage] | type[_Tokens] | type[_Towers]] = {
    "stage": _Stage,
    "tokens": _Tokens,
    "towers": _Towers,
}


def _branch(settings: DualSettings, channels: int, image_size: tuple[int, int] | None) -> nn.Module:
    return backbone.extractor(
        settings.timm_name, channels=channels, pretrained=settings.pretrained, weights=settings.weights,
        image_size=image_size, also=tuple(TEACHERS),
    )  # fmt: skip


def _parts(freeze: str) -> tuple[str, ...]:
    together = {"none": (), "branches": ("rgb", "ir"), "backbone": ("rgb", "ir", "tail")}
    return together.get(freeze, (freeze,))


def _cut(model: Any, name: str, *, before: bool) -> Any:
    """The model without what comes before and in the stage `name`, or without what comes after it.

    What is taken out hands on what it is given, so that the model's own forward pass still runs through its parts.
    """
    _, _, number = name.partition(".")  # "layer3", or "blocks.4"
    if number:
        kept = slice(int(number) + 1, None) if before else slice(int(number) + 1)
        model.blocks = model.blocks[kept]
        gone = _AROUND_BLOCKS[before]
    else:
        gone = _AROUND_LAYERS[before]
    for part in gone:
        if hasattr(model, part):
            setattr(model, part, nn.Identity())
    return model
