"""What stages hand to the report: composites, examples and the errors near boundaries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from outlast.data.pictures import (
    IGNORED,
    MOST_SIDE,
    composite,
    errors_by_distance,
    read_examples,
    write_boundary,
    write_examples,
)
from outlast.errors import DataError, TaskError


def parts(
    count: int = 2, side: tuple[int, int] = (8, 6)
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 256, (*side, 3)).astype(np.uint8) for _ in range(count)]
    return pictures, *([noise.integers(0, 4, side) for _ in range(count)] for _ in range(2))


def test_composite_stretches_each_band_and_leaves_what_was_not_observed_black() -> None:
    bands = np.stack([np.linspace(low, low + 5, 101).reshape(1, 101) for low in (-3.0, 900.0, 0.0)]).astype(np.float32)
    bands[:, 0, 50] = np.nan
    picture = composite(bands)
    assert picture.shape == (1, 101, 3) and picture.dtype == np.uint8
    assert (picture[0, 50] == 0).all()
    assert (picture[0, :2] == 0).all() and (picture[0, -2:] == 255).all()
    assert np.abs(picture[0, 25].astype(int) - round(255 * (0.25 - 0.02) / 0.96)).max() <= 2
    assert (np.diff(picture[0, 51:].astype(int), axis=0) >= 0).all()


def test_composite_takes_few_bands_constant_bands_and_infinity() -> None:
    assert (composite(np.full((3, 4, 5), 7, np.uint16)) == 128).all()
    assert (composite(np.full((3, 4, 5), np.nan)) == 0).all()
    grey = composite(np.arange(20.0).reshape(1, 4, 5))
    assert (grey == grey[..., :1]).all() and grey.std() > 50
    bright = np.arange(60.0).reshape(3, 4, 5)
    bright[0, 0, 0] = np.inf
    assert composite(bright)[0, 0, 2] == 0 and composite(bright)[..., 2].max() == 255


def test_examples_come_back_as_they_were_and_the_same_ones_are_the_same_bytes(tmp_path: Path) -> None:
    pictures, truth, prediction = parts()
    truth[0][:2] = IGNORED
    for name in ("one.npz", "two.npz"):
        write_examples(tmp_path / name, pictures, truth, prediction, ["a.tif", "глетчер"], ["background", "ice"])
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    back = read_examples(tmp_path / "one.npz")
    assert np.array_equal(back.composites, pictures)
    assert np.array_equal(back.truth, truth) and np.array_equal(back.prediction, prediction)
    assert (back.names, back.classes) == (("a.tif", "глетчер"), ("background", "ice"))


def test_large_examples_are_cut_to_their_middle(tmp_path: Path) -> None:
    side = MOST_SIDE + 10
    pictures, truth, prediction = parts(1, (side, 40))
    write_examples(tmp_path / "large.npz", pictures, truth, prediction, ["a"], ["b"])
    assert np.array_equal(read_examples(tmp_path / "large.npz").truth[0], truth[0][5:-5])


def test_examples_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    pictures, truth, prediction = parts()
    with pytest.raises(TaskError, match="2 composites, 1 truths"):
        write_examples(tmp_path / "x.npz", pictures, truth[:1], prediction, ["a", "b"], ["c"])
    with pytest.raises(TaskError, match="sizes"):
        write_examples(tmp_path / "x.npz", pictures, [truth[0], truth[1][1:]], prediction, ["a", "b"], ["c"])
    with pytest.raises(TaskError, match="0 composites"):
        write_examples(tmp_path / "x.npz", [], [], [], [], ["c"])
    assert not list(tmp_path.iterdir())


def test_damaged_or_foreign_examples_are_named(tmp_path: Path) -> None:
    pictures, truth, prediction = parts()
    path = tmp_path / "examples.npz"
    write_examples(path, pictures, truth, prediction, ["a", "b"], ["c"])
    whole = path.read_bytes()
    for damage in (b"", b"no zip", whole[: len(whole) // 2], whole[:200] + bytes(80) + whole[280:]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"examples\.npz"):
            read_examples(path)
    for wrong in ({"names": np.array(["a"])}, {"truth": np.zeros((2, 3, 3), np.uint8)}, {"composites": np.zeros(3)}):
        whole_parts = {
            "composites": np.stack(pictures), "truth": np.stack(truth).astype(np.uint8),
            "prediction": np.stack(prediction).astype(np.uint8), "names": np.array(["a", "b"]),
            "classes": np.array(["c"]),
        }  # fmt: skip
        np.savez(path, **{**whole_parts, **wrong})
        with pytest.raises(DataError, match="fit together"):
            read_examples(path)
    np.savez(path, composites=np.array([{}], dtype=object))
    with pytest.raises(DataError):
        read_examples(path)


def test_errors_are_counted_by_the_distance_to_the_true_boundary() -> None:
    truth = np.zeros((3, 12), np.uint8)
    truth[:, 8:] = 2  # the boundary lies between the columns 7 and 8
    truth[0, 0] = IGNORED
    prediction = truth.copy()
    prediction[:, 7] = 2  # half a pixel away
    prediction[1, 5] = 1  # two and a half pixels away
    prediction[0, 0] = 1  # is no error: nobody knows
    pixels, wrong = errors_by_distance(truth, prediction, furthest=6)
    assert pixels.tolist() == [6, 6, 6, 6, 3, 3, 5]
    assert wrong.tolist() == [3, 0, 1, 0, 0, 0, 0]


def test_in_a_tile_of_one_class_everything_is_far_and_ignored_pixels_are_no_boundary() -> None:
    truth = np.ones((4, 4), np.uint8)
    truth[:, 0] = IGNORED
    pixels, wrong = errors_by_distance(truth, np.zeros((4, 4), np.uint8), furthest=3)
    assert pixels.tolist() == wrong.tolist() == [0, 0, 0, 12]
    nothing = errors_by_distance(np.full((4, 4), IGNORED), truth, furthest=3)
    assert nothing.sum() == 0


def test_boundary_file_says_what_was_counted(tmp_path: Path) -> None:
    write_boundary(tmp_path / "boundary.json", np.array([[5, 6], [1, 2]]), 30.0, "examples.npz")
    assert json.loads((tmp_path / "boundary.json").read_text()) == {
        "pixels": [5, 6], "wrong": [1, 2], "pixel_size": 30.0, "examples": "examples.npz",
    }  # fmt: skip
