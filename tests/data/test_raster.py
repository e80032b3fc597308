"""Rasters: number types, nodata in every guise, masks, georeferencing, and files that are whole or not there."""

import logging
import math
import threading
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from outlast.data.masks import encoded, encodings_in, read_mask
from outlast.data.nodata import Extremes, extremes, negative_fill
from outlast.data.raster import (
    Georeference,
    Window,
    open_raster,
    read_bands,
    read_header,
    strips,
    write_geotiff,
)
from outlast.errors import DataError

PLACE = Affine(30.0, 0.0, 478_000.0, 0.0, -30.0, 3_108_140.0)


def write(path, values, **profile):
    """A GeoTIFF as another program would write it."""
    values = np.asarray(values)
    values = values[None] if values.ndim == 2 else values
    profile = {"crs": "EPSG:32645", "transform": PLACE, **profile}
    count, height, width = values.shape
    with (
        warnings.catch_warnings(),
        rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, **profile
        ) as target,
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        target.write(values)
    return path


def ungeoreferenced(path, values, **profile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return write(path, values, crs=None, transform=None, **profile)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_every_number_type_is_read_as_it_is_stored(tmp_path, dtype):
    values = np.arange(2 * 5 * 7).reshape(2, 5, 7).astype(dtype)
    found = read_bands(write(tmp_path / "a.tif", values))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "nodata", "stored"),
    [
        ("uint8", 0, 0),
        ("uint16", 65535, 65535),
        ("int16", -9999, -9999),
        ("float32", -3.4028234663852886e38, np.finfo(np.float32).min),
        ("float32", 0.1, np.float32(0.1)),
        ("float32", math.nan, math.nan),
    ],
)
def test_a_nodata_tag_makes_nan(tmp_path, dtype, nodata, stored):
    values = np.full((4, 4), 7, dtype=dtype)
    values[1, 2] = stored
    found = read_bands(write(tmp_path / "a.tif", values, nodata=nodata))[0]
    assert np.isnan(found[1, 2])
    assert (np.delete(found.reshape(-1), 6) == 7).all()


def test_a_mask_in_the_file_makes_nan_but_a_fourth_band_is_no_alpha(tmp_path):
    values = np.full((4, 3, 3), 9, dtype=np.uint8)
    values[3, 1, 1] = 0
    path = write(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_bands(path), values)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.colorinterp = [rasterio.enums.ColorInterp.gray] * 4
        target.write_mask(np.asarray([[True, True, False]] * 3))
    found = read_bands(path, Window(0, 1, 2, 2))
    np.testing.assert_array_equal(np.isnan(found), np.tile([False, True], (4, 2, 1)))


def test_infinities_become_nan_and_are_counted(tmp_path):
    values = np.ones((4, 4), dtype=np.float32)
    values[0, 0], values[1, 1], values[2, 2] = np.inf, -np.inf, np.nan
    with open_raster(write(tmp_path / "a.tif", values)) as raster:
        found = raster.values(1, Window(0, 0, 4, 4))
        assert raster.infinite == 2
    assert np.isnan(found).sum() == 3


def test_float64_beyond_float32_counts_as_infinite(tmp_path):
    values = np.ones((2, 2))
    values[0, 0] = 1e300
    with open_raster(write(tmp_path / "a.tif", values)) as raster:
        assert np.isnan(raster.values(1, Window(0, 0, 2, 2))).sum() == 1
        assert raster.infinite == 1


def test_a_window_is_a_part_of_the_whole_and_nan_beyond_it(tmp_path):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    path = write(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_bands(path, Window(1, 2, 3, 4))[0], values[1:4, 2:6])
    found = read_bands(path, Window(4, -1, 4, 4))[0]
    np.testing.assert_array_equal(found[:2, 1:], values[4:, :3])
    assert np.isnan(found).sum() == 16 - 6
    assert np.isnan(read_bands(path, Window(10, 10, 2, 2))).all()


def test_chosen_bands_come_in_the_order_asked_for(tmp_path):
    values = np.stack([np.full((3, 3), number, dtype=np.int16) for number in (10, 20, 30)])
    found = read_bands(write(tmp_path / "a.tif", values), bands=[3, 1], fills=[None, 10])
    assert (found[0] == 30).all()
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize(
    ("values", "fill"),
    [
        ([-9999, -9999, 0, 5000, 10000], -9999),  # beside reflectances up to 10,000
        ([-32768, -32768, 1, 2, 3], -32768),
        ([-32768, -32768, -9000, 0, 9000], -32768),
        ([-500, -500, 10, 20, 30], -500),  # not customary, but far away
        ([-9999, 0, 5000, 10000], None),  # a single value may be real
        ([-300, -300, -290, -100, 100], None),  # goes on without a gap
        ([-999, -999, 0, 30000], None),  # too near for such a range
        ([-1, -1, 0, 1], None),
        ([-9999, -9999], -9999),  # nothing else
        ([-500, -500], None),
        ([0, 0, 900], None),
    ],
)
def test_a_negative_fill_is_told_from_a_low_value(tmp_path, values, fill):
    stored = np.asarray([values], dtype=np.int16)
    with open_raster(write(tmp_path / "a.tif", stored)) as raster:
        assert negative_fill(extremes(raster, 1)) == fill


