"""The preparation of HKH patches: from scenes and outlines to patches, splits that share no ground, and statistics."""

import json
import os
import subprocess
import sys
import tracemalloc
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.warp
from rasterio.transform import from_origin

from outlast.errors import ConfigError, DataError, DataNotFoundError, SaveError
from outlast.tasks.glaciers import hkh, hkh_geography, prepare_hkh
from outlast.tasks.glaciers.hkh_plan import Preparation
from outlast.tasks.glaciers.outlines import ground
from outlast.tasks.glaciers.prepare_hkh import main, prepare

# rasterio 1.4 multiplies transforms in a way that affine 3 speaks up against.
pytestmark = pytest.mark.filterwarnings("ignore:Use .@. matmul:PendingDeprecationWarning:rasterio")

BANDS = ("blue", "green", "elevation")
HEIGHT, WIDTH, PIXEL = 260, 300, 30.0
LEFT, TOP = 480_000.0, 3_100_000.0
ZONE = "EPSG:32645"
SMALL = Preparation(size=64, bands=BANDS, minimum_share=0.01, block_patches=2, fractions=(0.6, 0.2, 0.2))


def values(height=HEIGHT, width=WIDTH, bands=3):
    """Every pixel of every band has a value of its own."""
    return np.arange(bands * height * width, dtype=np.float32).reshape(bands, height, width)


def make_scene(folder, name="a.tif", data=None, left=LEFT, top=TOP, crs=ZONE, **profile):
    folder.mkdir(parents=True, exist_ok=True)
    data = values() if data is None else data
    profile = {"transform": from_origin(left, top, PIXEL, PIXEL), "crs": crs, **profile}
    with rasterio.open(
        folder / name, "w", driver="GTiff", count=data.shape[0], height=data.shape[1], width=data.shape[2],
        dtype=data.dtype, **profile,
    ) as out:  # fmt: skip
        out.write(data)
    return folder


def area(y0, x0, y1, x1, left=LEFT, top=TOP):
    """A rectangle of whole pixels of a scene, as a polygon."""
    xs, ys = (left + PIXEL * x0, left + PIXEL * x1), (top - PIXEL * y0, top - PIXEL * y1)
    ring = [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1]), (xs[0], ys[0])]
    return {"type": "Polygon", "coordinates": [ring]}


def make_outlines(path, areas, crs=ZONE, attribute="Glaciers"):
    """areas: (geometry, value of the attribute) in the scene's system; crs None: written in longitude and latitude."""
    if crs is None:
        areas = [(rasterio.warp.transform_geom(ZONE, "EPSG:4326", geometry), value) for geometry, value in areas]
    features = [
        {"type": "Feature", "geometry": geometry, "properties": {attribute: value}} for geometry, value in areas
    ]
    member = {} if crs is None else {"crs": {"type": "name", "properties": {"name": crs}}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **member}))
    return path


