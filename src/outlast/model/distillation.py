"""What a student learns from a teacher: losses of logits and features, each a pure function, and their weighted sum.

For: any task with independent labels whose teacher and student saw the same samples in the same step.
Promises: they compute in float32 at least, under autocast too; gradients reach the student only, and stay finite where
samples are equal; nothing waits for the device.
Does not: run a model. The teacher's outputs come from outside, from a frozen model or from a cache.

Shapes, everywhere here: logits and labels (B, L), features (B, F). B is the batch: `kl_bernoulli`, `bce` and `l2` are
means over its samples; `rkd` and `crd` couple them (`DistillationLoss.couples_batch`), so that micro-batches change
what they compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from outlast.errors import ModelError
from outlast.model.distillation_settings import DistillationLoss

__all__ = ["DistillationLoss", "Total", "bce", "crd", "kl_bernoulli", "l2", "rkd", "rkd_angle", "rkd_distance", "total"]


def kl_bernoulli(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Mean over samples and labels of KL(p || q), p = sigmoid(teacher / T), q = sigmoid(student / T), in nats.

    From logits, so that it stays exact where a sigmoid rounds to 0 or 1. Its gradient falls with T^2: `total`
    multiplies by that. Source: Hinton et al. 2015, for independent labels.
    """
    student, teacher = (_full(logits) / temperature for logits in (student_logits, teacher_logits.detach()))
    positive = functional.logsigmoid(teacher) - functional.logsigmoid(student)
    negative = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
    probability = torch.sigmoid(teacher)
    return (probability * positive + torch.sigmoid(-teacher) * negative).mean()


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples and labels of the binary cross entropy with labels in 0..1, in nats."""
    logits = _full(logits)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def l2(hint: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean over samples and features of the squared difference. Source: Romero et al. 2015 (FitNets), equation 3."""
    return (_full(hint) - _full(teacher_features.detach())).square().mean()


def rkd_distance(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean over pairs of the Huber loss between their distances, each divided by the mean distance in its batch.

    Couples the batch. Fewer than two samples have no pairs: 0. Source: Park et al. 2019 (RKD), equations 5 to 8.
    """
    if len(student_features) < 2:
        return _nothing(student_features)
    student, teacher = (
        _relative(_distances(_differences(features))) for features in (student_features, teacher_features.detach())
    )
    pairs = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    return _mean_where(_huber(student, teacher), pairs)


def rkd_angle(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean over triplets of the Huber loss between the cosines of the angles that two samples have at a third.

    Couples the batch. Fewer than three samples have no angle: 0; where two are equal, their cosine is 0. Source: Park
    et al. 2019 (RKD), equations 9 and 10.
    """
    if len(student_features) < 3:
        return _nothing(student_features)
    student, teacher = (_cosines(_differences(features)) for features in (student_features, teacher_features.detach()))
    apart = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    triplets = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]
    return _mean_where(_huber(student, teacher), triplets)


def rkd(student_features: Tensor, teacher_features: Tensor, distance: float = 1.0, angle: float = 2.0) -> Tensor:
    """Return distance * rkd_distance + angle * rkd_angle; 1 to 2 is the proportion of the source. Couples the batch."""
    return distance * rkd_distance(student_features, teacher_features) + angle * rkd_angle(
        student_features, teacher_features
    )


