"""The settings of the task "lesions", those of its stages, and its presets.

A stage's own configuration holds only what that stage depends on: the folds nothing of the models, a training nothing
of the other backbone. A quick test is another configuration, so it is another run: neither goes on with the other.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from outlast.config.schema import Settings, TaskConfig, Training
from outlast.data.augment import Augmentation
from outlast.model.boosting_settings import BoostingSettings

SMALL = "mobilenetv3_small_100"  # what a backbone that does not fit into memory falls back to


class QuickTest(Settings):
    """Does everything work? Fold 0 alone, few epochs, part of the rows, and no submission."""

    enabled: bool = Field(False, description="a run of its own, that no full run goes on with")
    epochs: int = Field(5, ge=1, description="of each training")
    rows: int = Field(50_000, ge=1, description="about so many training rows: whole patients, drawn after folding")

    def idle(self) -> dict[str, str]:
        return {} if self.enabled else dict.fromkeys(("epochs", "rows"), "quick.enabled is false")


class LesionsData(Settings):
    """Which rows, columns and pixels are used, and how patients are put into folds."""

    image_size: int = Field(224, ge=32, le=1024, description="side of the square that the models get, in pixels")
    oversize: float = Field(1.15, ge=1, le=4, description="decoded samples are kept this much larger, for cropping")
    folds: int = Field(5, ge=2, le=50, description="patients stay whole, each fold has both classes")
    split_seed: int = Field(0, ge=0, lt=2**32, description="of the folds")
    columns: tuple[str, ...] | None = Field(
        None, description="columns of the table that may be used; none: all that training and test table have"
    )
    leaks: tuple[str, ...] = Field((), description="further columns of this data set that give the answer away")
    unlisted_images: Literal["refuse", "allow"] = Field("refuse", description="images without a row in their table")
    validation_negatives: int | None = Field(
        None, ge=1, description="drawn per fold, beside all positives, for early stopping; none: all. Never the score"
    )
    augment: Augmentation = Augmentation(
        crop_scale=(0.7, 1.0), crop_aspect=(0.9, 1.1), vertical_flip=True, rotation_degrees=180
    )

    @property
    def decoded_side(self) -> int:
        """Side of a decoded sample in pixels."""
        return round(self.image_size * self.oversize)


class Sampling(Settings):
    """Which rows an epoch shows."""

    negatives_per_positive: float | None = Field(
        1.0,
        gt=0,
        le=1000,
        description="all positives, and so many negatives each, drawn anew every epoch; none: all rows",
    )


class LesionsLoss(Settings):
    """Binary cross entropy."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="positives count as 1 - half of this, negatives as half"
    )


class Backbone(Settings):
    """One of the image models: a timm model and a logit on top of its features."""

    name: str = Field(SMALL, description="a timm model")
    pretrained: bool = Field(False, description="begin with published weights, from the hub or its cache")
    weights: str | None = Field(None, description="a local file of published weights, such as an attached data set")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the features, before the logit")
    learning_rate: float | None = Field(None, gt=0, le=10, description="of the logit; none: train.learning_rate")
    backbone_rate: float = Field(1.0, gt=0, le=1, description="of the timm model's, as a part of that of the logit")

    @property
    def short(self) -> str:
        """What stages call it: the architecture, without the tag of its weights."""
        return self.name.partition(".")[0]

    def idle(self) -> dict[str, str]:
        return {"pretrained": "weights is given"} if self.weights is not None and self.pretrained else {}

    def downloads(self) -> tuple[str, ...]:
        return (self.name,) if self.pretrained and self.weights is None else ()


class Submission(Settings):
    """How the predictions of all folds become one number per test image."""

    average: Literal["probability", "rank"] = Field(
        "probability", description="rank: each fold's predictions count by their order alone"
    )


class DataConfig(TaskConfig):
    """What the folds and the table depend on."""

    data: LesionsData = LesionsData()
    quick: QuickTest = QuickTest()


class StageConfig(DataConfig):
    """What a training depends on."""

    model: Backbone = Backbone()
    sampling: Sampling = Sampling()
    loss: LesionsLoss = LesionsLoss()
    views: Literal["none", "flips", "dihedral"] = "none"


class EnsembleConfig(DataConfig):
    """What the ensemble depends on, beside what its stages have made. `train` gives seed and threads alone."""

    ensemble: BoostingSettings = BoostingSettings()


