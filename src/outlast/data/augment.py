"""Augmentation of whole batches: one resampling and one colour transform per sample, on CPU or CUDA.

Promises: a sample's result is a function of its pixels and its draws alone, bit for bit, whatever else is in the batch
(on one device, one thread): per-sample parameters are computed with correctly rounded operations, and transcendental
functions one sample at a time, because vectorised ones may round differently at the end of an array.
Does not do: draw anything outside `draw`, or know about labels. Segmentation uses `geometry` and `warp` for image and
mask; two modalities share `geometry` and only one gets `colour`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field

from outlast.config.schema import Settings
from outlast.data.randomness import uniforms
from outlast.errors import DataError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# The columns of `draw`.
_CROP, _FLIP, _TURN = (
    slice(0, 4),
    slice(4, 6),
    slice(6, 10),
)  # sides and centre; signs; cos, sin of quarter turn, of angle
_MATRIX, _GAIN, _SHIFT, _ERASE = slice(10, 19), 19, 20, slice(21, 25)  # colour 3x3; its grey gain; offset; box
COLUMNS = 25
_NUMBERS = 18  # uniforms per sample; always all of them, so that switching one thing on leaves the others as they are
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Augmentation(Settings):
    """What may happen to a training sample. Ranges are symmetric; 0, false and (1, 1) switch a thing off."""

    crop_scale: tuple[float, float] = Field((0.5, 1.0), description="area of the random crop, as a fraction")
    crop_aspect: tuple[float, float] = Field((0.75, 1.3333), description="of the crop, relative to the image's own")
    horizontal_flip: bool = Field(True, description="with probability one half")
    vertical_flip: bool = Field(False, description="with probability one half")
    quarter_turns: bool = Field(False, description="0, 90, 180 or 270 degrees, equally likely")
    rotation_degrees: float = Field(0.0, ge=0, le=180, description="at most, either way; borders are mirrored")
    brightness: float = Field(0.2, ge=0, le=1, description="factor within 1 +- this")
    contrast: float = Field(0.2, ge=0, le=1, description="factor within 1 +- this, around mid-grey")
    saturation: float = Field(0.2, ge=0, le=1, description="factor within 1 +- this; images of three channels only")
    hue: float = Field(0.0, ge=0, le=0.5, description="rotation about the grey axis, in turns; three channels only")
    erase: float = Field(0.0, ge=0, le=1, description="probability that a box of 2 to 20 % of the area becomes grey")

    def model_post_init(self, _: object) -> None:
        for name, (low, high), most in (("crop_scale", self.crop_scale, 1.0), ("crop_aspect", self.crop_aspect, 10.0)):
            if not 0 < low <= high <= most:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high <= {most:g}, not ({low}, {high})")

    @property
    def moves(self) -> bool:
        """Whether anything geometric is switched on."""
        still = self.crop_scale == (1.0, 1.0) and self.crop_aspect == (1.0, 1.0) and self.rotation_degrees == 0
        return not still or self.horizontal_flip or self.vertical_flip or self.quarter_turns

    @property
    def recolours(self) -> bool:
        """Whether anything photometric is switched on."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))


def draw(spec: Augmentation, seed: int, epoch: int, indices: npt.ArrayLike) -> Float32:
    """The parameters (N, 25) float32 of these samples: row n depends on (spec, seed, epoch, indices[n]) alone."""
    u = uniforms(seed, epoch, indices, _NUMBERS).T
    result = np.zeros((u.shape[1], COLUMNS), np.float64)
    result[:, _CROP] = _crop(u[0:4], spec)
    result[:, 4] = np.where(spec.horizontal_flip & (u[4] < 0.5), -1.0, 1.0)
    result[:, 5] = np.where(spec.vertical_flip & (u[5] < 0.5), -1.0, 1.0)
    turn = np.floor(4 * u[6]).astype(np.int64) * spec.quarter_turns
    result[:, 6], result[:, 7] = np.array([1.0, 0.0, -1.0, 0.0])[turn], np.array([0.0, 1.0, 0.0, -1.0])[turn]
    result[:, 8], result[:, 9] = _cos_sin(math.radians(spec.rotation_degrees) * (2 * u[7] - 1))
    contrast = 1 + spec.contrast * (2 * u[9] - 1)
    result[:, _GAIN] = (1 + spec.brightness * (2 * u[8] - 1)) * contrast
    result[:, _SHIFT] = 0.5 * (1 - contrast)
    saturation = 1 + spec.saturation * (2 * u[10] - 1)
    result[:, _MATRIX] = result[:, [_GAIN]] * _hue_saturation(2 * math.pi * spec.hue * (2 * u[11] - 1), saturation)
    result[:, _ERASE] = _erased_box(u[12:17], spec)
    return result.astype(np.float32)


