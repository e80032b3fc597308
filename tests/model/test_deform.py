"""Deformable convolution keeps its definition on every path."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from outlast.model.deform import DeformConv2d, MultiScaleDeformConv, deform_conv, gather_deform_conv

CASES = [
    # groups, height, width, kernel, stride
    (1, 9, 9, 3, 1),
    (2, 8, 13, 3, 1),
    (1, 12, 7, 5, 2),
]


def arguments(groups: int, height: int, width: int, kernel: int, stride: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pad = kernel // 2
    out_height, out_width = (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1
    taps = groups * kernel * kernel

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "images": normal(2, 4, height, width),
        # wide offsets: some samples leave the image
        "offset": 2 * normal(2, 2 * taps, out_height, out_width),
        "mask": normal(2, taps, out_height, out_width).sigmoid(),
        "weight": normal(6, 4, kernel, kernel) / kernel,
        "bias": normal(6),
    }


@pytest.mark.parametrize(("groups", "height", "width", "kernel", "stride"), CASES)
@pytest.mark.parametrize("offsets", ["learned", "zero"])
def test_gather_equals_torchvision_in_values_and_gradients(
    groups: int, height: int, width: int, kernel: int, stride: int, offsets: str
) -> None:
    values = arguments(groups, height, width, kernel, stride)
    if offsets == "zero":
        values["offset"] = torch.zeros_like(values["offset"])
    pad = (kernel // 2, kernel // 2)

    def run(function: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        own = {name: value.clone().requires_grad_() for name, value in values.items()}
        if function == "torchvision":
            result = deform_conv2d(
                own["images"], own["offset"], own["weight"], own["bias"], (stride, stride), pad, mask=own["mask"]
            )
        else:
            result = gather_deform_conv(
                own["images"], own["offset"], own["mask"], own["weight"], own["bias"], pad, (stride, stride)
            )
        # The mean keeps gradients of order one, so that 1e-5 is a real bound.
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).mean().backward()
        return result.detach(), {name: value.grad for name, value in own.items() if value.grad is not None}

    expected, expected_gradients = run("torchvision")
    result, gradients = run("gather")
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys() == values.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_public_function_equals_torchvision_on_this_device() -> None:
    values = arguments(1, 9, 11, 3, 1)
    result = deform_conv(values["images"], values["offset"], values["mask"], values["weight"], values["bias"], (1, 1))
    expected = deform_conv2d(
        values["images"], values["offset"], values["weight"], values["bias"], 1, 1, mask=values["mask"]
    )
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_a_new_layer_is_a_plain_convolution_times_one_half() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(3, 5)
    images = torch.randn(2, 3, 10, 7)
    bias = layer.convolution.bias
    assert bias is not None
    plain = F.conv2d(images, layer.convolution.weight, padding=1)
    torch.testing.assert_close(layer(images), 0.5 * plain + bias[:, None, None], atol=1e-5, rtol=1e-5)


def test_offset_and_mask_predictors_start_at_zero_and_learn() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(3, 5)
    for predictor in (layer.offset, layer.mask):
        assert all(not parameter.any() for parameter in predictor.parameters())
    layer(torch.randn(2, 3, 8, 8)).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_multi_scale_shares_weights_and_equals_its_definition() -> None:
    torch.manual_seed(0)
    scales = (1.0, 5 / 3, 7 / 3)
    layer = MultiScaleDeformConv(3, 8, scales)
    images = torch.randn(2, 3, 12, 9)
    streams = []
    for size in ((12, 9), (20, 15), (28, 21)):
        larger = F.interpolate(images, size, mode="bilinear", align_corners=False)
        streams.append(F.interpolate(layer.deform(larger), (12, 9), mode="bilinear", align_corners=False))
    expected = layer.fuse(torch.cat(streams, dim=1)) + layer.residual(images)
    torch.testing.assert_close(layer(images), expected, atol=1e-6, rtol=1e-5)
    names = {name.split(".")[0] for name, _ in layer.named_parameters()}
    assert names == {"deform", "fuse", "residual"}


def test_the_residual_is_the_identity_where_channels_agree() -> None:
    layer = MultiScaleDeformConv(4, 4, (1.0,))
    torch.nn.init.zeros_(layer.fuse.weight)
    assert layer.fuse.bias is not None
    torch.nn.init.zeros_(layer.fuse.bias)
    images = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(layer(images), images)


def test_half_precision_input_is_computed_in_float32() -> None:
    values = arguments(1, 8, 8, 3, 1)
    result = deform_conv(
        values["images"].bfloat16(), values["offset"], values["mask"], values["weight"], values["bias"], (1, 1)
    )
    assert result.dtype == torch.float32
