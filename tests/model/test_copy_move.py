"""The network that finds copies: what it promises about padding, gradient, exact offsets and missing weights."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from outlast.errors import ModelError
from outlast.model import backbone
from outlast.model.copy_move import CopyMove
from outlast.model.copy_move_settings import CopyMoveSettings, rung_settings, rungs
from outlast.model.descriptors import cosine_kernels, described

SMALL = CopyMoveSettings(width=8, stem=4, top=4, kept=2, radius=8)


def picture(height, width, seed=0):
    """Smooth noise in colours, uint8 (3, H, W): nothing in it repeats."""
    noise = np.random.default_rng(seed).normal(size=(3, height, width))
    smooth = np.stack([gaussian_filter(plane, 1.5) for plane in noise])
    return torch.from_numpy((128 + 200 * smooth).clip(0, 255).astype(np.uint8))


def network(settings=SMALL):
    torch.manual_seed(0)
    return CopyMove(settings).eval()


def everywhere(images):
    return torch.ones(len(images), *images.shape[2:], dtype=torch.bool)


@pytest.mark.parametrize("offset", [(37, 21), (-3, 50), (40, -7)])
def test_a_copy_is_matched_to_the_pixel_whatever_its_offset(offset):
    image = picture(108, 120)
    (dy, dx), (top, left) = offset, (45, 44)
    image[:, top + dy : top + dy + 20, left + dx : left + dx + 20] = image[:, top : top + 20, left : left + 20]
    with torch.no_grad():
        flow = network()(image[None], everywhere(image[None]))["flow"][0]
    middle = flow[:, (top + 10) // 4, (left + 10) // 4]
    assert middle[:2].tolist() == [dy, dx]
    assert float(middle[2]) > 0.5
    assert float(flow[2].median()) < 0.4


def test_an_image_gives_the_same_on_a_larger_canvas():
    image, model = picture(60, 77), network()
    canvas, valid = torch.full((1, 3, 96, 128), 90, dtype=torch.uint8), torch.zeros(1, 96, 128, dtype=torch.bool)
    canvas[0, :, :60, :77], valid[:, :60, :77] = image, True
    with torch.no_grad():
        alone, padded = model(image[None], everywhere(image[None])), model(canvas, valid)
    assert torch.allclose(alone["logits"], padded["logits"][:, :60, :77], atol=1e-5)
    assert torch.allclose(alone["score"], padded["score"], atol=1e-5)


def test_what_stands_on_padding_changes_nothing():
    image, model = picture(64, 64), network()
    valid = torch.zeros(1, 64, 64, dtype=torch.bool)
    valid[:, :50, :40] = True
    other = torch.where(valid[:, None], image[None], torch.tensor(7, dtype=torch.uint8))
    with torch.no_grad():
        one, two = model(image[None], valid), model(other, valid)
    assert torch.equal(one["logits"][valid], two["logits"][valid])


def test_gradient_reaches_the_descriptors_through_the_correlation_alone():
    model = network()
    images = picture(64, 64)[None]
    pixels = images.float() / 255
    found = model._matched(model.descriptors(pixels - 0.5), torch.ones(1, 16, 16, dtype=torch.bool), 4)
    found.values.sum().backward()
    gradient = model.descriptors.weight.grad
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().sum()) > 0


def test_an_image_smaller_than_a_window_is_no_match_and_no_error():
    images = picture(9, 10)[None]
    with torch.no_grad():
        outputs = network()(images, everywhere(images))
    assert outputs["logits"].shape == (1, 9, 10)
    assert torch.isfinite(outputs["logits"]).all()
    assert float(outputs["flow"][:, 2].abs().sum()) == 0


def test_a_descriptor_knows_neither_brightness_nor_flat_windows():
    kernels = cosine_kernels(8, 6, 3)
    image = picture(32, 32)[None].float() / 255
    one, norms = described(image, kernels)
    two, _ = described(image + 0.1, kernels)
    assert torch.allclose(one[..., 8:-8, 8:-8], two[..., 8:-8, 8:-8], atol=1e-4)
    _, flat = described(torch.full((1, 3, 32, 32), 0.5), kernels)
    assert float(flat[..., 8:-8, 8:-8].max()) < 1e-5 < float(norms[..., 8:-8, 8:-8].min())


def test_a_backbone_without_trained_weights_is_refused_with_the_ways_to_get_them():
    with pytest.raises(ValidationError, match=r"pretrained=true.*weights=FILE"):
        CopyMoveSettings(backbone="vit_tiny_patch16_224")


def test_a_weights_file_that_is_not_there_is_named(tmp_path):
    settings = CopyMoveSettings(backbone="vit_tiny_patch16_224", weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(ModelError, match=r"none\.safetensors"):
        CopyMove(settings)


def test_a_backbone_is_frozen_but_for_its_last_blocks_and_takes_any_size(tmp_path):
    torch.manual_seed(0)
    published = backbone.classifier("vit_tiny_patch16_224", 0)
    torch.save(published.state_dict(), tmp_path / "vit.pth")
    known = {**SMALL.model_dump(), "backbone": "vit_tiny_patch16_224", "weights": str(tmp_path / "vit.pth")}
    model = CopyMove(CopyMoveSettings.model_validate({**known, "unfrozen": 1})).train()
    assert model.unit == 16
    images = picture(70, 91)[None]
    outputs = model(images, everywhere(images))
    assert outputs["logits"].shape == (1, 70, 91)
    (outputs["logits"].mean() + outputs["score"].mean()).backward()
    blocks = model.backbone.model.blocks
    assert not blocks[0].training
    assert blocks[-1].training
    assert blocks[0].attn.qkv.weight.grad is None
    assert float(blocks[-1].attn.qkv.weight.grad.abs().sum()) > 0
    assert torch.equal(blocks[0].attn.qkv.weight, published.blocks[0].attn.qkv.weight)


def test_the_ladder_goes_down_to_a_narrow_network_that_needs_no_weights():
    settings = CopyMoveSettings(backbone="vit_small_patch14_dinov2", pretrained=True)
    assert rungs(settings) == ("vit_small_patch14_dinov2", "plain", "small")
    assert settings.downloads() == ("vit_small_patch14_dinov2",)
    lowest = rung_settings(settings, "small")
    assert (lowest.backbone, lowest.downloads()) == ("plain", ())
    assert lowest.width < settings.width


def test_the_repeatable_network_has_the_same_parameters_and_finds_the_same_copy_in_any_batch():
    image, other = picture(108, 120), picture(108, 120, seed=1)
    image[:, 70:90, 60:80] = image[:, 20:40, 30:50]
    model = network()
    same = model.repeatable()
    assert all(one is two for one, two in zip(model.parameters(), same.parameters(), strict=True))
    both = torch.stack((other, image))
    with torch.no_grad():
        single, alone = model(image[None], everywhere(image[None])), same(image[None], everywhere(image[None]))
        batch = same(both, everywhere(both))
    assert torch.equal(alone["flow"][0, :2], batch["flow"][1, :2])
    assert torch.allclose(alone["logits"][0], batch["logits"][1], atol=1e-5)
    strong = single["flow"][0, 2] > 0.5
    assert int(strong.sum()) > 10
    assert torch.equal(alone["flow"][0, :2, strong], single["flow"][0, :2, strong])
    assert same.search == torch.float64 and model.search == torch.float32