EVERYWHERE = [(area(0, 0, HEIGHT, WIDTH // 2), "Clean Ice"), (area(0, WIDTH // 2, HEIGHT, WIDTH), "Debris covered")]


@pytest.fixture
def made(tmp_path):
    """(scenes, outlines, out): one scene, all of it glacier."""
    return make_scene(tmp_path / "scenes"), make_outlines(tmp_path / "g.geojson", EVERYWHERE), tmp_path / "out"


def index_of(out):
    return pd.read_csv(out / "index.csv", keep_default_na=False)


def contents(folder):
    """Every file but the plan's companions, with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("crs", [ZONE, None, "urn:ogc:def:crs:EPSG::32645"])
def test_masks_are_the_outlines_and_images_the_windows_of_the_scene(tmp_path, crs):
    scenes = make_scene(tmp_path / "scenes")
    areas = [(area(10, 20, 90, 100), "Clean Ice"), (area(80, 60, 200, 130), "debris COVERED ")]
    out = tmp_path / "out"
    settings = Preparation(size=64, bands=BANDS, minimum_share=0, fractions=(1, 0, 0))
    counts = prepare(scenes, make_outlines(tmp_path / "g.geojson", areas, crs), out, settings=settings)
    truth = np.zeros((HEIGHT, WIDTH, 2), np.uint8)
    truth[10:90, 20:100, 0] = truth[80:200, 60:130, 1] = 1
    table = index_of(out)
    assert counts["windows"] == 5 * 6 and counts["patches"] == len(table) == counts["train"] > 5
    for row in table.to_dict("records"):
        window = np.s_[row["y"] : row["y"] + 64, row["x"] : row["x"] + 64]
        image, mask = np.load(out / row["image"]), np.load(out / row["mask"])
        assert image.dtype == np.float32 and mask.dtype == np.uint8
        np.testing.assert_array_equal(image, np.moveaxis(values(), 0, -1)[window])
        np.testing.assert_array_equal(mask, truth[window])
    assert not truth[:64, 236:].any() and not ((table["y"] == 0) & (table["x"] == 236)).any(), "without glacier"


def test_patches_reach_the_edge_and_overlap_as_asked():
    assert hkh_geography.starts(300, 64, 6) == [0, 58, 116, 174, 232, 236]
    assert hkh_geography.starts(122, 64, 6) == [0, 58]
    assert hkh_geography.starts(64, 64, 6) == [0]


def test_what_is_prepared_is_read_as_examples(made):
    scenes, outlines, out = made
    prepare(scenes, outlines, out, settings=SMALL)
    found = hkh.examples(out, channels=(1, 0))
    table, index = found.table, index_of(out)
    assert found.facts["bands"] == ["green", "blue"] and found.notes == ()
    assert table["hash"].tolist() == index["hash"].tolist() and set(table["split"]) == {"train", "val", "test"}
    assert table[[f"pixels_{n}" for n in range(4)]].to_numpy().tolist() == index[
        [f"pixels_{n}" for n in range(4)]
    ].to_numpy().tolist()  # fmt: skip
    sample = hkh.read_window(out, table.iloc[0], (1, 0))
    y, x = index.loc[0, "y"], index.loc[0, "x"]
    np.testing.assert_array_equal(sample["bands"], values()[[1, 0], y : y + 64, x : x + 64])

    first = out / table.loc[0, "mask"]
    np.save(first, np.zeros((64, 64, 2), np.uint8))
    with pytest.raises(DataError, match="changed since index"):
        hkh.examples(out, channels=(0,))


def grounds(out, scenes):
    """(split, CRS, transform, y, x) of each patch."""
    for row in index_of(out).to_dict("records"):
        with rasterio.open(scenes / row["scene"]) as opened:
            yield row["split"], opened.crs, opened.transform, row["y"], row["x"]


def shared_ground(patches, size=64):
    """How many pairs of patches of different splits have a piece of ground in common.

    The corners of all pixels of the one are brought into the pixels of the other; those inside it are common ground.
    """
    shared = 0
    for split, crs, transform, y, x in patches:
        rows, columns = np.mgrid[y : y + size + 1, x : x + size + 1].reshape(2, -1)
        xs, ys = ground(transform, rows, columns)
        known = {}
        for other, other_crs, other_transform, top, left in patches:
            if other == split:
                continue
            if str(other_crs) not in known:
                known[str(other_crs)] = [np.asarray(v) for v in rasterio.warp.transform(crs, other_crs, xs, ys)]
            across, down = ground(~other_transform, *known[str(other_crs)][::-1])
            tiny = 1e-3
            inside = (across > left + tiny) & (across < left + size - tiny)
            inside &= (down > top + tiny) & (down < top + size - tiny)
            shared += bool(inside.any())
    return shared


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    """Three scenes in two UTM zones that overlap on the ground, and one apart from them; glacier everywhere."""
    folder = tmp_path_factory.mktemp("region")
    scenes, data = folder / "scenes", values(180, 180)
    make_scene(scenes, "a.tif", data, left=210_000.0, top=3_100_000.0)
    make_scene(scenes, "b.tif", data, left=213_000.0, top=3_097_000.0)
    (xs, ys) = rasterio.warp.transform(ZONE, "EPSG:32644", [208_000.0], [3_098_500.0])
    make_scene(scenes, "c.tif", data, left=round(xs[0]), top=round(ys[0]), crs="EPSG:32644")
    make_scene(scenes, "d.tif", data, left=240_000.0, top=3_100_000.0)
    everything = area(0, 0, 2000, 3000, left=190_000.0, top=3_130_000.0)
    return scenes, make_outlines(folder / "g.geojson", [(everything, "Clean Ice")])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("split", "side"), [("blocks", 2), ("blocks", 3), ("scenes", 1)])
def test_no_pixel_of_the_ground_lies_in_two_splits(region, tmp_path, split, side, seed):
    settings = Preparation(
        size=64, bands=BANDS, split=split, block_patches=side, seed=seed, fractions=(0.5, 0.25, 0.25)
    )
    if split == "scenes":
        settings = Preparation(size=64, bands=BANDS, split=split, seed=seed, fractions=(0.6, 0, 0.4))
    counts = prepare(*region, tmp_path, settings=settings)
    patches = list(grounds(tmp_path, region[0]))
    assert counts["patches"] + counts["dropped between splits"] == counts["with glacier"] == 4 * 9
    assert counts["dropped between splits"] > 0 and counts["patches"] > 8, "else this proves nothing"
    assert shared_ground(patches) == 0


def test_the_proof_of_separate_ground_sees_overlaps_within_and_between_scenes(region, tmp_path):
    settings = Preparation(size=64, bands=BANDS, fractions=(1, 0, 0))
    prepare(*region, tmp_path, settings=settings)
    patches = [patch[1:] for patch in grounds(tmp_path, region[0])]
    neighbours = [("train", *patches[0]), ("val", *patches[1])]
    assert shared_ground(neighbours) == 2
    in_zone_44 = [patch for patch in patches if patch[0].to_epsg() == 32644]
    across = [("train", *patches[0])] + [("val", *patch) for patch in in_zone_44]
    assert len(in_zone_44) == 9 and shared_ground(across) > 0


def test_the_same_scenes_give_the_same_split_and_another_seed_another(made):
    scenes, outlines, out = made
    indices = []
    for number, seed in enumerate((0, 0, 5)):
        prepare(scenes, outlines, out / str(number), settings=Preparation(**{**vars(SMALL), "seed": seed}))
        indices.append((out / str(number) / "index.csv").read_bytes())
    assert indices[0] == indices[1] != indices[2]


def test_shares_come_near_to_what_was_asked_and_no_split_stays_empty():
    amounts = {f"block {number}": 1 + number % 3 for number in range(200)}
    for seed in range(5):
        splits = hkh_geography.share_out(amounts, {"train": 0.7, "val": 0.2, "test": 0.1}, seed)
        got = Counter()
        for unit, split in splits.items():
            got[split] += amounts[unit] / sum(amounts.values())
        assert got["train"] == pytest.approx(0.7, abs=0.02) and got["test"] == pytest.approx(0.1, abs=0.02)
    few = hkh_geography.share_out({"a": 100, "b": 1, "c": 1}, {"train": 0.98, "val": 0.01, "test": 0.01}, 0)
    assert sorted(few.values()) == ["test", "train", "val"]
    with pytest.raises(DataError, match="in 2 scene or block, too few for the splits train, val, test"):
        hkh_geography.share_out({"a": 1, "b": 1}, {"train": 0.8, "val": 0.1, "test": 0.1}, 0)


def test_outside_the_border_and_without_data_nothing_is_observed(tmp_path):
    data = values()
    data[:, 50:60] = -9999
    data[0, 100:110] = -9999  # in one band only
    data[:2, 120:130] = np.inf  # the elevation alone tells of no observation
    scenes = make_scene(tmp_path / "scenes", data=data, nodata=-9999)
    border = make_outlines(tmp_path / "border.geojson", [(area(0, 0, HEIGHT, 200), "Nepal")], None)
    out = tmp_path / "out"
    outlines = make_outlines(tmp_path / "g.geojson", EVERYWHERE)
    prepare(scenes, outlines, out, border=border, settings=Preparation(size=64, bands=BANDS, fractions=(1, 0, 0)))
    seen = np.zeros((HEIGHT, WIDTH), bool)
    for row in index_of(out).to_dict("records"):
        rows, columns = np.mgrid[row["y"] : row["y"] + 64, row["x"] : row["x"] + 64]
        image, mask = np.load(out / row["image"]), np.load(out / row["mask"])
        seen[rows, columns] = True
        blank = ((rows >= 50) & (rows < 60)) | (columns >= 200)
        assert np.isnan(image[blank]).all()
        no_light = blank | ((rows >= 120) & (rows < 130))
        np.testing.assert_array_equal(mask.any(axis=-1), ~no_light)
        np.testing.assert_array_equal(np.isnan(image[..., 0]), no_light | ((rows >= 100) & (rows < 110)))
        np.testing.assert_array_equal(np.isnan(image[..., 2]), blank)
    assert seen[:, :200].all() and not seen[:, 270:].any(), "a patch beyond the border holds no glacier"


def test_integers_with_a_negative_fill_become_floats_with_nan(tmp_path):
    data = (values() % 2000).astype(np.int16)
    data[:, 30:40, 30:40] = -32768
    scenes = make_scene(tmp_path / "scenes", data=data, nodata=-32768)
    out = tmp_path / "out"
    settings = Preparation(size=64, bands=BANDS, fractions=(1, 0, 0))
    prepare(scenes, make_outlines(tmp_path / "g.geojson", EVERYWHERE), out, settings=settings)
    image = np.load(out / "train/slice_00_img_000.npy")
    assert np.isnan(image).sum() == 300 and np.nanmin(image) >= 0
    assert json.loads((out / "statistics.json").read_text())["mean"][0] > 0


def test_statistics_are_those_of_the_training_patches_alone(made):
    scenes, outlines, out = made
    prepare(scenes, outlines, out, settings=SMALL)
    written = json.loads((out / "statistics.json").read_text())
    images = [np.load(path) for path in sorted((out / "train").glob("*img*.npy"))]
    stacked = np.stack(images).astype(np.float64)
    assert written["bands"] == list(BANDS) and written["patches"] == len(images)
    np.testing.assert_allclose(written["mean"], np.nanmean(stacked, axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(written["std"], np.nanstd(stacked, axis=(0, 1, 2)), rtol=1e-9)
    whole = values().reshape(len(BANDS), -1).mean(axis=1)
    assert not np.allclose(written["mean"], whole, rtol=1e-3), "other splits would have shown"


def test_patches_with_too_little_glacier_are_not_kept(tmp_path):
    scenes = make_scene(tmp_path / "scenes")
    areas = [(area(0, 0, 32, 58), "Clean Ice"), (area(0, 128, 10, 138), "Debris covered")]
    out = tmp_path / "out"
    settings = Preparation(size=64, bands=BANDS, minimum_share=0.1, fractions=(1, 0, 0))
    prepare(scenes, make_outlines(tmp_path / "g.geojson", areas), out, settings=settings)
    assert index_of(out)["id"].tolist() == ["train/slice_00_img_000"]


def command(scenes, outlines, out, *more):
    return [
        sys.executable, "-m", "outlast.tasks.glaciers.prepare_hkh",
        "--scenes", str(scenes), "--outlines", str(outlines), "--out", str(out),
        "--size", "64", "--minimum-share", "0.01", "--block-patches", "2", "--fractions", "0.6", "0.2", "0.2",
        "--bands", *BANDS, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("accident", ["write.rename:9", "write.done:8", "write.data:1", "last"])
def test_a_killed_preparation_goes_on_and_ends_as_if_nothing_had_happened(made, accident):
    scenes, outlines, out = made
    whole = out.with_name("whole")
    counts = prepare(scenes, outlines, whole, settings=SMALL)
    last = f"write.rename:{1 + 2 * counts['patches'] + 2}"  # plan, patches, statistics: the index itself
    environment = {**os.environ, "OUTLAST_ACCIDENT": last if accident == "last" else accident}
    killed = subprocess.run(command(scenes, outlines, out), env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not (out / "index.csv").exists()
    if (out / "plan.json").exists():
        with pytest.raises(DataError, match="was not finished"):
            hkh.examples(out, channels=(0,))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/slice*.npy")}
    if accident != "write.data:1":
        assert before

    assert prepare(scenes, outlines, out, settings=SMALL) == counts
    rewritten = [path for path, changed in before.items() if path.stat().st_mtime_ns != changed]
    assert len(rewritten) <= 2, "only the patch that was in work"
    assert contents(out) == contents(whole), "and nothing is left lying about"


def test_a_journal_that_was_cut_off_is_taken_back(made):
    scenes, outlines, out = made
    counts = prepare(scenes, outlines, out, settings=SMALL)
    journal = out / "journal.jsonl"
    whole = contents(out)
    journal.write_bytes(journal.read_bytes()[:-20])
    (out / "index.csv").unlink()
    assert prepare(scenes, outlines, out, settings=SMALL) == counts
    assert contents(out) == whole


def test_done_twice_it_does_nothing_and_with_other_settings_it_is_refused(made):
    scenes, outlines, out = made
    counts = prepare(scenes, outlines, out, settings=SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*.npy")}
    assert prepare(scenes, outlines, out, settings=SMALL) == counts
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/*.npy")}
    with pytest.raises(DataError, match="was begun with other settings"):
        prepare(scenes, outlines, out, settings=Preparation(size=64, bands=BANDS))
    make_outlines(outlines, EVERYWHERE[:1])
    with pytest.raises(DataError, match="was begun with other outlines"):
        prepare(scenes, outlines, out, settings=SMALL)


def test_files_that_are_gone_or_of_another_origin_are_noticed(made):
    scenes, outlines, out = made
    prepare(scenes, outlines, out, settings=SMALL)
    lost = sorted(out.glob("train/*img*.npy"))[0]
    lost.unlink()
    with pytest.raises(DataError, match="1 files that were made are gone"):
        prepare(scenes, outlines, out, settings=SMALL)
    foreign = out.with_name("foreign")
    foreign.mkdir()
    np.save(foreign / "slice_0_img_0.npy", values())
    with pytest.raises(DataError, match="patches of another origin"):
        prepare(scenes, outlines, foreign, settings=SMALL)


def test_a_scene_is_never_read_as_a_whole(tmp_path):
    """A scene of 270 MB (sparse on the disk) with windows of 0.8 MB: what numpy holds at once stays far below it."""
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    profile = {"driver": "GTiff", "count": 3, "height": 4800, "width": 4800, "dtype": "float32", "crs": ZONE}
    with rasterio.open(
        scenes / "a.tif", "w", **profile, transform=from_origin(LEFT, TOP, PIXEL, PIXEL), tiled=True, SPARSE_OK=True
    ):
        pass
    outlines = make_outlines(tmp_path / "g.geojson", [(area(100, 100, 700, 700), "Clean Ice")])
    tracemalloc.start()
    try:
        settings = Preparation(size=256, bands=BANDS, fractions=(1, 0, 0))
        assert prepare(scenes, outlines, tmp_path / "out", settings=settings)["patches"] >= 9
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_too_little_room_is_said_before_anything_is_cut(made, monkeypatch):
    scenes, outlines, out = made
    monkeypatch.setattr(prepare_hkh.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SaveError, match="patches need up to"):
        prepare(scenes, outlines, out, settings=SMALL)
    assert not list(out.glob("**/*.npy"))


def test_everything_wrong_with_the_scenes_is_named_at_once(tmp_path):
    scenes = make_scene(tmp_path / "scenes", "good.tif")
    make_scene(scenes, "bands.tif", values(bands=5))
    make_scene(scenes, "small.tif", values(40, 300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        make_scene(scenes, "nowhere.tif", crs=None, transform=rasterio.Affine.identity())
    (scenes / "broken.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(DataError) as caught:
        prepare(scenes, make_outlines(tmp_path / "g.geojson", EVERYWHERE), tmp_path / "out", settings=SMALL)
    text = str(caught.value)
    for line in (
        "bands.tif: has 5 bands, 3 are named",
        "small.tif: is 300 x 40 pixels, smaller than a patch of 64",
        "nowhere.tif: has no coordinate reference system",
        "broken.tif: not a readable GeoTIFF",
    ):
        assert line in text
    assert "good.tif" not in text and not (tmp_path / "out").exists()


def test_folders_without_scenes_are_refused(tmp_path):
    outlines = make_outlines(tmp_path / "g.geojson", EVERYWHERE)
    with pytest.raises(DataNotFoundError, match="is not a folder"):
        prepare(tmp_path / "none", outlines, tmp_path / "out", settings=SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFoundError, match="holds no scenes"):
        prepare(tmp_path / "empty", outlines, tmp_path / "out", settings=SMALL)


def refused(tmp_path, outlines, **options):
    scenes = make_scene(tmp_path / "scenes")
    with pytest.raises(DataError) as caught:
        prepare(scenes, outlines, tmp_path / "out", settings=SMALL, **options)
    return str(caught.value)


def test_outlines_elsewhere_are_refused(tmp_path):
    far = make_outlines(tmp_path / "g.geojson", [(area(0, 0, 50, 50, left=700_000.0), "Clean Ice")])
    assert "the outlines touch no scene" in refused(tmp_path, far)
    tiny = make_outlines(tmp_path / "t.geojson", [(area(0, 0, 3, 3), "Clean Ice")])
    assert "no window of 64 pixels holds 0.01 of glacier" in refused(tmp_path, tiny)


def test_values_of_the_attribute_that_nobody_named_are_refused_or_left_out(tmp_path):
    areas = [*EVERYWHERE, (area(0, 0, 9, 9), "Lake"), (area(0, 0, 9, 9), None), (area(0, 0, 9, 9), "Lake")]
    outlines = make_outlines(tmp_path / "g.geojson", areas)
    text = refused(tmp_path, outlines)
    assert "'Lake': 2 outlines" in text and "'None': 1 outlines" in text
    named = Preparation(**{**vars(SMALL), "left_out": ("lake", "none")})
    assert prepare(tmp_path / "scenes", outlines, tmp_path / "out", settings=named)["patches"] > 0


def test_an_attribute_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    outlines = make_outlines(tmp_path / "g.geojson", EVERYWHERE, attribute="type")
    assert "2 outlines have no attribute 'Glaciers'" in (text := refused(tmp_path, outlines)) and "type" in text
    renamed = Preparation(**{**vars(SMALL), "attribute": "type"})
    assert prepare(tmp_path / "scenes", outlines, tmp_path / "out", settings=renamed)["patches"] > 0


@pytest.mark.parametrize("text", ["", "[]", '{"type": "Feature"}', '{"features": [3]}', '{"features": 7}'])
def test_a_file_that_is_no_geojson_is_refused_with_the_conversion(tmp_path, text):
    path = tmp_path / "g.geojson"
    path.write_text(text)
    assert "not a GeoJSON FeatureCollection" in (said := refused(tmp_path, path)) and "ogr2ogr" in said


def test_outlines_of_other_kinds_are_refused_with_the_conversion(tmp_path):
    (tmp_path / "g.gpkg").write_bytes(b"SQLite")
    assert "ogr2ogr -f GeoJSON" in refused(tmp_path, tmp_path / "g.gpkg")
    assert "is not a file" in refused(tmp_path, tmp_path / "missing.geojson")
    unknown = make_outlines(tmp_path / "u.geojson", EVERYWHERE, "EPSG:999999")
    assert "unknown coordinate reference system" in refused(tmp_path, unknown)
    lines = [({"type": "LineString", "coordinates": [[0, 0], [1, 1]]}, "Clean Ice")]
    assert "holds no areas" in refused(tmp_path, make_outlines(tmp_path / "l.geojson", lines))


def test_outlines_that_are_no_areas_are_counted(tmp_path, capsys):
    areas = [*EVERYWHERE, (None, "Clean Ice"), ({"type": "Point", "coordinates": [0, 0]}, "Clean Ice")]
    outlines = make_outlines(tmp_path / "g.geojson", areas)
    prepare(make_scene(tmp_path / "scenes"), outlines, tmp_path / "out", settings=SMALL)
    assert "g.geojson: 2 outlines are no valid areas and are left out" in capsys.readouterr().err


def test_a_shapefile_without_its_package_says_what_to_install_or_run(tmp_path, monkeypatch):
    (tmp_path / "g.shp").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = refused(tmp_path, tmp_path / "g.shp")
    assert "pyshp" in text and f"ogr2ogr -f GeoJSON -t_srs EPSG:4326 g.geojson '{tmp_path / 'g.shp'}'" in text


def test_a_shapefile_is_read_where_the_package_is_there(tmp_path):
    shapefile = pytest.importorskip("shapefile")
    with shapefile.Writer(str(tmp_path / "g.shp")) as writer:
        writer.field("Glaciers", "C")
        for geometry, value in EVERYWHERE:
            writer.poly([[list(point) for point in ring] for ring in geometry["coordinates"]])
            writer.record(value)
    scenes = make_scene(tmp_path / "scenes")
    assert "g.prj is missing" in refused(tmp_path, tmp_path / "g.shp")
    (tmp_path / "g.prj").write_text(rasterio.crs.CRS.from_string(ZONE).to_wkt())
    assert prepare(scenes, tmp_path / "g.shp", tmp_path / "out", settings=SMALL)["patches"] > 0


def test_settings_that_make_no_sense_are_all_named(tmp_path):
    wrong = Preparation(
        size=64, overlap=64, minimum_share=2, split="random", block_patches=0, fractions=(0, 1, 0), bands=("a", "a"),
        debris=("clean ice",),
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        prepare(tmp_path, tmp_path / "g", tmp_path / "out", settings=wrong)
    assert len(caught.value.details) == 7


def test_the_command_line_says_what_it_made_and_shows_errors_without_a_traceback(made, capsys):
    scenes, outlines, out = made
    assert main(command(scenes, outlines, out)[3:]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 30 windows, 30 with glacier" in said and "train" in said
    assert main(command(scenes, outlines, out, "--seed", "1")[3:]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "was begun with other settings" in error and "Traceback" not in error
    with pytest.raises(SystemExit) as caught:
        main(["--scenes", str(scenes)])
    assert caught.value.code == 2


def test_the_module_runs_as_a_command(made):
    scenes, _, out = made
    ran = subprocess.run(command(scenes, out / "nothing.geojson", out), capture_output=True, text=True)
    assert ran.returncode == 1 and "nothing.geojson is not a file" in ran.stderr and "Traceback" not in ran.stderr
