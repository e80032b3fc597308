"""The competition layout: what is whole becomes a table and samples, what isn't is named, all at once."""

import shutil
import time
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from outlast.data.raster import Georeference
from outlast.errors import DataError
from outlast.tasks.glaciers.geography import places
from outlast.tasks.glaciers.moments import row_moments
from outlast.tasks.glaciers.tiles import examples, find_tiles, folds, looks_like_tiles, read_window, statistics

SIZE = 16
BANDS = ("Band1", "Band2", "Band10")  # by number Band10 is the last, by name it isn't


def write(path, values, *, row=0, column=0, crs="EPSG:32645", **profile):
    """A GeoTIFF whose upper left corner lies `row` and `column` pixels from that of the scene."""
    values = np.asarray(values)
    values = values[None] if values.ndim == 2 else values
    count, height, width = values.shape
    placed = {"crs": crs, "transform": Affine(30.0, 0.0, 478_000 + 30.0 * column, 0.0, -30.0, 3e6 - 30.0 * row)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype,
            **(placed if crs else {}), **profile,
        ) as target:  # fmt: skip
            target.write(values)
    return path


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 200, shape).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    """Two rows of three tiles in three bands; classes in vertical stripes."""
    folder = tmp_path / "tiles"
    for row in range(2):
        for column in range(3):
            name = f"r{row * SIZE:03d}_c{column * SIZE:03d}.tif"
            place = {"row": row * SIZE, "column": column * SIZE}
            for number, band in enumerate(BANDS):
                write(folder / band / name, pixels(SIZE, SIZE, seed=10 * number + 3 * row + column), **place)
            stripes = np.repeat(np.asarray([[0, 85, 170, 255]], dtype=np.uint8), SIZE, axis=0).repeat(SIZE // 4, axis=1)
            write(folder / "label" / name, stripes, **place)
    return folder


def stored(path):
    with rasterio.open(path) as source:
        return source.read(1)


def refused(root, **settings):
    with pytest.raises(DataError) as caught:
        examples(root, window=SIZE, **settings)
    assert caught.value.hint
    return str(caught.value)


# What is whole


def test_a_tile_becomes_a_row_and_a_sample(root):
    found = examples(root, window=SIZE)
    assert found.facts == {"classes": ["background", "ice", "debris", "lake"], "ignore": 255, "gaps": ["bands"],
                           "bands": 3, "band_names": list(BANDS)}  # fmt: skip
    assert found.table["id"].tolist() == sorted(path.stem for path in (root / "Band1").iterdir())
    row = found.table.iloc[4]
    assert (row["tile"], row["y"], row["x"], row["height"], row["width"], row["split"]) == (
        "r016_c016", 0, 0, SIZE, SIZE, "",
    )  # fmt: skip
    assert [row[f"pixels_{number}"] for number in range(4)] == [64, 64, 64, 64]
    sample = read_window(root, row)
    assert sample["bands"].dtype == np.float32
    for position, band in enumerate(BANDS):
        np.testing.assert_array_equal(sample["bands"][position], stored(root / band / "r016_c016.tif"))
    np.testing.assert_array_equal(sample["mask"], stored(root / "label" / "r016_c016.tif") // 85)


def test_lower_case_names_labels_and_other_extensions(root):
    for number, band in enumerate(BANDS):
        (root / band).rename(root / f"band_{number + 7}")
    (root / "label").rename(root / "Labels")
    for path in list(root.glob("*/*.tif")):
        path.rename(path.with_suffix(".TIFF"))
    assert looks_like_tiles(root)
    found = examples(root, window=SIZE)
    assert found.facts["band_names"] == ["band_7", "band_8", "band_9"]
    assert set(read_window(root, found.table.iloc[0])["mask"].reshape(-1)) == {0, 1, 2, 3}


def test_chosen_bands_come_in_their_order(root):
    found = examples(root, window=SIZE, bands=["band10", "Band1"])
    assert found.facts["band_names"] == ["Band10", "Band1"]
    sample = read_window(root, found.table.iloc[0], bands=["band10", "Band1"])
    np.testing.assert_array_equal(sample["bands"][0], stored(root / "Band10" / "r000_c000.tif"))
    assert "has no band Band4" in refused(root, bands=["Band1", "Band4"])


def test_a_large_tile_is_cut_and_its_border_padded(tmp_path):
    values, mask = pixels(20, 27), np.tile(np.arange(4, dtype=np.uint8), 135).reshape(20, 27)
    write(tmp_path / "Band1" / "big.tif", values)
    write(tmp_path / "label" / "big.tif", mask)
    found = examples(tmp_path, window=8)
    assert len(found.table) == 3 * 4
    assert found.table["id"].tolist()[:5] == ["big@0,0", "big@0,8", "big@0,16", "big@0,24", "big@8,0"]
    whole, labels = np.full((24, 32), np.nan, dtype=np.float32), np.full((24, 32), 255, dtype=np.uint8)
    for row in found.table.to_dict("records"):
        sample = read_window(tmp_path, row)
        assert sample["bands"].shape == (1, 8, 8)
        whole[row["y"] : row["y"] + 8, row["x"] : row["x"] + 8] = sample["bands"][0]
        labels[row["y"] : row["y"] + 8, row["x"] : row["x"] + 8] = sample["mask"]
        counted = [int((sample["mask"] == number).sum()) for number in range(4)]
        assert [row[f"pixels_{number}"] for number in range(4)] == counted
        assert row["count_Band1"] == np.isfinite(sample["bands"]).sum()
    np.testing.assert_array_equal(whole[:20, :27], values)
    np.testing.assert_array_equal(labels[:20, :27], mask)
    assert np.isnan(whole[20:]).all() and np.isnan(whole[:, 27:]).all()
    assert (labels[20:] == 255).all() and (labels[:, 27:] == 255).all()
    assert found.table["hash"].is_unique


def test_a_small_tile_is_padded(root):
    found = examples(root, window=SIZE + 8)
    sample = read_window(root, found.table.iloc[0])
    assert sample["bands"].shape == (3, SIZE + 8, SIZE + 8)
    assert np.isnan(sample["bands"][:, SIZE:]).all()
    assert (sample["mask"][:, SIZE:] == 255).all()
    assert found.table["id"].iat[0] == "r000_c000"


def test_unlabelled_tiles_are_read_without_masks(root):
    shutil.rmtree(root / "label")
    found = examples(root, window=SIZE, labelled=False)
    assert len(found.table) == 6
    assert (read_window(root, found.table.iloc[0])["mask"] == 255).all()
    assert found.table["pixels_0"].sum() == 0


def test_tiles_without_georeference_are_read_and_nobody_is_warned(tmp_path, capfd):
    for name in ("first.tif", "second.tif"):
        write(tmp_path / "Band1" / name, pixels(8, 8), crs=None)
        write(tmp_path / "label" / name, np.zeros((8, 8), dtype=np.uint8), crs=None)
    found = examples(tmp_path, window=8, threads=4)
    assert found.table["group"].tolist() == ["first", "second"]
    assert any("nothing says where the tiles lie" in note for note in found.notes)
    assert capfd.readouterr() == ("", "")


def test_the_hash_follows_every_file_and_nothing_else(root, tmp_path):
    first = examples(root, window=SIZE)
    shutil.copytree(root, tmp_path / "copy")
    assert examples(tmp_path / "copy", window=SIZE).fingerprint == first.fingerprint
    write(root / "label" / "r016_c016.tif", np.zeros((SIZE, SIZE), dtype=np.uint8), row=SIZE, column=SIZE)
    changed = examples(root, window=SIZE).table["hash"] != first.table["hash"]
    assert changed.tolist() == [False] * 4 + [True, False]
    # A sample that is cached under its hash must be what would be read now.
    assert (examples(root, window=SIZE + 1).table["hash"] != first.table["hash"]).all()


def test_a_fill_that_other_tiles_show_changes_the_hash_of_all(root):
    for path in (root / "Band1").iterdir():
        write(path, np.arange(SIZE * SIZE, dtype=np.int16).reshape(SIZE, SIZE), crs=None)
    before = examples(root, window=SIZE).table
    values = stored(root / "Band1" / "r016_c032.tif")
    values[0, :4] = -9999
    write(root / "Band1" / "r016_c032.tif", values, row=SIZE, column=2 * SIZE)
    assert (examples(root, window=SIZE).table["hash"] != before["hash"]).all()


# Nodata


def test_nodata_infinity_and_fill_are_nan_and_counted(root):
    first = np.full((SIZE, SIZE), 300, dtype=np.int16) + np.arange(SIZE, dtype=np.int16)
    first[0, :5] = -9999  # no tag says so
    second = first.copy()
    second[0, :5], second[3, 3] = 300, -9999  # one pixel is nodata because the other tile shows what it means
    for path in sorted((root / "Band1").iterdir())[2:]:
        write(path, np.abs(first), row=16 * (path.stem[1:4] == "016"), column=int(path.stem[-3:]))
    write(root / "Band1" / "r000_c000.tif", first)
    write(root / "Band1" / "r000_c016.tif", second, column=SIZE)
    heat = pixels(SIZE, SIZE).astype(np.float32)
    heat[1, :2], heat[2, 0] = np.inf, -np.inf
    write(root / "Band2" / "r000_c000.tif", heat)
    tagged = pixels(SIZE, SIZE)
    tagged[5, :4] = 0
    write(root / "Band10" / "r000_c000.tif", tagged, nodata=0)
    found = examples(root, window=SIZE)
    sample = read_window(root, found.table.iloc[0])
    assert np.isnan(sample["bands"]).sum(axis=(1, 2)).tolist() == [5, 3, 4]
    assert np.isnan(read_window(root, found.table.iloc[1])["bands"][0]).sum() == 1
    assert found.table["count_Band1"].tolist()[:2] == [251, 255]
    notes = "\n".join(found.notes)
    assert "Band1: -9999 (6 values in 2 tiles) is taken as nodata" in notes
    assert "3 infinite values in 1 files" in notes
    assert f"13 of {6 * 3 * 256} values" in notes


def test_a_pixel_that_no_band_observed_is_not_labelled(root):
    for band in BANDS:
        values = pixels(SIZE, SIZE)
        values[:, :2] = 0
        write(root / band / "r000_c000.tif", values, nodata=0)
    found = examples(root, window=SIZE)
    assert found.table["pixels_0"].iat[0] == 64 - 2 * SIZE
    assert (read_window(root, found.table.iloc[0])["mask"][:, :2] == 255).all()


def test_a_tile_without_any_observation_is_left_out_and_named(root):
    for band in BANDS:
        write(root / band / "r000_c016.tif", np.zeros((SIZE, SIZE), dtype=np.uint8), column=SIZE, nodata=0)
    write(root / "Band2" / "r000_c032.tif", np.zeros((SIZE, SIZE), dtype=np.uint8), column=2 * SIZE, nodata=0)
    found = examples(root, window=SIZE)
    assert "r000_c016" not in found.table["tile"].tolist()
    assert len(found.table) == 5
    notes = "\n".join(found.notes)
    assert "1 tiles are left out, all of their values are nodata: r000_c016" in notes
    assert "tiles with bands that hold no data at all: r000_c032 (1 of 3 bands)" in notes
    assert len(examples(root, window=SIZE, labelled=False).table) == 6  # each gets a prediction


def test_nothing_observed_anywhere_is_refused(root):
    for path in root.glob("Band*/*.tif"):
        write(path, np.zeros((SIZE, SIZE), dtype=np.uint8), crs=None, nodata=0)
    assert "nothing was observed in any tile" in refused(root)


# What isn't whole


def test_a_band_that_lacks_a_tile_is_named(root):
    (root / "Band2" / "r000_c016.tif").unlink()
    (root / "Band10" / "r016_c000.tif").unlink()
    said = refused(root)
    assert "Band2 has no r000_c016.tif (1 of 6)" in said
    assert "Band10 has no r016_c000.tif (1 of 6)" in said


def test_a_tile_without_mask_and_a_mask_without_tile_are_named(root):
    (root / "label" / "r000_c016.tif").rename(root / "label" / "other.tif")
    said = refused(root)
    assert "label has no r000_c016.tif" in said
    assert "masks without a tile: other.tif" in said
    assert len(examples(root, window=SIZE, labelled=False).table) == 6


def test_no_masks_at_all_is_said(root):
    shutil.rmtree(root / "label")
    assert "no folder label/" in refused(root)


def test_all_problems_of_all_files_come_together(root):
    write(root / "Band1" / "r000_c000.tif", pixels(SIZE, SIZE + 1))
    write(root / "Band2" / "r000_c016.tif", pixels(SIZE, SIZE), column=SIZE, crs="EPSG:32644")
    write(root / "Band10" / "r000_c032.tif", pixels(SIZE, SIZE), column=5 * SIZE)
    write(root / "Band1" / "r016_c000.tif", pixels(3, SIZE, SIZE), row=SIZE)
    values = np.zeros((SIZE, SIZE), dtype=np.uint8)
    values[0, :3] = 42
    write(root / "label" / "r016_c016.tif", values, row=SIZE, column=SIZE)
    whole = (root / "Band2" / "r016_c032.tif").read_bytes()
    (root / "Band2" / "r016_c032.tif").write_bytes(whole[:100])
    said = refused(root)
    assert f"Band2/r000_c000.tif: 16x16 pixels, but {root}/Band1/r000_c000.tif has 17x16" in said
    assert f"Band2/r000_c016.tif: another CRS than {root}/Band1/r000_c016.tif" in said
    assert f"Band10/r000_c032.tif: another transform than {root}/Band1/r000_c032.tif" in said
    assert "Band1/r016_c000.tif: 3 bands where one is expected" in said
    assert "label/r016_c016.tif: values that are no class: 42 (3 pixels)" in said
    assert "Band2/r016_c032.tif: this is not a whole GeoTIFF" in said


def test_a_mask_that_lies_elsewhere_is_named(root):
    write(root / "label" / "r000_c000.tif", np.zeros((SIZE, SIZE), dtype=np.uint8), row=3)
    assert "label/r000_c000.tif: another transform" in refused(root)


def test_a_mask_without_georeference_takes_that_of_its_bands(root):
    write(root / "label" / "r000_c000.tif", np.zeros((SIZE, SIZE), dtype=np.uint8), crs=None)
    assert any("1 files have no georeferencing" in note for note in examples(root, window=SIZE).notes)


def test_damage_beyond_the_header_is_named(root):
    path = write(root / "Band2" / "r000_c000.tif", pixels(SIZE, SIZE), compress="deflate")
    path.write_bytes(path.read_bytes()[:-60])
    with rasterio.open(path) as source:
        assert source.shape == (SIZE, SIZE)
    assert "Band2/r000_c000.tif: this is not a whole GeoTIFF" in refused(root)


def test_two_ways_of_writing_masks_are_not_mixed(root):
    plain = np.ones((SIZE, SIZE), dtype=np.uint8)
    write(root / "label" / "r000_c000.tif", plain)
    assert "r000_c000.tif unlike" in refused(root)
    plain[0] = 85
    write(root / "label" / "r000_c000.tif", plain)
    assert "label/r000_c000.tif: classes as 1, 2, 3 beside 85, 170, 255" in refused(root)


def test_wrong_folders_are_told_what_is_expected(root, tmp_path):
    (tmp_path / "empty").mkdir()
    for band in BANDS:
        (tmp_path / "hollow" / band).mkdir(parents=True)
    for folder, said in (
        (tmp_path / "empty", "expected folders Band1, Band2"),
        (tmp_path / "hollow", "there is no .tif in Band1, Band2, Band10"),
        (tmp_path, f"did you mean {tmp_path / 'hollow'}"),
        (root / "Band1", f"name the folder above: {root}"),
        (tmp_path / "nowhere", "does not exist"),
        (root / "Band1" / "r000_c000.tif", "is not a folder"),
    ):
        assert said in refused(folder)


def test_one_band_in_two_folders_is_refused(root):
    shutil.copytree(root / "Band1", root / "band_01")
    assert "one band in two folders" in refused(root)


def test_one_tile_in_two_files_is_refused(root):
    shutil.copy(root / "Band1" / "r000_c000.tif", root / "Band1" / "r000_c000.tiff")
    assert "one tile in two files: r000_c000.tif and r000_c000.tiff" in refused(root)


# Splits, groups, folds, statistics


def index(root, lines):
    (root / "index.csv").write_text("file,split,note\n" + "".join(f"{line},x\n" for line in lines))


def test_index_is_obeyed(root):
    names = find_tiles(root).files
    index(
        root, [f"{names[0]},train", *(f"{name.removesuffix('.tif')},Validation" for name in names[1:5]), f"{names[5]},"]
    )
    found = examples(root, window=SIZE)
    assert found.table["split"].tolist() == ["train", "val", "val", "val", "val", ""]
    assert (found.table.groupby("group")["split"].nunique() == 1).all()
    assert set(examples(root, window=SIZE, splits=False).table["split"]) == {""}


def test_an_index_that_does_not_fit_is_refused(root):
    names = find_tiles(root).files
    index(root, [f"{names[0]},train", f"{names[0]},val", f"{names[1]},east", "gone.tif,train", f"{names[2]},test"])
    said = refused(root)
    assert "no such tile: gone.tif" in said
    assert f"not listed: {', '.join(names[3:])}" in said
    assert f"listed with two splits: {names[0]}" in said
    assert f"none of train, val, test: {names[1]}: 'east'" in said
    assert len(examples(root, window=SIZE, splits=False).table) == 6
    (root / "index.csv").write_text("name,part\n")
    assert "the columns file and split are needed" in refused(root)


def wide(tmp_path, rows=4, columns=8, crs="EPSG:32645"):
    """A scene of 32 tiles; the left half is background, the right half ice with some debris, one tile has a lake."""
    for row in range(rows):
        for column in range(columns):
            name = f"r{row}_c{column}.tif"
            mask = np.full((8, 8), int(column >= columns // 2), dtype=np.uint8)
            mask[:2] = 2 if (row, column) in ((0, 6), (3, 7)) else mask[0, 0]
            mask[7, 7] = 3 if (row, column) == (1, 1) else mask[7, 7]
            place = {"row": 8 * row, "column": 8 * column, "crs": crs}
            write(tmp_path / "Band1" / name, pixels(8, 8, seed=row * 8 + column), **place)
            write(tmp_path / "label" / name, mask, **place)
    return examples(tmp_path, window=8).table


@pytest.mark.parametrize("crs", ["EPSG:32645", None])
def test_geographic_folds_are_contiguous_and_balanced(tmp_path, crs):
    table = wide(tmp_path, crs=crs)
    numbers = folds(table, 4, by="geography")
    assert numbers.dtype == np.int64
    assert np.bincount(numbers).tolist() == [8, 8, 8, 8]
    grid = numbers.reshape(4, 8)
    for fold in range(4):
        ys, xs = np.nonzero(grid == fold)
        assert (np.ptp(ys) + 1) * (np.ptp(xs) + 1) == 8, "a block is a rectangle here"


def test_groups_are_blocks_of_neighbours_within_a_split(tmp_path):
    table = wide(tmp_path)
    sizes = table["group"].value_counts()
    assert len(sizes) == 8 and set(sizes) == {4}
    centres = table.groupby("group")[["centre_x", "centre_y"]].agg(np.ptp)
    assert (centres <= 30 * 8).all(axis=None), "each a square of two by two tiles"


def test_folds_by_tile_share_out_each_kind(tmp_path):
    table = wide(tmp_path)
    numbers = folds(table, 2, by="tile", seed=1)
    for number in (0, 1, 2):
        kind = table[f"pixels_{number}"] > 10
        assert abs(int((numbers[kind] == 0).sum()) - int((numbers[kind] == 1).sum())) <= 1
    assert not np.array_equal(numbers, folds(table, 2, by="tile", seed=2))
    np.testing.assert_array_equal(numbers, folds(table, 2, by="tile", seed=1))


@pytest.mark.parametrize("by", ["tile", "geography"])
def test_windows_of_a_tile_stay_in_one_fold(root, by):
    table = examples(root, window=SIZE // 2).table
    assert len(table) == 24
    table = table.assign(fold=folds(table, 3, by=by))
    assert (table.groupby("tile")["fold"].nunique() == 1).all()
    assert table["fold"].value_counts().tolist() == [8, 8, 8]


def test_a_single_scene_is_folded_by_its_windows(tmp_path):
    write(tmp_path / "Band1" / "scene.tif", pixels(32, 32))
    write(tmp_path / "label" / "scene.tif", np.tile(np.arange(4, dtype=np.uint8), 256).reshape(32, 32))
    table = examples(tmp_path, window=8).table
    assert np.bincount(folds(table, 4)).tolist() == [4, 4, 4, 4]
    with pytest.raises(DataError, match="need at least 4 tiles, there are 1"):
        folds(table, 4, by="tile")


def test_folds_that_can_not_be_made_are_refused(root):
    table = examples(root, window=SIZE).table
    with pytest.raises(DataError, match="7 folds need at least 7 places, there are 6"):
        folds(table, 7)
    with pytest.raises(DataError, match="choose geography or tile"):
        folds(table, 2, by="month")
    with pytest.raises(DataError, match="nothing says where the tiles lie"):
        folds(table.assign(centre_x=np.nan), 2)
    unlabelled = table.assign(**{f"pixels_{number}": [64, 0, 0, 0, 0, 0] for number in range(4)})
    with pytest.raises(DataError, match="no labelled pixel"):
        folds(unlabelled, 2, by="tile")


def test_scenes_in_neighbouring_zones_share_a_frame():
    from rasterio.crs import CRS

    def at(epsg, x):
        return Georeference(CRS.from_epsg(epsg).to_wkt(), (30.0, 0.0, x, 0.0, -30.0, 3_100_000.0))

    # 84 degrees east is the border of the zones 44 and 45 north.
    frames, _ = places(["a", "b"], [at(32644, 790_000.0), at(32645, 210_000.0)])
    (west, south), (east, _) = (frame.point(0, 0) for frame in frames)
    assert 83.5 < west < 84 < east < 84.5
    assert 27.9 < south < 28.1
    assert frames[0].point(100, 0)[1] < south


def test_statistics_are_those_of_all_pixels_at_once(root):
    first = pixels(SIZE, SIZE).astype(np.float32) * 1e-3 + 1e4  # squares would cancel
    first[0, 0] = np.nan
    write(root / "Band1" / "r000_c000.tif", first)
    found = examples(root, window=10)
    rows = np.flatnonzero(found.table["tile"].isin(["r000_c000", "r016_c032"]))
    mean, std = statistics(found.table, rows)
    values = [
        np.stack([stored(root / band / f"{name}.tif").astype(np.float64) for band in BANDS])
        for name in ("r000_c000", "r016_c032")
    ]
    flat = np.stack(values, axis=1).reshape(3, -1)
    np.testing.assert_allclose(mean, np.nanmean(flat, axis=1), rtol=1e-12)
    np.testing.assert_allclose(std, np.nanstd(flat, axis=1), rtol=1e-9)
    assert mean.dtype == std.dtype == np.float64


def test_statistics_do_not_cancel():
    import pandas as pd

    values = (16_000_000 + np.random.default_rng(0).integers(0, 4, (1, 64, 64))).astype(np.float32)
    table = pd.DataFrame([row_moments(values[:, :32], ["b"]), row_moments(values[:, 32:], ["b"])])
    _, std = statistics(table)
    np.testing.assert_allclose(std[0], values.astype(np.float64).std(), rtol=1e-9)


def test_a_constant_or_empty_band_is_named(root):
    for path in (root / "Band2").iterdir():
        place = {"row": int(path.stem[1:4]), "column": int(path.stem[-3:])}
        write(path, np.full((SIZE, SIZE), 0.1, dtype=np.float32), **place)
    table = examples(root, window=SIZE).table
    with pytest.raises(DataError, match=r"constant over all 6 tiles: Band2 \(always 0.1\)"):
        statistics(table)
    with pytest.raises(DataError, match="nothing was observed in Band10"):
        statistics(table.assign(count_Band10=0))


# The real sample


@pytest.mark.real_data
def test_the_real_tiles_are_scanned_in_a_moment(real_data):
    folder = real_data / "glaciers" / "everest"
    assert looks_like_tiles(folder)
    began = time.process_time()
    found = examples(folder, window=64)
    assert time.process_time() - began < 8, "110 tiles take about 1.5 s on one core"
    table = found.table
    assert len(table) == 110
    assert table["split"].value_counts().to_dict() == {"train": 88, "val": 22}
    assert table[[f"pixels_{number}" for number in range(4)]].to_numpy().sum() == 110 * 64 * 64
    assert (table.groupby("group")["split"].nunique() == 1).all()
    mean, std = statistics(table, np.flatnonzero(table["split"] == "train"))
    flat = np.concatenate(
        [read_window(folder, row)["bands"][2].ravel() for row in table.to_dict("records") if row["split"] == "train"]
    )
    np.testing.assert_allclose([mean[2], std[2]], [flat.astype(np.float64).mean(), flat.astype(np.float64).std()])
    numbers = folds(table, 5)
    labelled = [int((numbers == fold).sum()) for fold in range(5)]
    assert labelled == [22] * 5
