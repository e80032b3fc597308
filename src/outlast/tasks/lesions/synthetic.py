"""Procedural lesions on the skin of procedural patients: the data of the demo and of the smoke tests.

Promises: the ISIC 2024 layout (JPEG files to train on, a test set in HDF5 alone, a sample submission); about 1 % of the
lesions are malignant, by at least four patients; a file SYNTHETIC.txt that marks the folder from the first moment; the
same pixels for the same seed with any numpy on any machine, before the JPEG encoder of Pillow (data.procedural).
Does not: look like any real skin closely enough to say anything about real lesions.

Each patient has a skin, a light and a way in which all moles look, so that a number says less alone than beside the
patient's other lesions; a malignant one is larger, more ragged, less even and more colourful than those. Two columns
give the answer away: `iddx_full`, known of training rows alone, and `nurse_note`, which is in both tables: only
leaks.json tells it from an honest column.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from outlast.data.procedural import Dice
from outlast.errors import DataError
from outlast.tasks.lesions import layout

MARKER = "SYNTHETIC.txt"
MARKER_TEXT = """SYNTHETIC DATA

Every image and every number in this folder was computed by outlast.tasks.lesions.synthetic (seed {seed}); nobody has
these lesions. The set exists to try the software out. A score on it says nothing about real lesions. While this file is
here, everything that is made from the folder says that it is synthetic.
"""
PLANTED = "nurse_note"
SITES = ("head/neck", "anterior torso", "posterior torso", "upper extremity", "lower extremity")
_SKINS = ((0.91, 0.73, 0.63), (0.84, 0.64, 0.53), (0.72, 0.52, 0.41), (0.55, 0.38, 0.29))
_MOLES = ((0.45, 0.27, 0.19), (0.36, 0.22, 0.17), (0.55, 0.33, 0.23))
_MOST_PER_PATIENT = 60
_JPEG_QUALITY = 92
Array = np.ndarray


def write(folder: Path, *, rows: int = 1600, test_rows: int = 200, size: int = 32, seed: int = 0) -> None:
    """Write tables and pictures of `rows` training and `test_rows` test lesions of `size` x `size` pixels.

    Raises DataError if the folder holds anything already.
    """
    if rows < 400 or test_rows < 10 or size < 24:
        raise DataError(f"a synthetic set needs 400 rows, 10 test rows and 24 pixels, not {rows}, {test_rows}, {size}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder", hint="name a new folder for the synthetic set")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(MARKER_TEXT.format(seed=seed), encoding="utf-8")  # first: no half set without it
    (folder / layout.TRAIN_FOLDER).mkdir(parents=True)
    train, first = _part(seed, 0, rows, size, folder=folder / layout.TRAIN_FOLDER)
    test, _ = _part(seed, first, test_rows, size, file=folder / layout.TEST_FILE)
    for row in train:
        row |= {"lesion_id": f"IL_{row['isic_id'][5:]}" if row["target"] else "",
                "iddx_full": "Malignant" if row["target"] else "Benign"}  # fmt: skip
    for row in test:
        del row["target"]
    _table(folder / layout.TRAIN_TABLE, train)
    _table(folder / layout.TEST_TABLE, test)
    share = sum(row["target"] for row in train) / len(train)
    _table(folder / layout.SAMPLE, [{"isic_id": row["isic_id"], "target": round(share, 4)} for row in test])
    leaks = {PLANTED: "written after the lesion was cut out"}
    (folder / layout.OWN_LEAKS).write_text(json.dumps(leaks, indent=1) + "\n", encoding="utf-8")


def _part(
    seed: int, patient: int, rows: int, size: int, *, folder: Path | None = None, file: Path | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Rows of whole patients from number `patient` on, their pictures written; and the number of the next patient."""
    import h5py

    made: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    while len(made) < rows:
        dice = Dice(seed, patient)
        person = _person(dice, patient)
        count = min(int(dice.one(20, _MOST_PER_PATIENT)), rows - len(made))
        # Every other patient has one malignant lesion, whoever has many lesions too: about 1 % of all.
        sick = int(dice.one(0, count)) if patient % 2 == 0 else None
        sick = 3 if patient == 0 else sick  # the first rows of the set have both classes
        for number in range(count):
            name = f"ISIC_{patient:05d}{number:02d}"
            row, picture = _lesion(dice, person, malignant=number == sick, size=size)
            made.append({"isic_id": name, **row})
            if folder is not None:
                (folder / f"{name}.jpg").write_bytes(picture)
            else:
                pictures[name] = picture
        patient += 1
    if file is not None:
        with h5py.File(file, "w") as out:
            for name, picture in pictures.items():
                out[name] = np.void(picture)
    return made, patient


