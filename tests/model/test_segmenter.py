"""Segmentation models: raw bands of any size with holes in, logits of the same size out, and everything is trained."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn

from outlast.errors import ModelError
from outlast.loop import deterministic
from outlast.model import segmenter
from outlast.model.normalised import Normalised
from outlast.model.segmenter import SegmenterSettings, build, deployed, rung_settings, rungs

CHANNELS, CLASSES = 5, 4
MEAN, STD = (10.0, 20.0, 30.0, 40.0, 50.0), (1.0, 2.0, 3.0, 4.0, 5.0)
LIGHT = SegmenterSettings(encoder="resnet18")
PLAIN = SegmenterSettings(encoder="plain", width=8, depth=3, dropout=0.1)
SHALLOW = SegmenterSettings(encoder="resnet18", depth=3, decoder_channels=(32, 16, 16))


def built(settings: SegmenterSettings = SHALLOW) -> Normalised:
    torch.manual_seed(0)
    return build(settings, CHANNELS, CLASSES, MEAN, STD)


def raw(*sides: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(batch, CHANNELS, *sides, generator=generator)
    return noise * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("sides", [(64, 64), (96, 96), (100, 130), (33, 7)])
@pytest.mark.parametrize("settings", [LIGHT, SHALLOW, PLAIN], ids=["deep", "shallow", "plain"])
def test_the_maps_have_the_size_of_the_image(settings: SegmenterSettings, sides: tuple[int, int]) -> None:
    with torch.inference_mode():
        outputs = built(settings).eval()(raw(*sides))
    assert outputs["logits"].shape == (2, CLASSES, *sides)
    assert outputs["boundary"].shape == (2, 1, *sides)


def test_a_whole_competition_tile_passes() -> None:
    with torch.inference_mode():
        assert built().eval()(raw(512, 512, batch=1))["logits"].shape == (1, CLASSES, 512, 512)


def test_the_sizes_are_those_that_the_docstring_names() -> None:
    for encoder in ("resnet34", "resnet18"):
        module = built(SegmenterSettings(encoder=encoder))
        for number in (parameters(module), parameters(deployed(module))):
            assert f"{number:,}" in (segmenter.__doc__ or "")


@pytest.mark.parametrize("settings", [LIGHT, SHALLOW, SegmenterSettings(encoder="tu-test_resnet", depth=4)])
def test_a_step_moves_every_parameter_those_of_the_boundary_head_too(settings: SegmenterSettings) -> None:
    module = built(settings).train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # timm begins residual branches at exactly zero
    outputs = module(raw(64, 64, batch=4))
    (outputs["logits"].square().mean() + outputs["boundary"].square().mean()).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    # A squeeze to one channel may be off for all four samples: its ReLU then passes no gradient.
    still = [name for name, gradient in gradients.items() if not gradient.any() and "cSE" not in name]
    assert still == []
    assert any("boundary" in name for name in gradients)


def test_what_was_not_observed_enters_as_the_mean_and_never_leaves_as_nan() -> None:
    module, images = built().eval(), raw(64, 64)
    holes = images.clone()
    holes[0, 1, 10:20] = torch.nan
    holes[1] = torch.nan
    filled = torch.where(holes.isnan(), torch.tensor(MEAN)[:, None, None], holes)
    gain, shift = torch.full((2, CHANNELS), 2.0), torch.full((2, CHANNELS), 3.0)
    with torch.inference_mode():
        torch.testing.assert_close(module(holes), module(filled))
        changed = module(holes, gain, shift)
    assert all(torch.isfinite(maps).all() for maps in changed.values())


def test_gain_and_shift_act_on_normalised_values_of_observed_pixels() -> None:
    module, images = built().eval(), raw(64, 64)
    seen = []
    module.net.register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    images[0, 2, 5, 6] = torch.nan
    gain, shift = torch.rand(2, CHANNELS) + 0.5, torch.randn(2, CHANNELS)
    with torch.inference_mode():
        module(images)
        module(images, gain, shift)
    plain, changed = seen
    assert changed[0, 2, 5, 6] == plain[0, 2, 5, 6] == 0
    observed = ~images.isnan()
    expected = plain * gain[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(changed[observed], expected[observed])
    assert abs(float(plain.mean())) < 0.1 and abs(float(plain.std()) - 1) < 0.1


def test_samples_are_independent_in_evaluation() -> None:
    module, images = built().eval(), raw(64, 64, batch=3)
    with torch.inference_mode():
        torch.testing.assert_close(module(images)["logits"][1:2], module(images[1:2])["logits"], atol=1e-4, rtol=1e-4)


def test_a_state_dict_goes_round() -> None:
    module, other = built().eval(), build(SHALLOW, CHANNELS, CLASSES, (0.0,) * 5, (9.0,) * 5).eval()
    other.load_state_dict(module.state_dict())
    with torch.inference_mode():
        assert torch.equal(module(raw(64, 64))["logits"], other(raw(64, 64))["logits"])


def test_what_is_deployed_gives_the_same_logits_without_the_boundary_head() -> None:
    module = built().eval()
    small = deployed(module)
    with torch.inference_mode():
        assert torch.equal(small(raw(64, 64)), module(raw(64, 64))["logits"])
    own, whole = small.state_dict(), module.state_dict()
    assert set(whole) - set(own) == {name for name in whole if name.startswith("net.boundary.")} != set()
    assert all(torch.equal(own[name], whole[name]) for name in own)


def test_what_is_deployed_can_be_traced_for_export_with_batches_of_any_size() -> None:
    module = deployed(built().eval())
    with torch.no_grad():
        program = torch.export.export(module, (raw(64, 60),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.testing.assert_close(program.module()(raw(64, 60, batch=3)), module(raw(64, 60, batch=3)))


@pytest.mark.parametrize("sides", [(64, 64), (50, 70)])
def test_no_operation_of_a_step_is_inexact_on_cuda(sides: tuple[int, int]) -> None:
    module = built().train()
    with deterministic.watch(False) as seen:
        outputs = module(raw(*sides))
        (outputs["logits"].mean() + outputs["boundary"].mean()).backward()
    assert seen.operations == set()


def test_the_head_can_be_left_out_and_dropout_drops() -> None:
    module = built(SHALLOW.model_copy(update={"boundary_head": False, "dropout": 0.5, "attention": "none"})).train()
    first, second = module(raw(64, 64)), module(raw(64, 64))
    assert set(first) == {"logits"}
    assert not torch.equal(first["logits"], second["logits"])


@pytest.mark.parametrize("fetched", [False, True], ids=["file", "published"])
@pytest.mark.parametrize(("encoder", "channels"), [("resnet18", 5), ("tu-test_resnet", 1), ("tu-test_convnext", 5)])
def test_an_encoders_weights_are_loaded_and_the_channels_adapted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, channels: int, fetched: bool
) -> None:
    source = timm.create_model(encoder.removeprefix("tu-"), num_classes=0 if fetched else 7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(segmenter.backbone, "_from_hub", lambda *_: source)
    chosen = {"pretrained": True} if fetched else {"weights": str(tmp_path / "weights.pth")}
    settings = SegmenterSettings(encoder=encoder, depth=4, **chosen)
    module = build(settings, channels, CLASSES, (0.0,) * channels, (1.0,) * channels)
    given = {key.replace(".", "_"): value for key, value in source.state_dict().items()}
    own = {
        key.removeprefix("net.encoder.").removeprefix("model.").replace(".", "_"): value
        for key, value in module.state_dict().items()
        if key.startswith("net.encoder.")
    }
    (adapted,) = [key for key in own if own[key].shape != given[key].shape]
    assert own[adapted].shape[1] == channels
    # timm's rule: summed into one channel, else repeated and scaled by 3 / channels.
    first = given[adapted].sum(1) if channels == 1 else given[adapted][:, 0] * 3 / channels
    torch.testing.assert_close(own[adapted][:, 0], first)
    assert all(torch.equal(own[key], given[key]) for key in own if key != adapted)


def test_weights_of_another_encoder_are_an_error_that_names_the_tensors(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    del state["layer1.0.conv1.weight"]
    state["bn1.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="does not fit the encoder") as caught:
        built(LIGHT.model_copy(update={"weights": str(tmp_path / "weights.pth")}))
    assert "missing 1: layer1.0.conv1.weight" in str(caught.value)
    assert "bn1.weight (3,), the encoder has (64,)" in str(caught.value)


def test_missing_weights_and_an_unreachable_hub_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"absent\.pth") as caught:
        built(LIGHT.model_copy(update={"weights": str(tmp_path / "absent.pth")}))
    assert caught.value.hint

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(segmenter.backbone.timm, "create_model", unreachable)
    with pytest.raises(ModelError, match="no route to host") as caught:
        built(LIGHT.model_copy(update={"pretrained": True}))
    assert "model.weights=" in (caught.value.hint or "")


@pytest.mark.parametrize(("name", "hint"), [("resnet43", "resnet34"), ("tu-resnt18", "resnet18")])
def test_an_unknown_encoder_suggests_the_closest(name: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        built(SegmenterSettings(encoder=name))
    assert hint in (caught.value.hint or "")


def test_without_the_library_of_encoders_the_others_work_and_the_error_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    assert isinstance(built(PLAIN), Normalised)
    with pytest.raises(ModelError, match="not installed") as caught:
        built(LIGHT)
    assert "--no-deps" in (caught.value.hint or "")


def test_a_model_that_is_no_encoder_is_refused_with_a_way_out() -> None:
    with pytest.raises(ModelError, match="does not serve as the encoder") as caught:
        built(SegmenterSettings(encoder="tu-test_vit"))
    assert "resnet34" in (caught.value.hint or "")


@pytest.mark.parametrize(("mean", "std"), [((0.0,) * 5, (1.0,) * 4), ((0.0,) * 5, (1.0, 0.0, 1.0, 1.0, 1.0))])
def test_statistics_that_cannot_normalise_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ModelError):
        build(SHALLOW, CHANNELS, CLASSES, mean, std)
    with pytest.raises(ModelError, match="5 channels need as many means"):
        build(SHALLOW, CHANNELS, CLASSES, mean[:4], std[:4])


def test_the_ladder_goes_down_and_names_no_model_twice() -> None:
    wanted = SegmenterSettings(pretrained=True)
    assert rungs(wanted) == ("resnet34", "resnet18", "small")
    assert rungs(LIGHT) == ("resnet18", "small")
    assert rungs(SegmenterSettings(architecture="glavitu")) == ("glavitu", "resnet18", "small")
    assert rungs(SegmenterSettings(encoder="resnet18", depth=3)) == ("resnet18", "small")
    assert rungs(PLAIN) == ("plain", "small")
    assert rung_settings(wanted, "resnet34") == wanted
    assert rung_settings(wanted, "resnet18") == LIGHT
    sizes = [
        parameters(built(rung_settings(wanted.model_copy(update={"pretrained": False}), rung)))
        for rung in rungs(wanted)
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_settings_that_contradict_each_other_are_refused_and_idle_ones_named() -> None:
    with pytest.raises(ValidationError, match="depth=4"):
        SegmenterSettings(depth=4, decoder_channels=(64, 32, 16))
    with pytest.raises(ValidationError, match="at least 16"):
        SegmenterSettings(depth=3, decoder_channels=(32, 16, 8))
    assert "glavitu.patch" in LIGHT.idle() and "encoder" not in LIGHT.idle()
    assert "encoder" in SegmenterSettings(architecture="glavitu").idle()
    assert "pretrained" in SegmenterSettings(pretrained=True, weights="file.pth").idle()
    assert SegmenterSettings(encoder="tu-convnext_tiny", pretrained=True).downloads() == ("convnext_tiny",)


def test_deploying_leaves_the_trained_module_as_it_is() -> None:
    module = built()
    before = copy.deepcopy(module.state_dict())
    deployed(module).net.requires_grad_(False)
    assert set(module.state_dict()) == set(before)
    assert all(parameter.requires_grad for parameter in module.parameters())