def apply(
    images: torch.Tensor, draws: Float32 | torch.Tensor | None, spec: Augmentation, out_size: tuple[int, int]
) -> torch.Tensor:
    """uint8 (B, C, H, W) to float32 (B, C, *out_size) in [0, 1]; draws None: only resized, with antialiasing.

    Training samples bilinearly; images much larger than `out_size` are first averaged over blocks of pixels.
    Raises DataError where saturation or hue meets other than three channels.
    """
    if draws is None:
        return resized(images, out_size)
    numbers = torch.as_tensor(draws, device=images.device)
    if spec.moves:
        grid = geometry(numbers, spec, out_size)
        block = block_size((images.shape[2], images.shape[3]), out_size, spec)
        pixels = warp(images, grid, reflect=spec.rotation_degrees > 0, block=block)
    else:
        pixels = resized(images, out_size).mul_(255.0)
    pixels = colour(pixels, numbers, spec)
    return erase(pixels, numbers) if spec.erase > 0 else pixels


def geometry(draws: torch.Tensor, spec: Augmentation, out_size: tuple[int, int]) -> torch.Tensor:
    """The sampling grid (B, h, w, 2) of crop, flips, quarter turns and rotation, in one affine map per sample.

    A point of the output in [-1, 1]^2 is rotated (in pixels, so that circles stay circles), turned, flipped, and moved
    into the crop.
    """
    height, width = out_size
    side = max(height, width)
    tall, wide = height / side, width / side
    crop_h, crop_w, centre_y, centre_x, flip_x, flip_y, turn_cos, turn_sin, cos, sin = draws[:, :10, None, None].unbind(
        1
    )
    # Rotation R in pixels, expressed in normalised coordinates: diag(1/wide, 1/tall) R diag(wide, tall).
    xx, xy, yx, yy = cos, sin * (-tall / wide), sin * (wide / tall), cos
    # Then the quarter turn, then flip and crop; entries are 0 or 1, so that nothing is rounded.
    scale_x, scale_y = crop_w * flip_x, crop_h * flip_y
    a, b = scale_x * (turn_cos * xx - turn_sin * yx), scale_x * (turn_cos * xy - turn_sin * yy)
    c, d = scale_y * (turn_sin * xx + turn_cos * yx), scale_y * (turn_sin * xy + turn_cos * yy)
    x = _pixel_centres(width, draws.device).view(1, 1, width)
    y = _pixel_centres(height, draws.device).view(1, height, 1)
    grid = torch.empty((len(draws), height, width, 2), device=draws.device)
    torch.add(a * x, b * y + centre_x, out=grid[..., 0])
    torch.add(c * x, d * y + centre_y, out=grid[..., 1])
    return grid


def block_size(in_size: tuple[int, int], out_size: tuple[int, int], spec: Augmentation) -> int:
    """Over how many pixels an image may be averaged before sampling, so that even the smallest crop loses nothing."""
    smallest_side = math.sqrt(spec.crop_scale[0] / max(spec.crop_aspect[1], 1 / spec.crop_aspect[0]))
    return max(1, int(min(in_size[0] / out_size[0], in_size[1] / out_size[1]) * smallest_side))


def warp(
    images: torch.Tensor, grid: torch.Tensor, *, mode: str = "bilinear", reflect: bool = False, block: int = 1
) -> torch.Tensor:
    """Images (B, C, H, W), any dtype, sampled at a grid: float32 (B, C, h, w) in the units of the input.

    mode: "bilinear", or "nearest" for masks. reflect: mirror beyond the border (rotation), else repeat the edge.
    block: average over blocks of this many pixels first (against aliasing; not for masks).
    """
    pixels = images.to(torch.float32)
    if block > 1:
        top, left = images.shape[2] % block // 2, images.shape[3] % block // 2
        pixels = F.avg_pool2d(pixels[:, :, top:, left:], block)
    padding = "reflection" if reflect else "border"
    return F.grid_sample(pixels, grid, mode=mode, padding_mode=padding, align_corners=False)


