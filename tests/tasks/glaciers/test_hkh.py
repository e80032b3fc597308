"""The HKH layout: pairs of .npy files become rows and samples, and whatever can't be used is named."""

import os
import pickle

import numpy as np
import pytest

from outlast.errors import ConfigError, DataError, DataNotFoundError
from outlast.tasks.glaciers import hkh, hkh_pairs, hkh_patch, hkh_scan

SIZE, CHANNELS = 16, 15
OLD = 1_600_000_000  # so that files count as settled


def save(root, name, image=None, mask=None, *, word=("img", "mask")):
    """One patch as glacier_mapping names it: name is `train/slice_0_{}_000`."""
    image = patch() if image is None else image
    mask = planes() if mask is None else mask
    for values, kind in zip((image, mask), word, strict=True):
        path = root / f"{name.format(kind)}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
        os.utime(path, (OLD, OLD))


def patch(seed=0, dtype=np.float32):
    return (np.random.default_rng(seed).random((SIZE, SIZE, CHANNELS)) * 200).astype(dtype)


def planes(dtype=np.float32):
    """Clean ice in rows 0-7, debris in rows 6-9: rows 6 and 7 overlap."""
    mask = np.zeros((SIZE, SIZE, 2), dtype)
    mask[:8, :, 0] = 1
    mask[6:10, :, 1] = 1
    return mask


def problem(root, **options):
    with pytest.raises(DataError) as caught:
        hkh.examples(root, **options)
    return str(caught.value)


def test_splits_scenes_and_pixels_come_from_the_files_of_glacier_mapping(tmp_path):
    for split, number in (("train", 0), ("train", 1), ("dev", 7), ("test", 8)):
        save(tmp_path, f"{split}/slice_{number}_{{}}_003", patch(number))
    found = hkh.examples(tmp_path)
    table = found.table
    assert table["id"].tolist() == [
        "dev/slice_7_img_003", "test/slice_8_img_003", "train/slice_0_img_003", "train/slice_1_img_003"
    ]  # fmt: skip
    assert table["split"].tolist() == ["val", "test", "train", "train"]
    assert table["group"].tolist() == ["slice_7", "slice_8", "slice_0", "slice_1"]
    assert table.loc[0, ["pixels_0", "pixels_1", "pixels_2", "pixels_3"]].tolist() == [6 * 16, 6 * 16, 4 * 16, 0]
    assert found.facts["classes"] == ["background", "ice", "debris", "lake"]
    assert found.facts["absent_classes"] == ["lake"]
    assert found.facts["bands"] == ["blue", "green", "red", "swir1", "thermal_high"]
    assert found.table["hash"].is_unique and found.notes == ()


def test_published_masks_have_three_planes_in_two_orders_and_their_values_tell_which(tmp_path):
    """In slices: all ice, clean ice, debris. In splits: clean ice, debris, no ice."""
    own = planes(np.uint8)
    own[:8, :, 0] = own[:8, :, 0] & ~own[:8, :, 1]  # where one plane is set in each pixel there is no overlap
    union = np.concatenate([own.any(axis=2, keepdims=True).astype(np.uint8), own], axis=2)
    neither = np.concatenate([own, 1 - own.any(axis=2, keepdims=True).astype(np.uint8)], axis=2)
    overlap = planes(np.uint8)
    both = np.concatenate([overlap.any(axis=2, keepdims=True).astype(np.uint8), overlap], axis=2)
    masks = {"a_{}_0": own, "b_{}_0": union, "c_{}_0": neither, "d_{}_0": both, "e_{}_0": np.zeros_like(union)}
    for number, (name, mask) in enumerate(masks.items()):
        save(tmp_path, name, patch(number), mask)
    table = hkh.examples(tmp_path).table.set_index("id")
    pixels = table[["pixels_0", "pixels_1", "pixels_2"]].to_numpy().tolist()
    assert pixels == [[96, 96, 64]] * 4 + [[256, 0, 0]]
    windows = [hkh.read_window(tmp_path, row, (0, 1)) for row in table.to_dict("records")]
    assert all(np.array_equal(window["mask"], windows[0]["mask"]) for window in windows[1:4])
    save(tmp_path, "f_{}_0", patch(9), np.random.default_rng(0).integers(0, 2, (SIZE, SIZE, 3)).astype(np.uint8))
    assert "f_mask_0.npy: its three planes are neither" in problem(tmp_path)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("tiff_12_slice_34", None),
        ("slice_{}_34", ("image", "label")),
        ("{}/slice_3_4", ("images", "masks")),
        ("{0}_data/slice_3_{0}_4", ("img", "mask")),
    ],
)
def test_other_ways_to_name_a_pair_are_understood(tmp_path, name, word):
    if word is None:
        save(tmp_path, "{}_12_slice_34", word=("tiff", "mask"))
    else:
        save(tmp_path, name, word=word)
    found = hkh.examples(tmp_path)
    assert len(found.table) == 1 and found.table["split"].tolist() == [""]


