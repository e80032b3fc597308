"""Students: classifiers over RGB alone that are small enough for what flies, and what they need to be taught.

For: `student(settings)`, and `WithRegressor` around it where a loss compares features with the teacher's.
Promises: lightweight-cnn has exactly 4,821,058 parameters with two labels, and 256 features; any timm model is a
student too; deploying drops what only the training needed.
Does not: hold a loss; see outlast.model.distillation.
Every student takes RGB (B, 3, H, W) that is normalised by ImageNet's mean and std, and gives {"logits": (B, labels),
"features": (B, F)}, with F as its attribute `features`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from outlast.errors import ModelError
from outlast.model import backbone
from outlast.model.distillation_settings import LIGHTWEIGHT, StudentSettings, student_rung, student_rungs
from outlast.model.renormalise import Renormalise

__all__ = ["LightweightCnn", "StudentSettings", "TimmStudent", "WithRegressor", "student", "student_rung",
           "student_rungs"]  # fmt: skip

_BLOCKS = 4


class LightweightCnn(nn.Module):
    """Four blocks of two 3x3 convolutions, each with its normalisation and ReLU, and a maximum over 2x2 pixels.

    width: channels of the first block, doubled in each next one: 64, 128, 256, 512. Images have at least 16x16 pixels.
    """

    def __init__(self, labels: int = 2, width: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = 4 * width
        self.blocks = nn.Sequential(*_blocks(width))
        self.project = nn.Sequential(nn.Linear(width << (_BLOCKS - 1), self.features), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.features, labels)

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """Return logits and features."""
        features = self.project(self.blocks(rgb).mean(dim=(2, 3)))
        return {"logits": self.head(self.dropout(features)), "features": features}


class TimmStudent(nn.Module):
    """A timm model; its features are what its own head would be given. Raises ModelError as `backbone.extractor`."""

    def __init__(self, settings: StudentSettings, labels: int = 2, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.backbone = backbone.extractor(
            settings.name, pretrained=settings.pretrained, weights=settings.weights, image_size=image_size,
            also=(LIGHTWEIGHT,),
        )  # fmt: skip
        self.pixels = Renormalise(settings.name)
        self.features = backbone.features(self.backbone)
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(self.features, labels)

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """Return logits and features."""
        features = self.backbone(self.pixels(rgb))
        return {"logits": self.head(self.dropout(features)), "features": features}


Student = LightweightCnn | TimmStudent


class WithRegressor(nn.Module):
    """A student in training, and a layer from its features to those of the teacher: one module, so that both are saved.

    Source: Romero et al. 2015 (FitNets), whose regressor this is, for features without height and width.
    """

    def __init__(self, student: Student, teacher_features: int) -> None:
        super().__init__()
        self.student = student
        self.features = student.features
        self.regressor = nn.Linear(student.features, teacher_features)

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """Return the student's logits and features, and "hint" (B, teacher_features)."""
        outputs = self.student(rgb)
        return {**outputs, "hint": self.regressor(outputs["features"])}

    def deployed(self) -> Student:
        """The student alone."""
        return self.student


def student(settings: StudentSettings, labels: int = 2, image_size: tuple[int, int] | None = None) -> Student:
    """Return the student that the settings name. Raises ModelError.

    image_size: (height, width), for models that are built for one.
    """
    if settings.name != LIGHTWEIGHT:
        return TimmStudent(settings, labels, image_size)
    if image_size is not None and min(image_size) < 2**_BLOCKS:
        height, width = image_size
        raise ModelError(
            f"{LIGHTWEIGHT} does not take images of {height}x{width} pixels",
            hint=f"give them at least {2**_BLOCKS} pixels along each side",
        )
    return LightweightCnn(labels, settings.width, settings.dropout)


def _blocks(width: int) -> Iterator[nn.Module]:
    before = 3
    for after in (width << block for block in range(_BLOCKS)):
        for channels in (before, after):
            yield nn.Conv2d(channels, after, 3, padding=1)
            yield nn.BatchNorm2d(after)
            yield nn.ReLU()
        yield nn.MaxPool2d(2)
        before = after
