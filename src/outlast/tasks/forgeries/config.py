"""The settings of the task "forgeries", and its presets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from outlast.config.schema import Settings, TaskConfig, Training
from outlast.model.copy_move_settings import CopyMoveSettings
from outlast.tasks.forgeries.classical import ClassicalSettings
from outlast.tasks.forgeries.composer import Composition

Choice = Literal["network", "classical", "fusion"]
Tta = Literal["none", "flips", "dihedral"]


class ForgeriesData(Settings):
    """How images are brought to one size, and what an epoch shows."""

    side: int = Field(
        512, ge=32, le=4096, description="longer images are scaled down to this longer side, and results back up"
    )
    crop: int = Field(192, ge=32, le=2048, description="side of what the network trains on, in pixels")
    samples: int = Field(256, ge=1, description="crops of an epoch")
    real: float = Field(0.25, ge=0, le=1, description="share of crops of forged images that get no further forgery")
    split_seed: int = Field(0, ge=0, lt=2**32)
    compose: Composition = Composition()

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.side:
            raise ValueError(f"crop={self.crop} is larger than side={self.side}; make it smaller")
        return self


class ForgeryLoss(Settings):
    """What is minimised: the sum of these, each averaged over images."""

    cross_entropy: float = Field(1.0, ge=0, description="of pixels")
    dice: float = Field(1.0, ge=0, description="of pixels; of images with a forgery alone")
    image: float = Field(0.2, ge=0, description="cross entropy of the image's score")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.cross_entropy + self.dice == 0:
            raise ValueError("cross_entropy and dice are both 0: nothing says where a forgery is; raise one of them")
        return self


class Decision(Settings):
    """How maps become instances."""

    model: Choice = Field("fusion", description="what decides: the network, the classical baseline, or both together")
    minimum_area: int = Field(24, ge=1, description="of a region, in pixels of the original image")
    folds: int = Field(5, ge=2, le=50, description="groups that the calibration is judged by, each by all others")


class ForgeriesConfig(TaskConfig):
    """Everything that can be set."""

    data: ForgeriesData = ForgeriesData()
    model: CopyMoveSettings = CopyMoveSettings()
    loss: ForgeryLoss = ForgeryLoss()
    classical: ClassicalSettings = ClassicalSettings()
    decision: Decision = Decision()
    tta: Tta = Field("none", description="turned and mirrored views that are averaged when predicting")


class StageConfig(TaskConfig):
    """What the training of the network depends on."""

    data: ForgeriesData = ForgeriesData()
    model: CopyMoveSettings = CopyMoveSettings()
    loss: ForgeryLoss = ForgeryLoss()
    tta: Tta = "none"


class MatchConfig(TaskConfig):
    """What the classical baseline depends on."""

    data: ForgeriesData = ForgeriesData()
    classical: ClassicalSettings = ClassicalSettings()


def smoke() -> ForgeriesConfig:
    """A minute on a CPU: does everything work?"""
    return ForgeriesConfig(
        data=ForgeriesData(side=128, crop=64, samples=96),
        model=CopyMoveSettings(width=8, stem=4, top=3, kept=2, refine=1, radius=8),
        train=Training(epochs=3, batch_size=8, learning_rate=3e-3, weight_decay=0.01, ema_decay=0.9, threads=1),
    )


def cpu() -> ForgeriesConfig:
    """At most 25 minutes on two cores, from scratch, for small images."""
    return ForgeriesConfig(
        data=ForgeriesData(crop=160, samples=320),
        model=CopyMoveSettings(width=16, stem=8, top=4),
        train=Training(
            epochs=24, batch_size=8, learning_rate=3e-3, weight_decay=0.01, warmup_fraction=0.05, ema_decay=0.97,
            evaluate_every_epochs=8,
        ),
    )  # fmt: skip


def t4() -> ForgeriesConfig:
    """One session on a free GPU, from scratch, images of up to 1024 pixels. Not measured yet."""
    return ForgeriesConfig(
        data=ForgeriesData(side=1024, crop=320, samples=4096),
        model=CopyMoveSettings(width=32, stem=16),
        tta="flips",
        train=Training(
            epochs=40, batch_size=16, learning_rate=2e-3, weight_decay=0.01, warmup_fraction=0.05, ema_decay=0.999,
            precision="fp16", needs_gpu=True,
        ),
    )  # fmt: skip


def full() -> ForgeriesConfig:
    """Several sessions: with the tokens of DINOv2, frozen. Not measured yet."""
    return ForgeriesConfig(
        data=ForgeriesData(side=1024, crop=448, samples=8192),
        model=CopyMoveSettings(backbone="vit_small_patch14_dinov2", pretrained=True, width=32, stem=16),
        tta="dihedral",
        train=Training(
            epochs=60, batch_size=16, learning_rate=1e-3, weight_decay=0.01, warmup_fraction=0.05, ema_decay=0.999,
            precision="fp16", needs_gpu=True,
        ),
    )  # fmt: skip


PRESETS = {"smoke": smoke, "cpu": cpu, "t4": t4, "full": full}
