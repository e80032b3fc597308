"""Segmentation models: the only place of the project that imports segmentation_models_pytorch (smp).

For: `build(settings, channels, classes, mean, std)`, and `deployed(module)` for delivery.
Promises: raw images of any size with NaN where nothing was observed become logits of the same size; every parameter
takes part in the training; an encoder's weights fit tensor by tensor or are an error that names the tensors.
Does not: choose a rung of the ladder (outlast.model.segmenter_settings) or hold a loss.

The U-Net's decoder upsamples by nearest neighbour and then convolves, which has a gradient that repeats on CUDA.
With 5 channels, 4 classes, scSE attention and the boundary head it has 24,559,225 parameters on ResNet34 and
14,451,065 on ResNet18 (24,556,872 and 14,448,712 as deployed).
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from outlast.errors import ModelError, listed
from outlast.model import backbone, own_weights
from outlast.model.glavitu import Glavitu
from outlast.model.normalised import BoundaryHead, Deployed, Normalised, Outputs, SegmentationNet
from outlast.model.plain_unet import PlainUnet
from outlast.model.segmenter_settings import (
    GLAVITU,
    PLAIN,
    GlavituSettings,
    SegmenterSettings,
    rung_settings,
    rungs,
    small_glavitu,
)

__all__ = ["GlavituSettings", "SegmenterSettings", "build", "deployed", "rung_settings", "rungs", "small_glavitu"]

logger = logging.getLogger(__name__)

_TIMM = "tu-"  # smp's prefix of encoders that it takes from timm
_TRIAL_SIDE = 64


def build(
    settings: SegmenterSettings, channels: int, classes: int, mean: Sequence[float], std: Sequence[float]
) -> Normalised:
    """Return the model with its normalisation: raw (B, channels, H, W) to {"logits": (B, classes, H, W), ...}.

    `mean` and `std` hold one number for each channel, in the unit of the raw values. Raises ModelError.
    """
    if len(mean) != channels:
        raise ModelError(
            f"{channels} channels need as many means, got {len(mean)}", hint="measure them over the same bands"
        )
    with torch.inference_mode(False), torch.enable_grad():  # the parts that are used are found by a gradient
        return Normalised(_net(settings, channels, classes), mean, std)


def deployed(module: Normalised) -> Deployed:
    """A copy that gives logits only, without the heads that only losses need; for export and delivery."""
    return Deployed(module)


def _net(settings: SegmenterSettings, channels: int, classes: int) -> SegmentationNet:
    if settings.architecture == GLAVITU:
        head, dropout = settings.boundary_head, settings.dropout
        return Glavitu(settings.glavitu, channels, classes, boundary_head=head, dropout=dropout)
    if settings.encoder == PLAIN:
        head, dropout = settings.boundary_head, settings.dropout
        return PlainUnet(settings.width, settings.depth, channels, classes, boundary_head=head, dropout=dropout)
    return BoundaryUnet(settings, channels, classes)


class BoundaryUnet(SegmentationNet):
    """A U-Net with attention in its decoder, whose last features also predict the boundaries of the classes."""

    training_only = ("boundary",)

    def __init__(self, settings: SegmenterSettings, channels: int, classes: int) -> None:
        super().__init__()
        unet = _unet(settings, channels, classes)
        first = _first_convolution(unet.encoder, channels, settings.encoder)
        if (settings.weights is not None or settings.pretrained) and not own_weights.are_coming():
            _load_encoder(unet.encoder, settings, f"{first}.weight")
        self.multiple = 2**settings.depth
        self.encoder, self.decoder, self.head = unet.encoder, unet.decoder, unet.segmentation_head
        self.dropout = nn.Dropout2d(settings.dropout)
        self.boundary: nn.Module | None = BoundaryHead(settings.decoder[-1]) if settings.boundary_head else None
        self.channel_tensors = {f"encoder.{first}.weight": 1}
        self.class_tensors = {"head.0.weight": 0, "head.0.bias": 0}
        _drop_unused(self, channels, settings.encoder)

    def forward(self, images_BCHW: Tensor) -> Outputs:
        """Map complete images to logits (B, K, H, W) and boundary logits (B, 1, H, W)."""
        *shallow, deepest = self.encoder(images_BCHW)
        decoded = self.decoder([*shallow, self.dropout(deepest)])
        outputs: Outputs = {"logits": self.head(decoded)}
        if self.boundary is not None:
            outputs["boundary"] = self.boundary(decoded)
        return outputs


def _unet(settings: SegmenterSettings, channels: int, classes: int) -> Any:
    """smp's U-Net, of which `BoundaryUnet` takes the parts."""
    name = settings.encoder
    smp = _library(name)
    _require_known(name, smp)
    try:
        return smp.Unet(
            name,
            encoder_depth=settings.depth,
            encoder_weights=None,
            decoder_use_norm=settings.decoder_norm,
            decoder_channels=settings.decoder,
            decoder_attention_type=None if settings.attention == "none" else settings.attention,
            decoder_interpolation="nearest",
            in_channels=channels,
            classes=classes,
        )
    except (
        RuntimeError,
        ValueError,
        AssertionError,
        TypeError,
        IndexError,
        KeyError,
    ) as error:  # as its encoders raise
        raise _no_encoder(name, error) from error


