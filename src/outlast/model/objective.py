"""What a segmenter is trained towards: losses with weights, some of them ramped over the first epochs.

`total` computes it from a model's outputs; `Total.sums()` is what a learner's step returns. Settings, presets and the
two phases of the glaciers: PHASE_A (pretraining) and PHASE_B (fine-tuning).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from outlast.config.schema import Settings
from outlast.errors import ConfigError, ModelError
from outlast.model import losses
from outlast.model.losses import Counted, Term

Weight = Annotated[float, Field(ge=0, le=1000)]
ClassWeights = Literal["none", "inverse", "sqrt_inverse"] | tuple[Weight, ...]
REGION = ("cross_entropy", "focal", "dice", "mcc", "boundary")  # the losses of class logits


class SegmentationLoss(Settings):
    """Weights of the losses that are added up (0: not computed), and the settings of each."""

    cross_entropy: Weight = 1.0
    focal: Weight = 0.0
    dice: Weight = 0.0
    mcc: Weight = Field(0.0, description="1 - Matthews correlation of the soft confusion matrix")
    boundary: Weight = Field(0.0, description="of the predicted classes' boundaries")
    boundary_head: Weight = Field(0.0, description="cross entropy of the model's boundary head, if it has one")
    auxiliary: Weight = Field(0.0, description="the class losses again, for each of the model's auxiliary outputs")
    mcc_form: Literal["multiclass", "per_class"] = "multiclass"
    boundary_form: Literal["f1", "surface"] = Field("f1", description="surface: by signed distances, in pixels")
    mcc_ramp_epochs: float = Field(0.0, ge=0, description="in which its weight rises from 0; 0: at once")
    boundary_ramp_epochs: float = Field(0.0, ge=0, description="in which its weight rises from 0; 0: at once")
    gamma: float = Field(2.0, ge=0, le=10, description="of the focal loss; 0 is cross entropy")
    alpha: ClassWeights = Field("none", description="class weights of the focal loss")
    class_weights: ClassWeights = Field(
        "none", description="of the cross entropy: a number per class, or by how many training pixels a class has"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross entropy")
    smooth: float = Field(1.0, gt=0, description="pixels added above and below in Dice and boundary F1")

    @property
    def needs_distance(self) -> bool:
        """Whether samples must carry signed distances."""
        return self.boundary > 0 and self.boundary_form == "surface"

    def idle(self) -> dict[str, str]:
        needs = {
            "mcc_form": "mcc", "mcc_ramp_epochs": "mcc",
            "boundary_form": "boundary", "boundary_ramp_epochs": "boundary",
            "gamma": "focal", "alpha": "focal", "class_weights": "cross_entropy", "label_smoothing": "cross_entropy",
        }  # fmt: skip
        reasons = {name: f"the weight of {loss} is 0" for name, loss in needs.items() if getattr(self, loss) == 0}
        if self.dice == 0 and (self.boundary == 0 or self.boundary_form != "f1"):
            reasons["smooth"] = "there is neither dice nor a boundary loss of the form f1"
        return reasons

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if not any(getattr(self, name) for name in REGION):
            raise ValueError(f"there is no loss of the predicted classes; give one of {', '.join(REGION)} a weight")
        return self


PHASE_A = SegmentationLoss(cross_entropy=0, focal=1, dice=1, boundary=1)
PHASE_B = SegmentationLoss(
    cross_entropy=0, focal=0.25, dice=0.25, mcc=0.35, boundary=0.15, mcc_ramp_epochs=10, boundary_ramp_epochs=10
)


@dataclass(frozen=True)
class Total:
    """A batch's loss and what it is made of; every tensor is 0-dim.

    loss      to be minimised: the sum of weights times parts
    parts     each loss by name, before its weight
    weights   the weight of each in force, after its ramp
    skipped   1 where a loss had nothing to be computed from and is 0, else 0
    samples   images in the batch
    labelled  the labelled pixels among them, in images: 4 half-labelled ones are 2
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    skipped: Mapping[str, Tensor]
    samples: int
    labelled: Tensor

    def sums(self) -> dict[str, Any]:
        """What a learner's step returns: loss_sum and weight, and for the log every part, weight and skip.

        The weight is `labelled`, so that micro-batches count by their pixels and one without labels counts nothing.
        In the log `skipped_X` is the share of samples in batches that X skipped; those count as 0 in the mean of X.
        """
        means = {**self.parts, **{f"weight_{name}": value for name, value in self.weights.items()}}
        return {
            "loss_sum": self.loss * self.labelled,
            "weight": self.labelled,
            **{name: value.detach() * self.labelled for name, value in means.items()},
            **{f"skipped_{name}": value * self.samples for name, value in self.skipped.items()},
        }


