"""The masks of instances: which pixels of an image were copied, or stand where a copy was put.

Promises: whatever order of axes, number type or file it comes in, a mask becomes uint8 (N, H, W) of 0 and 1, or a
DataError says what is wrong with it; nothing is thresholded. Large files are gone through one instance at a time, in
mapped memory. The annotations of authentic images (N = 0) are no files and not read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from outlast.data.look import UNREADABLE
from outlast.errors import DataError

UInt8 = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

PICTURES = frozenset({".png", ".bmp", ".tif", ".tiff"})  # without loss: a JPEG holds no mask


class Contents(NamedTuple):
    """What a mask file holds: instances with a pixel, instances without any, marked pixels of all together."""

    instances: int
    empty: int
    pixels: int


def read_masks(path: Path, height: int, width: int) -> UInt8:
    """The instances of one image, uint8 (N, H, W), 1 where it belongs to the instance; those without a pixel left out.

    The file is .npy, of (N, H, W), (H, W, N) or (H, W), or a picture of one grey channel; it holds 0 and 1, or 0 and
    255. Raises DataError for anything else, and for a mask of another size than the image's.
    """
    planes = [plane for plane in _planes(path, height, width) if plane.any()]
    return np.stack(planes) if planes else np.zeros((0, height, width), np.uint8)


def contents(path: Path, height: int, width: int) -> Contents:
    """What `read_masks` would return, counted; with its errors. At most one instance is held in memory."""
    areas = [int(np.count_nonzero(plane)) for plane in _planes(path, height, width)]
    filled = [area for area in areas if area]
    return Contents(len(filled), len(areas) - len(filled), sum(filled))


def _planes(path: Path, height: int, width: int) -> Iterator[UInt8]:
    stored = _oriented(path, _open(path), height, width)
    scale = _scale(path, stored)
    for plane in stored:
        yield np.asarray(plane == scale, dtype=np.uint8)


def _open(path: Path) -> Array:
    """What the file holds, as it is stored; an .npy file stays on the disk."""
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "I", "I;16"):
                raise DataError(
                    f"{path}: a mask has one channel of numbers, this picture is {image.mode}",
                    hint="save it as a grey picture of 0 and 255",
                )
            return np.asarray(image)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: the mask doesn't exist (any more)", hint="restore it, or list the data anew"
        ) from error
    except UNREADABLE as error:
        raise DataError(
            f"{path}: the mask can't be read ({error or type(error).__name__})",
            hint="copy the file again, or save it anew with numpy.save as uint8 (N, H, W)",
        ) from error


def _oriented(path: Path, stored: Array, height: int, width: int) -> Array:
    """A view (N, H, W), whichever axis counts the instances; (N, H, W) if both readings fit."""
    if stored.dtype.kind not in "bui" and not (stored.dtype.kind == "f" and stored.dtype.itemsize <= 8):
        raise DataError(f"{path}: a mask holds numbers, not {stored.dtype}", hint="save it as uint8 (N, H, W)")
    if stored.shape == (height, width):
        return stored[None]
    if stored.ndim == 3 and stored.shape[1:] == (height, width):
        return stored
    if stored.ndim == 3 and stored.shape[:2] == (height, width):
        return np.moveaxis(stored, 2, 0)
    shape = " x ".join(map(str, stored.shape)) or "a single number"
    raise DataError(
        f"{path}: the mask is {shape}, its image {height} x {width} pixels (height x width)",
        hint=f"save it as (N, {height}, {width}), or put the image of this mask beside it",
    )


def _scale(path: Path, stored: Array) -> int:
    """The value that marks a pixel: 1 or 255. Raises DataError if anything else stands in the file."""
    if stored.dtype.kind == "b":
        return 1
    found: set[float] = set()
    for plane in stored:
        # uint8 is counted, which takes a tenth of the time of sorting.
        counted = plane.dtype == np.uint8
        values = np.flatnonzero(np.bincount(np.ravel(plane), minlength=256)) if counted else np.unique(plane)
        found.update(values.tolist())
    marks = found - {0}
    if marks <= {1} or marks == {255}:
        return int(max(marks, default=1))
    wrong = sorted(marks - {1})
    shown = ", ".join(f"{value:g}" for value in wrong[:6]) + (f" and {len(wrong) - 6} more" if len(wrong) > 6 else "")
    raise DataError(
        f"{path}: a mask holds 0 and 1, this one also {shown}",
        hint="write 1 where the instance is and 0 elsewhere, one plane (H, W) for each instance",
    )