def _person(dice: Dice, number: int) -> dict[str, Any]:
    return {
        "patient_id": f"IP_{number:05d}", "age": 5 * int(dice.one(5, 17)),
        "sex": ("female", "male")[int(dice.one(0, 2))],
        "skin": np.array(_SKINS[int(dice.one(0, len(_SKINS)))]) * dice.one(0.92, 1.06),
        "mole": np.array(_MOLES[int(dice.one(0, len(_MOLES)))]) * dice.one(0.85, 1.2),
        "radius": dice.one(0.32, 0.62), "ragged": dice.one(0.05, 0.25), "uneven": dice.one(0.05, 0.3),
        "light": dice.one(0.85, 1.1),
    }  # fmt: skip


def _lesion(dice: Dice, person: dict[str, Any], *, malignant: bool, size: int) -> tuple[dict[str, Any], bytes]:
    """The table row of a lesion without its id, and its picture as JPEG."""
    own, ill, known = dice(4), dice(4) if malignant else np.zeros(4), dice(3)  # one call for many numbers: it is slow
    radius = float(person["radius"] * (0.75 + 0.45 * own[0]) * (1 + (0.15 + 0.35 * ill[0]) * malignant))
    ragged = float(person["ragged"] * (0.6 + 0.8 * own[1]) + (0.15 + 0.25 * ill[1]) * malignant)
    uneven = float(person["uneven"] * (0.6 + 0.8 * own[2]) + (0.3 + 0.4 * ill[2]) * malignant)
    stretch = float(0.75 + 0.25 * own[3] - 0.2 * ill[3])
    picture = _picture(dice, person, size, min(radius, 0.9), ragged, uneven, stretch)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=_JPEG_QUALITY)
    error = dice.bell(6) * 0.2
    millimetres = 8 * radius * (1 + 0.5 * error[0])
    row = {
        "target": int(malignant),
        "patient_id": person["patient_id"],
        "age_approx": "" if known[0] < 0.03 else person["age"],
        "sex": "" if known[1] < 0.02 else person["sex"],
        "anatom_site_general": SITES[int(known[2] * len(SITES))],
        "clin_size_long_diam_mm": round(millimetres, 2),
        "image_type": "TBP tile: close-up",
        "tbp_lv_areaMM2": round(0.6 * millimetres * millimetres * stretch, 3),
        "tbp_lv_norm_border": round(10 * (ragged + error[1]), 3),
        "tbp_lv_norm_color": round(10 * (uneven + error[2]), 3),
        "tbp_lv_symm_2axis": round(float(1 - stretch + 0.5 * error[3]), 3),
        "tbp_lv_L": round(float(60 * person["skin"].mean() + 4 * error[4]), 3),
        "tbp_lv_deltaLBnorm": round(float(12 * (person["skin"].mean() - person["mole"].mean()) + 4 * error[5]), 3),
        "attribution": "nobody",
        "copyright_license": "CC-0",
        PLANTED: "see report" if malignant else "nothing to report",
    }
    return row, stream.getvalue()


def _picture(
    dice: Dice, person: dict[str, Any], size: int, radius: float, ragged: float, uneven: float, stretch: float
) -> Array:
    """uint8 (size, size, 3): a mole in the middle of skin."""
    shape = (size, size)
    place = (np.arange(size) + 0.5) * (2 / size) - 1
    numbers = dice(5)
    cos, sin = _direction(numbers[0], numbers[1])
    x, y = place[None] - 0.2 * (numbers[2] - 0.5), place[:, None] - 0.2 * (numbers[3] - 0.5)
    along, across = cos * x + sin * y, (cos * y - sin * x) / stretch
    away = np.sqrt(along * along + across * across) / radius
    away = away + ragged * dice.fractal(shape, size / 4, 2, 0.6)
    inside = _step(1.12, 0.88, away)
    skin = person["skin"] * (1 + 0.05 * dice.fractal(shape, size / 3, 2, 0.6))[..., None]
    mole = person["mole"] * (1 + 0.12 * dice.fractal(shape, size / 6, 1))[..., None]
    dark = uneven * _step(-0.1, 0.6, dice.fractal(shape, size / 4, 2, 0.6))
    red = uneven * _step(0.1, 0.8, dice.fractal(shape, size / 4, 2, 0.6))
    mole = mole * (1 - 0.8 * dark.clip(0, 1))[..., None]
    mole = mole + (0.8 * red.clip(0, 1))[..., None] * (np.array([0.62, 0.25, 0.27]) - mole)
    colour = skin + inside[..., None] * (mole - skin)
    colour = colour * person["light"] * (0.93 + 0.14 * numbers[4]) + 0.03 * (dice(size, size, 3) - 0.5)
    return np.asarray((colour.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _direction(one: float, two: float) -> tuple[float, float]:
    """Cosine and sine of a direction out of two numbers in 0..1, by no function that rounds differently elsewhere."""
    x, y = 2 * one - 1, 0.1 + 0.9 * two
    length = float(np.sqrt(x * x + y * y))
    return x / length, y / length


def _step(low: float, high: float, values: Array) -> Array:
    """0 at `low`, 1 at `high` (which may be the lower one), smooth between."""
    t = ((values - low) / (high - low)).clip(0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
