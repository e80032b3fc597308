"""Each loss of a student equals what is computed by hand, and keeps what all of them promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from outlast.errors import ModelError
from outlast.model import distillation
from outlast.model.distillation import DistillationLoss, total

LABELS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])

# name -> the loss of (student's, teacher's), both (5, 2) for logits and (5, 6) for features
OF_LOGITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl_bernoulli": distillation.kl_bernoulli,
    "bce": lambda student, teacher: distillation.bce(student, LABELS),
}
OF_FEATURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": distillation.l2,
    "rkd_distance": distillation.rkd_distance,
    "rkd_angle": distillation.rkd_angle,
    "crd": lambda student, teacher: distillation.crd(student, teacher, LABELS),
}
ALL = {**OF_LOGITS, **OF_FEATURES}
every_loss = pytest.mark.parametrize("name", ALL)


def example(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (5, 2) if name in OF_LOGITS else (5, 6)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return student.requires_grad_(), teacher


# By hand


def test_kl_by_hand() -> None:
    # Teacher: probabilities 0.8 and 0.5 at T = 1; student: 0.5 and 0.25.
    teacher, student = torch.tensor([[math.log(4), 0.0]]), torch.tensor([[0.0, -math.log(3)]])
    first = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    second = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(distillation.kl_bernoulli(student, teacher, 1.0)) == pytest.approx((first + second) / 2, rel=1e-6)
    # T = 2 divides the logits, and adds no factor of its own.
    assert float(distillation.kl_bernoulli(2 * student, 2 * teacher, 2.0)) == pytest.approx((first + second) / 2)


def test_kl_equals_torchs_and_goes_from_teacher_to_student() -> None:
    student, teacher = example("kl_bernoulli", torch.float64)
    expected = kl_divergence(Bernoulli(logits=teacher / 3), Bernoulli(logits=student / 3)).mean()
    torch.testing.assert_close(distillation.kl_bernoulli(student, teacher, 3.0), expected)
    assert float(distillation.kl_bernoulli(teacher, teacher, 3.0)) == 0


def test_kl_is_exact_and_has_a_gradient_where_sigmoids_are_saturated() -> None:
    student, teacher = torch.tensor([[-200.0]], requires_grad=True), torch.tensor([[200.0]])
    value = distillation.kl_bernoulli(student, teacher, 1.0)
    value.backward()
    assert float(value.detach()) == pytest.approx(200) and student.grad is not None
    assert float(student.grad) == pytest.approx(-1)
    huge = distillation.kl_bernoulli(torch.tensor([[6e4]]).half(), torch.tensor([[-6e4]]).half(), 1.0)
    assert float(huge) == pytest.approx(6e4, rel=1e-3)


def test_the_factor_of_the_temperature_keeps_the_gradient_of_kl() -> None:
    """For large T, T^2 KL tends to a quarter of half the squared difference of logits (Hinton et al., section 2.1)."""
    student, teacher = example("kl_bernoulli", torch.float64)
    made = total(
        DistillationLoss(temperature=100, kl_weight=1, bce_weight=0), {"logits": student}, {"logits": teacher}, LABELS
    )
    torch.testing.assert_close(made.loss, ((student - teacher) ** 2 / 8).mean(), rtol=1e-3, atol=0)


def test_bce_by_hand() -> None:
    value = distillation.bce(torch.tensor([[math.log(4), 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert float(value) == pytest.approx((-math.log(0.8) - math.log(0.5)) / 2)


def test_l2_by_hand() -> None:
    value = distillation.l2(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    assert float(value) == pytest.approx((4 + 9) / 4)


def test_rkd_distance_by_hand() -> None:
    # Distances 3, 4, 5 against 1, 1, 2: divided by their means 4 and 4/3.
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    student = torch.tensor([[0.0], [1.0], [-1.0]])
    errors = [3 / 4 - 3 / 4, 4 / 4 - 3 / 4, 5 / 4 - 6 / 4]
    expected = sum(0.5 * error**2 for error in errors) / 3
    assert float(distillation.rkd_distance(student, teacher)) == pytest.approx(expected, rel=1e-6)
    assert float(distillation.rkd_distance(7 * teacher, teacher)) == pytest.approx(0, abs=1e-12)


def test_rkd_distance_is_linear_for_large_errors() -> None:
    # Six pairs of equal samples and four at a distance, which is 2.5 of the mean one; the teacher's are all alike.
    student, teacher = torch.tensor([[0.0], [0.0], [0.0], [0.0], [1.0]]), torch.eye(5)
    expected = (6 * 0.5 * 1**2 + 4 * (1.5 - 0.5)) / 10
    assert float(distillation.rkd_distance(student, teacher)) == pytest.approx(expected, rel=1e-6)


def test_rkd_angle_by_hand() -> None:
    # A right angle at the first, 45 degrees at both others; against three in a row: 180, 0 and 0 degrees.
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    student = torch.tensor([[0.0], [1.0], [-1.0]])
    first, other = 0 - (-1), math.sqrt(0.5) - 1
    expected = (0.5 * first**2 + 2 * 0.5 * other**2) / 3
    assert float(distillation.rkd_angle(student, teacher)) == pytest.approx(expected, rel=1e-6)
    turned = teacher @ torch.tensor([[0.0, 2.0], [-2.0, 0.0]]) + 5
    assert float(distillation.rkd_angle(turned, teacher)) == pytest.approx(0, abs=1e-10)


def test_rkd_adds_distance_and_angle() -> None:
    student, teacher = example("rkd_distance")
    expected = 3 * distillation.rkd_distance(student, teacher) + 5 * distillation.rkd_angle(student, teacher)
    torch.testing.assert_close(distillation.rkd(student, teacher, 3, 5), expected)


def test_crd_by_hand_without_negatives_of_the_same_labels() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])  # the first and the last are no negatives of each other
    # Cosines, students down, teachers across: [1 0 -] [0 1 1] [- 0 0]
    e = math.exp(1 / 0.5)
    to_teachers = [-math.log(e / (e + 1)), -math.log(e / (1 + e + e)), -math.log(1 / (1 + 1))]
    to_students = [-math.log(e / (e + 1)), -math.log(e / (1 + e + 1)), -math.log(1 / (e + 1))]
    expected = (sum(to_teachers) + sum(to_students)) / 6
    assert float(distillation.crd(student, teacher, labels, 0.5)) == pytest.approx(expected, rel=1e-6)


def test_crd_without_negatives_is_zero() -> None:
    student, teacher = example("crd")
    assert float(distillation.crd(student, teacher, torch.ones(5, 2)).detach()) == pytest.approx(0, abs=1e-6)


# What all of them promise


@every_loss
def test_gradients_are_those_of_the_values(name: str) -> None:
    student, teacher = example(name, torch.float64)
    torch.autograd.gradcheck(lambda values: ALL[name](values, teacher), (student,))


@every_loss
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher = example(name)
    ALL[name](student, teacher.requires_grad_()).backward()
    assert student.grad is not None and student.grad.any() and teacher.grad is None


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = (values.detach() for values in example(name, dtype))
    expected = ALL[name](student.float(), teacher.float())
    with torch.autocast("cpu", dtype=dtype):
        inside, of_halves = ALL[name](student.float(), teacher.float()), ALL[name](student, teacher)
    assert inside.dtype == of_halves.dtype == torch.float32
    assert torch.equal(inside, expected) and torch.equal(of_halves, expected)


@every_loss
def test_autocast_changes_no_gradient(name: str) -> None:
    student, teacher = example(name)
    (expected,) = torch.autograd.grad(ALL[name](student, teacher), student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ALL[name](student, teacher)
    assert torch.equal(torch.autograd.grad(value, student)[0], expected)


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("case", ["two equal", "all equal", "all zero", "teacher all equal", "one sample"])
def test_equal_samples_give_finite_values_and_gradients(name: str, case: str) -> None:
    student, teacher = (values.detach() for values in example(name))
    if case == "two equal":
        student[1], teacher[1] = student[0], teacher[0]
    elif case == "teacher all equal":
        teacher = teacher[:1].repeat(5, 1)
    elif case == "one sample":
        student, teacher = student[:1], teacher[:1]
    else:
        student = (student[:1] if case == "all equal" else torch.zeros(1, 6)).repeat(5, 1)
    student.requires_grad_()
    losses = {**OF_FEATURES, "crd": lambda ours, theirs: distillation.crd(ours, theirs, LABELS[: len(ours)])}
    value = losses[name](student, teacher)
    value.backward()
    assert torch.isfinite(value) and student.grad is not None and torch.isfinite(student.grad).all()


# The sum


def outputs(hint: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    logits, features = example("kl_bernoulli"), example("l2")
    generator = torch.Generator().manual_seed(1)
    student = {"logits": logits[0], "features": torch.randn(5, 3, generator=generator)}
    return student | ({"hint": features[0]} if hint else {}), {"logits": logits[1], "features": features[1]}


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("kl_bce", {"kl": 0.7, "bce": 0.3}),
        ("kl_l2_bce", {"kl": 0.5, "l2": 0.3, "bce": 0.2}),
        ("kl_contrastive_l2_bce", {"kl": 0.4, "relation": 0.2, "l2": 0.2, "bce": 0.2}),
    ],
)
@pytest.mark.parametrize("relation", ["rkd", "crd"])
def test_the_total_is_the_weighted_sum_of_its_parts(name: str, weights: dict[str, float], relation: str) -> None:
    student, teacher = outputs()
    settings = DistillationLoss.model_validate({"name": name, "relation": relation})
    made = total(settings, student, teacher, LABELS)
    related = {
        "rkd": distillation.rkd(student["features"], teacher["features"]),
        "crd": distillation.crd(student["hint"], teacher["features"], LABELS),
    }
    expected = {
        "kl": 4 * distillation.kl_bernoulli(student["logits"], teacher["logits"], 2.0),
        "relation": related[relation],
        "l2": distillation.l2(student["hint"], teacher["features"]),
        "bce": distillation.bce(student["logits"], LABELS),
    }
    assert made.parts.keys() == weights.keys()
    assert all(torch.equal(value, expected[part]) for part, value in made.parts.items())
    torch.testing.assert_close(made.loss, sum(weight * expected[part] for part, weight in weights.items()))
    assert settings.couples_batch == ("relation" in weights)


def test_every_setting_reaches_its_loss() -> None:
    student, teacher = outputs()
    settings = DistillationLoss(
        name="kl_contrastive_l2_bce", temperature=3, kl_weight=1, relation_weight=2, l2_weight=0, bce_weight=4,
        rkd_distance=5, rkd_angle=6,
    )  # fmt: skip
    made = total(settings, student, teacher, LABELS)
    expected = (
        9 * distillation.kl_bernoulli(student["logits"], teacher["logits"], 3.0)
        + 2 * distillation.rkd(student["features"], teacher["features"], 5, 6)
        + 4 * distillation.bce(student["logits"], LABELS)
    )
    torch.testing.assert_close(made.loss, expected)
    assert set(made.parts) == {"kl", "relation", "bce"}
    crd = total(
        settings.model_copy(update={"relation": "crd", "crd_temperature": 0.5}), student, teacher, LABELS
    ).parts["relation"]
    assert torch.equal(crd, distillation.crd(student["hint"], teacher["features"], LABELS, 0.5))


def test_the_sums_of_a_step_are_logged_per_sample() -> None:
    student, teacher = outputs()
    made = total(DistillationLoss(name="kl_l2_bce"), student, teacher, LABELS)
    sums = made.sums()
    assert set(sums) == {"loss_sum", "weight", "kl", "l2", "bce"} and sums["weight"] == 5
    assert float(sums["l2"]) / 5 == pytest.approx(float(made.parts["l2"].detach()))
    assert sums["loss_sum"].requires_grad and not sums["l2"].requires_grad


def test_micro_batches_give_the_loss_of_the_batch_where_it_does_not_couple_samples() -> None:
    student, teacher = outputs()

    def of(rows: slice, name: str) -> dict[str, Tensor]:
        parts = [{key: value[rows] for key, value in one.items()} for one in (student, teacher)]
        return total(DistillationLoss.model_validate({"name": name}), *parts, LABELS[rows]).sums()

    def apart(name: str) -> Tensor:
        pieces = [of(slice(0, 3), name), of(slice(3, 5), name)]
        return sum(one["loss_sum"] for one in pieces) / sum(one["weight"] for one in pieces)

    for name in ("kl_bce", "kl_l2_bce"):
        torch.testing.assert_close(apart(name), of(slice(0, 5), name)["loss_sum"] / 5)
    coupled = "kl_contrastive_l2_bce"
    assert float(apart(coupled).detach()) != pytest.approx(float(of(slice(0, 5), coupled)["loss_sum"].detach() / 5))


def test_a_student_without_regressor_is_told() -> None:
    student, teacher = outputs(hint=False)
    with pytest.raises(ModelError, match="gives no 'hint'") as caught:
        total(DistillationLoss(name="kl_l2_bce"), student, teacher, LABELS)
    assert "WithRegressor(student, 6)" in (caught.value.hint or "")
    with pytest.raises(ModelError, match="hints of 1 numbers"):
        total(DistillationLoss(name="kl_l2_bce"), {**student, "hint": torch.zeros(5, 1)}, teacher, LABELS)
    assert total(DistillationLoss(), student, teacher, LABELS).parts.keys() == {"kl", "bce"}


def test_settings_without_effect_are_told() -> None:
    assert set(DistillationLoss().idle()) == {
        "relation", "relation_weight", "l2_weight", "rkd_distance", "rkd_angle", "crd_temperature"
    }  # fmt: skip
    assert set(DistillationLoss(name="kl_contrastive_l2_bce").idle()) == {"crd_temperature"}
    assert set(DistillationLoss(name="kl_contrastive_l2_bce", relation="crd").idle()) == {"rkd_distance", "rkd_angle"}
    assert "temperature" in DistillationLoss(kl_weight=0).idle()
    with pytest.raises(ValidationError, match="nothing teaches the logits"):
        DistillationLoss(name="kl_l2_bce", kl_weight=0, bce_weight=0)