@pytest.mark.parametrize(
    ("name", "is_it"),
    [
        ("slice_0_img_000.npy", True),
        ("dev/slice_0_mask_000.npy", True),
        ("train/weights.npy", False),
        ("img_0.png", False),
    ],
)
def test_the_layout_is_known_by_its_names(tmp_path, name, is_it):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert hkh_pairs.looks_like_hkh(tmp_path) == is_it


def test_a_scene_on_two_sides_of_a_given_split_is_said(tmp_path):
    save(tmp_path, "train/slice_0_{}_001")
    save(tmp_path, "test/slice_0_{}_002")
    found = hkh.examples(tmp_path)
    assert sorted(found.table["group"]) == ["test:slice_0", "train:slice_0"]
    assert "cuts 1 scenes (slice_0)" in found.notes[0]


def test_bands_come_in_the_order_asked_for_and_debris_wins(tmp_path):
    image = patch()
    save(tmp_path, "slice_0_{}_000", image)
    found = hkh.examples(tmp_path, channels=(4, 0))
    sample = hkh.read_window(tmp_path, found.table.iloc[0], (4, 0))
    assert sample["bands"].dtype == np.float32 and sample["mask"].dtype == np.uint8
    np.testing.assert_array_equal(sample["bands"], np.moveaxis(image[..., [4, 0]], -1, 0))
    assert sample["mask"][:, 0].tolist() == [1] * 6 + [2] * 4 + [0] * 6


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float64, ">f4"])
@pytest.mark.parametrize("mask_dtype", [bool, np.uint8, np.float64])
def test_any_number_type_gives_the_same_sample(tmp_path, dtype, mask_dtype):
    whole = np.floor(patch())
    save(tmp_path, "slice_0_{}_000", whole.astype(dtype), planes(mask_dtype))
    row = hkh.examples(tmp_path).table.iloc[0]
    sample = hkh.read_window(tmp_path, row, hkh.COMPETITION_CHANNELS)
    np.testing.assert_array_equal(sample["bands"], np.moveaxis(whole[..., [0, 1, 2, 4, 6]], -1, 0))
    assert [int((sample["mask"] == label).sum()) for label in range(3)] == [96, 96, 64]


def test_what_was_not_observed_is_ignored_and_not_counted(tmp_path):
    image = patch()
    image[:4] = np.nan
    image[:4, :, 13] = 5000.0  # the elevation is known everywhere
    image[5, :, 0] = np.nan  # one band of several
    save(tmp_path, "slice_0_{}_000", image)
    channels = (0, 1, 13)
    row = hkh.examples(tmp_path, channels=channels).table.iloc[0]
    sample = hkh.read_window(tmp_path, row, channels)
    assert (sample["mask"][:4] == 255).all() and not (sample["mask"][4:] == 255).any()
    assert [row[f"pixels_{label}"] for label in range(4)] == [96, 96 - 64, 64, 0]
    assert [row[f"count_{number}"] for number in range(3)] == [11 * 16, 12 * 16, 16 * 16]
    assert np.isnan(sample["bands"][0, 5]).all() and np.isfinite(sample["bands"][1, 5]).all()


