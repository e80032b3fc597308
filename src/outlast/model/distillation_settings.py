"""The settings of teachers, students and distillation, and the ladders of smaller models to fall back on.

For: a task's configuration; it needs neither torch nor a model library to be read.
Promises: what contradicts itself is refused with the reason (a branch that starts from random numbers is never
frozen); settings without effect are named by `idle`; a smaller model of a ladder asks for no weights.
Does not: build anything; see outlast.model.dual, outlast.model.lightweight and outlast.model.distillation.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from outlast.config.schema import Settings

# Teachers by the names that they are known by; any other name is that of a timm model.
TEACHERS = {
    "resnet-152": "resnet152",
    "efficientnet-b7": "tf_efficientnet_b7",
    "swin-tiny": "swin_tiny_patch4_window7_224",
    "vit-b-16": "vit_base_patch16_224",
}
SMALL_TEACHERS = ("resnet18", "mobilenetv3_small_100")
LIGHTWEIGHT, SMALL_STUDENT = "lightweight-cnn", "mobilenetv3_small_100"

Freeze = Literal["none", "rgb", "ir", "branches", "backbone"]
Weight = Annotated[float, Field(ge=0, le=1000)]


class DualSettings(Settings):
    """Which teacher over RGB and infrared."""

    name: str = Field("resnet-152", description=f"{', '.join(TEACHERS)}, or a timm model such as resnet18")
    pretrained: bool = Field(False, description="begin both branches with published weights")
    weights: str | None = Field(None, description="a local file of the timm model's weights, for both branches")
    freeze: Freeze = Field(
        "none", description="what does not learn: a branch, both, or all that begins with weights (backbone)"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="of the fused features, before the logits")

    @property
    def timm_name(self) -> str:
        """The timm model of each branch."""
        return TEACHERS.get(self.name, self.name)

    def idle(self) -> dict[str, str]:
        return {"pretrained": "weights is given"} if self.weights is not None and self.pretrained else {}

    def downloads(self) -> tuple[str, ...]:
        return (self.timm_name,) if self.pretrained and self.weights is None else ()

    @model_validator(mode="after")
    def _only_trained_weights_are_frozen(self) -> Self:
        if self.freeze != "none" and not self.pretrained and self.weights is None:
            raise ValueError(
                f"freeze={self.freeze!r} would freeze random numbers; set pretrained=true, name a weights file, "
                "or set freeze='none'"
            )
        return self


class StudentSettings(Settings):
    """Which student over RGB alone."""

    name: str = Field(LIGHTWEIGHT, description=f"{LIGHTWEIGHT}, or a timm model such as resnet18")
    pretrained: bool = Field(False, description="begin with published weights (timm models)")
    weights: str | None = Field(None, description="a local file of pretrained weights (timm models)")
    dropout: float = Field(0.5, ge=0, lt=1, description="of the features, before the logits")
    width: int = Field(64, ge=4, le=512, description=f"channels of {LIGHTWEIGHT}'s first block; doubled in each next")

    def idle(self) -> dict[str, str]:
        if self.name == LIGHTWEIGHT:
            reason = f"name is {LIGHTWEIGHT!r}, of which there are no published weights"
            return {name: reason for name in ("pretrained", "weights") if getattr(self, name)}
        reasons = {"width": f"name is not {LIGHTWEIGHT!r}"}
        if self.weights is not None and self.pretrained:
            reasons["pretrained"] = "weights is given"
        return reasons

    def downloads(self) -> tuple[str, ...]:
        wanted = self.pretrained and self.weights is None and self.name != LIGHTWEIGHT
        return (self.name,) if wanted else ()


class DistillationLoss(Settings):
    """Which losses a student is trained with, and their weights; a weight of none is the one of `name`."""

    name: Literal["kl_bce", "kl_l2_bce", "kl_contrastive_l2_bce"] = "kl_bce"
    temperature: float = Field(2.0, gt=0, le=100, description="that both logits are divided by, in the KL divergence")
    relation: Literal["rkd", "crd"] = Field("rkd", description="what 'contrastive' is; both couple the batch")
    kl_weight: Weight | None = None
    relation_weight: Weight | None = None
    l2_weight: Weight | None = None
    bce_weight: Weight | None = None
    rkd_distance: Weight = Field(1.0, description="of the distances, within RKD")
    rkd_angle: Weight = Field(2.0, description="of the angles, within RKD")
    crd_temperature: float = Field(0.1, gt=0, le=100, description="that cosines are divided by, in CRD")

    @property
    def weights(self) -> dict[str, float]:
        """{loss: its weight} of the losses that are computed."""
        chosen = {part: getattr(self, f"{part}_weight") for part in _WEIGHTS[self.name]}
        weights = {part: _WEIGHTS[self.name][part] if own is None else float(own) for part, own in chosen.items()}
        return {part: weight for part, weight in weights.items() if weight}

    @property
    def couples_batch(self) -> bool:
        """Whether the loss of a batch is not a sum over its samples, so that micro-batches change it."""
        return "relation" in self.weights

    @property
    def needs_hint(self) -> bool:
        """Whether the student must come with a regressor onto the teacher's features."""
        return "l2" in self.weights or (self.couples_batch and self.relation == "crd")

    def idle(self) -> dict[str, str]:
        used = self.weights
        reasons = {
            f"{part}_weight": f"{self.name} has no such loss"
            for part in _WEIGHTS["kl_contrastive_l2_bce"]
            if part not in _WEIGHTS[self.name]
        }
        if "kl" not in used:
            reasons["temperature"] = "the weight of the KL divergence is 0"
        related = self.relation if self.couples_batch else None
        if related is None:
            reasons["relation"] = "the loss has no contrastive part"
        if related != "rkd":
            reasons |= dict.fromkeys(("rkd_distance", "rkd_angle"), "the loss has no RKD")
        if related != "crd":
            reasons["crd_temperature"] = "the loss has no CRD"
        return reasons

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if not {"kl", "bce"} & set(self.weights):
            raise ValueError("nothing teaches the logits; give kl_weight or bce_weight a positive number")
        return self


_WEIGHTS: dict[str, dict[str, float]] = {
    "kl_bce": {"kl": 0.7, "bce": 0.3},
    "kl_l2_bce": {"kl": 0.5, "l2": 0.3, "bce": 0.2},
    "kl_contrastive_l2_bce": {"kl": 0.4, "relation": 0.2, "l2": 0.2, "bce": 0.2},
}


def teacher_rungs(settings: DualSettings) -> tuple[str, ...]:
    """The wanted teacher, then the small ones; none that stands before the wanted one among those."""
    later = SMALL_TEACHERS.index(settings.name) + 1 if settings.name in SMALL_TEACHERS else 0
    return (settings.name, *SMALL_TEACHERS[later:])


def teacher_rung(settings: DualSettings, rung: str) -> DualSettings:
    """The settings of one rung. Weights were asked for the wanted model: a smaller one has none, and none is frozen."""
    if rung == settings.name:
        return settings
    return DualSettings(name=rung, dropout=settings.dropout)


def student_rungs(settings: StudentSettings) -> tuple[str, ...]:
    """The wanted student, then a small one."""
    return tuple(dict.fromkeys((settings.name, SMALL_STUDENT)))


def student_rung(settings: StudentSettings, rung: str) -> StudentSettings:
    """The settings of one rung. Weights were asked for the wanted model: a smaller one has none."""
    if rung == settings.name:
        return settings
    return StudentSettings(name=rung, dropout=settings.dropout)