def test_extremes_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(-4, 4, size=(3, 5))
        parts = sum((_extremes(part) for part in values), Extremes())
        assert str(parts) == str(_extremes(values))


def _extremes(values):
    kinds = np.unique(values)
    following = float(kinds[1]) if len(kinds) > 1 else math.nan
    return Extremes(float(kinds[0]), int((values == kinds[0]).sum()), following, float(kinds[-1]))


def test_a_tagged_value_and_an_unsigned_number_are_no_fill(tmp_path):
    tagged = write(tmp_path / "a.tif", np.asarray([[-9999, -9999, 5, 6]], dtype=np.int16), nodata=-9999)
    unsigned = write(tmp_path / "b.tif", np.asarray([[0, 0, 5000]], dtype=np.uint16))
    for path in (tagged, unsigned):
        with open_raster(path) as raster:
            assert negative_fill(extremes(raster, 1)) is None


@pytest.mark.parametrize("on_disk", [[0, 1, 2, 3], [0, 85, 170, 255]])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_masks_hold_numbers_or_steps(tmp_path, on_disk, dtype):
    path = write(tmp_path / "m.tif", np.asarray([on_disk, on_disk[::-1]], dtype=dtype))
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert read_mask(path, Window(1, 2, 2, 3)).tolist() == [[1, 0, 255], [255, 255, 255]]


def test_a_mask_of_zeros_is_background(tmp_path):
    assert (read_mask(write(tmp_path / "m.tif", np.zeros((3, 3), dtype=np.uint8))) == 0).all()


def test_a_value_that_is_no_class_is_named_with_its_count(tmp_path):
    values = np.zeros((4, 4), dtype=np.uint8)
    values[0, :3], values[1, 0] = 42, 7
    with pytest.raises(DataError, match=r"m\.tif: values that are no class: 7 \(1 pixels\), 42 \(3 pixels\)"):
        read_mask(write(tmp_path / "m.tif", values))


def test_nodata_in_a_mask_is_not_labelled(tmp_path):
    path = write(tmp_path / "m.tif", np.asarray([[0, 85, 99]], dtype=np.uint8), nodata=99)
    assert read_mask(path).tolist() == [[0, 1, 255]]
    path = write(tmp_path / "n.tif", np.asarray([[0, 1, math.nan]], dtype=np.float32), nodata=math.nan)
    assert read_mask(path).tolist() == [[0, 1, 255]]


def test_background_tagged_as_nodata_stays_background(tmp_path):
    assert read_mask(write(tmp_path / "m.tif", np.asarray([[0, 85]], dtype=np.uint8), nodata=0)).tolist() == [[0, 1]]


def test_255_that_is_lake_and_nodata_at_once_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"255 is a class and, by the file's nodata tag, no data \(1 pixels\)"):
        read_mask(write(tmp_path / "m.tif", np.asarray([[0, 1, 255]], dtype=np.uint8), nodata=255))


def test_a_mask_in_colour_is_refused(tmp_path):
    with pytest.raises(DataError, match="a mask has one band, this file has 3"):
        read_mask(write(tmp_path / "m.tif", np.zeros((3, 4, 4), dtype=np.uint8)))


def test_the_two_encodings_are_told_apart():
    assert encodings_in(np.asarray([0, 2])) == {"numbers"}
    assert encodings_in(np.asarray([0, 255])) == {"steps"}
    assert encodings_in(np.asarray([0])) == set()
    assert encodings_in(np.asarray([1, 85])) == {"numbers", "steps"}
    assert encoded([[0, 1], [2, 3]]).tolist() == [[0, 85], [170, 255]]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32645", PLACE),
        ("EPSG:4326", Affine(0.00027, 0.0, 86.5, 0.0, -0.00027, 28.1)),
        ("EPSG:3413", Affine(30.0, 5.0, 1e6, -5.0, -30.0, 2e6)),  # turned
        (CRS.from_proj4("+proj=laea +lat_0=28 +lon_0=86 +datum=WGS84 +units=m"), PLACE),
        (None, PLACE),
    ],
)
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # rasterio's own bounds, if turned
def test_what_is_written_lies_where_the_input_lay(tmp_path, crs, transform):
    source = write(tmp_path / "in.tif", np.ones((300, 520), dtype=np.uint16), crs=crs, transform=transform)
    mask = np.random.default_rng(0).integers(0, 4, (300, 520)).astype(np.uint8)
    write_geotiff(tmp_path / "new" / "out.tif", mask, read_header(source).georeference, nodata=255)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "new" / "out.tif") as after:
        assert after.crs == before.crs
        assert after.transform == before.transform
        assert after.bounds == before.bounds
        assert after.nodata == 255
        assert after.compression.name == "deflate"
        np.testing.assert_array_equal(after.read(1), mask)


