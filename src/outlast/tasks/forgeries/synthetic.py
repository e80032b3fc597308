"""Procedural pictures with composed forgeries, in the layout of Recod.ai/LUC: data of the demo and of the smoke tests.

Promises: forged images with masks of one or several instances and authentic ones, of several sizes, some of them of one
case_id; a file SYNTHETIC.txt that marks the folder from the first moment; the same files for the same seed with one
build of Pillow (pictures: outlast.data.procedural; what is copied: composer.py).
Does not: look like any real figure closely enough to say anything about real forgeries.

What is painted: landscapes with a sky, cells under a microscope, blots of a gel, and woven cloth. Cells, bands and
threads resemble each other without being copies, which is what makes it hard.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from outlast.data.procedural import Dice
from outlast.errors import DataError
from outlast.model.forgery_metrics import AUTHENTIC
from outlast.tasks.forgeries.composer import NUMBERS, Composed, Composition, compose

MARKER = "SYNTHETIC.txt"
MARKER_TEXT = """SYNTHETIC DATA

Every image in this folder was computed by outlast.tasks.forgeries.synthetic (seed {seed}); none was seen by a camera,
and every forgery was made by a program. The set exists to try the software out. A score on it says nothing about real
forgeries. While this file is here, everything that is made from the folder says that it is synthetic.
"""

SIZES = ((96, 128), (128, 96), (112, 112), (96, 96))  # height, width
# Forgeries as they are made by hand: mostly plain copies, and always at least one.
COMPOSITION = Composition(authentic=0, rotate=0.15, scale=0.15, flip=0.1, subpixel=0.3, jpeg=0, decoy=0.2)
_BOTH = 4  # every such case is there authentic and forged
_ATTEMPTS = 8
_UNLABELLED = 4

Array = np.ndarray


def write(folder: Path, *, cases: int = 48, seed: int = 0) -> None:
    """Write `cases` cases, alternately forged and authentic, every fourth one both; and a few test images.

    Raises DataError if the folder holds anything already.
    """
    if cases < 4:
        raise DataError(f"a synthetic set needs 4 cases, not {cases}")
    new_folder(folder, MARKER_TEXT.format(seed=seed))
    (folder / "test_images").mkdir()
    for case in range(cases):
        dice = Dice(seed, case)
        picture = paint(dice, case)
        if case % 2 or case % _BOTH == 0:
            _save(folder / f"train_images/authentic/{case}.png", picture)
        if case % 2 == 0:
            forged = forge(dice, picture)
            _save(folder / f"train_images/forged/{case}.png", forged.image)
            np.save(folder / f"train_masks/{case}.npy", forged.instances)
    unlabelled = range(cases, cases + _UNLABELLED)
    for case in unlabelled:
        dice = Dice(seed, case)
        picture = paint(dice, case)
        _save(folder / f"test_images/{case}.png", forge(dice, picture).image if case % 2 else picture)
    with (folder / "sample_submission.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("case_id", "annotation"), *((case, AUTHENTIC) for case in unlabelled)]
        )


def new_folder(folder: Path, marker: str) -> None:
    """The folders of a labelled set, empty, and what marks it. Raises DataError if the folder holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder", hint="name a new folder for the synthetic set")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(marker, encoding="utf-8")  # first: no half set without it
    for name in ("train_images/authentic", "train_images/forged", "train_masks"):
        (folder / name).mkdir(parents=True)