def _library(name: str) -> Any:
    """smp, imported only where one of its encoders is wanted: a platform's image may be without it."""
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise ModelError(
            f"the encoder {name!r} needs segmentation-models-pytorch, which is not installed ({error})",
            hint="install it without touching torch (pip install --no-deps segmentation-models-pytorch), or take "
            "model.encoder=plain or model.architecture=glavitu",
        ) from error
    return segmentation_models_pytorch


def _require_known(name: str, smp: Any) -> None:
    if name.startswith(_TIMM):
        backbone.normalisation(name.removeprefix(_TIMM))  # an unknown name is an error that suggests the closest
        return
    known = smp.encoders.get_encoder_names()
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    suggestion = f"did you mean {', '.join(close)}?" if close else "resnet34 and resnet18 are the usual ones"
    raise ModelError(f"there is no encoder named {name!r}", hint=f"{suggestion} A timm model is named {_TIMM}NAME")


def _no_encoder(name: str, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"{name!r} does not serve as the encoder of a U-Net: {reason}",
        hint="take a convolutional one whose stages halve the resolution, such as resnet34, or another depth",
    )


def _first_convolution(encoder: nn.Module, channels: int, name: str) -> str:
    """The name of the layer that the image enters."""
    for module_name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            return str(module_name)
    raise _no_encoder(name, ValueError(f"no convolution of it takes {channels} channels"))


def _drop_unused(net: BoundaryUnet, channels: int, encoder: str) -> None:
    """Take out what no output depends on (stages below a smaller depth, attention without a skip): it never learns."""
    parameters = list(net.parameters())
    net.eval()
    try:
        outputs = net(torch.zeros(1, channels, _TRIAL_SIDE, _TRIAL_SIDE))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise _no_encoder(encoder, error) from error
    finally:
        net.train()
    total = torch.stack([maps.sum() for maps in outputs.values()]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    reached = {id(value) for value, found in zip(parameters, gradients, strict=True) if found is not None}
    _drop_outside(net, reached)


def _drop_outside(module: nn.Module, reached: set[int]) -> None:
    for name, child in module.named_children():
        own = [id(parameter) for parameter in child.parameters()]
        if own and reached.isdisjoint(own):
            setattr(module, name, nn.Identity())  # not deleted: smp still calls it or names it
        else:
            _drop_outside(child, reached)


def _load_encoder(encoder: nn.Module, settings: SegmenterSettings, first: str) -> None:
    """Load a file or the published weights; stages and heads that the encoder does not have are left out."""
    name = settings.encoder.removeprefix(_TIMM)
    source = settings.weights or f"the published weights of {name!r}"
    if settings.weights is not None:
        given = backbone.read_weights(settings.weights)
    else:
        given = backbone.published_weights(name)
    # timm's feature extractors write stages_0 where its classifiers write stages.0.
    flat = {_flat(key): tensor for key, tensor in given.items()}
    prefix = "model." if settings.encoder.startswith(_TIMM) else ""
    own = encoder.state_dict()
    fitting = {key: flat[short] for key in own if (short := _flat(key.removeprefix(prefix))) in flat}
    if first in fitting and fitting[first].shape[1] == 3:
        fitting[first] = backbone.fit_channels(fitting[first], own[first].shape[1])
    _require_fit(fitting, own, source)
    encoder.load_state_dict(fitting)
    logger.info("%s: %d of its %d tensors are the encoder's", source, len(fitting), len(given))


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _require_fit(fitting: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    missing = [key for key in own if key not in fitting]
    reshaped = [
        f"{key} {tuple(value.shape)}, the encoder has {tuple(own[key].shape)}"
        for key, value in fitting.items()
        if value.shape != own[key].shape
    ]
    details = [
        f"{kind} {len(keys)}: {listed(keys, 5)}"
        for kind, keys in (("missing", missing), ("other shape", reshaped))
        if keys
    ]
    if details:
        raise ModelError(
            f"{source} does not fit the encoder",
            hint=f"name the encoder that it was made with; that of a timm model is {_TIMM}NAME",
            details=details,
        )
