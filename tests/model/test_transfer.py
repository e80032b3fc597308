"""Weights move between models with other bands and classes exactly as they were told to, and every tensor is named."""

from __future__ import annotations

import json

import pytest
import torch

from outlast.errors import ModelError
from outlast.model.normalised import Normalised
from outlast.model.segmenter import SegmenterSettings, build, deployed, small_glavitu
from outlast.model.transfer import transfer

UNET = SegmenterSettings(encoder="resnet18", depth=3, decoder_channels=(32, 16, 16))
HYBRID = SegmenterSettings(architecture="glavitu", glavitu=small_glavitu())
BOTH = pytest.mark.parametrize("settings", [UNET, HYBRID], ids=["unet", "glavitu"])


def built(settings: SegmenterSettings, channels: int, classes: int, seed: int) -> Normalised:
    torch.manual_seed(seed)
    mean = [seed + 0.5 * channel for channel in range(channels)]
    return build(settings, channels, classes, mean, [1.0 + seed] * channels).eval()


def copied(module: Normalised) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@BOTH
def test_the_same_model_is_loaded_whole(settings: SegmenterSettings) -> None:
    source, target = built(settings, 5, 4, 1), built(settings, 5, 4, 2)
    report = transfer(source.state_dict(), target)
    assert report.complete and report.lines() == [f"{len(source.state_dict())} loaded"]
    assert all(torch.equal(target.state_dict()[name], value) for name, value in source.state_dict().items())


@BOTH
def test_bands_and_classes_follow_their_mappings_and_new_ones_stay_as_initialised(settings: SegmenterSettings) -> None:
    source, target = built(settings, 7, 3, 1), built(settings, 5, 4, 2)
    given, before = copied(source), copied(target)
    bands, kinds = {0: 0, 1: 1, 2: 2, 4: 6}, {0: 0, 1: 1, 2: 2}
    report = transfer(given, target, channels=bands, classes=kinds)
    after, axes = target.state_dict(), {**target.channel_tensors(), **target.class_tensors()}
    assert report.complete
    assert {tensor.name for tensor in report.tensors if tensor.status == "remapped"} == set(axes)
    for name, axis in axes.items():
        mapping = bands if name in target.channel_tensors() else kinds
        for own in range(after[name].shape[axis]):
            expected = given[name].select(axis, mapping[own]) if own in mapping else before[name].select(axis, own)
            assert torch.equal(after[name].select(axis, own), expected), (name, own)
    assert all(torch.equal(after[name], given[name]) for name in after if name not in axes)
    assert "mean: channels 0 from 0, 1 from 1, 2 from 2, 4 from 6; newly initialised 3" in report.lines()
    assert torch.isfinite(target(torch.randn(1, 5, 64, 64))["logits"]).all()


@BOTH
def test_a_reordering_of_bands_and_classes_changes_nothing_but_the_order(settings: SegmenterSettings) -> None:
    source, target = built(settings, 5, 4, 1), built(settings, 5, 4, 2)
    bands, kinds = [3, 1, 4, 0, 2], [2, 0, 3, 1]
    transfer(source.state_dict(), target, channels=dict(enumerate(bands)), classes=dict(enumerate(kinds)))
    images = torch.randn(1, 5, 64, 64)
    with torch.inference_mode():
        expected = source(images)["logits"][:, kinds]
        torch.testing.assert_close(target(images[:, bands])["logits"], expected, atol=1e-4, rtol=1e-4)


def test_the_statistics_of_the_new_data_can_be_kept() -> None:
    source, target = built(UNET, 5, 4, 1), built(UNET, 5, 4, 2)
    before = target.mean.clone()
    report = transfer(source.state_dict(), target, statistics=False)
    assert torch.equal(target.mean, before) and not torch.equal(target.mean, source.mean)
    assert report.complete and report.summary().endswith("2 kept")


def test_other_channels_without_a_mapping_are_an_error_and_nothing_is_loaded() -> None:
    source, target = built(UNET, 7, 3, 1), built(UNET, 5, 4, 2)
    before = copied(target)
    with pytest.raises(ModelError, match="5 shape differs") as caught:
        transfer(source.state_dict(), target, source="pretrain/best")
    text = str(caught.value)
    for part in ("pretrain/best", "net.head.0.weight", "the model has (5,), the weights (7,)", "say which correspond"):
        assert part in text
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())


def test_missing_and_unexpected_tensors_are_an_error_unless_a_part_is_asked_for() -> None:
    source, target = built(UNET, 5, 4, 1), built(UNET, 5, 4, 2)
    given = {**deployed(source).state_dict(), "stranger": torch.zeros(1)}
    with pytest.raises(ModelError, match="1 unexpected") as caught:
        transfer(given, target)
    assert "net.boundary.0.weight: missing" in caught.value.details and "stranger: unexpected" in caught.value.details
    report = transfer(given, target, partial=True)
    statuses = {tensor.name: tensor.status for tensor in report.tensors}
    assert not report.complete
    assert statuses["net.boundary.0.weight"] == "missing" and statuses["stranger"] == "unexpected"
    assert set(statuses) == set(target.state_dict()) | {"stranger"}
    images = torch.randn(1, 5, 64, 64)
    with torch.inference_mode():
        assert torch.equal(source(images)["logits"], target(images)["logits"])


def test_nothing_in_common_is_an_error_even_if_a_part_would_do() -> None:
    with pytest.raises(ModelError, match="no tensor that fits"):
        transfer({"stranger": torch.zeros(1)}, built(UNET, 5, 4, 2), partial=True)


@pytest.mark.parametrize(
    ("channels", "classes", "named"),
    [({5: 0}, None, "channels 5 of the model, which has 5"), (None, {0: 3}, "classes 3 of the weights, which has 3")],
)
def test_a_mapping_of_what_does_not_exist_is_refused(
    channels: dict[int, int] | None, classes: dict[int, int] | None, named: str
) -> None:
    source, target = built(UNET, 7, 3, 1), built(UNET, 5, 4, 2)
    with pytest.raises(ModelError, match="names what does not exist") as caught:
        transfer(source.state_dict(), target, channels=channels, classes=classes, partial=True)
    assert named in str(caught.value)


def test_the_report_is_json_and_half_precision_is_widened() -> None:
    source, target = built(UNET, 5, 3, 1), built(UNET, 5, 4, 2)
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in copied(source).items()}
    report = transfer(halved, target, classes={0: 0, 1: 1, 2: 2})
    written = json.loads(json.dumps(report.as_json()))
    head = next(tensor for tensor in written["tensors"] if tensor["name"] == "net.head.0.bias")
    assert head["status"] == "remapped" and head["copied"] == {"0": 0, "1": 1, "2": 2} and head["fresh"] == [3]
    assert written["complete"] and all(tensor.dtype != torch.float16 for tensor in target.state_dict().values())
