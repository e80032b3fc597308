"""The settings of the task "glaciers", and its presets."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from outlast.config.schema import Settings, TaskConfig, Training
from outlast.data.segment_augment import SegmentAugmentation
from outlast.data.texture import Texture
from outlast.model.objective import PHASE_A, PHASE_B, SegmentationLoss
from outlast.model.segmenter_settings import SegmenterSettings
from outlast.tasks.glaciers.layout import CLASSES

Share = Annotated[float, Field(ge=0, le=1)]
Tta = Literal["none", "flips", "dihedral"]


class GlaciersBands(Settings):
    """Which channels the model gets."""

    use: tuple[str, ...] | None = Field(None, min_length=1, description="folder names of bands; none: all there are")
    texture: bool = Field(False, description="add contrast and energy of grey-level co-occurrence (GLCM) of one band")
    texture_band: str = Field("Band4", description="folder of the band that textures are made of (SWIR1 is Band4)")
    texture_range: tuple[float, float] = Field((0.0, 256.0), description="values that the grey levels divide evenly")
    glcm: Texture = Texture()

    def idle(self) -> dict[str, str]:
        names = () if self.texture else ("texture_band", "texture_range", *(f"glcm.{n}" for n in Texture.model_fields))
        return dict.fromkeys(names, "bands.texture is false")

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        if self.texture_range[0] >= self.texture_range[1]:
            raise ValueError(f"texture_range {self.texture_range} does not rise; give the lower value first")
        return self


class GlaciersData(Settings):
    """How tiles are cut, and who is judged on what."""

    window: int = Field(512, ge=16, le=2048, description="larger tiles are cut into windows of this side, in pixels")
    crop: int = Field(256, ge=16, le=2048, description="side of what the model trains on, cut from a window")
    folds: int = Field(1, ge=1, le=20, description="1: the split that the data gives; more: cross-validation")
    folds_by: Literal["geography", "tile"] = Field(
        "geography", description="geography: neighbouring tiles stay in one fold"
    )
    val_fraction: float = Field(0.2, gt=0, lt=0.5, description="of the tiles, where one fold has no val split")
    split_seed: int = Field(0, ge=0, lt=2**32)

    def idle(self) -> dict[str, str]:
        return {"folds_by": "data.folds is 1"} if self.folds == 1 else {"val_fraction": "data.folds is not 1"}

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.window:
            raise ValueError(f"crop={self.crop} is larger than window={self.window}; make it smaller")
        return self


class Sampling(Settings):
    """Which pixels a training epoch shows."""

    balanced: bool = Field(True, description="crops around pixels of the classes, in the shares below")
    background: Share = 0.10
    ice: Share = 0.35
    debris: Share = 0.40
    lake: Share = 0.15
    samples: int | None = Field(None, ge=1, description="crops per epoch; none: as many as cover the training windows")

    def shares(self) -> dict[int, float]:
        """{class: share}."""
        return {number: getattr(self, name) for number, name in enumerate(CLASSES)}

    def idle(self) -> dict[str, str]:
        return {} if self.balanced else dict.fromkeys(CLASSES, "sampling.balanced is false")


class Pretraining(Settings):
    """The stage before: on HKH patches (Hindu Kush Himalaya), given as --data pretrain=DIR."""

    enabled: bool = False
    fraction: float = Field(1.0, gt=0, le=1, description="of the patches, chosen by their names")
    channels: tuple[Annotated[int, Field(ge=0, le=14)], ...] = Field(
        (0, 1, 2, 4, 6), min_length=1, description="of the 15 channels: blue, green, red, SWIR1, thermal"
    )
    partial: bool = Field(False, description="allow weights that fit only in part; the account says which")
    loss: SegmentationLoss = PHASE_A.model_copy(update={"boundary_head": 0.1})
    train: Training = Training(
        epochs=60, batch_size=16, learning_rate=5e-4, weight_decay=0.01, schedule="plateau", plateau_patience_epochs=5
    )

    def idle(self) -> dict[str, str]:
        names = () if self.enabled else ("fraction", "channels", "partial")
        return dict.fromkeys(names, "pretrain.enabled is false")


class GlaciersConfig(TaskConfig):
    """Everything that can be set."""

    bands: GlaciersBands = GlaciersBands()
    data: GlaciersData = GlaciersData()
    sampling: Sampling = Sampling()
    augment: SegmentAugmentation = SegmentAugmentation()
    model: SegmenterSettings = SegmenterSettings()
    members: tuple[str, ...] = Field(
        (), description="encoders (or glavitu) that are trained each and averaged; none: only model.encoder"
    )
    repeats: int = Field(1, ge=1, le=20, description="trainings of each member, from other random beginnings, averaged")
    loss: SegmentationLoss = PHASE_B
    tta: Tta = Field("dihedral", description="turned and mirrored views that are averaged when predicting")
    tile: int = Field(256, ge=32, le=2048, description="side of the overlapping tiles of whole scenes")
    overlap: float = Field(0.5, ge=0, lt=0.9, description="of a tile with its neighbour, where scenes are predicted")
    pretrain: Pretraining = Pretraining()

    @model_validator(mode="after")
    def _head_is_there(self) -> Self:
        if self.loss.boundary_head > 0 and not self.model.boundary_head:
            raise ValueError(
                f"loss.boundary_head={self.loss.boundary_head} needs what model.boundary_head=false leaves out; "
                "set the one to 0 or the other to true"
            )
        return self


class StageConfig(GlaciersConfig):
    """A training stage's own configuration: which rows it is judged on decides what its statistics are of."""

    fold: int | None = None


