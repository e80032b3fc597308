"""The models of the task "plants": a ladder of three rungs, and any timm classifier as the yardstick.

For: `build(name, classes)`.
Promises: every model maps normalised float images (B, 3, H, W) to log-probabilities or logits (B, classes); cross
entropy trains both alike, since log_softmax of log-probabilities is itself.
Does not: choose a rung or fall back to another one.
"""

from pathlib import Path

from torch import nn

from outlast.errors import ModelError
from outlast.model import backbone
from outlast.tasks.plants.models.light import Minimal, Tiny
from outlast.tasks.plants.models.sclusterformer import SClusterFormer, SClusterFormerSettings

OWN = ("sclusterformer", "minimal", "tiny")

__all__ = ["OWN", "Minimal", "SClusterFormer", "SClusterFormerSettings", "Tiny", "build"]


def build(
    name: str,
    classes: int,
    *,
    channels: int = 3,
    settings: SClusterFormerSettings | None = None,
    pretrained: bool = False,
    weights: Path | str | None = None,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Return the model `name` for `classes` classes: one of `OWN`, otherwise a timm classifier.

    `settings` belongs to sclusterformer; `pretrained`, `weights` and `image_size` (height, width) to timm models.
    Raises ModelError for an unknown name, or for a setting that the named model cannot follow.
    """
    if name != "sclusterformer" and settings is not None:
        raise ModelError(
            f"model {name!r} has no sclusterformer settings", hint='leave them out, or use "sclusterformer"'
        )
    if name not in OWN:
        return backbone.classifier(
            name,
            classes,
            channels=channels,
            pretrained=pretrained,
            weights=weights,
            image_size=image_size,
            also=OWN,
        )
    if pretrained or weights is not None:
        raise ModelError(
            f"there are no pretrained weights for {name!r}",
            hint="leave model.pretrained and model.weights out, or name a timm model such as resnet18",
        )
    if name == "sclusterformer":
        return SClusterFormer(classes, settings, channels=channels)
    return Minimal(classes, channels=channels) if name == "minimal" else Tiny(classes, channels=channels)
