"""The synthetic leaf set: its layout, its mark, its bytes, and that its classes cannot be told apart by colour."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from outlast.errors import DataError
from outlast.tasks.plants import synthetic

IMAGES_PER_CLASS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "leaves"
    synthetic.write(root, images_per_class=IMAGES_PER_CLASS, size=64, seed=3)
    return root


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "groups.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_layout_is_a_folder_per_class(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*synthetic.CLASSES, "SYNTHETIC.txt", "groups.csv"])
    for label in synthetic.CLASSES:
        assert len(list((folder / label).glob("*.jpg"))) == IMAGES_PER_CLASS


def test_groups_name_every_file_once_and_hold_photos_of_one_leaf(folder: Path) -> None:
    table = rows(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.jpg"))
    assert sorted(row["file"] for row in table) == files
    labels, sizes = defaultdict(set), defaultdict(int)
    for row in table:
        assert row["file"].startswith(f"{row['label']}/")
        labels[row["group"]].add(row["label"])
        sizes[row["group"]] += 1
    assert all(len(found) == 1 for found in labels.values())
    assert max(sizes.values()) <= 4
    assert len(sizes) < len(table) / 2, "most leaves must be seen on several photos"


def test_marked_synthetic(folder: Path) -> None:
    assert (folder / synthetic.MARKER).read_text(encoding="utf-8").startswith("SYNTHETIC")


def test_every_photo_decodes_and_no_two_are_equal(folder: Path) -> None:
    seen = set()
    for path in folder.glob("*/*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
            assert np.asarray(image).std() > 5, f"{path.name} shows nothing"
        seen.add(path.read_bytes())
    assert len(seen) == IMAGES_PER_CLASS * len(synthetic.CLASSES)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    def contents(name: str, seed: int) -> dict[str, bytes]:
        root = tmp_path / name
        synthetic.write(root, images_per_class=3, size=48, seed=seed)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    first = contents("first", 5)
    assert first == contents("again", 5)
    other = contents("other", 6)
    assert not set(first.values()) & {value for key, value in other.items() if key.endswith(".jpg")}


@pytest.mark.filterwarnings("ignore:Unknown solver options")  # scikit-learn 1.6 beside a newer scipy
def test_classes_cannot_be_told_apart_by_colour(tmp_path: Path) -> None:
    """Chance is 0.25; a small convolutional network reaches about 0.8 at 64 pixels."""
    root = tmp_path / "leaves"
    synthetic.write(root, images_per_class=60, size=64)
    table = rows(root)
    colours = []
    for row in table:
        pixels = np.asarray(Image.open(root / row["file"]), dtype=float).reshape(-1, 3)
        colours.append([*pixels.mean(axis=0), *pixels.std(axis=0)])
    labels = [row["label"] for row in table]
    guessed = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        np.array(colours),
        labels,
        groups=[row["group"] for row in table],
        cv=GroupKFold(5),
    )
    assert balanced_accuracy_score(labels, guessed) < 0.5


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="not an empty folder"):
        synthetic.write(tmp_path, images_per_class=1, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jpg"]


def test_half_written_set_is_marked_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("no space left on device")

    monkeypatch.setattr(synthetic, "photograph", fail)
    with pytest.raises(OSError, match="no space"):
        synthetic.write(tmp_path / "leaves", images_per_class=1, size=32)
    assert (tmp_path / "leaves" / synthetic.MARKER).is_file()
