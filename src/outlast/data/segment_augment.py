"""Crops, flips and quarter turns of bands and mask together, for learning to label pixels.

Promises: a sample's result is a function of its pixels and its draws alone, whatever else is in the batch; no value is
interpolated, so that a label stays a label, NaN stays NaN and a distance to a boundary stays right; a crop that is made
for a class shows that class. Gains, shifts and noise are handed out, not applied: bands are raw values here, and only
the model's first layer knows their mean and spread, which is the unit of these numbers.
Does not do: choose which class a crop is made for (the sampler), or resample (augment.py does, for whole images).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from outlast.config.schema import Settings
from outlast.data.randomness import random_bits, uniforms
from outlast.errors import DataError, listed

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Tiles = torch.Tensor | Sequence[torch.Tensor]
Batch = Mapping[str, Any]

ANYWHERE = -1  # as `class_wanted`: the crop is made for no class
COLUMNS = 9
# The columns of `draw`. A float32 holds 24 bits exactly: whole numbers of 48 bits stand in two columns.
_FLIP_X, _FLIP_Y, _TURN = 0, 1, 2
_PLACE, _JITTER, _KEY = slice(3, 5), slice(5, 7), slice(7, 9)
_BITS = 24
_COLOUR, _NOISE, _OWN = 0, 1, -1  # streams of random numbers that belong to a sample's key; no epoch is -1


class SegmentAugmentation(Settings):
    """What may happen to a training sample of bands and mask. 0 and false switch a thing off."""

    jitter: float = Field(1.0, ge=0, le=1, description="0: the chosen pixel is in the middle of the crop; 1: anywhere")
    horizontal_flip: bool = Field(True, description="with probability one half")
    vertical_flip: bool = Field(True, description="with probability one half")
    quarter_turns: bool = Field(True, description="0, 90, 180 or 270 degrees, equally likely")
    gain: float = Field(0.1, ge=0, le=1, description="factor within 1 +- this of each band's deviation from its mean")
    shift: float = Field(0.1, ge=0, le=5, description="of each band, at most, either way, in its standard deviations")
    noise: float = Field(0.0, ge=0, le=5, description="standard deviation of every pixel's own, in the band's, at most")


def draw(spec: SegmentAugmentation, seed: int, epoch: int, indices: npt.ArrayLike) -> Float32:
    """The parameters (N, 9) float32 of these samples: row n depends on (spec, seed, epoch, indices[n]) alone."""
    u = uniforms(seed, epoch, indices, 7).T
    result = np.zeros((u.shape[1], COLUMNS), np.float64)
    result[:, _FLIP_X] = spec.horizontal_flip & (u[0] < 0.5)
    result[:, _FLIP_Y] = spec.vertical_flip & (u[1] < 0.5)
    result[:, _TURN] = np.floor(4 * u[2]) * spec.quarter_turns
    result[:, _PLACE] = _split(u[3])
    result[:, _JITTER] = np.floor(u[4:6].T * 2**_BITS) / 2**_BITS  # float32 would round the highest up to 1
    result[:, _KEY] = _split(u[6])
    return result.astype(np.float32)


def apply(batch: Batch, draws: Float32 | None, spec: SegmentAugmentation, crop: int) -> dict[str, Any]:
    """Crops (pixels) of a training batch; draws None: the whole tiles, as they are.

    batch: "bands" (B, C, H, W), "mask" (B, H, W), where there is one "distance" (B, K, H, W), each also as a list of
    tensors of various sizes; "class_wanted" int64 (B,), a class or -1. The crop lies so that a pixel of that class,
    each as likely as the other, is in it, at a place that `spec.jitter` leaves open; at the border of the tile it is
    moved inside. For -1 every place is as likely. What else is in the batch is passed on.

    Returns "image" float32 (B, C, crop, crop), "mask" int64 (B, crop, crop), "distance" float32, "gain" and "shift"
    float32 (B, C) (1 and 0 without draws), and with `spec.noise` > 0 and draws "noise", like "image". They are meant
    for normalised values: image * gain + shift + noise.
    Everything is on the CPU. Raises DataError for tiles smaller than the crop, masks without the class that was wanted,
    or, without draws, tiles of various sizes.
    """
    planes = {"image": batch["bands"], "mask": batch["mask"]}
    if "distance" in batch:
        planes["distance"] = batch["distance"]
    result = {name: value for name, value in batch.items() if name not in ("bands", "mask", "distance", "class_wanted")}
    count, channels = len(planes["image"]), planes["image"][0].shape[0]
    if draws is None:
        _check_one_size(planes["mask"])
        made = {name: list(tiles) for name, tiles in planes.items()}
        gain, shift, levels = np.ones((count, channels)), np.zeros((count, channels)), None
    else:
        numbers = np.asarray(draws, np.float64)
        corners = _corners(batch, numbers, spec, crop)
        made = {name: _moved(tiles, corners, numbers, crop) for name, tiles in planes.items()}
        gain, shift, levels = _colour(numbers, spec, channels)
    result["image"] = torch.stack(made["image"]).to(torch.float32)
    result["mask"] = torch.stack(made["mask"]).to(torch.int64)
    if "distance" in made:
        result["distance"] = torch.stack(made["distance"]).to(torch.float32)
    result["gain"], result["shift"] = (torch.from_numpy(value.astype(np.float32)) for value in (gain, shift))
    if levels is not None and spec.noise > 0:
        result["noise"] = _noise(numbers, levels, result["image"].shape[1:])
    return result


def _corners(batch: Batch, numbers: Float64, spec: SegmentAugmentation, crop: int) -> list[tuple[int, int]]:
    """The upper left corner of each sample's crop; every problem of the batch in one error."""
    wanted = torch.as_tensor(batch["class_wanted"]).tolist()
    corners, small, absent = [], [], []
    for n, (mask, label) in enumerate(zip(batch["mask"], wanted, strict=True)):
        height, width = mask.shape
        if min(height, width) < crop:
            small.append(f"{_name(batch, n)} is {height} x {width}")
            continue
        corner = _corner_for(mask, label, numbers[n], spec.jitter, crop)
        if corner is None:
            absent.append(f"{_name(batch, n)}: class {label}")
        else:
            corners.append(corner)
    if small:
        raise DataError(
            f"tiles are smaller than the crop of {crop} pixels: {listed(small)}",
            hint=f"take a crop of at most the smallest side, or leave out tiles below {crop} pixels",
        )
    if absent:
        raise DataError(
            f"crops are wanted for classes that their masks lack: {listed(absent)}",
            hint="the counts of pixels per class in the table do not fit the masks; index the data again",
        )
    return corners


