"""The settings of the task "plants", and its presets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from outlast.config.schema import Settings, TaskConfig, Training
from outlast.data.augment import Augmentation
from outlast.tasks.plants.models import OWN, SClusterFormerSettings

Count = Annotated[int, Field(ge=1, le=4096)]


class PlantsData(Settings):
    """Which pixels of a photo the model sees, and how the photos are split."""

    image_size: int = Field(64, ge=16, le=1024, description="side of the square that the model gets, in pixels")
    center_crop: float = Field(1.0, gt=0, le=1, description="part of each side that is kept, from the middle")
    oversize: float = Field(1.25, ge=1, le=4, description="decoded samples are kept this much larger, for cropping")
    val_fraction: float = Field(0.15, gt=0, lt=0.5, description="of the photos, where the data gives no val split")
    test_fraction: float = Field(0.15, gt=0, lt=0.5, description="of the photos, where the data gives no test split")
    split_seed: int = Field(0, ge=0, lt=2**32)
    balanced: bool = Field(False, description="draw every class equally often in training")
    augment: Augmentation = Augmentation()


class SClusterFormerModel(Settings):
    """Hyper-parameters of sclusterformer; one number per stage in dims, depths and heads."""

    stem_scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field((1.0, 5 / 3, 7 / 3), min_length=1)
    stem_channels: int = Field(64, ge=4, le=512)
    patch_stride: int = Field(4, ge=1, le=32)
    patches: Literal["linear", "overlap"] = "linear"
    dims: tuple[Count, ...] = (32,)
    depths: tuple[Count, ...] = (2,)
    heads: tuple[Count, ...] = (4,)
    token_limit: int = Field(64, ge=1, le=4096)
    mlp_ratio: float = Field(4.0, ge=0.25, le=16)
    local: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    head_dropout: float = Field(0.0, ge=0, lt=1)

    def settings(self) -> SClusterFormerSettings:
        """As the model takes them. Raises ModelError if they contradict each other."""
        return SClusterFormerSettings(**self.model_dump())


class PlantsModel(Settings):
    """Which model: a rung of the ladder, or any timm classifier by name."""

    name: str = Field("sclusterformer", description="sclusterformer, minimal, tiny, or a timm model such as resnet18")
    pretrained: bool = Field(False, description="begin with published weights (timm models)")
    weights: str | None = Field(None, description="a local file of pretrained weights (timm models)")
    sclusterformer: SClusterFormerModel = SClusterFormerModel()

    def idle(self) -> dict[str, str]:
        return {"pretrained": "model.weights is given"} if self.weights is not None and self.pretrained else {}

    def downloads(self) -> tuple[str, ...]:
        return (self.name,) if self.pretrained and self.weights is None and self.name not in OWN else ()


class PlantsLoss(Settings):
    """Cross entropy and its options."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: inverse to how often a class occurs"
    )


class PlantsConfig(TaskConfig):
    """Everything that can be set."""

    data: PlantsData = PlantsData()
    model: PlantsModel = PlantsModel()
    loss: PlantsLoss = PlantsLoss()

    def multiples(self) -> dict[str, dict[str, int]]:
        if self.model.name != "sclusterformer":
            return {}
        return {
            "data.image_size": {"model.sclusterformer.patch_stride": self.model.sclusterformer.patch_stride},
        }


def smoke() -> PlantsConfig:
    """A minute on a CPU: does everything work?"""
    turned = Augmentation(crop_scale=(0.7, 1.0), vertical_flip=True, rotation_degrees=180)
    return PlantsConfig(
        data=PlantsData(augment=turned),
        model=PlantsModel(name="minimal"),
        loss=PlantsLoss(label_smoothing=0.1),
        train=Training(
            epochs=60, learning_rate=2e-3, weight_decay=0.1, warmup_fraction=0.05, ema_decay=0.95, threads=1
        ),
    )


def cpu() -> PlantsConfig:
    """Some minutes on two cores. Tuned on small sets of potato and rice leaves (LOG.md)."""
    return PlantsConfig(
        data=PlantsData(image_size=96, augment=_strong_augmentation()),
        model=PlantsModel(
            sclusterformer=SClusterFormerModel(
                stem_scales=(1.0,), stem_channels=16, patch_stride=8, patches="overlap", token_limit=144, local=True,
                dims=(48,), depths=(2,), heads=(4,), mlp_ratio=3.0, dropout=0.1, drop_path=0.2, head_dropout=0.3,
            )
        ),
        loss=PlantsLoss(label_smoothing=0.1),
        train=Training(
            epochs=30, minimum_steps=400, learning_rate=1e-3, weight_decay=0.1, warmup_fraction=0.05, ema_decay=0.99
        ),
    )  # fmt: skip


def t4() -> PlantsConfig:
    """One session on a free GPU: larger images, two stages, half precision. Its settings were not measured yet."""
    return PlantsConfig(
        data=PlantsData(image_size=160, augment=_strong_augmentation()),
        model=PlantsModel(
            sclusterformer=SClusterFormerModel(
                stem_scales=(1.0,), stem_channels=32, patch_stride=8, patches="overlap", token_limit=400, local=True,
                dims=(64, 128), depths=(2, 2), heads=(4, 8), mlp_ratio=3.0, dropout=0.1, drop_path=0.2,
                head_dropout=0.3,
            )
        ),
        loss=PlantsLoss(label_smoothing=0.1),
        train=Training(
            epochs=60, minimum_steps=3000, batch_size=64, learning_rate=1e-3, weight_decay=0.1, warmup_fraction=0.05,
            ema_decay=0.998, precision="fp16", needs_gpu=True,
        ),
    )  # fmt: skip


def full() -> PlantsConfig:
    """Several sessions: three stages at 224 pixels. Its settings were not measured yet."""
    return PlantsConfig(
        data=PlantsData(image_size=224, augment=_strong_augmentation()),
        model=PlantsModel(
            sclusterformer=SClusterFormerModel(
                stem_scales=(1.0,), stem_channels=32, patch_stride=8, patches="overlap", token_limit=784, local=True,
                dims=(64, 128, 256), depths=(2, 4, 2), heads=(4, 8, 8), mlp_ratio=3.0, dropout=0.1, drop_path=0.2,
                head_dropout=0.3,
            )
        ),
        loss=PlantsLoss(label_smoothing=0.1),
        train=Training(
            epochs=200, minimum_steps=10_000, batch_size=64, learning_rate=1e-3, weight_decay=0.1,
            warmup_fraction=0.05, ema_decay=0.9995, precision="fp16", needs_gpu=True,
        ),
    )  # fmt: skip


def _strong_augmentation() -> Augmentation:
    return Augmentation(
        crop_scale=(0.5, 1.0), crop_aspect=(1 / 1.2, 1.2), horizontal_flip=True, vertical_flip=True,
        rotation_degrees=180, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03, erase=0.3,
    )  # fmt: skip


PRESETS = {"smoke": smoke, "cpu": cpu, "t4": t4, "full": full}
