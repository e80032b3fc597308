"""What stands before every segmentation model: raw bands in, normalised and complete maps of any size to the model.

For: models that are trained and delivered with their normalisation inside.
Promises: a pixel that was not observed (NaN) enters as the mean of its band and never leaves as NaN; a size that the
model cannot halve often enough is padded at the lower and right edge (the edge repeated) and cut back; no step of it
has a gradient that does not repeat on CUDA.
Does not: measure the statistics or hold a loss.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.errors import ModelError, listed

Outputs = dict[str, Any]  # "logits", and where the model has them "boundary" and "auxiliary"


class SegmentationNet(nn.Module):
    """Base of the models behind `Normalised`: what the surroundings must know about each.

    multiple            both sides of an image must be a multiple of this
    channel_tensors     {name: axis} of the tensors with one entry for each input channel
    class_tensors       {name: axis} of the tensors with one entry for each class
    training_only       names of the modules that only losses need; None takes their place in a deployed model
    """

    multiple: int
    channel_tensors: dict[str, int]
    class_tensors: dict[str, int]
    training_only: tuple[str, ...]


class Normalised(nn.Module):
    """(x - mean) / std for each band, NaN to 0, an optional gain and shift, then the model."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: SegmentationNet, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        _require_statistics(mean, std)
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images_BCHW: Tensor, gain_BC: Tensor | None = None, shift_BC: Tensor | None = None) -> Outputs:
        """Map raw float32 images (NaN: not observed) to {"logits": (B, K, H, W), "boundary", "auxiliary"}.

        Gain and shift change the normalised value of each sample's bands where they were observed.
        """
        return _run(self, images_BCHW, gain_BC, shift_BC)

    def channel_tensors(self) -> dict[str, int]:
        """{name in the state_dict: axis} of the tensors with one entry for each input channel."""
        return {"mean": 0, "std": 0, **{f"net.{name}": axis for name, axis in self.net.channel_tensors.items()}}

    def class_tensors(self) -> dict[str, int]:
        """{name in the state_dict: axis} of the tensors with one entry for each class."""
        return {f"net.{name}": axis for name, axis in self.net.class_tensors.items()}


class Deployed(nn.Module):
    """Raw images (B, C, H, W) to logits (B, K, H, W), without what only losses need; the tensors keep their names."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: Normalised) -> None:
        super().__init__()
        self.net = copy.deepcopy(module.net)
        for name in self.net.training_only:
            setattr(self.net, name, None)
        self.register_buffer("mean", module.mean.clone())
        self.register_buffer("std", module.std.clone())
        self.train(module.training)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K, H, W)."""
        return cast(Tensor, _run(self, images_BCHW)["logits"])


class BoundaryHead(nn.Sequential):
    """Features (B, C, H, W) to boundary logits (B, 1, H, W): a 3x3 convolution, normalised, then a 1x1 one."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 1),
        )


def _run(
    module: Normalised | Deployed, images_BCHW: Tensor, gain_BC: Tensor | None = None, shift_BC: Tensor | None = None
) -> Outputs:
    height, width = images_BCHW.shape[-2:]
    normalised = (images_BCHW - module.mean[:, None, None]) / module.std[:, None, None]
    if gain_BC is not None:
        normalised = normalised * gain_BC[:, :, None, None]
    if shift_BC is not None:
        normalised = normalised + shift_BC[:, :, None, None]
    # After gain and shift: what was not observed stays at 0.
    filled = torch.where(torch.isnan(images_BCHW), torch.zeros_like(normalised), normalised)
    multiple = module.net.multiple
    padded = F.pad(filled, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    return cast(Outputs, _cut(module.net(padded), height, width))


def _cut(found: Any, height: int, width: int) -> Any:
    """The same outputs, each map cut to the size of the image."""
    if isinstance(found, dict):
        return {name: _cut(value, height, width) for name, value in found.items()}
    if isinstance(found, tuple):
        return tuple(_cut(value, height, width) for value in found)
    return found[..., :height, :width]


def _require_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(std):
        raise ModelError(
            f"normalisation needs a mean and a std for each band, got {len(mean)} and {len(std)}",
            hint="measure both over the same training tiles",
        )
    finite = torch.isfinite(torch.tensor([mean, std], dtype=torch.float32)).all(dim=0).tolist()
    bad = [band for band, deviation in enumerate(std) if not finite[band] or deviation <= 0]
    if bad:
        raise ModelError(
            f"bands without a usable mean and std, counted from 0: {listed(bad)}",
            hint="a band that is constant or never observed tells nothing: leave it out",
        )