def _corner_for(mask: torch.Tensor, label: int, numbers: Float64, jitter: float, crop: int) -> tuple[int, int] | None:
    """The corner of one crop; None if the mask has no pixel of the class."""
    height, width = mask.shape
    place = _whole(numbers[_PLACE])
    rows, columns = height - crop + 1, width - crop + 1
    if label == ANYWHERE:
        row, column = divmod(place * (rows * columns) >> 2 * _BITS, columns)
        return row, column
    pixels = np.flatnonzero(mask.numpy() == label)  # several times faster than torch's
    if len(pixels) == 0:
        return None
    y, x = divmod(int(pixels[place * len(pixels) >> 2 * _BITS]), width)
    # Where in the crop the pixel lies: `jitter` times as many places as there are, around the middle.
    up, left = (
        min(int((crop - 1) / 2 * (1 - jitter) + u * (jitter * (crop - 1) + 1)), crop - 1) for u in numbers[_JITTER]
    )
    return min(max(y - up, 0), rows - 1), min(max(x - left, 0), columns - 1)


def _moved(tiles: Tiles, corners: Sequence[tuple[int, int]], numbers: Float64, crop: int) -> list[torch.Tensor]:
    """Each tile (..., H, W) cropped, flipped and turned: (..., crop, crop)."""
    result = []
    for tile, (top, left), row in zip(tiles, corners, numbers, strict=True):
        piece = tile[..., top : top + crop, left : left + crop]
        flipped = [axis for axis, column in ((-1, _FLIP_X), (-2, _FLIP_Y)) if row[column]]
        result.append(torch.rot90(piece.flip(flipped), int(row[_TURN]), (-2, -1)))
    return result


def _colour(numbers: Float64, spec: SegmentAugmentation, channels: int) -> tuple[Float64, Float64, Float64]:
    """Gain and shift (B, C) of each band, and the level of noise (B,) of each sample."""
    u = uniforms(_COLOUR, _OWN, _keys(numbers), 1 + 2 * channels)
    gain = 1 + spec.gain * (2 * u[:, 1 : 1 + channels] - 1)
    return gain, spec.shift * (2 * u[:, 1 + channels :] - 1), spec.noise * u[:, 0]


def _noise(numbers: Float64, levels: Float64, shape: Sequence[int]) -> torch.Tensor:
    """Noise (B, *shape) float32 with the standard deviations `levels`: sums of four uniform numbers, nearly normal.

    Only whole numbers are added, and one product is rounded: the same bits on every machine.
    """
    made = []
    for key, level in zip(_keys(numbers), levels, strict=True):
        quarters = random_bits(_NOISE, _OWN, [key], math.prod(shape)).view(np.uint16).reshape(-1, 4)
        centred = quarters.sum(axis=1, dtype=np.int64) - 2 * (2**16 - 1)
        made.append((centred * (level * math.sqrt(3) / 2**16)).astype(np.float32).reshape(shape))
    return torch.from_numpy(np.stack(made))


def _check_one_size(tiles: Tiles) -> None:
    sizes = sorted({tuple(tile.shape) for tile in tiles})
    if len(sizes) > 1:
        named = [f"{height} x {width}" for height, width in sizes]
        raise DataError(
            f"whole tiles of different sizes are in one batch: {listed(named)}",
            hint="cut the tiles into windows of one size, or evaluate one tile at a time",
        )


def _name(batch: Batch, n: int) -> str:
    return f"row {int(batch['row'][n])}" if "row" in batch else f"sample {n} of the batch"


def _split(u: Float64) -> Float64:
    """The first 48 bits of uniform numbers (N,) as two whole numbers (N, 2)."""
    number = np.floor(u * 2.0 ** (2 * _BITS))
    return np.stack(np.divmod(number, 2.0**_BITS), axis=1)


def _whole(halves: Float64) -> int:
    return (int(halves[0]) << _BITS) + int(halves[1])


def _keys(numbers: Float64) -> list[int]:
    return [_whole(row[_KEY]) for row in numbers]