@pytest.mark.parametrize("channels", [(0, 1, 2, 4, 6), (14,), (13, 3)])
def test_the_table_counts_what_a_sample_holds(tmp_path, channels):
    image = patch(3)
    random = np.random.default_rng(1)
    image[random.random(image.shape) < 0.4] = np.nan
    save(tmp_path, "slice_0_{}_000", image)
    row = hkh.examples(tmp_path, channels=channels).table.iloc[0]
    sample = hkh.read_window(tmp_path, row, channels)
    assert [row[f"pixels_{label}"] for label in range(4)] == [
        int((sample["mask"] == label).sum()) for label in range(4)
    ]


def test_sums_of_the_rows_give_the_statistics_of_the_values(tmp_path):
    images = [patch(seed) for seed in range(3)]
    images[1][3:, 5, 2] = np.nan
    for number, image in enumerate(images):
        save(tmp_path, f"slice_{number}_{{}}_000", image)
    table = hkh.examples(tmp_path, channels=(6, 2)).table
    for number, channel in enumerate((6, 2)):
        values = np.concatenate([image[..., channel].ravel() for image in images]).astype(np.float64)
        count, total, squares = (table[f"{name}_{number}"].sum() for name in ("count", "sum", "squares"))
        assert count == np.isfinite(values).sum()
        assert total / count == pytest.approx(np.nanmean(values), rel=1e-12)
        assert (squares / count - (total / count) ** 2) ** 0.5 == pytest.approx(np.nanstd(values), rel=1e-9)


def test_the_scatter_of_a_row_is_that_about_its_own_mean_and_zero_for_a_constant_band(tmp_path):
    shape = (150, 20, CHANNELS)  # more rows than are worked on at a time
    image = 5000 + np.random.default_rng(0).random(shape).astype(np.float32)
    image[..., 1] = 0.1  # not a whole number in binary
    image[100:, :, 0] = np.nan
    image[:70, :, 2] = np.nan
    image[..., 3] = np.nan
    save(tmp_path, "slice_0_{}_000", image, np.zeros((*shape[:2], 2)))
    row = hkh.examples(tmp_path, channels=(0, 1, 2, 3)).table.iloc[0]
    for number in (0, 2):
        values = image[..., number].astype(np.float64)
        assert row[f"scatter_{number}"] == pytest.approx(np.nanvar(values) * np.isfinite(values).sum(), rel=1e-9)
    assert 0 <= row["scatter_1"] < 1e-24
    assert (row["count_3"], row["sum_3"], row["scatter_3"]) == (0, 0, 0)


def test_infinite_values_become_nan_and_are_counted(tmp_path):
    image = patch()
    image[2, 3, 0], image[2, 4, 1] = np.inf, -np.inf
    save(tmp_path, "slice_0_{}_000", image)
    found = hkh.examples(tmp_path)
    bands = hkh.read_window(tmp_path, found.table.iloc[0], hkh.COMPETITION_CHANNELS)["bands"]
    assert np.isnan(bands[0, 2, 3]) and np.isnan(bands[1, 2, 4]) and np.isnan(bands).sum() == 2
    assert found.notes == ("2 infinite values are read as not observed (NaN)",)
    assert np.isfinite(found.table[["sum_0", "squares_1"]].to_numpy()).all()


def test_a_fraction_is_the_same_every_time_and_part_of_a_larger_one(tmp_path):
    for number in range(20):
        save(tmp_path, f"{'train' if number < 16 else 'test'}/slice_{number}_{{}}_000")
    chosen = {share: set(hkh.examples(tmp_path, fraction=share).table["id"]) for share in (0.1, 0.5, 1.0)}
    assert chosen[0.1] < chosen[0.5] < chosen[1.0]
    assert len(chosen[0.5]) == 10 and len([name for name in chosen[0.1] if name.startswith("test")]) == 1
    assert chosen[0.5] == set(hkh.examples(tmp_path, fraction=0.5).table["id"])
    assert "10 of 20 patches" in hkh.examples(tmp_path, fraction=0.5).notes[0]
    with pytest.raises(ConfigError, match="fraction of 0"):
        hkh.examples(tmp_path, fraction=0)


def test_two_thermal_bands_without_swir_are_warned_of(tmp_path):
    save(tmp_path, "slice_0_{}_000")
    (note,) = hkh.examples(tmp_path, channels=(0, 1, 2, 5, 6)).notes
    assert "two thermal bands and no SWIR" in note and "[0, 1, 2, 4, 6]" in note


