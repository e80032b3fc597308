"""The settings of the task "wildfires", those of its stages, and its presets.

A stage's own configuration holds only what that stage depends on: the teacher's neither student nor loss, so that all
students of a sweep share one teacher; that of the student without a teacher no loss, so that there is one for all.
"""

from __future__ import annotations

from pydantic import Field

from outlast.config.schema import TaskConfig, Training
from outlast.data.augment import Augmentation
from outlast.model.distillation_settings import DistillationLoss, DualSettings, StudentSettings
from outlast.tasks.wildfires.pairs import Thermal
from outlast.tasks.wildfires.split import Splitting

# What the teacher's training takes over from the student's: these belong to the run and its machine.
SHARED = ("seed", "threads", "precision", "deterministic", "memory_budget_gigabytes", "needs_gpu", "fallback")
_MEANT_BY_NAME = tuple(sorted(DualSettings.model_fields))


class WildfiresData(Splitting):
    """Which pixels the models see, how pairs are split, and how many an epoch shows."""

    image_size: int = Field(64, ge=32, le=1024, description="side of the square that the models get, in pixels")
    oversize: float = Field(1.25, ge=1, le=4, description="decoded samples are kept this much larger, for cropping")
    epoch_pairs: int = Field(
        0, ge=0, description="small sets are shown again within an epoch, each time cut anew, until it has so many"
    )
    thermal: Thermal = Thermal()
    augment: Augmentation = Augmentation(
        crop_scale=(0.7, 1.0), crop_aspect=(0.9, 1.1), brightness=0.25, contrast=0.25, saturation=0.25
    )

    @property
    def decoded_side(self) -> int:
        """Side of a decoded sample in pixels."""
        return round(self.image_size * self.oversize)


class Teacher(DualSettings):
    """The model over RGB and infrared, and how it is trained."""

    train: Training = Training(
        epochs=50, learning_rate=1e-4, schedule="plateau", plateau_patience_epochs=2, patience_epochs=5
    )

    def settings(self) -> DualSettings:
        """The model alone."""
        return DualSettings.model_validate({name: getattr(self, name) for name in _MEANT_BY_NAME})

    def idle(self) -> dict[str, str]:
        return {**super().idle(), **{f"train.{name}": f"train.{name} counts for the teacher too" for name in SHARED}}


class WildfiresConfig(TaskConfig):
    """Everything that can be set. `train` is the student's training, with and without a teacher."""

    data: WildfiresData = WildfiresData()
    teacher: Teacher = Teacher()
    student: StudentSettings = StudentSettings()
    loss: DistillationLoss = DistillationLoss()
    baseline: bool = Field(True, description="train the same student without a teacher too, for comparison")
    train: Training = Training(
        epochs=30, learning_rate=1e-3, schedule="plateau", plateau_patience_epochs=2, patience_epochs=5
    )

    def teacher_stage(self) -> TeacherConfig:
        """What the teacher's training depends on."""
        shared = {name: getattr(self.train, name) for name in SHARED}
        return TeacherConfig(
            preset=self.preset, data=self.data, model=self.teacher.settings(), loading=self.loading, saving=self.saving,
            train=Training.model_validate({**self.teacher.train.model_dump(), **shared}),
        )  # fmt: skip

    def student_stage(self, *, taught: bool) -> StudentConfig:
        """What the student's training depends on, with its teacher or without."""
        return StudentConfig(
            preset=self.preset, data=self.data, model=self.student, train=self.train, loading=self.loading,
            saving=self.saving, loss=self.loss if taught else None, teacher=self.teacher.settings() if taught else None,
        )  # fmt: skip


class TeacherConfig(TaskConfig):
    """The teacher's own configuration."""

    data: WildfiresData = WildfiresData()
    model: DualSettings = DualSettings()


class StudentConfig(TaskConfig):
    """The student's own configuration. loss, teacher: none for a student that learns from labels alone."""

    data: WildfiresData = WildfiresData()
    model: StudentSettings = StudentSettings()
    loss: DistillationLoss | None = None
    teacher: DualSettings | None = None


StageConfig = TeacherConfig | StudentConfig


def smoke() -> WildfiresConfig:
    """A minute on a CPU: does everything work?"""
    return WildfiresConfig(
        data=WildfiresData(image_size=32, guard_frames=4),
        teacher=Teacher(name="test_resnet", train=_training(10, 2e-3, ema_decay=0.9)),
        student=StudentSettings(width=8, dropout=0.1),
        train=_training(10, 3e-3, ema_decay=0.9).model_copy(update={"threads": 1}),
    )


def cpu() -> WildfiresConfig:
    """At most 15 minutes on two cores: small images, a narrow student, and a teacher of half a million parameters.

    A larger teacher learns the wrong labels of a few hundred pairs by heart; timm made this one for tests. The rate
    falls by plan, and patience is long: the score of a few dozen validation pairs stands still or jumps by chance.
    """
    return WildfiresConfig(
        data=WildfiresData(image_size=64, epoch_pairs=1024),
        teacher=Teacher(name="test_resnet", train=_planned(10, 2e-3)),
        student=StudentSettings(width=16, dropout=0.2),
        train=_planned(15, 1e-3),
    )


def t4() -> WildfiresConfig:
    """One session on a free GPU: the full student, resnet18 as its teacher, half precision. Not measured yet."""
    return WildfiresConfig(
        data=WildfiresData(image_size=160, epoch_pairs=2048),
        teacher=Teacher(name="resnet18", train=_training(50, 3e-4, 64, 0.99)),
        train=_training(30, 1e-3, 64, 0.99).model_copy(update={"precision": "fp16", "needs_gpu": True}),
    )


def full() -> WildfiresConfig:
    """Several sessions: 224 pixels, resnet-152 with published weights as the teacher. Not measured yet."""
    return WildfiresConfig(
        data=WildfiresData(image_size=224, epoch_pairs=4096),
        teacher=Teacher(name="resnet-152", pretrained=True, train=_training(50, 1e-4, 64, 0.99)),
        loss=DistillationLoss(name="kl_l2_bce"),
        train=_training(30, 1e-3, 64, 0.99).model_copy(update={"precision": "fp16", "needs_gpu": True}),
    )


def _training(epochs: int, learning_rate: float, batch_size: int = 16, ema_decay: float = 0.98) -> Training:
    """AdamW that halves its rate when validation stands still, and stops after five epochs without a gain.

    What is validated is the running average of the weights: of small sets the scores jump from epoch to epoch without.
    """
    return Training(
        epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, schedule="plateau",
        plateau_patience_epochs=2, patience_epochs=5, ema_decay=ema_decay,
    )  # fmt: skip


def _planned(epochs: int, learning_rate: float) -> Training:
    """AdamW along a cosine, running averages of the weights, and an early stop only where most epochs bring nothing."""
    return Training(
        epochs=epochs, learning_rate=learning_rate, batch_size=16, ema_decay=0.98, patience_epochs=2 * epochs // 3
    )


PRESETS = {"smoke": smoke, "cpu": cpu, "t4": t4, "full": full}
