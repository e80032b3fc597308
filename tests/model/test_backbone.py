"""timm classifiers: names, weights files that fit or say which tensors do not, and no silent partial load."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from outlast.errors import ModelError
from outlast.model import backbone, own_weights, segmenter
from outlast.model.backbone import Tokens, classifier, extractor, load_weights, normalisation
from outlast.model.segmenter_settings import SegmenterSettings

NAME = "test_resnet"


def saved(path: Path, classes: int = 5, channels: int = 3) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    state = timm.create_model(NAME, num_classes=classes, in_chans=channels).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path, state


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_timm_name_maps_images_to_logits(channels: int) -> None:
    model = classifier(NAME, 4, channels=channels).eval()
    assert model(torch.randn(2, channels, 64, 48)).shape == (2, 4)


def test_models_of_fixed_size_are_built_for_the_image_size() -> None:
    model = classifier("test_vit", 3, image_size=(64, 32)).eval()
    assert model(torch.randn(1, 3, 64, 32)).shape == (1, 3)


def test_an_unknown_name_suggests_the_closest_and_the_tasks_own() -> None:
    with pytest.raises(ModelError, match="resnt18") as caught:
        classifier("resnt18", 3)
    assert "resnet18" in (caught.value.hint or "")
    with pytest.raises(ModelError) as caught:
        classifier("minimall", 3, also=("minimal",))
    assert "did you mean minimal" in (caught.value.hint or "")


def test_an_unknown_pretrained_tag_lists_the_tags() -> None:
    with pytest.raises(ModelError, match="no_such") as caught:
        classifier("resnet18.no_such", 3)
    assert "a1_in1k" in (caught.value.hint or "")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_the_same_size_is_loaded_whole(tmp_path: Path, suffix: str) -> None:
    path, state = saved(tmp_path / f"weights{suffix}")
    loaded = classifier(NAME, 5, weights=path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_head_of_other_size_is_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, state = saved(tmp_path / "weights.safetensors")
    model = timm.create_model(NAME, num_classes=3)
    with caplog.at_level(logging.WARNING):
        left_out = load_weights(model, path)
    assert left_out == ["fc.weight", "fc.bias"]
    assert "head was left out" in caplog.text and "fc.weight" in caplog.text
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if key not in left_out)


def test_any_other_mismatch_is_an_error_that_names_the_tensors(tmp_path: Path) -> None:
    path, state = saved(tmp_path / "weights.pth")
    del state["conv1.0.weight"]
    state["stranger.weight"] = torch.zeros(2)
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    with pytest.raises(ModelError) as caught:
        classifier(NAME, 5, weights=path)
    message = str(caught.value)
    for part in ("missing 1: conv1.0.weight", "unexpected 1: stranger.weight", "layer1.0.conv1.weight (1, 2, 3, 3)"):
        assert part in message


def test_the_first_convolution_is_adapted_to_the_channels(tmp_path: Path) -> None:
    path, state = saved(tmp_path / "weights.safetensors")
    model = classifier(NAME, 5, channels=1, weights=path)
    torch.testing.assert_close(model.state_dict()["conv1.0.weight"], state["conv1.0.weight"].sum(1, keepdim=True))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"tensor": torch.zeros(1), "code": Path}, path)
    with pytest.raises(ModelError, match="not a readable weights file"):
        classifier(NAME, 5, weights=path)


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ModelError, match=name):
        classifier(NAME, 5, weights=tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.pth"):
        classifier(NAME, 5, weights=tmp_path / "absent.pth")


def test_an_unreachable_hub_is_a_clear_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(backbone.timm, "create_model", unreachable)
    with pytest.raises(ModelError, match="no route to host") as caught:
        classifier("resnet18", 3, pretrained=True)
    assert "model.weights=" in (caught.value.hint or "")


def test_normalisation_is_the_models_own() -> None:
    assert normalisation("resnet18").mean == pytest.approx((0.485, 0.456, 0.406))
    assert normalisation("vit_tiny_patch16_224").std == pytest.approx((0.5, 0.5, 0.5))


def test_models_whose_own_weights_come_next_need_no_published_ones(tmp_path: Path) -> None:
    """A finished run is used without the internet, and without the file that its training began with."""
    settings = SegmenterSettings(encoder="resnet18", depth=3, weights=str(tmp_path / "not there"))
    attempts = [
        lambda: classifier("resnet10t", 2, weights=tmp_path / "not there"),
        lambda: extractor("resnet10t", weights=tmp_path / "not there"),
        lambda: Tokens("vit_tiny_patch16_224", pretrained=False, weights=tmp_path / "not there"),
        lambda: segmenter.build(settings, 3, 2, [0.0] * 3, [1.0] * 3),
    ]
    for build in attempts:
        with pytest.raises(ModelError, match="not there"):
            build()
        with own_weights.coming():
            build()
    with own_weights.coming():
        classifier("resnet10t", 2, pretrained=True)  # the hub is not asked
