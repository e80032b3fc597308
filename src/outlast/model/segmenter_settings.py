"""The settings of the segmentation models, and the ladder of smaller ones to fall back on.

For: a task's configuration; it needs neither torch nor a model library to be read.
Promises: settings that contradict each other are refused with the reason; those without effect are named by `idle`.
Does not: build anything; see outlast.model.segmenter.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from outlast.config.schema import Settings

GLAVITU, PLAIN, SMALL = "glavitu", "plain", "small"
LIGHT_ENCODER = "resnet18"
_DECODER_CHANNELS = (256, 128, 64, 32, 16)  # those of smp's U-Net, deepest first
_ENCODED = ("decoder_channels", "decoder_norm", "attention", "pretrained", "weights")  # not of the plain encoder
_SQUEEZE = 16  # scSE divides the channels by this
_SMALL_WIDTH, _SMALL_DEPTH = 12, 3

Width = Annotated[int, Field(ge=4, le=4096)]


class GlavituSettings(Settings):
    """Sizes of the hybrid. The defaults are for tiles of 256 pixels and more on a GPU; `small_glavitu` for a CPU."""

    patch: Literal[4, 8, 16] = Field(16, description="side of the patches that become tokens, in pixels")
    dim: int = Field(256, ge=8, le=2048, description="length of a token")
    layers: int = Field(8, ge=1, le=48, description="transformer layers")
    heads: int = Field(8, ge=1, le=64)
    mlp_ratio: float = Field(4.0, ge=0.5, le=8)
    positions: int = Field(16, ge=1, le=256, description="side of the learned grid of positions; others interpolate")
    features: int = Field(32, ge=4, le=512, description="channels that the transformer hands to the U-Net")
    width: int = Field(32, ge=4, le=512, description="channels of the U-Net at full resolution; doubled at each level")
    levels: int = Field(4, ge=2, le=6, description="resolutions of the U-Net, the full one included")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}; choose heads that divide it")
        return self


class SegmenterSettings(Settings):
    """Which segmentation model, and its sizes."""

    architecture: Literal["unet", "glavitu"] = "unet"
    encoder: str = Field(
        "resnet34", description="of the U-Net: plain (full resolution), a name known to smp, or tu-NAME of a timm model"
    )
    width: int = Field(24, ge=4, le=512, description="channels of the plain encoder, doubled at each level")
    depth: int = Field(5, ge=3, le=5, description="times that the encoder halves the resolution")
    decoder_channels: tuple[Width, ...] | None = Field(
        None, description="one number for each level, deepest first; none: chosen by depth"
    )
    decoder_norm: Literal["batchnorm", "instancenorm"] = "batchnorm"
    attention: Literal["scse", "none"] = Field("scse", description="squeeze and excitation in the decoder")
    boundary_head: bool = Field(True, description="predict the boundaries of classes too, for a loss on them")
    pretrained: bool = Field(False, description="begin with the encoder's published weights")
    weights: str | None = Field(None, description="a local file of the encoder's weights (timm's or torchvision's)")
    dropout: float = Field(0.0, ge=0, lt=1, description="of whole maps at the lowest resolution; of tokens")
    glavitu: GlavituSettings = GlavituSettings()

    @property
    def decoder(self) -> tuple[int, ...]:
        """Channels of the decoder's levels, deepest first."""
        return self.decoder_channels or _DECODER_CHANNELS[-self.depth :]

    def idle(self) -> dict[str, str]:
        if self.architecture == GLAVITU:
            names = ("encoder", "width", "depth", *_ENCODED)
            return dict.fromkeys(names, "they belong to the U-Net, and architecture is 'glavitu'")
        reasons = {f"{GLAVITU}.{name}": "architecture is 'unet'" for name in GlavituSettings.model_fields}
        if self.encoder == PLAIN:
            return reasons | dict.fromkeys(_ENCODED, "encoder is 'plain'")
        reasons["width"] = "encoder is not 'plain'"
        if self.pretrained and self.weights is not None:
            reasons["pretrained"] = "weights is given"
        return reasons

    def downloads(self) -> tuple[str, ...]:
        wanted = self.architecture == "unet" and self.encoder != PLAIN and self.pretrained and self.weights is None
        return (self.encoder.removeprefix("tu-"),) if wanted else ()

    @model_validator(mode="after")
    def _decoder_fits(self) -> Self:
        if self.encoder == PLAIN:
            return self
        if len(self.decoder) != self.depth:
            raise ValueError(f"decoder_channels has {len(self.decoder)} numbers and depth={self.depth}; give as many")
        if self.attention == "scse" and min(self.decoder) < _SQUEEZE:
            raise ValueError(
                f"attention='scse' needs decoder_channels of at least {_SQUEEZE}, got {min(self.decoder)}; "
                "widen it or set attention='none'"
            )
        return self


def small_glavitu() -> GlavituSettings:
    """The hybrid for tiles of 64 pixels on a CPU."""
    return GlavituSettings(patch=8, dim=64, layers=3, heads=4, positions=8, features=16, width=16, levels=4)


def rungs(settings: SegmenterSettings) -> tuple[str, ...]:
    """The wanted model, then a U-Net on ResNet18, then a plain, narrow one; a larger one than wanted is left out."""
    ladder: dict[str, SegmenterSettings] = {}
    lighter = (SMALL,) if settings.encoder == PLAIN and settings.architecture != GLAVITU else (LIGHT_ENCODER, SMALL)
    for rung in (_wanted(settings), *lighter):
        fitting = rung_settings(settings, rung)
        if fitting not in ladder.values():
            ladder.setdefault(rung, fitting)
    return tuple(ladder)


def rung_settings(settings: SegmenterSettings, rung: str) -> SegmenterSettings:
    """The settings of one rung of the ladder. Weights were asked for the wanted model: a smaller one has none."""
    if rung == _wanted(settings):
        return settings
    lighter = {"architecture": "unet", "encoder": LIGHT_ENCODER, "pretrained": False, "weights": None}
    if rung == SMALL:
        lighter |= {"encoder": PLAIN, "width": _SMALL_WIDTH, "depth": _SMALL_DEPTH, "decoder_channels": None}
    return SegmenterSettings.model_validate({**settings.model_dump(), **lighter})


def _wanted(settings: SegmenterSettings) -> str:
    return GLAVITU if settings.architecture == GLAVITU else settings.encoder
