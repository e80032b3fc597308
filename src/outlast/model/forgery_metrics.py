"""How well the copied regions of an image were found: by instance (the competition's oF1) and by pixel; and their text.

For: copy-move forgeries, judged image by image.
Promises: `optimal_f1` and the text are those of the official metric of Recod.ai/LUC (Scientific Image Forgery
Detection), its known answers included; a text that the official reader would refuse is refused here, with the reason.
Does not: decide what an instance is.

Masks of instances are (N, H, W), of booleans or 0 and 1; N = 0: the image is authentic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from outlast.errors import DataError

AUTHENTIC = "authentic"
Mask = npt.NDArray[np.bool_]


def optimal_f1(predicted: npt.NDArray[np.generic], truth: npt.NDArray[np.generic]) -> float:
    """The official oF1 of one image, 0 to 1; the score of several is their mean.

    1 if both are authentic, 0 if one of them is. Otherwise each instance is assigned to at most one of the other side
    so that the sum of F1 is the largest (Hungarian algorithm); instances of the truth that are left over count 0; the
    mean is multiplied by len(truth) / len(predicted) if more were predicted. An instance without a pixel has F1 0.
    Raises ValueError if the masks have different sizes.
    """
    from scipy.optimize import linear_sum_assignment

    if predicted.ndim != 3 or truth.ndim != 3 or predicted.shape[1:] != truth.shape[1:]:
        raise ValueError(f"instances {predicted.shape} and {truth.shape}: both are (N, H, W) of one image")
    if not len(predicted) or not len(truth):
        return 1.0 if len(predicted) == len(truth) else 0.0
    f1 = _f1_of_pairs(_flat(predicted), _flat(truth))
    rows, columns = linear_sum_assignment(f1, maximize=True)
    # A mean over the instances of the truth, times len(truth) / the larger number.
    return float(f1[rows, columns].sum()) / max(len(predicted), len(truth))


def pixel_f1(
    predicted: npt.NDArray[np.generic], truth: npt.NDArray[np.generic], valid: npt.NDArray[np.generic] | None = None
) -> float:
    """F1 of the pixels (H, W) of one forged image, 0 to 1; NaN if the truth marks none, for it is no forged image then.

    valid: pixels that count; none given: all. The score of several images is the mean of what is not NaN.
    Raises ValueError if the shapes differ.
    """
    if predicted.shape != truth.shape or (valid is not None and valid.shape != truth.shape):
        raise ValueError(f"predicted {predicted.shape}, truth {truth.shape}, valid: all have one shape")
    marked, true = predicted.astype(bool), truth.astype(bool)
    if valid is not None:
        marked, true = marked & valid.astype(bool), true & valid.astype(bool)
    if not true.any():
        return math.nan
    return 2 * np.count_nonzero(marked & true) / (np.count_nonzero(marked) + np.count_nonzero(true))


def encode(instances: npt.NDArray[np.generic]) -> str:
    """The official text of an image's instances (N, H, W): runs down the columns, counted from 1.

    Each instance is a JSON list start, length, start, length, ...; they are joined by ";". An instance without a pixel
    is left out; without any the image is "authentic".
    """
    runs = [_runs(mask.T.ravel().astype(bool)) for mask in instances]
    return ";".join(json.dumps(numbers) for numbers in runs if numbers) or AUTHENTIC


def decode(annotation: str, shape: tuple[int, int]) -> Mask:
    """The instances (N, H, W) of an official text for an image of this shape (height, width).

    Raises DataError if it is no such text: no list of whole numbers, not in pairs, runs that are empty, not ascending,
    overlapping or beyond the image.
    """
    if annotation == AUTHENTIC:
        return np.zeros((0, *shape), bool)
    return np.stack([_decoded(text, shape) for text in annotation.split(";")])


def _flat(instances: npt.NDArray[np.generic]) -> Mask:
    return instances.reshape(len(instances), -1).astype(bool)


def _f1_of_pairs(predicted: Mask, truth: Mask) -> npt.NDArray[np.float64]:
    """(predicted, true): 2 TP / (2 TP + FP + FN), 0 where both are empty."""
    both = np.array([[np.count_nonzero(one & other) for other in truth] for one in predicted], np.float64)
    areas = predicted.sum(axis=1)[:, None] + truth.sum(axis=1)[None, :]
    return np.asarray(2 * both / np.maximum(areas, 1))


def _runs(pixels: Mask) -> list[int]:
    """start, length, ... of what is True, counted from 1."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], pixels, [False]])))
    starts, ends = changes[0::2], changes[1::2]
    return [int(number) for number in np.stack([starts + 1, ends - starts], axis=1).ravel()]


def _decoded(text: str, shape: tuple[int, int]) -> Mask:
    numbers = _whole_numbers(text)
    pixels = np.zeros(shape[0] * shape[1], bool)
    position = 0  # behind the last run
    for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
        first, last = start - 1, start - 1 + length
        if length < 1 or first < position or last > len(pixels):
            raise DataError(
                f"the run {start}, {length} of an annotation is empty, overlaps the one before it or leaves the image "
                f"of {shape[0]} x {shape[1]} pixels",
                hint="runs count from 1 down the columns, ascend and do not overlap; the shape is (height, width)",
            )
        pixels[first:last] = True
        position = last
    return pixels.reshape(shape, order="F")


def _whole_numbers(text: str) -> Sequence[int]:
    try:
        numbers = json.loads(text)
    except ValueError:
        numbers = None
    if not isinstance(numbers, list) or len(numbers) % 2 or not all(type(number) is int for number in numbers):
        shown = text if len(text) <= 40 else text[:40] + "..."
        raise DataError(
            f"an annotation holds {shown!r}, which is no list of pairs of whole numbers",
            hint=f'write "{AUTHENTIC}", or [start, length, ...] for each instance, joined by ";"',
        )
    return numbers