def colour(pixels: torch.Tensor, draws: torch.Tensor, spec: Augmentation) -> torch.Tensor:
    """Pixels (B, C, h, w) in 0..255 to [0, 1], through one affine map per sample where colour is switched on."""
    if not spec.recolours:
        return pixels.mul_(1 / 255).clamp_(0.0, 1.0)
    shift = draws[:, _SHIFT, None, None, None]
    if not (spec.saturation or spec.hue):
        return pixels.mul_(draws[:, _GAIN, None, None, None] * (1 / 255)).add_(shift).clamp_(0.0, 1.0)
    if pixels.shape[1] != 3:
        raise DataError(
            f"saturation and hue need three channels, these images have {pixels.shape[1]}",
            hint="set augment.saturation=0 and augment.hue=0",
        )
    # Separate multiplications and additions are rounded correctly one by one: the same bits in any batch. A matrix
    # product is not. One plane after the other stays in the processor's cache.
    matrix = (draws[:, _MATRIX] * (1 / 255)).view(-1, 3, 3, 1, 1)
    result = torch.empty_like(pixels)
    spill = torch.empty_like(pixels[:, 0])
    for channel in range(3):
        plane = result[:, channel]
        torch.mul(pixels[:, 0], matrix[:, channel, 0], out=plane)
        for source in (1, 2):
            torch.mul(pixels[:, source], matrix[:, channel, source], out=spill)
            plane += spill
    return result.add_(shift).clamp_(0.0, 1.0)


def erase(pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Pixels (B, C, h, w) with the drawn box of each sample set to mid-grey; a box of size 0 changes nothing."""
    height, width = pixels.shape[2:]
    half_h, half_w, centre_y, centre_x = draws[:, _ERASE, None, None].unbind(1)
    x = _pixel_centres(width, draws.device).view(1, 1, width)
    y = _pixel_centres(height, draws.device).view(1, height, 1)
    inside = ((x - centre_x).abs() < half_w) & ((y - centre_y).abs() < half_h)
    return pixels.masked_fill_(inside.unsqueeze(1), 0.5)


def resized(images: torch.Tensor, out_size: tuple[int, int]) -> torch.Tensor:
    """uint8 (B, C, H, W) to float32 (B, C, *out_size) in [0, 1], bilinear with antialiasing."""
    pixels = images.to(torch.float32)
    if tuple(images.shape[2:]) != tuple(out_size):
        pixels = F.interpolate(pixels, size=tuple(out_size), mode="bilinear", antialias=True)
    return pixels.mul_(1 / 255)


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(images - mean) / std per channel, (B, C, h, w); mean and std in the units of `images`."""
    shape = (1, -1, 1, 1)
    centred = images - torch.tensor(mean, dtype=images.dtype, device=images.device).view(shape)
    return centred.div_(torch.tensor(std, dtype=images.dtype, device=images.device).view(shape))


def _crop(u: Float64, spec: Augmentation) -> Float64:
    """Sides and centre (N, 4): height, width, y, x, in the image's own coordinates [-1, 1]."""
    area = spec.crop_scale[0] + (spec.crop_scale[1] - spec.crop_scale[0]) * u[0]
    low, high = math.log(spec.crop_aspect[0]), math.log(spec.crop_aspect[1])
    aspect = _each(math.exp, low + (high - low) * u[1])
    # A side longer than the image is cut to the image, where torchvision draws again (up to ten times).
    height = np.minimum(np.sqrt(area / aspect), 1.0)
    width = np.minimum(np.sqrt(area * aspect), 1.0)
    return np.stack([height, width, (1 - height) * (2 * u[2] - 1), (1 - width) * (2 * u[3] - 1)], axis=1)


def _hue_saturation(angle: Float64, saturation: Float64) -> Float64:
    """Colour matrices (N, 9), row-major: rotation about the grey axis (Rodrigues), then mixing with the luma."""
    cos, sin = _cos_sin(angle)
    even, odd = (1 - cos) / 3, sin / math.sqrt(3)
    rotation = [
        [cos + even, even - odd, even + odd],
        [even + odd, cos + even, even - odd],
        [even - odd, even + odd, cos + even],
    ]
    luma = [sum(weight * rotation[row][column] for row, weight in enumerate(_LUMA)) for column in range(3)]
    mixed = [
        saturation * rotation[row][column] + (1 - saturation) * luma[column] for row in range(3) for column in range(3)
    ]
    return np.stack(mixed, axis=1)


def _erased_box(u: Float64, spec: Augmentation) -> Float64:
    """Half height, half width and centre (N, 4) of the erased box in [-1, 1]; sizes 0 where nothing is erased."""
    area = np.where(u[0] < spec.erase, 0.02 + 0.18 * u[1], 0.0)
    aspect = _each(math.exp, (2 * u[2] - 1) * math.log(2))
    height, width = np.sqrt(area / aspect), np.sqrt(area * aspect)
    return np.stack([height, width, (1 - height) * (2 * u[3] - 1), (1 - width) * (2 * u[4] - 1)], axis=1)


def _cos_sin(angles: Float64) -> tuple[Float64, Float64]:
    return _each(math.cos, angles), _each(math.sin, angles)


def _each(function: Callable[[float], float], values: Float64) -> Float64:
    """A function of the C library for one number after the other: the same bits wherever a sample stands."""
    return np.array([function(value) for value in values.tolist()], dtype=np.float64)


def _pixel_centres(count: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float32, device=device) * 2 + 1) / count - 1
