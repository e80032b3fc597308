"""The hybrid: a transformer's features refined by a U-Net, any size, both outputs trained."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from outlast.loop import deterministic
from outlast.model.glavitu import Positions
from outlast.model.normalised import Normalised
from outlast.model.segmenter import GlavituSettings, SegmenterSettings, build, deployed, small_glavitu

CHANNELS, CLASSES = 5, 4
SMALL = SegmenterSettings(architecture="glavitu", glavitu=small_glavitu())


def built(settings: SegmenterSettings = SMALL) -> Normalised:
    torch.manual_seed(0)
    return build(settings, CHANNELS, CLASSES, (0.0,) * CHANNELS, (1.0,) * CHANNELS)


def images(*sides: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, CHANNELS, *sides, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sides", [(64, 64), (96, 96), (100, 130), (9, 70)])
def test_all_outputs_have_the_size_of_the_image(sides: tuple[int, int]) -> None:
    with torch.inference_mode():
        outputs = built().eval()(images(*sides))
    assert outputs["logits"].shape == (2, CLASSES, *sides)
    assert outputs["boundary"].shape == (2, 1, *sides)
    (auxiliary,) = outputs["auxiliary"]
    assert auxiliary.shape == (2, CLASSES, *sides)


def test_a_whole_competition_tile_passes() -> None:
    with torch.inference_mode():
        assert built().eval()(images(512, 512, batch=1))["logits"].shape == (1, CLASSES, 512, 512)


@pytest.mark.parametrize("patch", [4, 16])
def test_the_sizes_can_be_set(patch: int) -> None:
    sizes = {**small_glavitu().model_dump(), "patch": patch, "levels": 3, "layers": 1, "dim": 32, "mlp_ratio": 2.0}
    settings = SMALL.model_copy(update={"glavitu": GlavituSettings.model_validate(sizes), "boundary_head": False})
    outputs = built(settings).eval()(images(64, 64))
    assert set(outputs) == {"logits", "auxiliary"}
    with pytest.raises(ValidationError, match="not a multiple of heads"):
        GlavituSettings(dim=30, heads=4)


def test_a_step_moves_every_parameter() -> None:
    module = built().train()
    outputs = module(images(64, 64))
    total = outputs["logits"].square().mean() + outputs["boundary"].square().mean()
    (total + outputs["auxiliary"][0].square().mean()).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_deep_supervision_reaches_the_transformer_and_not_the_unet() -> None:
    module = built().train()
    module(images(64, 64))["auxiliary"][0].square().mean().backward()
    moved = {name.split(".")[1] for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert moved == {"transformer", "transformer_head"}


def test_far_pixels_see_each_other() -> None:
    module, given = built().eval(), images(64, 64, batch=1)
    changed = given.clone()
    changed[..., :8, :8] += 1
    with torch.inference_mode():
        before, after = module.net.transformer(given), module.net.transformer(changed)
    assert (before - after)[..., 56:, 56:].abs().max() > 0


def test_holes_never_become_nan() -> None:
    holes = images(64, 64)
    holes[0, :, 20:30], holes[1] = torch.nan, torch.nan
    with torch.inference_mode():
        outputs = built().eval()(holes)
    assert all(torch.isfinite(maps).all() for maps in (outputs["logits"], outputs["boundary"], *outputs["auxiliary"]))


def test_samples_are_independent_in_evaluation() -> None:
    module, given = built().eval(), images(64, 64, batch=3)
    with torch.inference_mode():
        whole, alone = module(given)["logits"][1:2], module(given[1:2])["logits"]
    torch.testing.assert_close(whole, alone, atol=1e-4, rtol=1e-4)


def test_a_state_dict_goes_round_and_deployment_keeps_the_logits() -> None:
    module = built().eval()
    other = build(SMALL, CHANNELS, CLASSES, (3.0,) * CHANNELS, (2.0,) * CHANNELS).eval()
    other.load_state_dict(module.state_dict())
    with torch.inference_mode():
        expected = module(images(64, 64))["logits"]
        assert torch.equal(other(images(64, 64))["logits"], expected)
        assert torch.equal(deployed(module)(images(64, 64)), expected)
    left_out = set(module.state_dict()) - set(deployed(module).state_dict())
    assert {name.split(".")[1] for name in left_out} == {"boundary", "transformer_head"}


def test_what_is_deployed_can_be_traced_for_export() -> None:
    module = deployed(built().eval())
    with torch.no_grad():
        program = torch.export.export(module, (images(64, 64),))
        torch.testing.assert_close(program.module()(images(64, 64)), module(images(64, 64)))


def test_positions_of_the_own_grid_are_the_table_and_others_lie_between() -> None:
    positions = Positions(3, 2)
    with torch.no_grad():
        positions.rows.copy_(torch.tensor([[0.0, 0.0], [1.0, 10.0], [4.0, 40.0]]))
        positions.columns.zero_()
        own = positions(3, 1)
        finer, single = positions(5, 1), positions(1, 1)
    torch.testing.assert_close(own, positions.rows)
    torch.testing.assert_close(finer[:, 0], torch.tensor([0.0, 0.5, 1.0, 2.5, 4.0]))
    torch.testing.assert_close(single[0], positions.rows[0])


def test_attention_is_the_only_operation_of_a_step_that_is_inexact_on_cuda() -> None:
    module = built().train()
    with deterministic.watch(False) as seen:
        outputs = module(images(50, 70))
        (outputs["logits"].mean() + outputs["boundary"].mean() + outputs["auxiliary"][0].mean()).backward()
    assert deterministic.for_record(sorted(seen.operations), "cuda", exact=False) == ["scaled_dot_product_attention"]
    assert deterministic.for_record(sorted(seen.operations), "cuda", exact=True) == []