def crd(hint: Tensor, teacher_features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean of -log of the share that a sample's own pair has among all pairs, by exp(cosine / temperature).

    From the student to the teachers of the batch and back, half each. Samples with the same labels are no negatives.
    Couples the batch: the negatives are those of the batch; there is no memory bank that would have to be saved, and
    `hint`, the student's features after its regressor, stands for the source's two projections. Source: Tian et al.
    2020 (CRD), with van den Oord et al. 2018's InfoNCE as its estimate.
    """
    cosines = _products(*(functional.normalize(_full(vectors)) for vectors in (hint, teacher_features.detach())))
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    same_labels = (labels[:, None] == labels[None]).all(dim=-1)
    scores = (cosines / temperature).masked_fill(same_labels & ~own, -torch.inf)
    return ((scores.logsumexp(dim=0) + scores.logsumexp(dim=1)) / 2 - scores.diagonal()).mean()


@dataclass(frozen=True)
class Total:
    """A batch's loss and what it is made of; every tensor is 0-dim.

    loss     to be minimised: the sum of weights times parts
    parts    each loss by name (kl, relation, l2, bce), before its weight; kl has its factor T^2
    samples  in the batch
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    samples: int

    def sums(self) -> dict[str, Any]:
        """What a learner's step returns: loss_sum and weight (samples), and every part for the log."""
        parts = {name: value.detach() * self.samples for name, value in self.parts.items()}
        return {"loss_sum": self.loss * self.samples, "weight": self.samples, **parts}


def total(
    settings: DistillationLoss, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], labels: Tensor
) -> Total:
    """The loss of a batch that student and teacher both saw.

    student: "logits", "features", and "hint" (B, F of the teacher) where `settings.needs_hint`
    (outlast.model.lightweight.WithRegressor). teacher: "logits", "features". Raises ModelError if the hint is missing
    or of another length.
    """
    weights = settings.weights
    if settings.needs_hint:
        _require_hint(settings, student, teacher)
    parts: dict[str, Tensor] = {}
    if "kl" in weights:
        divergence = kl_bernoulli(student["logits"], teacher["logits"], settings.temperature)
        parts["kl"] = settings.temperature**2 * divergence
    if "relation" in weights and settings.relation == "rkd":
        factors = settings.rkd_distance, settings.rkd_angle
        parts["relation"] = rkd(student["features"], teacher["features"], *factors)
    elif "relation" in weights:
        parts["relation"] = crd(student["hint"], teacher["features"], labels, settings.crd_temperature)
    if "l2" in weights:
        parts["l2"] = l2(student["hint"], teacher["features"])
    if "bce" in weights:
        parts["bce"] = bce(student["logits"], labels)
    loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return Total(loss, parts, len(labels))


def _require_hint(settings: DistillationLoss, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
    wanted = teacher["features"].shape[1]
    found = student["hint"].shape[1] if "hint" in student else None
    if found != wanted:
        has = "gives no 'hint'" if found is None else f"gives hints of {found} numbers"
        raise ModelError(
            f"{settings.name} compares features, of which the teacher has {wanted}, but the student {has}",
            hint=f"put WithRegressor(student, {wanted}) around it, or choose the loss kl_bce",
        )


def _full(values: Tensor) -> Tensor:
    """At least float32."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _nothing(features: Tensor) -> Tensor:
    """0, with a gradient of 0."""
    return _full(features).sum() * 0


def _differences(features_BF: Tensor) -> Tensor:
    """(B, B, F): [j, i] is sample i seen from sample j. Not from products, which would cancel for near samples."""
    features = _full(features_BF)
    return features[None] - features[:, None]


def _distances(differences_BBF: Tensor) -> Tensor:
    """(B, B): lengths. That of 0 is 0 and has a gradient of 0, where a root's would be infinite."""
    squares = differences_BBF.square().sum(dim=-1)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)


def _relative(distances_BB: Tensor) -> Tensor:
    """Divided by the mean over pairs of different samples; all 0 if no two samples differ."""
    pairs = len(distances_BB) * (len(distances_BB) - 1)
    mean = distances_BB.sum() / pairs
    return distances_BB / torch.where(mean > 0, mean, 1)


def _cosines(differences_BBF: Tensor) -> Tensor:
    """(B, B, B): [j, i, k] is the cosine of the angle at j between i and k."""
    distances = _distances(differences_BBF)[..., None]
    directions = differences_BBF / torch.where(distances > 0, distances, 1)
    return _products(directions, directions)


def _products(ours: Tensor, theirs: Tensor) -> Tensor:
    """Products of all rows of both (..., N, F): (..., N, N), out of reach of autocast, which would halve them."""
    with torch.autocast(ours.device.type, enabled=False):
        return ours @ theirs.mT


def _huber(ours: Tensor, theirs: Tensor) -> Tensor:
    return functional.smooth_l1_loss(ours, theirs, reduction="none")


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0).sum() / counted.sum()