def total(
    settings: SegmentationLoss,
    outputs: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    epochs: Tensor | float,
    *,
    pixels: Sequence[float] | Tensor | None = None,
    left_out: tuple[int, ...] = (),
) -> Total:
    """The loss of a batch, `epochs` (any fraction) into the training.

    outputs: "logits" (B, K, H, W); where their losses have a weight, "boundary" (B, 1, H, W) and "auxiliary", a tuple
    of (B, K, H, W). batch: "mask" (B, H, W) with 255 for no label; "valid" (B, H, W) bool, if there is one; "distance"
    (B, K, H, W) for the surface loss. pixels: how many of each class there are to train on, (K,), for class weights by
    number. left_out: classes without labels in this data. Raises ModelError if an output is missing, ConfigError if
    class weights don't fit.
    """
    logits, mask = outputs["logits"], batch["mask"]
    counted: Counted = {"valid": batch.get("valid"), "left_out": left_out}
    weights = weights_in_force(settings, epochs)
    terms = region(settings, logits, batch, pixels, counted)
    if settings.boundary_head:
        head = _output(outputs, "boundary", "loss.boundary_head")
        terms["boundary_head"] = losses.boundary_head(head, mask, **counted)
    if settings.auxiliary:
        terms["auxiliary"] = _mean_of_outputs(
            [
                _weighted(weights, region(settings, one, batch, pixels, counted))
                for one in _output(outputs, "auxiliary", "loss.auxiliary")
            ]
        )
    return Total(
        loss=_weighted(weights, terms).value,
        parts={name: term.value for name, term in terms.items()},
        weights=weights,
        skipped={name: (term.counts == 0).float() for name, term in terms.items()},
        samples=len(mask),
        labelled=losses.counted_pixels(mask, **counted).sum() / math.prod(mask.shape[1:]),
    )


def region(
    settings: SegmentationLoss,
    logits: Tensor,
    batch: Mapping[str, Tensor],
    pixels: Sequence[float] | Tensor | None,
    counted: Counted,
) -> dict[str, Term]:
    """The losses of class logits that have a weight, by name."""
    mask, terms = batch["mask"], {}
    classes = logits.shape[1]
    if settings.cross_entropy:
        weights = class_weights(settings.class_weights, pixels, classes, "loss.class_weights")
        terms["cross_entropy"] = losses.cross_entropy(logits, mask, weights, settings.label_smoothing, **counted)
    if settings.focal:
        alpha = class_weights(settings.alpha, pixels, classes, "loss.alpha")
        terms["focal"] = losses.focal(logits, mask, settings.gamma, alpha, **counted)
    if settings.dice:
        terms["dice"] = losses.dice(logits, mask, settings.smooth, **counted)
    if settings.mcc:
        form = losses.mcc if settings.mcc_form == "multiclass" else losses.mcc_per_class
        terms["mcc"] = form(logits, mask, **counted)
    if settings.boundary and settings.boundary_form == "surface":
        terms["boundary"] = losses.surface(logits, mask, batch["distance"], **counted)
    elif settings.boundary:
        terms["boundary"] = losses.boundary_f1(logits, mask, smooth=settings.smooth, **counted)
    return terms


def weights_in_force(settings: SegmentationLoss, epochs: Tensor | float) -> dict[str, Tensor]:
    """{loss: its weight, 0-dim float32} after `epochs`, of those that have one; linear from 0 where there is a ramp."""
    trained = torch.as_tensor(epochs, dtype=torch.float32)
    ramps = {"mcc": settings.mcc_ramp_epochs, "boundary": settings.boundary_ramp_epochs}
    weights = {}
    for name in (*REGION, "boundary_head", "auxiliary"):
        weight, ramp = getattr(settings, name), ramps.get(name, 0)
        if weight:
            weights[name] = weight * ((trained / ramp).clamp(0, 1) if ramp else torch.ones_like(trained))
    return weights


def class_weights(
    choice: ClassWeights, pixels: Sequence[float] | Tensor | None, classes: int, key: str
) -> Tensor | None:
    """(K,) float32: the numbers chosen, or 1/n or 1/sqrt(n) of the n pixels of each class; None for none.

    By number they are scaled so that the mean over all pixels is 1; a class without pixels gets 0. Raises ConfigError,
    naming the setting `key`, if there is not one for each class.
    """
    if choice == "none":
        return None
    if isinstance(choice, tuple):
        if len(choice) != classes:
            raise ConfigError(
                f"{key} has {len(choice)} numbers, but there are {classes} classes", hint="give one for each class"
            )
        return torch.tensor(choice)
    if pixels is None:
        raise ConfigError(
            f"{key}={choice} needs to know how many pixels of each class there are",
            hint=f"give {key} as one number for each class",
        )
    number = torch.as_tensor(pixels, dtype=torch.float64)
    weights = number.clamp(min=1) ** (-1.0 if choice == "inverse" else -0.5) * (number > 0)
    return (weights * number.sum() / (weights * number).sum().clamp(min=1e-300)).float()


def _output(outputs: Mapping[str, Any], name: str, key: str) -> Any:
    found = outputs.get(name)
    if found is None or len(found) == 0:
        raise ModelError(f"{key} is set, but the model has no output {name!r}", hint=f"set {key}=0, or choose another")
    return found


def _weighted(weights: Mapping[str, Tensor], terms: Mapping[str, Term]) -> Term:
    """The sum of weights times terms; its counts are the largest of theirs."""
    value = torch.stack([weights[name].to(term.value.device) * term.value for name, term in terms.items()]).sum()
    return Term(value, torch.stack([term.counts.to(value.dtype) for term in terms.values()]).amax())


def _mean_of_outputs(terms: Sequence[Term]) -> Term:
    return Term(torch.stack([term.value for term in terms]).mean(), terms[0].counts)