class LesionsConfig(DataConfig):
    """Everything that can be set. `train` counts for every training."""

    first: Backbone = Backbone()
    second: Backbone = Backbone(name="resnet10t")
    sampling: Sampling = Sampling()
    loss: LesionsLoss = LesionsLoss()
    views: Literal["none", "flips", "dihedral"] = Field(
        "flips", description="turned images whose predictions are averaged in extraction: none, 4 flips, 8 with turns"
    )
    ensemble: BoostingSettings = BoostingSettings()
    submission: Submission = Submission()

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """Both image models."""
        return (self.first, self.second)

    @property
    def trained_folds(self) -> tuple[int, ...]:
        """The folds that have a model: all, or fold 0 in a quick test."""
        return (0,) if self.quick.enabled else tuple(range(self.data.folds))

    def data_stage(self) -> DataConfig:
        """The configuration of the stages that train nothing."""
        return DataConfig(preset=self.preset, data=self.data, quick=self.quick)

    def ensemble_stage(self) -> EnsembleConfig:
        """The configuration of the ensemble."""
        return EnsembleConfig(
            preset=self.preset, data=self.data, quick=self.quick, ensemble=self.ensemble,
            train=Training(seed=self.train.seed, threads=self.train.threads),
        )  # fmt: skip

    def train_stage(self, model: Backbone) -> StageConfig:
        """The configuration of every training of one backbone."""
        changed: dict[str, object] = {}
        if model.learning_rate is not None:
            changed["learning_rate"] = model.learning_rate
        if self.quick.enabled:
            changed |= {"epochs": self.quick.epochs, "minimum_steps": 0}
        return StageConfig(
            preset=self.preset, data=self.data, quick=self.quick, model=model, sampling=self.sampling, loss=self.loss,
            views=self.views, loading=self.loading, saving=self.saving,
            train=Training.model_validate({**self.train.model_dump(), **changed}),
        )  # fmt: skip

    @model_validator(mode="after")
    def _two_different_backbones(self) -> Self:
        if self.first.short == self.second.short:
            raise ValueError(
                f"first.name and second.name are both {self.first.short!r}; two models of one kind say the same, "
                "name another timm model for one of them"
            )
        return self


def smoke() -> LesionsConfig:
    """A minute on a CPU: does everything work?"""
    return LesionsConfig(
        data=LesionsData(image_size=32, folds=2, validation_negatives=200),
        sampling=Sampling(negatives_per_positive=6.0),
        first=Backbone(name="test_efficientnet"),
        second=Backbone(name="test_resnet"),
        ensemble=BoostingSettings(rounds=200, patience_rounds=30, inner_parts=3, seeds=2, learning_rate=0.1),
        train=Training(epochs=12, batch_size=16, learning_rate=3e-3, warmup_fraction=0.1, ema_decay=0.9, threads=1),
    )


def cpu() -> LesionsConfig:
    """At most 25 minutes on two cores, from scratch, for a thousand images."""
    return LesionsConfig(
        data=LesionsData(image_size=64, oversize=1.25),
        first=Backbone(name="resnet10t"),
        second=Backbone(name="regnetx_002"),
        sampling=Sampling(negatives_per_positive=None),
        loss=LesionsLoss(label_smoothing=0.05),
        views="dihedral",
        ensemble=BoostingSettings(seeds=5, leaves=4, leaf_rows=20, l2=10.0),
        train=Training(epochs=30, warmup_fraction=0.05, ema_decay=0.98),
    )


def t4() -> LesionsConfig:
    """A session on a free GPU: smaller relatives of the full backbones at 160 pixels. Not measured yet."""
    return LesionsConfig(
        data=LesionsData(image_size=160, validation_negatives=8000),
        first=Backbone(name="convnextv2_atto.fcmae_ft_in1k", pretrained=True, backbone_rate=0.2),
        second=Backbone(name="resnet18.a1_in1k", pretrained=True, backbone_rate=0.2),
        train=Training(
            epochs=30, batch_size=96, learning_rate=1e-3, warmup_fraction=0.05, ema_decay=0.99, patience_epochs=5,
            precision="fp16", needs_gpu=True,
        ),
    )  # fmt: skip


def full() -> LesionsConfig:
    """EVA-02 and ConvNeXt V2 at 224 pixels, five folds: about 21 hours on a free GPU. Not measured yet."""
    return LesionsConfig(
        data=LesionsData(image_size=224, validation_negatives=20_000),
        first=Backbone(
            name="eva02_base_patch14_224.mim_in22k", pretrained=True, learning_rate=2e-4, backbone_rate=0.1, dropout=0.1
        ),
        second=Backbone(
            name="convnextv2_nano.fcmae_ft_in22k_in1k", pretrained=True, learning_rate=5e-4, backbone_rate=0.2,
            dropout=0.1,
        ),
        train=Training(
            epochs=50, batch_size=96, micro_batch=32, warmup_fraction=0.05, ema_decay=0.995, patience_epochs=5,
            precision="fp16", needs_gpu=True,
        ),
    )  # fmt: skip


PRESETS = {"smoke": smoke, "cpu": cpu, "t4": t4, "full": full}
