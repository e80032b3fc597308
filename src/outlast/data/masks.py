"""Masks of classes in a GeoTIFF: a class is its number, or a step of 0..255 (0, 85, 170, 255 for four classes).

Promises: a value that is no class is named with its file and how often it occurs, never mapped to one; a window is
decoded like the file that it is cut from.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.data.raster import Header, Raster, Window, inside, open_raster, whole
from outlast.errors import DataError

UInt8 = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


def read_mask(path: Path, window: Window | None = None, *, classes: int = 4, ignored: int = 255) -> UInt8:
    """Classes 0..classes-1 of every pixel, uint8 (h, w), `ignored` where the mask has its nodata or beyond the file.

    On disk a class is its number, or a step of the range 0..255 (0, 85, 170, 255 for four classes). A nodata tag that
    is also a class says nothing: the class counts, except for 255, which is refused. Raises DataError that names the
    file, each value that is no class, and how often it occurs.
    """
    with open_raster(path) as raster:
        return mask_of(raster, window or whole(raster.header), classes=classes, ignored=ignored)


def mask_of(raster: Raster, window: Window, *, classes: int = 4, ignored: int = 255) -> UInt8:
    """As `read_mask`, from a raster that is open."""
    header = raster.header
    if header.bands != 1:
        raise DataError(
            f"{header.path}: a mask has one band, this file has {header.bands}",
            hint="save the class of each pixel as a single band",
        )
    top, left, bottom, right = inside(window, header)
    mask = np.full((window.height, window.width), ignored, dtype=np.uint8)
    if bottom > top and right > left:
        part = mask[top - window.y : bottom - window.y, left - window.x : right - window.x]
        part[:] = _decoded(raster.raw(1, window), header, classes, ignored)
    return mask


def encodings_in(stored: Array, *, classes: int = 4) -> set[str]:
    """Which encodings the values of a mask can only be of: {"numbers"}, {"steps"}, both, or none (0 alone)."""
    found = set(np.unique(stored).tolist())
    numbers, steps = set(range(1, classes)), {step for step in _steps(classes) if step}
    return {name for name, own in (("numbers", numbers - steps), ("steps", steps - numbers)) if found & own}


def encoded(mask: npt.ArrayLike, *, classes: int = 4) -> UInt8:
    """Classes 0..classes-1 as steps of 0..255, uint8: what competition masks hold."""
    steps = np.asarray(_steps(classes), dtype=np.uint8)
    return steps[np.asarray(mask, dtype=np.int64)]


def _steps(classes: int) -> list[int]:
    return [round(255 * number / (classes - 1)) for number in range(classes)]


def _decoded(stored: Array, header: Header, classes: int, ignored: int) -> UInt8:
    """Classes of stored values; the lookup is by value, so a window is decoded like the file it is cut from."""
    meaning = {step: number for number, step in enumerate(_steps(classes))} | {n: n for n in range(classes)}
    marker = header.nodata[0]
    found, inverse, counts = np.unique(stored, return_inverse=True, return_counts=True)
    lookup, unknown = np.empty(len(found), dtype=np.uint8), []
    for at, value in enumerate(found.tolist()):
        unobserved = marker is not None and (value == marker or (value != value and math.isnan(marker)))
        if unobserved and value == 255:
            raise DataError(
                f"{header.path}: 255 is a class and, by the file's nodata tag, no data ({counts[at]} pixels)",
                hint="remove the tag if 255 is the class; if not, write another value there, such as 254, and tag that",
            )
        if value in meaning:
            lookup[at] = meaning[value]
        elif unobserved:
            lookup[at] = ignored
        else:
            unknown.append(f"{value:g} ({counts[at]} pixels)")
    if unknown:
        shown = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        steps = ", ".join(map(str, _steps(classes)))
        raise DataError(
            f"{header.path}: values that are no class: {shown}",
            hint=f"a mask holds {steps}, or 0 to {classes - 1}; correct it, or tag what is not labelled as nodata",
        )
    return np.asarray(lookup[inverse].reshape(stored.shape), dtype=np.uint8)
