"""What a stage writes so that the report can show segmentations: example tiles, and errors near boundaries.

Promises: both files appear at once and hold the same bytes for the same input; reading executes no code. Draws nothing:
that is the report's (the kinds `segmentation_examples` and `boundary_error`).

examples.npz (a zip of .npy arrays without objects):
    composites  uint8 (N, H, W, 3)    what the sensor saw, as an RGB picture (see `composite`)
    truth       uint8 (N, H, W)       the class of each pixel, IGNORED where there is no label
    prediction  uint8 (N, H, W)       the class that was predicted
    names       text (N,)             of the tiles
    classes     text (K,)             of the classes, in the order of their numbers; class 0 is the background
boundary.json:
    {"pixels": [...], "wrong": [...], "pixel_size": metres or null, "examples": "examples.npz" or null}; entry d counts
    the labelled pixels between d and d + 1 pixels from the true boundary (see `errors_by_distance`), the last one all
    that are further away; `examples` lies in the same folder.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outlast.base.files import write_bytes, write_json
from outlast.errors import DataError, TaskError

IGNORED = 255
MOST_SIDE = 512  # pixels of a side of an example that is worth keeping


@dataclass(frozen=True)
class SegmentationExamples:
    """What examples.npz holds."""

    composites: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]


def composite(bands: np.ndarray, rgb: Sequence[int] = (2, 1, 0), clip: float = 2.0) -> np.ndarray:
    """uint8 (H, W, 3) from bands (C, H, W) of any type: each of the three stretched from its `clip` to its
    100 - `clip` percentile. What is not finite is black; with fewer bands than `rgb` names, the first one is grey."""
    chosen = [band if max(rgb) < len(bands) else 0 for band in rgb]
    picture = np.zeros((*bands.shape[1:], 3), np.uint8)
    for place, band in enumerate(chosen):
        values = bands[band].astype(np.float64)
        known = np.isfinite(values)
        if known.any():
            low, high = np.percentile(values[known], (clip, 100 - clip))
            share = (values[known] - low) / (high - low) if high > low else np.full(int(known.sum()), 0.5)
            picture[known, place] = (share.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return picture


def write_examples(
    path: Path,
    composites: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    prediction: Sequence[np.ndarray],
    names: Sequence[str],
    classes: Sequence[str],
) -> None:
    """Write examples.npz: N pictures uint8 (H, W, 3) of one size with their masks (H, W).

    Larger ones than MOST_SIDE pixels are cut to their middle. Raises TaskError if the parts do not fit together.
    """
    if not len(composites) == len(truth) == len(prediction) == len(names) or not len(names):
        raise TaskError(
            f"{len(composites)} composites, {len(truth)} truths, {len(prediction)} predictions and {len(names)} names "
            "are not as many examples",
            hint="give one of each for every example, and at least one",
        )
    shapes = {np.shape(part)[:2] for part in (*composites, *truth, *prediction)}
    if len(shapes) > 1:
        raise TaskError(f"examples have the sizes {sorted(shapes)}", hint="cut them to one size")
    rows, columns = (slice(max(0, (side - MOST_SIDE) // 2), (side + MOST_SIDE) // 2) for side in shapes.pop())
    pictures, true, predicted = (np.stack(part)[:, rows, columns] for part in (composites, truth, prediction))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        composites=pictures.astype(np.uint8),
        truth=true.astype(np.uint8),
        prediction=predicted.astype(np.uint8),
        names=np.array(list(names)),
        classes=np.array(list(classes)),
    )
    write_bytes(path, buffer.getvalue())


def read_examples(path: Path) -> SegmentationExamples:
    """What `write_examples` wrote. Raises DataError if it is not there, damaged, or not whole."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            composites, truth, prediction = (file[name] for name in ("composites", "truth", "prediction"))
            names, classes = (tuple(str(text) for text in file[name]) for name in ("names", "classes"))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no examples: {error}", hint="run the stage that writes it again") from error
    fits = composites.ndim == 4 and composites.shape[3] == 3 and len(names) == len(composites) > 0 and composites.size
    typed = all(array.dtype == np.uint8 for array in (composites, truth, prediction))
    if not (fits and typed and truth.shape == prediction.shape == composites.shape[:3]):
        raise DataError(f"the arrays of {path} do not fit together", hint="run the stage that writes it again")
    return SegmentationExamples(composites, truth, prediction, names, classes)


def errors_by_distance(truth: np.ndarray, prediction: np.ndarray, furthest: int = 20) -> np.ndarray:
    """int64 (2, furthest + 1) of one tile (H, W): how many labelled pixels lie between d and d + 1 pixels from the true
    boundary, and how many of them are wrong; the last entry is all that lie further away. Sum it over tiles.

    The distance is that from a pixel's centre to the edge of the nearest pixel of another class, IGNORED not being one;
    in a tile of one class everything is far away.
    """
    from scipy.ndimage import distance_transform_edt

    labelled = truth != IGNORED
    counts = np.zeros((2, furthest + 1), np.int64)
    for number in np.unique(truth[labelled]):
        mine = truth == number
        others = labelled & ~mine
        if others.any():
            away = np.minimum(distance_transform_edt(~others)[mine] - 0.5, furthest).astype(np.int64)
        else:
            away = np.full(int(mine.sum()), furthest, np.int64)
        counts[0] += np.bincount(away, minlength=furthest + 1)
        counts[1] += np.bincount(away[prediction[mine] != number], minlength=furthest + 1)
    return counts


def write_boundary(
    path: Path, counts: np.ndarray, pixel_size: float | None = None, examples: str | None = None
) -> None:
    """Write boundary.json from the sum of `errors_by_distance`; pixel_size in metres, examples: a file beside it."""
    pixels, wrong = counts.tolist()
    write_json(path, {"pixels": pixels, "wrong": wrong, "pixel_size": pixel_size, "examples": examples})