def smoke() -> GlaciersConfig:
    """A minute on a CPU: does everything work?"""
    return GlaciersConfig(
        data=GlaciersData(window=64, crop=64),
        model=SegmenterSettings(encoder="resnet18", depth=3, attention="none"),
        loss=SegmentationLoss(cross_entropy=0.5, dice=0.25, mcc=0.25, boundary_head=0.1),
        tta="flips",
        tile=64,
        train=Training(epochs=8, batch_size=16, learning_rate=2e-3, weight_decay=0.01, ema_decay=0.95, threads=1),
    )


def cpu() -> GlaciersConfig:
    """Some minutes on two cores, for small tiles. Tuned on the val block of one Landsat scene (LOG.md)."""
    return GlaciersConfig(
        data=GlaciersData(window=64, crop=64),
        sampling=Sampling(background=0.25, ice=0.35, debris=0.35, lake=0.05),
        model=SegmenterSettings(encoder="plain", width=24, depth=3),
        repeats=3,
        loss=SegmentationLoss(cross_entropy=0.35, dice=0.25, mcc=0.4, boundary_head=0.05),
        tile=128,
        train=Training(
            epochs=40, batch_size=16, learning_rate=1e-3, weight_decay=0.01, warmup_fraction=0.05, ema_decay=0.97
        ),
    )


def t4() -> GlaciersConfig:
    """One session on a free GPU, 512 px tiles. Its settings were not measured yet."""
    return GlaciersConfig(
        train=Training(
            epochs=150, batch_size=32, learning_rate=5e-4, weight_decay=0.01, warmup_fraction=0.05, ema_decay=0.999,
            precision="fp16", needs_gpu=True,
        ),
    )  # fmt: skip


def full() -> GlaciersConfig:
    """Several sessions: HKH pretraining, five folds, two encoders and the hybrid. Not measured yet."""
    return GlaciersConfig(
        data=GlaciersData(folds=5),
        members=("resnet34", "resnet18", "glavitu"),
        pretrain=Pretraining(
            enabled=True,
            train=Training(
                epochs=60, batch_size=32, learning_rate=5e-4, weight_decay=0.01, schedule="plateau",
                plateau_patience_epochs=5, precision="fp16", needs_gpu=True,
            ),
        ),
        train=Training(
            epochs=150, batch_size=32, learning_rate=5e-4, weight_decay=0.01, warmup_fraction=0.05, ema_decay=0.999,
            precision="fp16", needs_gpu=True,
        ),
    )  # fmt: skip


PRESETS = {"smoke": smoke, "cpu": cpu, "t4": t4, "full": full}