def test_without_georeference_nothing_is_made_up_and_nobody_is_warned(tmp_path, caplog, capfd):
    source = ungeoreferenced(tmp_path / "in.tif", np.ones((9, 9), dtype=np.uint8))
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        reference = read_header(source).georeference
        assert reference == Georeference()
        probabilities = np.random.default_rng(0).random((4, 9, 9), dtype=np.float32)
        write_geotiff(tmp_path / "out.tif", probabilities, reference)
        np.testing.assert_array_equal(read_bands(tmp_path / "out.tif"), probabilities)
    assert read_header(tmp_path / "out.tif").georeference == Georeference()
    assert not caught and not caplog.records
    assert capfd.readouterr() == ("", "")


def test_no_thread_is_warned_either(tmp_path):
    source = ungeoreferenced(tmp_path / "in.tif", np.ones((9, 9), dtype=np.uint8))
    failures = []

    def read():
        try:
            for _ in range(20):
                read_bands(source)
        except Warning as warning:  # warnings are errors in this suite
            failures.append(warning)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "out.tif"
    write_geotiff(target, np.zeros((4, 4), dtype=np.uint8), Georeference())
    before = target.read_bytes()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("outlast.data.raster.sync_path", full)
    with pytest.raises(OSError, match="No space left"):
        write_geotiff(target, np.ones((4, 4), dtype=np.uint8), Georeference())
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


def test_a_number_type_that_geotiff_lacks_is_refused(tmp_path):
    with pytest.raises(DataError, match="can't hold numbers of type bool"):
        write_geotiff(tmp_path / "out.tif", np.zeros((4, 4), dtype=bool), Georeference())


def test_damaged_files_are_named(tmp_path, capfd):
    values = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    whole = write(tmp_path / "whole.tif", values, compress="deflate")
    (tmp_path / "half.tif").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "text.tif").write_text("not a picture")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "folder.tif").mkdir()
    for name, said in (
        ("half", "not a whole GeoTIFF"),
        ("text", "not a whole GeoTIFF"),
        ("empty", "0 bytes"),
        ("folder", "a folder"),
        ("missing", "doesn't exist"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            read_bands(tmp_path / f"{name}.tif")
        assert f"{name}.tif" in caught.value.message
        assert caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_one_place_is_told_from_another():
    utm, other = CRS.from_epsg(32645).to_wkt(), CRS.from_epsg(32644).to_wkt()
    here = Georeference(utm, (30.0, 0.0, 478_000.0, 0.0, -30.0, 3_108_140.0))
    rounded = Georeference(utm, (30.0 + 1e-9, 0.0, 478_000.001, 0.0, -30.0, 3_108_140.0))
    beside = Georeference(utm, (30.0, 0.0, 478_030.0, 0.0, -30.0, 3_108_140.0))
    assert here.contradicts(rounded, 64, 64) == ""
    assert here.contradicts(Georeference(), 64, 64) == ""
    assert here.contradicts(beside, 64, 64) == "transform"
    assert here.contradicts(Georeference(other, here.transform), 64, 64) == "CRS"
    assert here.contradicts(Georeference(CRS.from_epsg(32645).to_wkt(version="WKT2_2019"), None), 64, 64) == ""


def test_strips_cover_a_raster_once(tmp_path):
    with open_raster(write(tmp_path / "a.tif", np.zeros((2100, 3001), dtype=np.uint8))) as raster:
        found = list(strips(raster.header))
    assert len(found) > 1
    assert [strip.y for strip in found] == np.cumsum([0, *(strip.height for strip in found[:-1])]).tolist()
    assert sum(strip.height for strip in found) == 2100


@pytest.mark.real_data
def test_a_real_tile_keeps_its_place(real_data, tmp_path):
    source = real_data / "glaciers" / "everest" / "Band1" / "r000_c064.tif"
    header = read_header(source)
    assert (header.bands, header.height, header.width, header.dtype) == (1, 64, 64, "uint8")
    mask = read_mask(real_data / "glaciers" / "everest" / "label" / "r000_c064.tif")
    write_geotiff(tmp_path / "out.tif", encoded(mask), header.georeference)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert (after.crs, after.bounds) == (before.crs, before.bounds)
    np.testing.assert_array_equal(read_mask(tmp_path / "out.tif"), mask)