def paint(dice: Dice, case: int) -> Array:
    """One authentic picture, uint8 (H, W, 3). Kinds take turns, four cases each, so that they tell no label."""
    size = SIZES[int(dice.one(0, len(SIZES)))]
    colour = KINDS[case // 4 % len(KINDS)](dice, size)
    grain = dice.one(0.01, 0.03) * dice.bell(*size)
    return np.asarray(((colour + grain[..., None]).clip(0, 1) * 255 + 0.5).astype(np.uint8))


def forge(dice: Dice, picture: Array) -> Composed:
    """A forgery of a picture. Raises DataError if there is no room for one."""
    for _ in range(_ATTEMPTS):
        composed = compose(picture, dice(NUMBERS), COMPOSITION)
        if len(composed.instances):
            return composed
    raise DataError(f"a picture of {picture.shape[0]} x {picture.shape[1]} pixels leaves no room for a forgery")


def _save(path: Path, picture: Array) -> None:
    Image.fromarray(picture).save(path)


# -- kinds of pictures, float (H, W, 3), about 0..1 --------------------------------------------------------------------


def _landscape(dice: Dice, size: tuple[int, int]) -> Array:
    """A sky with clouds over hills, with a wood."""
    height, width = size
    rows = np.arange(height)[:, None] / height
    sky = np.array([0.45, 0.62, 0.85]) * (0.75 + 0.35 * rows)[..., None]
    cloud = _step(0.1, 0.9, dice.fractal(size, 26, 4))[..., None]
    colour = sky + 0.8 * cloud * (np.array([0.95, 0.95, 0.96]) - sky)
    for number in range(3):
        ridge = 0.45 + 0.17 * number + 0.16 * dice.fractal((1, width), 34 / (1 + number), 3)
        ground = np.array([0.25 + 0.1 * number, 0.35, 0.18]) * dice.one(0.7, 1.3)
        texture = 1 + 0.45 * dice.fractal(size, 9 + 5 * number, 4, 0.75)
        below = _step(-0.01, 0.01, rows - ridge)[..., None]
        colour = colour + below * (ground * texture[..., None] - colour)
    wood = (_step(0.2, 0.5, dice.fractal(size, 14, 3)) * _step(0.55, 0.7, rows))[..., None]
    return np.asarray(colour * (1 - 0.7 * wood * (1 + 0.4 * dice.fractal(size, 4, 2))[..., None]))


def _cells(dice: Dice, size: tuple[int, int]) -> Array:
    """Bright cells of one kind on a dark ground, none of them a copy of another."""
    height, width = size
    body, kernel = np.zeros(size), np.zeros(size)
    rough = 0.18 * dice.fractal(size, 6, 2)
    for numbers in dice(round(height * width / 420), 7):
        y, x, radius, stretch, lean, bright, core = numbers.tolist()
        down, right = np.arange(height)[:, None] - y * height, np.arange(width)[None] - x * width
        across, along = right + (1.6 * lean - 0.8) * down, down / (0.6 + 0.4 * stretch)
        away = np.sqrt(across * across + along * along) / (5 + 4 * radius) + rough
        body = np.maximum(body, (0.4 + 0.5 * bright) * _step(1.1, 0.75, away))
        kernel = np.maximum(kernel, (0.6 + 0.4 * core) * _step(0.5, 0.3, away))
    body = body * (1 + 0.35 * dice.fractal(size, 4, 3, 0.8))
    stain, inner = np.array([0.15, 0.8, 0.25]), np.array([0.2, 0.35, 0.95])
    return np.asarray(0.04 + body[..., None] * stain + kernel[..., None] * inner)


def _blots(dice: Dice, size: tuple[int, int]) -> Array:
    """Lanes of dark bands on a pale ground."""
    height, width = size
    grey = 0.82 + 0.06 * dice.fractal(size, 40, 3)
    lane = dice.one(14, 20)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    heights = dice(6) * height
    for number, of_lane in enumerate(dice(int(width / lane), len(heights), 7)):
        for at, numbers in zip(heights.tolist(), of_lane.tolist(), strict=True):
            there, up, aside, bend, thick, long, dark = numbers
            if there < 0.25:
                continue
            y, x = at + 4 * up - 2, (number + 0.5) * lane + 2 * aside - 1
            bow = 0.02 * (2 * bend - 1) * (columns - x) * (columns - x)
            off = np.maximum(
                np.abs(rows - y + bow) / (2 + 2.5 * thick), np.abs(columns - x) / lane / (0.32 + 0.14 * long)
            )
            grey = grey * (1 - (0.2 + 0.65 * dark) * _step(1.3, 0.4, off))
    grey = grey + 0.03 * dice.fractal(size, 3, 2)
    return np.repeat(grey[..., None], 3, axis=2)


def _cloth(dice: Dice, size: tuple[int, int]) -> Array:
    """Threads that cross each other, a pattern that repeats itself, and folds."""
    period, pattern = dice.one(4, 7), dice.one(18, 30)
    bend = 2.5 * dice.fractal(size, 40, 2)
    rows, columns = np.arange(size[0])[:, None] + bend, np.arange(size[1])[None] - bend
    threads = 0.5 + 0.25 * (_wave(rows / period) + _wave(columns / period))
    ornament = _step(0.1, 0.4, _wave(rows / pattern) * _wave(columns / pattern))[..., None]
    first, second = dice(3) * 0.6 + 0.3, dice(3) * 0.6 + 0.2
    worn = 1 + 0.3 * dice.fractal(size, 22, 4, 0.7)
    return np.asarray((first + ornament * (second - first)) * (0.5 + 0.6 * threads * worn)[..., None])


KINDS: tuple[Callable[[Dice, tuple[int, int]], Array], ...] = (_landscape, _cells, _blots, _cloth)


def _wave(turns: Array) -> Array:
    """-1..1 and back in each turn: parabolas, which look like a sine."""
    t = 2 * (turns - np.floor(turns)) - 1
    return np.asarray(4 * t * (1 - np.abs(t)))


def _step(low: float, high: float, values: Array) -> Array:
    """0 at `low`, 1 at `high` (which may be the lower one), smooth between."""
    t = ((values - low) / (high - low)).clip(0, 1)
    return np.asarray(t * t * (3 - 2 * t))