@pytest.mark.parametrize("channels", [(), (0, 15), (-1,), (3, 3)])
def test_channels_that_make_no_sense_are_refused_with_those_that_exist(tmp_path, channels):
    save(tmp_path, "slice_0_{}_000")
    with pytest.raises(ConfigError) as caught:
        hkh.examples(tmp_path, channels=channels)
    assert "14 slope" in str(caught.value)


def test_unchanged_files_are_not_read_again_and_changed_ones_are(tmp_path, monkeypatch):
    root, cache = tmp_path / "data", tmp_path / "cache"
    for number in range(3):
        save(root, f"slice_{number}_{{}}_000", patch(number))
    first = hkh.examples(root, cache=cache)
    read = []

    def measure(image, *others):
        read.append(image.name)
        return original(image, *others)

    original = hkh_scan.measure
    monkeypatch.setattr(hkh_scan, "measure", measure)
    again = hkh.examples(root, cache=cache)
    assert read == [] and again.table.equals(first.table) and again.fingerprint == first.fingerprint
    other = hkh.examples(root, cache=cache, channels=(13, 2))
    assert read == [] and other.facts["bands"] == ["elevation", "red"]

    np.save(root / "slice_1_mask_000.npy", np.zeros((SIZE, SIZE, 2), np.float32))  # the same size, another time
    changed = hkh.examples(root, cache=cache)
    assert read == ["slice_1_img_000.npy"] and changed.fingerprint != first.fingerprint
    assert changed.table["pixels_1"].tolist() == [96, 0, 96]
    hkh.examples(root, cache=cache)  # written just now: it might change again without its time showing it
    assert read == ["slice_1_img_000.npy"] * 2


