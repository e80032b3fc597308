"""The synthetic glaciers: the two layouts, the mark, the same bytes every time, and structure that can be learned."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import matthews_corrcoef

from outlast.errors import DataError
from outlast.tasks.glaciers import synthetic

BANDS = ("Band1", "Band2", "Band3", "Band4", "Band5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "glaciers"
    synthetic.write(root)
    return root


@pytest.fixture(scope="module")
def tiles(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{split: (bands (N, 5, 64, 64), labels (N, 64, 64))}."""
    found = {}
    for split in ("train", "val"):
        names = [row["file"] for row in index(folder) if row["split"] == split]
        bands = np.stack([[pixels(folder / band / name) for band in BANDS] for name in names])
        found[split] = bands, np.stack([pixels(folder / "label" / name) for name in names])
    return found


def index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_is_that_of_the_competition_with_every_tile_in_every_band(folder: Path) -> None:
    names = sorted(row["file"] for row in index(folder))
    assert len(names) == 56
    assert sorted(path.name for path in folder.iterdir()) == [*BANDS, "SYNTHETIC.txt", "index.csv", "label"]
    for place in (*BANDS, "label"):
        assert sorted(path.name for path in (folder / place).iterdir()) == names
    assert sum(path.stat().st_size for path in folder.rglob("*.tif")) < 4e6


def test_tiles_lie_side_by_side_in_utm_and_all_bands_agree(folder: Path) -> None:
    corners = {}
    for row in index(folder):
        places = set()
        for place in (*BANDS, "label"):
            with rasterio.open(folder / place / row["file"]) as file:
                assert (file.shape, file.dtypes, file.count) == ((64, 64), ("uint8",), 1)
                assert file.nodata == (None if place == "label" else 0)
                places.add((file.crs.to_epsg(), tuple(file.bounds)))
        assert len(places) == 1
        epsg, corners[row["file"]] = places.pop()
        assert epsg == 32645
    assert len(set(corners.values())) == len(corners)
    first, below, east = (corners[name] for name in ("s0_r000_c000.tif", "s0_r064_c000.tif", "s0_r000_c064.tif"))
    assert first[1] == below[3] and first[2] == east[0]
    for scene in ("s0", "s1"):  # west is train, east is val
        edges = [
            {
                corners[row["file"]][0]
                for row in index(folder)
                if row["split"] == split and row["file"].startswith(scene)
            }
            for split in ("train", "val")
        ]
        assert max(edges[0]) < min(edges[1])


def test_marked_synthetic(folder: Path, tmp_path: Path) -> None:
    synthetic.write_hkh(tmp_path / "hkh", scenes=1, rows=1, columns=2)
    for place in (folder, tmp_path / "hkh"):
        assert (place / "SYNTHETIC.txt").read_text(encoding="utf-8").startswith("SYNTHETIC")


