"""The synthetic fires: the layout, the mark, the same pixels every time, and infrared that really knows more."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from outlast.data.procedural import Dice
from outlast.errors import DataError
from outlast.tasks.wildfires import synthetic
from outlast.tasks.wildfires.pairs import examples
from outlast.tasks.wildfires.split import SPLITS, Splitting


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "wildfires"
    synthetic.write(root, careful=True)
    return root


@pytest.fixture(scope="module")
def found(folder: Path):
    return examples(folder, Splitting())


@pytest.fixture(scope="module")
def pictures(found) -> tuple[np.ndarray, np.ndarray]:
    """RGB (N, 64, 64, 3) and thermal (N, 64, 64, 1), float."""
    rgb, ir = (np.stack([pixels(found.root / name) for name in found.table[key]]) for key in ("rgb", "ir"))
    return rgb.astype(float), ir.astype(float)[..., None]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def features(images: np.ndarray) -> np.ndarray:
    """(N, F) of images (N, H, W, C): percentiles and the extremes of small windows; of differences of colours too."""
    channels = [images[..., number] for number in range(images.shape[3])]
    if len(channels) == 3:
        channels += [channels[0] - channels[2], channels[0] - channels[1]]
    rows = []
    for values in channels:
        windows = sliding_window_view(values, (6, 6), axis=(1, 2))[:, ::3, ::3].reshape(len(values), -1, 36)
        mean, deviation = windows.mean(axis=2), windows.std(axis=2)
        rows += [*np.percentile(values, (1, 25, 50, 75, 99), axis=(1, 2)), deviation.max(axis=1)]
        rows += [mean.max(axis=1), mean.min(axis=1), np.median(deviation, axis=1)]
    return np.stack(rows, axis=1)


def auc(x: np.ndarray, label: pd.Series, scene: pd.Series) -> float:
    """On scenes that the forest did not see."""
    forest = RandomForestClassifier(100, min_samples_leaf=2, random_state=0)
    told = cross_val_predict(forest, x, label, groups=scene, cv=GroupKFold(4), method="predict_proba")
    return float(roc_auc_score(label, told[:, 1]))


def test_the_folder_is_marked_and_in_the_layout(folder, found):
    assert "SYNTHETIC DATA" in (folder / "SYNTHETIC.txt").read_text()
    assert (folder / "labels.csv").read_text().startswith("id,rgb_frame,ir_frame,fire,smoke\n1,254p RGB Frame (1).jpg,")
    assert len(found.table) == 384 and found.facts["split"]["scenes"]["count"] == 12
    assert not any("stand in no row" in note for note in found.notes)


def test_every_combination_is_in_every_split_by_whole_scenes(found):
    counts = found.facts["split"]["counts"]
    assert all(counts[split][name] >= 3 for split in SPLITS for name in ("NN", "YN", "NY", "YY"))
    assert found.facts["split"]["scenes"]["cut_into_blocks"] == []
    assert 0.3 < found.table["fire"].mean() < 0.55 and 0.3 < found.table["smoke"].mean() < 0.55


def test_no_frame_stands_on_two_sides(found):
    duplicates = found.facts["split"]["near_duplicates"]
    assert all(item["frames"] == 0 for key, item in duplicates.items() if key != "most_bits")


def test_infrared_knows_of_fires_that_visible_light_does_not_show(found, pictures):
    assert pictures[0].shape == (384, 64, 64, 3)
    rgb, ir = (features(images) for images in pictures)
    fire, smoke, scene = found.table["fire"], found.table["smoke"], found.table["scene"]
    seen, known = auc(rgb, fire, scene), auc(np.hstack([rgb, ir]), fire, scene)
    assert 0.7 < seen < 0.92
    assert known > 0.97
    assert auc(rgb, smoke, scene) > 0.85
    assert auc(ir, smoke, scene) < 0.8  # what there is comes from fires, which often smoke


def test_warm_ground_without_fire_is_there_and_below_the_level_of_fire(found, pictures):
    hottest = pictures[1].max(axis=(1, 2, 3))
    without, with_fire = hottest[found.table["fire"] == 0], hottest[found.table["fire"] == 1]
    assert (with_fire >= synthetic.FIRE_LEVEL - 10).all()
    assert (without < synthetic.FIRE_LEVEL + 15).all()
    assert (without > 120).mean() > 0.2  # rock, roofs, embers


def test_a_share_of_the_labels_is_noted_wrongly_and_the_right_ones_stand_beside(folder, tmp_path):
    synthetic.write(tmp_path / "noted")
    noted, there = (pd.read_csv(tmp_path / "noted" / name, index_col="id") for name in ("labels.csv", "truth.csv"))
    for label, share in zip(("fire", "smoke"), synthetic.WRONG_LABELS, strict=True):
        assert (noted[label] != there[label]).mean() == pytest.approx(share, abs=0.04)
    assert pd.read_csv(folder / "labels.csv", index_col="id")[["fire", "smoke"]].equals(there)
    same = [path.read_bytes() for root in (folder, tmp_path / "noted") for path in sorted(root.rglob("*(7).jpg"))]
    assert same[:2] == same[2:]


def test_the_same_seed_gives_the_same_pixels_on_every_machine():
    digests = []
    for seed in (0, 0, 1):
        dice = Dice(seed, 3)
        land = synthetic.make_land(dice, 2, 48)
        digest = hashlib.sha256()
        for frame in range(2):
            rgb, ir, fire, smoke = synthetic.photograph(dice, land, frame, 48)
            digest.update(rgb.tobytes() + ir.tobytes() + bytes([fire, smoke]))
        digests.append(digest.hexdigest()[:16])
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == "df8f509a654efebc"


def test_another_size_and_number_can_be_written(tmp_path):
    synthetic.write(tmp_path / "small", scenes=2, frames=3, size=32, seed=5)
    assert len(list((tmp_path / "small" / "254p IR Images").iterdir())) == 6
    with pytest.raises(DataError, match="needs a scene, a frame and 32 pixels"):
        synthetic.write(tmp_path / "none", frames=0)


def test_a_folder_that_holds_anything_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="is not an empty folder"):
        synthetic.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
