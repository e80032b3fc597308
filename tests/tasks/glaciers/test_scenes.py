"""Scenes for prediction: the same pixels, whether they lie in BandK folders or in one file."""

import pickle
import shutil

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from outlast.errors import DataError
from outlast.tasks.glaciers.scenes import find_scenes

PLACE = Affine(30.0, 0.0, 478_000.0, 0.0, -30.0, 3_108_140.0)


def write(path, values, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, crs="EPSG:32645",
        transform=PLACE, **profile,
    ) as target:  # fmt: skip
        target.write(values)
    return path


@pytest.fixture
def both(tmp_path):
    """(values, BandK folder, folder of multi-band files) with the same two scenes."""
    values = np.random.default_rng(0).integers(100, 3000, (2, 3, 20, 30)).astype(np.int16)
    values[0, 1, :2] = -9999
    for name, scene in zip(("a", "b"), values, strict=True):
        write(tmp_path / "stacked" / f"{name}.tif", scene)
        for number, band in enumerate(scene, start=1):
            write(tmp_path / "tiles" / f"Band{number}" / f"{name}.tif", band[None])
    expected = values.astype(np.float32)
    expected[values == -9999] = np.nan
    return expected, tmp_path / "tiles", tmp_path / "stacked"


def test_bands_in_folders_and_in_one_file_are_the_same_scene(both):
    expected, tiles, stacked = both
    for folder in (tiles, stacked):
        found = find_scenes([folder])
        assert [(scene.name, scene.height, scene.width, scene.bands) for scene in found] == [
            ("a", 20, 30, 3),
            ("b", 20, 30, 3),
        ]
        for scene, values in zip(found, expected, strict=True):
            np.testing.assert_array_equal(scene.read(0, 0, 20, 30), values)
            np.testing.assert_array_equal(scene.read(1, 5, 6, 7), values[:, 1:7, 5:12])
            assert scene.read(1, 5, 6, 7).dtype == np.float32
            assert scene.georeference.transform == tuple(PLACE[:6])


def test_beyond_a_scene_nothing_was_observed(both):
    expected, tiles, _ = both
    values = find_scenes([tiles])[1].read(16, 25, 8, 8)
    np.testing.assert_array_equal(values[:, :4, :5], expected[1, :, 16:, 25:])
    assert np.isnan(values).sum() == 3 * (64 - 20)


def test_a_single_tile_finds_its_other_bands(both):
    expected, tiles, stacked = both
    found = find_scenes([tiles / "Band2" / "b.tif", stacked / "a.tif", stacked / "a.tif"])
    assert [scene.name for scene in found] == ["b", "a"]
    np.testing.assert_array_equal(found[0].read(0, 0, 20, 30), expected[1])


def test_bands_are_chosen_by_name(both):
    expected, tiles, stacked = both
    for folder in (tiles, stacked):
        scene = find_scenes([folder], bands=["Band3", "band1"])[1]
        np.testing.assert_array_equal(scene.read(0, 0, 20, 30), expected[1, [2, 0]])


def test_masks_beside_the_tiles_are_not_looked_at(both):
    _, tiles, _ = both
    (tiles / "label").mkdir()
    (tiles / "label" / "a.tif").write_text("no picture")
    assert len(find_scenes([tiles])) == 2


def test_a_scene_travels_to_another_process(both):
    expected, tiles, _ = both
    scene = pickle.loads(pickle.dumps(find_scenes([tiles])[0]))
    np.testing.assert_array_equal(scene.read(0, 0, 20, 30), expected[0])


def test_everything_that_is_wrong_is_named(both, tmp_path):
    _, tiles, stacked = both
    (tiles / "Band3" / "b.tif").unlink()
    (stacked / "half.tif").write_bytes((stacked / "a.tif").read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        find_scenes([tmp_path / "gone.tif", tiles / "Band1" / "b.tif", tiles / "Band1", stacked, tmp_path / "empty"])
    said = str(caught.value)
    assert "gone.tif: there is no such file" in said
    assert "Band3/b.tif: the file doesn't exist" in said
    assert f"Band1: this is one band of the tiles; name the folder above it, {tiles}" in said
    assert "half.tif: this is not a whole GeoTIFF" in said
    assert "empty: there is no scene in this folder" in said
    with pytest.raises(DataError, match="no scene was named"):
        find_scenes([])


def test_a_file_with_too_few_bands_is_named(both):
    _, _, stacked = both
    with pytest.raises(DataError, match=r"a\.tif: no Band4, the file has 3 bands"):
        find_scenes([stacked], bands=["Band1", "Band4"])
    with rasterio.open(stacked / "b.tif") as source:
        write(stacked / "c.tif", source.read([1, 2]))
    with pytest.raises(DataError, match="don't have the same number of bands"):
        find_scenes([stacked])


@pytest.mark.real_data
def test_a_real_tile_is_a_scene(real_data, tmp_path):
    folder = real_data / "glaciers" / "everest"
    scene = find_scenes([folder / "Band3" / "r000_c064.tif"])[0]
    assert (scene.name, scene.bands, scene.height, scene.width) == ("r000_c064", 5, 64, 64)
    with rasterio.open(folder / "Band3" / "r000_c064.tif") as source:
        np.testing.assert_array_equal(scene.read(0, 0, 64, 64)[2], source.read(1))
    shutil.copytree(folder / "Band1", tmp_path / "Band1")
    assert len(find_scenes([tmp_path])) == 110
