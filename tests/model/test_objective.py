"""The weights in force follow their ramps, and the total is the sum of what it says it is made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from outlast.data.distance import signed_distance
from outlast.errors import ConfigError, ModelError
from outlast.model import losses
from outlast.model.objective import PHASE_A, PHASE_B, SegmentationLoss, class_weights, total, weights_in_force


def example() -> tuple[dict[str, Any], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "logits": torch.randn(2, 4, 8, 8, generator=generator),
        "boundary": torch.randn(2, 1, 8, 8, generator=generator),
        "auxiliary": (
            torch.randn(2, 4, 8, 8, generator=generator),
            torch.randn(2, 4, 8, 8, generator=generator),
        ),
    }
    mask = torch.randint(0, 4, (2, 8, 8), generator=generator)
    mask[0, :4] = 255
    return outputs, {"mask": mask, "epochs": torch.tensor(3.0)}


@pytest.mark.parametrize(("epochs", "share"), [(0.0, 0.0), (2.5, 0.25), (10.0, 1.0), (99.0, 1.0)])
def test_phase_b_ramps_correlation_and_boundary(epochs: float, share: float) -> None:
    expected = {"focal": 0.25, "dice": 0.25, "mcc": 0.35 * share, "boundary": 0.15 * share}
    for given in (epochs, torch.tensor(epochs)):
        weights = weights_in_force(PHASE_B, given)
        assert {name: float(value) for name, value in weights.items()} == pytest.approx(expected)


def test_phase_a_has_no_ramp() -> None:
    weights = weights_in_force(PHASE_A, torch.tensor(0.0))
    assert {name: float(value) for name, value in weights.items()} == {"focal": 1, "dice": 1, "boundary": 1}


def test_the_total_is_the_sum_of_its_weighted_parts() -> None:
    outputs, batch = example()
    made = total(PHASE_B, outputs, batch, batch["epochs"])
    logits, mask = outputs["logits"], batch["mask"]
    parts = {
        "focal": losses.focal(logits, mask).value,
        "dice": losses.dice(logits, mask).value,
        "mcc": losses.mcc(logits, mask).value,
        "boundary": losses.boundary_f1(logits, mask).value,
    }
    assert dict(made.parts) == parts
    expected = 0.25 * parts["focal"] + 0.25 * parts["dice"] + 0.3 * (0.35 * parts["mcc"] + 0.15 * parts["boundary"])
    torch.testing.assert_close(made.loss, expected)
    assert made.loss.requires_grad is False and total(PHASE_B, with_gradient(outputs), batch, 0.0).loss.requires_grad


def test_every_setting_reaches_its_loss() -> None:
    outputs, batch = example()
    batch["distance"] = torch.from_numpy(np.stack([signed_distance(one.numpy(), 4) for one in batch["mask"]]))
    settings = SegmentationLoss(
        cross_entropy=1, focal=1, dice=1, mcc=1, boundary=1, boundary_head=1, mcc_form="per_class",
        boundary_form="surface", gamma=1.5, alpha=(1, 2, 3, 4), class_weights=(4, 3, 2, 1), label_smoothing=0.1,
        smooth=3,
    )  # fmt: skip
    made = total(settings, outputs, batch, 0.0, left_out=(3,))
    logits, mask = outputs["logits"], batch["mask"]
    left: losses.Counted = {"left_out": (3,)}
    assert dict(made.parts) == {
        "cross_entropy": losses.cross_entropy(logits, mask, torch.tensor([4.0, 3, 2, 1]), 0.1, **left).value,
        "focal": losses.focal(logits, mask, 1.5, torch.tensor([1.0, 2, 3, 4]), **left).value,
        "dice": losses.dice(logits, mask, 3.0, **left).value,
        "mcc": losses.mcc_per_class(logits, mask, **left).value,
        "boundary": losses.surface(logits, mask, batch["distance"], **left).value,
        "boundary_head": losses.boundary_head(outputs["boundary"], mask, **left).value,
    }


def test_smoothing_reaches_dice_and_boundary() -> None:
    outputs, batch = example()
    made = total(SegmentationLoss(dice=1, boundary=1, smooth=3), outputs, batch, 0.0)
    logits, mask = outputs["logits"], batch["mask"]
    assert made.parts["dice"] == losses.dice(logits, mask, 3.0).value
    assert made.parts["boundary"] == losses.boundary_f1(logits, mask, smooth=3.0).value


def test_auxiliary_outputs_are_trained_towards_the_same() -> None:
    outputs, batch = example()
    settings = SegmentationLoss(dice=0.5, auxiliary=0.4)
    alone = [
        total(SegmentationLoss(dice=0.5), {"logits": logits}, batch, 0.0).loss
        for logits in (outputs["logits"], *outputs["auxiliary"])
    ]
    torch.testing.assert_close(total(settings, outputs, batch, 0.0).loss, alone[0] + 0.4 * (alone[1] + alone[2]) / 2)


def test_the_sums_of_a_step_weigh_images_by_their_labelled_pixels() -> None:
    outputs, batch = example()
    made = total(PHASE_B, outputs, batch, batch["epochs"])
    sums = made.sums()
    assert float(sums["weight"]) == 1.5  # half of one image has no label
    assert float(sums["loss_sum"]) == pytest.approx(1.5 * float(made.loss))
    assert float(sums["weight_mcc"]) / 1.5 == pytest.approx(0.3 * 0.35)
    assert float(sums["mcc"]) / 1.5 == pytest.approx(float(made.parts["mcc"]))
    assert set(sums) == {"loss_sum", "weight"} | {
        f"{prefix}{name}" for name in made.parts for prefix in ("", "weight_", "skipped_")
    }


def test_micro_batches_give_the_gradient_of_the_batch_where_the_loss_does_not_couple_samples() -> None:
    outputs, batch = example()
    logits = outputs["logits"].requires_grad_()
    whole = total(SegmentationLoss(), {"logits": logits}, batch, 0.0).sums()
    parts = [
        total(SegmentationLoss(), {"logits": logits[n : n + 1]}, {"mask": batch["mask"][n : n + 1]}, 0.0).sums()
        for n in range(2)
    ]
    torch.testing.assert_close(
        sum(one["loss_sum"] for one in parts) / sum(one["weight"] for one in parts),
        whole["loss_sum"] / whole["weight"],
    )


def test_a_batch_without_labels_weighs_nothing_and_says_so() -> None:
    outputs, batch = example()
    outputs = with_gradient(outputs)
    batch["mask"] = torch.full_like(batch["mask"], 255)
    settings = SegmentationLoss(focal=1, dice=1, mcc=1, boundary=1, boundary_head=1, auxiliary=1)
    sums = total(settings, outputs, batch, 5.0).sums()
    sums["loss_sum"].backward()
    assert float(sums["loss_sum"].detach()) == 0 and float(sums["weight"]) == 0
    assert not outputs["logits"].grad.any()
    skipped = {name: float(value) for name, value in sums.items() if name.startswith("skipped_")}
    assert len(skipped) == 7 and set(skipped.values()) == {2.0}  # both samples


def test_a_batch_of_one_class_is_told_of() -> None:
    outputs, batch = example()
    batch["mask"] = torch.ones_like(batch["mask"])
    made = total(PHASE_B, outputs, batch, 5.0)
    assert {name: float(value) for name, value in made.skipped.items()} == {
        "focal": 0, "dice": 0, "mcc": 1, "boundary": 1
    }  # fmt: skip


def test_a_validity_mask_in_the_batch_is_used() -> None:
    outputs, batch = example()
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[1, :4] = True
    made = total(PHASE_A, outputs, {**batch, "valid": valid}, 0.0)
    same = total(PHASE_A, outputs, {"mask": batch["mask"].masked_fill(~valid, 255)}, 0.0)
    assert float(made.labelled) == 0.5 and torch.equal(made.loss, same.loss)


def test_class_weights_by_number_average_to_one_over_the_pixels() -> None:
    pixels = [900, 90, 10, 0]
    inverse = class_weights("inverse", pixels, 4, "loss.class_weights")
    root = class_weights("sqrt_inverse", pixels, 4, "loss.class_weights")
    assert inverse is not None and root is not None
    torch.testing.assert_close(inverse, torch.tensor([1000 / 2700, 1000 / 270, 1000 / 30, 0]))
    assert float(root[2] / root[0]) == pytest.approx(math.sqrt(90))
    for weights in (inverse, root):
        assert float((weights * torch.tensor(pixels)).sum()) == pytest.approx(1000)
    assert class_weights("none", None, 4, "loss.class_weights") is None
    outputs, batch = example()
    made = total(SegmentationLoss(class_weights="inverse"), outputs, batch, 0.0, pixels=pixels)
    torch.testing.assert_close(made.loss, losses.cross_entropy(outputs["logits"], batch["mask"], inverse).value)


def test_what_does_not_fit_is_told() -> None:
    outputs, batch = example()
    with pytest.raises(ConfigError, match=r"loss\.class_weights has 2 numbers, but there are 4 classes"):
        total(SegmentationLoss(class_weights=(1, 2)), outputs, batch, 0.0)
    with pytest.raises(ConfigError, match=r"loss\.alpha=inverse needs to know"):
        total(SegmentationLoss(focal=1, alpha="inverse"), outputs, batch, 0.0)
    with pytest.raises(ModelError, match=r"loss\.boundary_head is set"):
        total(SegmentationLoss(boundary_head=1), {"logits": outputs["logits"]}, batch, 0.0)
    with pytest.raises(ModelError, match=r"loss\.auxiliary is set"):
        total(SegmentationLoss(auxiliary=1), {**outputs, "auxiliary": ()}, batch, 0.0)
    with pytest.raises(ValidationError, match="no loss of the predicted classes"):
        SegmentationLoss(cross_entropy=0, boundary_head=1)


def test_settings_without_effect_are_told() -> None:
    assert set(SegmentationLoss().idle()) == {
        "mcc_form", "mcc_ramp_epochs", "boundary_form", "boundary_ramp_epochs", "gamma", "alpha", "smooth"
    }  # fmt: skip
    assert set(PHASE_B.idle()) == {"class_weights", "label_smoothing"}
    assert "smooth" in SegmentationLoss(boundary=1, boundary_form="surface").idle()


def with_gradient(outputs: dict[str, Any]) -> dict[str, Any]:
    return {**outputs, "logits": outputs["logits"].clone().requires_grad_()}
