"""Where the parts of a lesion data set lie, what their columns mean, and which of them give the answer away.

The layout of ISIC 2024 (SLICE-3D): train-metadata.csv with train-image/image/<isic_id>.jpg or train-image.hdf5 (the
file is taken where both are there), test-metadata.csv with test-image.hdf5, sample_submission.csv. A data set may say
in leaks.json, {column: why}, which columns of its own give the answer away.
Does not: read rows or pixels (table.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from outlast.data.columns import Declared
from outlast.errors import DataError

ID, PATIENT, TARGET = "isic_id", "patient_id", "target"
TRAIN_TABLE, TEST_TABLE, SAMPLE = "train-metadata.csv", "test-metadata.csv", "sample_submission.csv"
TRAIN_FILE, TRAIN_FOLDER, TEST_FILE = "train-image.hdf5", "train-image/image", "test-image.hdf5"
OWN_LEAKS = "leaks.json"

# Known before the data are read, by the data set that they are columns of. What says how, where or how surely a lesion
# was diagnosed is known only once it was diagnosed.
_DIAGNOSIS = "a diagnosis"
LEAKS: Mapping[str, Mapping[str, str]] = {
    "ISIC 2024 (SLICE-3D)": {
        **dict.fromkeys(("iddx_full", "iddx_1", "iddx_2", "iddx_3", "iddx_4", "iddx_5"), _DIAGNOSIS),
        "lesion_id": "given only to lesions that were examined further",
        "mel_mitotic_index": "measured in a melanoma that was cut out",
        "mel_thick_mm": "measured in a melanoma that was cut out",
        "tbp_lv_dnn_lesion_confidence": "said by a network that has seen the diagnosis",
    },
    "ISIC archive (HAM10000, MSK)": {
        "dx_type": "how it was diagnosed: what looks harmless is not cut out",
        "attribution": "which collection it is from: each has a share of malignant lesions of its own",
    },
}
LEFT_OUT = ("copyright_license", "image_type")


def looks_like_lesions(folder: Path) -> bool:
    """Whether a folder has the table and the images of a training set."""
    return (folder / TRAIN_TABLE).is_file() and (train_images(folder) is not None)


def has_test_set(folder: Path) -> bool:
    """Whether a folder has the table and the images of a test set."""
    return (folder / TEST_TABLE).is_file() and (folder / TEST_FILE).is_file()


def train_images(root: Path) -> str | None:
    """Where the training images lie below the folder; None if there are none."""
    if (root / TRAIN_FILE).is_file():
        return TRAIN_FILE
    return TRAIN_FOLDER if (root / TRAIN_FOLDER).is_dir() else None


def check_complete(root: Path) -> None:
    """Raises DataError with everything that is not there."""
    missing = [name for name in (TRAIN_TABLE, TEST_TABLE, TEST_FILE, SAMPLE) if not (root / name).is_file()]
    if train_images(root) is None:
        missing.append(f"{TRAIN_FILE} or {TRAIN_FOLDER}/")
    if missing:
        raise DataError(
            f"{root} is not a whole data set of lesions: {len(missing)} parts are missing",
            hint="copy them from the source; `kaggle competitions download isic-2024-challenge` brings all of them",
            details=[f"there is no {name}" for name in missing],
        )


def declared(root: Path, also: Sequence[str] = ()) -> Declared:
    """What is known of the columns: of the data sets above, in the folder's own leaks.json, and named in `also`.

    Raises DataError if leaks.json is not {column: why}.
    """
    leaks = {name: why for of_one in LEAKS.values() for name, why in of_one.items()}
    leaks |= dict.fromkeys(also, "data.leaks names it")
    path = root / OWN_LEAKS
    if path.is_file():
        try:
            own = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} can't be read: {error}", hint='write it as {"column": "why it is a leak"}'
            ) from error
        if not isinstance(own, dict) or not all(isinstance(why, str) for why in own.values()):
            raise DataError(f"{path} is not {{column: why}}", hint='write it as {"column": "why it is a leak"}')
        leaks |= own
    return Declared(id=ID, patient=PATIENT, target=TARGET, leaks=leaks, left_out=LEFT_OUT)
