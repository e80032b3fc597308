"""Two images through one model: where they are fused, what is frozen, how many parameters there are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from outlast.errors import ModelError
from outlast.model import backbone
from outlast.model.distillation_settings import TEACHERS, teacher_rung, teacher_rungs
from outlast.model.dual import DualBranch, DualSettings
from outlast.model.renormalise import Renormalise

# A tiny model of timm's for each way of fusing
KINDS = {"test_resnet": "stage", "test_efficientnet": "stage", "test_vit": "tokens", "test_convnext": "towers"}
SIZE = 64
every_kind = pytest.mark.parametrize("name", KINDS)


def built(name: str, **settings: object) -> DualBranch:
    torch.manual_seed(0)
    return DualBranch(DualSettings.model_validate({"name": name, **settings}), image_size=(SIZE, SIZE))


def images(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 3, SIZE, SIZE, generator=generator), torch.randn(3, 1, SIZE, SIZE, generator=generator)


def saved(folder: Path, name: str) -> Path:
    """Weights of a classifier for RGB with five classes, as a file."""
    torch.manual_seed(1)
    path = folder / f"{name}.safetensors"
    save_file(timm.create_model(name, num_classes=5).state_dict(), path)
    return path


# How many parameters

COUNTS = {
    "resnet-152": (103_418_882, 2048, "stage"),
    "efficientnet-b7": (76_211_338, 2560, "stage"),
    "swin-tiny": (56_217_590, 768, "towers"),
    "vit-b-16": (86_151_170, 1536, "tokens"),
    "resnet18": (14_085_378, 512, "stage"),
    "mobilenetv3_small_100": (1_714_794, 1024, "stage"),
}
MILLIONS = {"resnet-152": 103.4, "efficientnet-b7": 76.2, "swin-tiny": 56.2, "vit-b-16": 86.5}  # of the original


@pytest.mark.parametrize("name", COUNTS)
def test_every_teacher_has_its_parameters_features_and_point_of_fusion(name: str) -> None:
    with torch.device("meta"):  # shapes without numbers
        model = DualBranch(DualSettings(name=name))
        outputs = model(torch.empty(2, 3, 224, 224), torch.empty(2, 1, 224, 224))
    parameters = sum(one.numel() for one in model.parameters())
    assert (parameters, model.features, model.kind) == COUNTS[name]
    assert outputs["logits"].shape == (2, 2) and outputs["features"].shape == (2, model.features)


@pytest.mark.parametrize("name", MILLIONS)
def test_the_teachers_are_as_large_as_the_original_ones(name: str) -> None:
    three_channels = 2 * 16 * 16 * 768 if name == "vit-b-16" else 0  # what patches of three infrared channels would add
    assert round((COUNTS[name][0] + three_channels) / 1e6, 1) == MILLIONS[name]
    assert set(MILLIONS) == set(TEACHERS)


# What the parts do


@every_kind
def test_both_images_and_every_parameter_take_part(name: str) -> None:
    model = built(name)
    rgb, ir = (one.requires_grad_() for one in images())
    outputs = model(rgb, ir)
    assert model.kind == KINDS[name] and outputs["features"].shape == (3, model.features)
    (outputs["logits"] ** 2).sum().backward()
    assert rgb.grad is not None and rgb.grad.any() and ir.grad is not None and ir.grad.any()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_100"])
def test_branch_mean_and_tail_are_the_whole_network_cut_in_two(name: str) -> None:
    """The 1x1 convolution begins as the mean of both branches: the same branch twice is the network itself."""
    model = built(name).eval()
    torch.manual_seed(0)
    whole = backbone.extractor(name, image_size=(SIZE, SIZE)).eval()  # the first that `built` makes, so the same
    rgb, _ = images()
    maps = model.fused.rgb.forward_features(rgb)
    assert maps.shape[-2:] == (SIZE // 16, SIZE // 16)
    features = model.fused.tail(model.fused.mix(torch.cat((maps, maps), dim=1)))
    torch.testing.assert_close(features, whole(rgb))


def test_resnets_are_fused_after_layer3_and_efficientnets_after_block_5() -> None:
    with torch.device("meta"):
        resnet, efficientnet = (DualBranch(DualSettings(name=name)).fused for name in ("resnet-152", "efficientnet-b7"))
    assert _holds(resnet.rgb, "layer3") and not _holds(resnet.rgb, "layer4")
    assert _holds(resnet.tail, "layer4") and not _holds(resnet.tail, "layer3")
    assert [len(part.blocks) for part in (efficientnet.rgb, efficientnet.ir, efficientnet.tail)] == [5, 5, 2]


def _holds(model: nn.Module, part: str) -> bool:
    return any(True for _ in getattr(model, part).parameters())


def test_tokens_of_both_images_attend_to_each_other() -> None:
    model = built("test_vit").eval()
    rgb, ir = images()
    before, after = model(rgb, ir)["features"], model(rgb, ir + 1)["features"]
    half = model.features // 2
    assert (before - after)[:, :half].abs().max() > 1e-6  # the class token of RGB
    assert (before - after)[:, half:].abs().max() > 1e-6
    embedded = model.fused.rgb.forward_features(rgb)
    assert embedded.shape[1] == 1 + (SIZE // 16) ** 2


def test_the_features_of_tokens_are_both_class_tokens() -> None:
    model = built("test_vit").eval()
    model.fused.tail = nn.Identity()
    rgb, ir = images()
    own = [branch.forward_features(one)[:, 0] for branch, one in ((model.fused.rgb, rgb), (model.fused.ir, ir))]
    assert torch.equal(model.fused(rgb, ir), torch.cat(own, dim=1))


def test_a_transformer_of_patches_alone_is_two_towers() -> None:
    with torch.device("meta"):
        assert DualBranch(DualSettings(name="vit_base_patch16_siglip_224")).kind == "towers"


@pytest.mark.parametrize(
    "name", ["regnetx_002", "densenet121", "convnext_tiny", "mobilenetv4_conv_small", "efficientformerv2_s0", "vgg11"]
)
def test_any_timm_model_falls_into_one_of_the_kinds(name: str) -> None:
    # Making a RegNet asks for the unique widths of its stages, which torch 2.10 can't tell on the meta device.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = DualBranch(DualSettings(name=name)).eval()
        outputs = model(torch.zeros(2, 3, 224, 224), torch.zeros(2, 1, 224, 224))
    assert outputs["features"].shape == (2, model.features)


def test_pixels_are_given_on_the_scale_that_the_weights_want() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(Renormalise("vit_base_patch16_224")((pixels - mean) / std), (pixels - 0.5) / 0.5)
    assert Renormalise("resnet18")(pixels) is pixels


# Weights and freezing


@every_kind
def test_a_weights_file_fills_both_branches(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name)
    given = backbone.read_weights(path)
    model = built(name, weights=str(path))
    first = next(key for key, value in given.items() if value.ndim == 4 and value.shape[1] == 3)
    rgb, ir = model.fused.rgb.state_dict(), model.fused.ir.state_dict()
    assert torch.equal(rgb[first], given[first])
    torch.testing.assert_close(ir[first], given[first].sum(dim=1, keepdim=True))
    others = [key for key, value in given.items() if key in rgb and key != first and value.shape == rgb[key].shape]
    assert others and all(torch.equal(rgb[key], given[key]) for key in others)
    assert all(torch.equal(ir[key], rgb[key]) for key in rgb if key != first)


@every_kind
@pytest.mark.parametrize("freeze", ["rgb", "ir", "branches", "backbone"])
def test_what_is_frozen_does_not_change_in_training_not_even_its_statistics(
    name: str, freeze: str, tmp_path: Path
) -> None:
    model = built(name, weights=str(saved(tmp_path, name)), freeze=freeze)
    parts = {"branches": ("rgb", "ir"), "backbone": ("rgb", "ir", "tail")}.get(freeze, (freeze,))
    frozen = tuple(f"fused.{part}." for part in parts)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for step in range(2):
        model.eval()
        model.train()  # as after an evaluation
        optimizer.zero_grad()
        (model(*images(step))["logits"] ** 2).sum().backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not {key for key in changed if key.startswith(frozen)}
    learning = {key for key, value in model.named_parameters() if value.requires_grad}
    assert learning == {key for key, _ in model.named_parameters() if not key.startswith(frozen)}
    assert any(key.startswith("fused.") for key in changed) or (KINDS[name], freeze) == ("tokens", "backbone")


def test_without_freezing_the_statistics_of_both_branches_move() -> None:
    model = built("test_resnet")
    before = copy.deepcopy(model.state_dict())
    model(*images())
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.split(".")[1] for key in moved} == {"rgb", "ir", "tail"}


def test_a_copy_keeps_its_own_frozen_parts(tmp_path: Path) -> None:
    twin = copy.deepcopy(built("test_resnet", weights=str(saved(tmp_path, "test_resnet")), freeze="rgb"))
    twin.train()
    assert not twin.fused.rgb.training and twin.fused.ir.training and twin.training


@pytest.mark.parametrize("freeze", ["rgb", "ir", "branches", "backbone"])
def test_a_branch_of_random_numbers_is_never_frozen(freeze: str) -> None:
    with pytest.raises(ValidationError, match="would freeze random numbers"):
        DualSettings.model_validate({"name": "resnet18", "freeze": freeze})


# Names, settings and the ladder


def test_an_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(ModelError, match="resnet-15") as caught:
        DualBranch(DualSettings(name="resnet-15"))
    assert "resnet-152" in (caught.value.hint or "")


def test_an_image_that_a_model_does_not_take_is_told() -> None:
    with pytest.raises(ModelError, match="does not take images of 50x50"):
        DualBranch(DualSettings(name="test_vit"), image_size=(50, 50))


def test_what_must_be_downloaded_is_told_by_its_name() -> None:
    assert DualSettings(name="vit-b-16", pretrained=True).downloads() == ("vit_base_patch16_224",)
    assert DualSettings(name="vit-b-16", pretrained=True, weights="x").downloads() == ()
    assert DualSettings(name="vit-b-16", pretrained=True, weights="x").idle() == {"pretrained": "weights is given"}


def test_the_ladder_goes_down_from_the_wanted_teacher() -> None:
    small = ("resnet18", "mobilenetv3_small_100")
    assert teacher_rungs(DualSettings()) == ("resnet-152", *small)
    assert teacher_rungs(DualSettings(name="resnet18")) == small
    assert teacher_rungs(DualSettings(name="mobilenetv3_small_100")) == small[1:]
    wanted = DualSettings(pretrained=True, freeze="rgb", dropout=0.3)
    assert teacher_rung(wanted, "resnet-152") is wanted
    assert teacher_rung(wanted, "resnet18") == DualSettings(name="resnet18", dropout=0.3)