def test_every_class_is_in_train_and_in_val(tiles: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for _, labels in tiles.values():
        values, counts = np.unique(labels, return_counts=True)
        assert values.tolist() == [0, 85, 170, 255]
        shares = counts / counts.sum()
        assert 0.5 < shares[0] < 0.8 and 0.1 < shares[1] < 0.4 and 0.02 < shares[2] < 0.2 and 0.003 < shares[3] < 0.03


def test_some_tiles_have_pixels_that_were_not_observed_in_all_bands_alike(
    tiles: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    for bands, _ in tiles.values():
        empty = bands == 0
        assert (empty.all(axis=1) == empty.any(axis=1)).all()
        shares = empty[:, 0].mean(axis=(1, 2))
        assert (shares > 0).sum() >= 3 and (shares == 0).sum() >= len(shares) / 2
        assert shares.max() < 1


def test_the_surfaces_look_as_they_would_from_above(tiles: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    bands, labels = tiles["train"]
    seen = bands[:, 0] > 0
    blue, green, red, infrared, thermal = (bands[:, band].astype(float) for band in range(5))
    rock, ice, debris, lake = (seen & (labels == value) for value in (0, 85, 170, 255))
    dark_rock = rock & (green < 90)
    assert blue[ice].mean() > 2.5 * infrared[ice].mean()
    assert thermal[ice].mean() < thermal[debris].mean() - 10 < thermal[dark_rock].mean() - 10
    assert abs(red[debris].mean() - red[dark_rock].mean()) < red[dark_rock].std()
    assert infrared[lake].mean() < 0.6 * infrared[debris].mean()


def learned(tiles: dict[str, tuple[np.ndarray, np.ndarray]], neighbourhood: bool) -> float:
    """The MCC on val of a small random forest of pixels, each with or without what surrounds it."""
    (fit, truth), (judge, unknown) = (features(tiles[split], neighbourhood) for split in ("train", "val"))
    forest = RandomForestClassifier(25, max_depth=14, min_samples_leaf=3, class_weight="balanced", random_state=0)
    forest.fit(fit[::9], truth[::9])
    return float(matthews_corrcoef(unknown[::7], forest.predict(judge[::7])))


def features(split: tuple[np.ndarray, np.ndarray], neighbourhood: bool) -> tuple[np.ndarray, np.ndarray]:
    bands, labels = split
    layers = [bands.astype(np.float32)]
    if neighbourhood:
        for side in (5, 13):
            padded = np.pad(layers[0], ((0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2), mode="reflect")
            windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))[..., ::2, ::2]
            layers += [windows.mean(axis=(4, 5)), windows.std(axis=(4, 5))]
    table = np.concatenate(layers, axis=1).transpose(0, 2, 3, 1)
    seen = bands[:, 0] > 0
    return table[seen], labels[seen]


def test_colour_alone_is_better_than_chance_and_the_neighbourhood_is_better_than_colour(
    tiles: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    pixel, surroundings = learned(tiles, neighbourhood=False), learned(tiles, neighbourhood=True)
    assert 0.35 < pixel < 0.75
    assert pixel + 0.05 < surroundings < 0.95


def test_same_seed_same_bytes_other_seed_other_pixels(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        synthetic.write(tmp_path / name, scenes=2, rows=1, columns=2, size=48, seed=seed)
        synthetic.write_hkh(tmp_path / name / "hkh", scenes=1, rows=2, columns=2, size=48, seed=seed)
        return contents(tmp_path / name)

    first = written("first", 5)
    assert len(first) > 25 and first == written("again", 5)
    other = written("other", 6)
    images = [name for name in first if name.startswith("Band") or "_img_" in name]
    assert not any(first[name] == other[name] for name in images if name in other)


def test_the_pixels_are_the_same_on_every_machine_with_every_numpy() -> None:
    scene = synthetic.make_scene(3, 1, 60, 90)
    digest = hashlib.sha256(scene.classes.tobytes())
    for values in (*scene.reflectance, scene.kelvin, scene.elevation):
        digest.update(np.ascontiguousarray(values).tobytes())
    assert digest.hexdigest() == "8eca7a600e0bdc5dddd105b68a564105660350453a99ba9033d7ba0eec95782c"


def test_hkh_patches_have_fifteen_channels_and_a_mask_of_two(tmp_path: Path) -> None:
    synthetic.write_hkh(tmp_path / "hkh")
    images = sorted((tmp_path / "hkh").glob("*/slice_*_img_*.npy"))
    assert {path.parent.name for path in images} == {"train", "dev"}
    scenes = {side: {path.name[:7] for path in images if path.parent.name == side} for side in ("train", "dev")}
    assert scenes == {"train": {"slice_0", "slice_1"}, "dev": {"slice_2"}}
    assert 15 <= len(images) <= 36
    both = np.zeros(2, dtype=bool)
    unseen = 0
    for path in images:
        image, mask = np.load(path), np.load(path.with_name(path.name.replace("_img_", "_mask_")))
        assert (image.shape, image.dtype) == ((64, 64, 15), np.float32)
        assert (mask.shape, mask.dtype) == ((64, 64, 2), np.uint8)
        assert mask.any() and not mask.all(axis=2).any()
        empty = np.isnan(image).any(axis=2)
        assert (empty == np.isnan(image).all(axis=2)).all()
        assert not mask[empty].any()
        both |= mask.any(axis=(0, 1))
        unseen += int(empty.sum())
        ndsi, green, short = image[..., 11], image[..., 1], image[..., 4]
        assert np.allclose(ndsi[~empty], ((green - short) / (green + short))[~empty], atol=1e-5)
    assert both.all() and unseen > 100
    neighbours = [np.load(tmp_path / "hkh" / "train" / f"slice_0_img_00{place}.npy") for place in (0, 1)]
    assert np.array_equal(neighbours[0][:, -6:], neighbours[1][:, :6], equal_nan=True)


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.tif").write_bytes(b"mine")
    for write in (synthetic.write, synthetic.write_hkh):
        with pytest.raises(DataError, match="not an empty folder"):
            write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.tif"]


def test_half_written_set_is_marked_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(synthetic, "make_scene", fail)
    with pytest.raises(OSError, match="no space"):
        synthetic.write(tmp_path / "glaciers")
    assert (tmp_path / "glaciers" / synthetic.MARKER).is_file()
