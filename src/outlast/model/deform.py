"""Modulated deformable convolution (DCNv2), single-scale and multi-scale.

For: stems that bend their sampling grid along veins and lesion borders.
Promises: `deform_conv` computes torchvision's `deform_conv2d` on every device, to 1e-5 in values and gradients; on
the CPU, where torchvision's kernel is several times slower, by a bilinear gather and one matrix product. A new
`DeformConv2d` is a plain convolution times 0.5.
Does not: support weight groups or dilation other than 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


def deform_conv(
    images_BCHW: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int] = (0, 0),
    stride: tuple[int, int] = (1, 1),
) -> Tensor:
    """Return y(p) = sum_k w_k x(p + p_k + dp_k) m_k, zero outside the image (Zhu et al. 2019, DCNv2, equation 1).

    Shapes: offset (B, 2*G*kh*kw, H', W') as (dy, dx) pairs, mask (B, G*kh*kw, H', W') already through its sigmoid,
    weight (O, C, kh, kw), result (B, O, H', W'), for G groups of input channels that share their offsets.
    """
    if images_BCHW.device.type == "cuda":
        result: Tensor = deform_conv2d(images_BCHW, offset, weight, bias, stride, padding, mask=mask)
        return result
    return gather_deform_conv(images_BCHW, offset, mask, weight, bias, padding, stride)


def gather_deform_conv(
    images_BCHW: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int] = (0, 0),
    stride: tuple[int, int] = (1, 1),
) -> Tensor:
    """Compute `deform_conv` as one bilinear gather of all taps and one matrix product (any device, exportable)."""
    batch, channels, height, width = images_BCHW.shape
    outputs, _, kernel_height, kernel_width = weight.shape
    out_height, out_width = offset.shape[-2:]
    taps = kernel_height * kernel_width
    groups = mask.shape[1] // taps
    images, offset, mask = (_at_least_float32(tensor) for tensor in (images_BCHW, offset, mask))

    # Zero padding to powers of two changes nothing (outside is zero anyway) and makes the normalised coordinates of
    # whole pixels exact, so that a zero offset takes the same one-sided derivative as torchvision's kernel.
    padded_height, padded_width = _power_of_two(height), _power_of_two(width)
    images = F.pad(images, (0, padded_width - width, 0, padded_height - height))
    rows, columns = _tap_positions(images, (kernel_height, kernel_width), (out_height, out_width), padding, stride)
    shift = offset.reshape(batch * groups, taps, 2, out_height, out_width)
    grid = torch.stack(
        (
            (2 * (columns + shift[:, :, 1]) + 1) / padded_width - 1,
            (2 * (rows + shift[:, :, 0]) + 1) / padded_height - 1,
        ),
        dim=-1,
    )
    samples = F.grid_sample(
        images.reshape(batch * groups, channels // groups, padded_height, padded_width),
        grid.reshape(batch * groups, taps * out_height, out_width, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    samples = samples.reshape(batch * groups, channels // groups, taps, out_height * out_width)
    weighted = samples * mask.reshape(batch * groups, 1, taps, out_height * out_width)
    result = weight.flatten(1) @ weighted.reshape(batch, channels * taps, out_height * out_width)
    if bias is not None:
        result = result + bias[:, None]
    return result.reshape(batch, outputs, out_height, out_width)


class DeformConv2d(nn.Module):
    """Deformable convolution that predicts its own offsets and mask from its input.

    Offset and mask convolutions start at zero, weights and biases: a new layer is a plain convolution times 0.5.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        taps = kernel_size * kernel_size
        self.stride = stride
        self.padding = kernel_size // 2
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, self.padding)
        self.offset = nn.Conv2d(in_channels, 2 * groups * taps, kernel_size, stride, self.padding)
        self.mask = nn.Conv2d(in_channels, groups * taps, kernel_size, stride, self.padding)
        for predictor in (self.offset, self.mask):
            nn.init.zeros_(predictor.weight)
            if predictor.bias is not None:
                nn.init.zeros_(predictor.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H/stride, W/stride)."""
        return deform_conv(
            images_BCHW,
            self.offset(images_BCHW),
            self.mask(images_BCHW).sigmoid(),
            self.convolution.weight,
            self.convolution.bias,
            (self.padding, self.padding),
            (self.stride, self.stride),
        )


class MultiScaleDeformConv(nn.Module):
    """One deformable convolution, its weights shared by several input scales, fused by 1x1, plus a residual.

    At scale 7/3 it sees 5.4 times the pixels: meant for a stem, where the input has few channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, scales: tuple[float, ...] = (1.0, 5 / 3, 7 / 3), kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.scales = scales
        self.deform = DeformConv2d(in_channels, out_channels, kernel_size)
        self.fuse = nn.Conv2d(out_channels * len(scales), out_channels, 1)
        self.residual = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        size = images_BCHW.shape[-2:]
        scaled = [self._at_scale(images_BCHW, scale, (size[0], size[1])) for scale in self.scales]
        fused: Tensor = self.fuse(torch.cat(scaled, dim=1))
        result: Tensor = fused + self.residual(images_BCHW)
        return result

    def _at_scale(self, images_BCHW: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
        if scale == 1:
            unscaled: Tensor = self.deform(images_BCHW)
            return unscaled
        scaled_size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        larger = F.interpolate(images_BCHW, scaled_size, mode="bilinear", align_corners=False)
        result: Tensor = F.interpolate(self.deform(larger), size, mode="bilinear", align_corners=False)
        return result


def _tap_positions(
    like: Tensor, kernel: tuple[int, int], out_size: tuple[int, int], padding: tuple[int, int], stride: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the undisturbed sampling rows and columns, each broadcastable to (taps, H', W')."""

    def axis(taps: int, length: int, pad: int, step: int) -> Tensor:
        starts = torch.arange(length, device=like.device, dtype=like.dtype) * step - pad
        return starts + torch.arange(taps, device=like.device, dtype=like.dtype)[:, None]

    rows = axis(kernel[0], out_size[0], padding[0], stride[0])[:, :, None].repeat_interleave(kernel[1], dim=0)
    columns = axis(kernel[1], out_size[1], padding[1], stride[1])[:, None, :].repeat(kernel[0], 1, 1)
    return rows, columns


def _power_of_two(length: int) -> int:
    power = 1
    while power < length:
        power *= 2
    return power


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
