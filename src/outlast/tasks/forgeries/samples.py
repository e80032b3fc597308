"""What the network is shown: whole images on one canvas, and crops of them with forgeries composed on the fly.

The rule of sizes: an image whose longer side is above `data.side` is scaled down to it, any other is left as it is; it
stands at the top left of a canvas of side x side, and everything beyond it is padding. Batches of whole images are cut
to the largest of them. `at_original` brings a map back.
Promises: a crop is a function of the image and its numbers alone; a pixel that was copied in the original, but whose
partners a crop left out, is UNKNOWN and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from outlast.data.randomness import uniforms
from outlast.data.readers import read_image, resize
from outlast.model.copy_move import FLOW
from outlast.tasks.forgeries import composer
from outlast.tasks.forgeries.config import ForgeriesData
from outlast.tasks.forgeries.truth import read_masks

Batch = dict[str, Tensor]
UNKNOWN = 255  # in the mask of a crop
_OWN = 5  # numbers: real or not, where (2), how turned (2)
NUMBERS = composer.NUMBERS + _OWN
_EVERY = 56  # batches of whole images are cut to a multiple of this, which suits every network
_MOST_INSTANCES = 254


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """The size of an image on the canvas."""
    longer = max(height, width)
    if longer <= side:
        return height, width
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))


def read(root: Path, row: Mapping[str, Any], side: int) -> dict[str, np.ndarray]:
    """{"image": uint8 (3, side, side), "instances": uint8 (side, side), "size": int64 (2,)}.

    instances: the number of each pixel's instance, from 1; 0 where nothing was copied. size: height and width of what
    is no padding.
    """
    pixels = read_image(root / str(row["image"]))
    sample = on_canvas(pixels, side)
    size, instances = tuple(sample["size"].tolist()), sample["instances"]
    if row.get("mask"):
        masks = read_masks(root / str(row["mask"]), *pixels.shape[:2])
        for number, mask in enumerate(masks[:_MOST_INSTANCES], start=1):
            scaled = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
            instances[: size[0], : size[1]][np.asarray(scaled) > 0] = number
    return sample


def on_canvas(pixels: np.ndarray, side: int) -> dict[str, np.ndarray]:
    """An image uint8 (H, W, 3) as `read` gives one without a mask."""
    size = fitted(pixels.shape[0], pixels.shape[1], side)
    image = np.zeros((3, side, side), np.uint8)
    image[:, : size[0], : size[1]] = resize(pixels, size).transpose(2, 0, 1)
    return {"image": image, "instances": np.zeros((side, side), np.uint8), "size": np.array(size, np.int64)}


def draw(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """The numbers (N, NUMBERS) behind each crop and its forgery."""
    return uniforms(seed, epoch, indices, NUMBERS)


def whole(batch: Batch) -> Batch:
    """Canvases to "image" (B, 3, h, w), "valid" (B, h, w) bool, "mask" (B, h, w) of 0 and 1."""
    height, width = (-(-int(most) // _EVERY) * _EVERY for most in batch["size"].amax(dim=0))
    image, instances = batch["image"][:, :, :height, :width], batch["instances"][:, :height, :width]
    valid = (torch.arange(image.shape[2])[:, None] < batch["size"][:, 0, None, None]) & (
        torch.arange(image.shape[3]) < batch["size"][:, 1, None, None]
    )
    rest = {name: value for name, value in batch.items() if name != "instances"}
    return {**rest, "image": image.contiguous(), "valid": valid, "mask": (instances > 0).to(torch.uint8)}


def crops(batch: Batch, draws: np.ndarray, settings: ForgeriesData) -> Batch:
    """Canvases to crops in the same form, with forgeries; "known" (B,): 1 if it is forged, 0 if not, -1 if unknown."""
    made = [
        _crop(image.numpy(), instances.numpy(), tuple(size.tolist()), numbers, settings)
        for image, instances, size, numbers in zip(
            batch["image"], batch["instances"], batch["size"], draws, strict=True
        )
    ]
    rest = {name: value for name, value in batch.items() if name != "instances"}
    stacked = {name: torch.from_numpy(np.stack([one[name] for one in made])) for name in made[0]}
    return {**rest, **stacked}


def _crop(
    image: np.ndarray, instances: np.ndarray, size: tuple[int, ...], numbers: np.ndarray, settings: ForgeriesData
) -> dict[str, np.ndarray]:
    """One crop: cut, forged (unless it is to show the original's own forgery), turned."""
    own, side = numbers[composer.NUMBERS :], settings.crop
    height, width = (min(side, most) for most in size)
    top, left = int((size[0] - height + 1) * own[1]), int((size[1] - width + 1) * own[2])
    window = slice(top, top + height), slice(left, left + width)
    pixels = np.ascontiguousarray(image[(slice(None), *window)].transpose(1, 2, 0))
    mask = known_mask(instances, window)
    if not (mask.any() and own[0] < settings.real):
        forged = composer.compose(pixels, numbers[: composer.NUMBERS], settings.compose)
        pixels, mask = forged.image, np.where(forged.mask > 0, 1, mask).astype(np.uint8)
    known = 1 if (mask == 1).any() else -1 if (mask == UNKNOWN).any() else 0
    canvas, marks, valid = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8), np.zeros((side, side))
    canvas[:height, :width], marks[:height, :width], valid[:height, :width] = pixels, mask, 1
    turns, mirrored = int(4 * own[3]), own[4] < 0.5
    planes = [_turned(plane, turns, mirrored) for plane in (canvas, marks, valid > 0)]
    return {
        "image": np.ascontiguousarray(planes[0].transpose(2, 0, 1)),
        "mask": planes[1],
        "valid": planes[2],
        "known": np.array(known, np.int64),
    }


def known_mask(instances: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
    """The mask of a crop: 1 where a region and a partner of it are whole in the crop, UNKNOWN where that is unsure."""
    from scipy.ndimage import find_objects, label

    inner = instances[window]
    mask = np.zeros(inner.shape, np.uint8)
    for number in np.unique(inner[inner > 0]).tolist():
        mine = inner == number
        mask[mine] = UNKNOWN
        if np.count_nonzero(mine) == np.count_nonzero(instances == number):
            mask[mine] = 1
            continue
        regions, _ = label(mine)
        inside = [
            place
            for place, (rows, columns) in enumerate(find_objects(regions), start=1)
            if rows.start > 0 and columns.start > 0 and rows.stop < inner.shape[0] and columns.stop < inner.shape[1]
        ]
        if len(inside) > 1:
            mask[np.isin(regions, inside)] = 1
    return mask


def at_original(values: np.ndarray, size: Sequence[int], original: Sequence[int]) -> np.ndarray:
    """A map (side, side) of a canvas as float32 (H, W) of the original: cut to `size`, scaled up if need be."""
    cut = np.ascontiguousarray(values[: size[0], : size[1]], dtype=np.float32)
    if tuple(size) == tuple(original):
        return cut
    scaled = F.interpolate(torch.from_numpy(cut)[None, None], size=tuple(original), mode="bilinear")
    return np.asarray(scaled[0, 0].numpy())


def flow_at_original(
    flow: np.ndarray, size: Sequence[int], original: Sequence[int]
) -> tuple[npt.NDArray[np.float32], float]:
    """A flow (3, h, w) of a canvas without its padding, and the original's pixels from one position to the next."""
    rows, columns = (-(-number // FLOW) for number in size)
    return np.asarray(flow[:, :rows, :columns], np.float32), FLOW * max(original) / max(size)


def _turned(plane: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    turned = np.rot90(plane, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)