def test_an_interrupted_first_reading_keeps_what_it_read(tmp_path, monkeypatch):
    root, cache = tmp_path / "data", tmp_path / "cache"
    for number in range(6):
        save(root, f"slice_{number}_{{}}_000")
    original, read = hkh_scan.measure, []

    def measure(image, *others):
        if image.name.startswith("slice_4"):
            raise KeyboardInterrupt
        read.append(image.name)
        return original(image, *others)

    monkeypatch.setattr(hkh_scan, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        hkh.examples(root, cache=cache, threads=1)
    before = len(read)
    assert before >= 4
    monkeypatch.setattr(hkh_scan, "measure", lambda *a: read.append(a[0].name) or original(*a))
    hkh.examples(root, cache=cache)
    assert len(read) == 6


def test_a_damaged_memory_is_read_over(tmp_path):
    root, cache = tmp_path / "data", tmp_path / "cache"
    save(root, "slice_0_{}_000")
    first = hkh.examples(root, cache=cache)
    (memo,) = cache.iterdir()
    for text in ("", "[]", '{"format": 1, "patches": {"a": [1]}}', '{"format": 0}'):
        memo.write_text(text)
        assert hkh.examples(root, cache=cache).table.equals(first.table)


def test_halves_of_a_pair_are_all_named_at_once(tmp_path):
    for number in range(3):
        save(tmp_path, f"train/slice_{number}_{{}}_000")
    (tmp_path / "train/slice_0_img_000.npy").unlink()
    (tmp_path / "train/slice_2_mask_000.npy").unlink()
    text = problem(tmp_path)
    assert "train/slice_0_mask_000.npy: a mask without its image" in text
    assert "train/slice_2_img_000.npy: an image without its mask" in text and "slice_1" not in text


def test_every_patch_that_can_not_be_used_is_named_with_its_remedy(tmp_path):
    wrong_values, with_nan = planes(), planes()
    wrong_values[0, 0, 0], wrong_values[1, 1, 1] = 42, 255
    with_nan[0, 0, 0] = np.nan
    save(tmp_path, "a_{}_0", mask=wrong_values)
    save(tmp_path, "b_{}_0", mask=planes()[:8])
    save(tmp_path, "c_{}_0", mask=planes()[..., 0])
    save(tmp_path, "d_{}_0", image=patch()[..., :5])
    save(tmp_path, "e_{}_0", image=np.full((SIZE, SIZE, CHANNELS), np.nan, np.float32))
    save(tmp_path, "f_{}_0", image=np.zeros((SIZE, SIZE, CHANNELS), np.complex64))
    save(tmp_path, "g_{}_0")
    (tmp_path / "g_img_0.npy").write_bytes((tmp_path / "g_img_0.npy").read_bytes()[:-100])
    save(tmp_path, "h_{}_0")
    (tmp_path / "h_mask_0.npy").write_bytes(b"")
    save(tmp_path, "i_{}_0", mask=with_nan)
    save(tmp_path, "j_{}_0")
    (tmp_path / "j_img_0.npy").write_text("not an array")
    text = problem(tmp_path)
    for line in (
        "a_mask_0.npy: the mask holds 42, 255 besides 0 and 1",
        "b_mask_0.npy: is 8 x 16 pixels, but its image b_img_0.npy is 16 x 16 pixels",
        "c_mask_0.npy: its shape is (16, 16), expected (height, width, 2)",
        "d_img_0.npy: its shape is (16, 16, 5), expected (height, width, 15)",
        "f_img_0.npy: holds complex64, not numbers",
        "g_img_0.npy: the file is damaged or cut off",
        "h_mask_0.npy: the file is empty (0 bytes)",
        "i_mask_0.npy: the mask holds nan besides 0 and 1",
        "j_img_0.npy: this is no .npy file",
    ):
        assert line in text
    assert "9 of 10 patches" in text


def test_glacier_in_a_patch_without_values_is_refused_and_an_empty_one_left_out(tmp_path):
    blank = np.full((SIZE, SIZE, CHANNELS), np.nan, np.float32)
    save(tmp_path, "a_{}_0")
    save(tmp_path, "b_{}_0", blank, np.zeros((SIZE, SIZE, 2)))
    found = hkh.examples(tmp_path)
    assert found.table["id"].tolist() == ["a_img_0"]
    assert found.notes == ("1 patches hold no value and no glacier and are left out: b_img_0.npy",)
    save(tmp_path, "c_{}_0", blank)
    assert "c_img_0.npy: the chosen channels are all NaN, but the mask holds glacier" in problem(tmp_path)


def test_a_folder_of_nothing_but_nan_is_refused(tmp_path):
    save(tmp_path, "b_{}_0", np.full((SIZE, SIZE, CHANNELS), np.nan), np.zeros((SIZE, SIZE, 2)))
    assert "no patch" in problem(tmp_path)


class Trap:
    """Unpickling it leaves a trace."""

    def __reduce__(self):
        return (open, (os.environ["TRAP"], "w"))


@pytest.mark.parametrize("kind", ["object array", "bare pickle", "archive"])
def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, kind):
    trace = tmp_path / "trace"
    monkeypatch.setenv("TRAP", str(trace))
    root = tmp_path / "data"
    save(root, "slice_0_{}_000")
    target = root / "slice_0_img_000.npy"
    if kind == "object array":
        np.save(target, np.array([Trap()], dtype=object), allow_pickle=True)
    elif kind == "bare pickle":
        target.write_bytes(pickle.dumps(Trap()))
    else:
        with target.open("wb") as stream:
            np.savez(stream, image=patch())
    text = problem(root)
    assert ("is a pickle" in text or "a zip archive" in text) and "slice_0_img_000.npy" in text
    assert not trace.exists()


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_patches_says_what_was_expected(tmp_path, made):
    root = tmp_path / "data"
    if made:
        root.mkdir()
        np.save(root / "weights.npy", patch())
    with pytest.raises(DataNotFoundError, match="slice_<scene>_img_<number>"):
        hkh.examples(root)


def test_files_that_are_no_patches_are_counted(tmp_path):
    save(tmp_path, "slice_0_{}_000")
    np.save(tmp_path / "weights.npy", patch())
    (note,) = hkh.examples(tmp_path).notes
    assert note.startswith("1 .npy files are named neither")


def test_patches_are_mapped_and_not_loaded(tmp_path):
    save(tmp_path, "slice_0_{}_000")
    image, mask = hkh_patch.open_pair(tmp_path / "slice_0_img_000.npy", tmp_path / "slice_0_mask_000.npy", CHANNELS)
    assert isinstance(image, np.memmap) and isinstance(mask, np.memmap) and image.mode == "r"
