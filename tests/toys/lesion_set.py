"""A small lesion data set, written by hand, whose parts a test may damage; malignant lesions are dark."""

import io

import h5py
import numpy as np
import pandas as pd
from PIL import Image

ROWS, TEST_ROWS = 60, 12


def picture(number):
    """JPEG bytes; malignant lesions (every fifth) are dark."""
    dice = np.random.default_rng(number)
    level = 70 if number % 5 == 0 else 170
    pixels = np.clip(dice.normal(level, 12, (24, 24, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def write_hdf5(path, pictures):
    with h5py.File(path, "w") as file:
        for name, data in pictures.items():
            file[name] = np.void(data)


def tables(rows=ROWS, test_rows=TEST_ROWS):
    """(train, test): 15 patients of four lesions each to train on."""
    numbers = np.arange(rows + test_rows)
    table = pd.DataFrame(
        {
            "isic_id": [f"ISIC_{number:04d}" for number in numbers],
            "target": (numbers % 5 == 0).astype(int),
            "patient_id": [f"P{number // 4:03d}" for number in numbers],
            "age_approx": [30.0 + number % 40 for number in numbers],
            "sex": np.where(numbers % 2 == 0, "male", "female"),
            "tbp_lv_A": numbers / 7,
            "dx_type": "histo",
            "attribution": np.where(numbers % 5 == 0, "one", "other"),
        }
    )
    train = table.iloc[:rows].assign(lesion_id="L1", iddx_full="nevus")
    return train, table.iloc[rows:].drop(columns="target").reset_index(drop=True)


def write_set(root, *, train_file=False):
    train, test = tables()
    root.mkdir(parents=True, exist_ok=True)
    train.to_csv(root / "train-metadata.csv", index=False)
    test.to_csv(root / "test-metadata.csv", index=False)
    pd.DataFrame({"isic_id": test["isic_id"], "target": 0.3}).to_csv(root / "sample_submission.csv", index=False)
    if train_file:
        write_hdf5(root / "train-image.hdf5", {name: picture(n) for n, name in enumerate(train["isic_id"])})
    else:
        (root / "train-image" / "image").mkdir(parents=True)
        for number, name in enumerate(train["isic_id"]):
            (root / "train-image" / "image" / f"{name}.jpg").write_bytes(picture(number))
    write_hdf5(root / "test-image.hdf5", {name: picture(ROWS + n) for n, name in enumerate(test["isic_id"])})
    return root


def edit(path, change):
    """Rewrite a CSV file as change(frame) gives it."""
    change(pd.read_csv(path)).to_csv(path, index=False)
