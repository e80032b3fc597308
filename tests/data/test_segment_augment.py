import numpy as np
import pytest
import torch
from pydantic import ValidationError

from outlast.data.segment_augment import ANYWHERE, COLUMNS, SegmentAugmentation, apply, draw
from outlast.errors import DataError

STILL = {"horizontal_flip": False, "vertical_flip": False, "quarter_turns": False}
EVERYTHING = SegmentAugmentation(jitter=0.6, gain=0.2, shift=0.3, noise=0.5)


def tile(height: int = 20, width: int = 24, seed: int = 0, channels: int = 3) -> dict[str, torch.Tensor]:
    """Every pixel has values of its own, so that where it went can be told; two classes, few ignored, few NaN."""
    random = np.random.default_rng(seed)
    where = np.arange(height * width, dtype=np.float32).reshape(height, width)
    bands = np.stack([where + 1000 * n for n in range(channels)])
    bands[0, random.random(where.shape) < 0.1] = np.nan
    mask = np.where(random.random(where.shape) < 0.05, 255, where % 3 == 0).astype(np.uint8)
    distance = np.stack([where / 8, -where / 8]).astype(np.float16)
    found = {"bands": bands, "mask": mask, "distance": distance}
    return {name: torch.from_numpy(value) for name, value in found.items()}


def batch(tiles: list[dict[str, torch.Tensor]], wanted: list[int], **more: torch.Tensor) -> dict[str, object]:
    together = {name: [one[name] for one in tiles] for name in tiles[0]}
    if len({one["mask"].shape for one in tiles}) == 1:
        together = {name: torch.stack(values) for name, values in together.items()}
    return {**together, "class_wanted": torch.tensor(wanted), **more}


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.parametrize("various", [False, True])
def test_a_sample_is_the_same_bits_in_any_batch(various):
    sizes = [(20, 24), (13, 31), (40, 12)] if various else [(20, 24)]
    tiles = [tile(*sizes[n % len(sizes)], seed=n) for n in range(9)]
    wanted, keys = [0, 1, ANYWHERE, 1, 0, 255, ANYWHERE, 1, 1], np.array([4, 2**40 + 4, 7, 8, 0, 1, 2, 3, 2**42 + 9])
    draws = draw(EVERYTHING, 3, 5, keys)
    assert draws.shape == (9, COLUMNS) and draws.dtype == np.float32
    together = apply(batch(tiles, wanted), draws, EVERYTHING, 11)
    for part in ([0, 1, 2, 3], [5], [8, 4, 7, 6], [2, 1]):
        own = draw(EVERYTHING, 3, 5, keys[part])
        apart = apply(batch([tiles[n] for n in part], [wanted[n] for n in part]), own, EVERYTHING, 11)
        assert apart.keys() == together.keys() == {"image", "mask", "distance", "gain", "shift", "noise"}
        for name, value in apart.items():
            assert same_bits(value, together[name][part]), name


def test_another_epoch_or_seed_gives_another_crop():
    one, wanted = batch([tile()] * 30, [1] * 30), EVERYTHING
    first, again, epoch, seed = (
        apply(one, draw(wanted, *key, np.arange(30)), wanted, 9)["mask"] for key in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again) and not torch.equal(first, epoch) and not torch.equal(first, seed)


def test_bands_mask_and_distance_move_together_and_no_value_is_changed():
    tiles = [tile(seed=n) for n in range(60)]
    made = apply(batch(tiles, [1] * 60), draw(EVERYTHING, 0, 0, np.arange(60)), EVERYTHING, 9)
    assert made["image"].dtype == torch.float32 and made["image"].shape == (60, 3, 9, 9)
    assert made["mask"].dtype == torch.int64 and made["distance"].dtype == torch.float32
    assert made["image"].is_contiguous() and made["mask"].is_contiguous()
    ways = set()
    for n, one in enumerate(tiles):
        where = made["image"][n, 1].long() - 1000
        assert torch.equal(made["mask"][n], one["mask"].reshape(-1)[where].long())
        assert torch.equal(made["distance"][n], one["distance"].reshape(2, -1)[:, where].float())
        assert torch.equal(made["image"][n].nan_to_num(-1), one["bands"].reshape(3, -1)[:, where].nan_to_num(-1))
        assert len(where.unique()) == 81 and (where // 24).max() - (where // 24).min() == 8
        ways.add((int(where[0, 1] - where[0, 0]), int(where[1, 0] - where[0, 0])))
    assert ways == {(a, b) for x in (1, -1) for y in (24, -24) for a, b in ((x, y), (y, x))}, "all eight"


@pytest.mark.parametrize(
    ("setting", "moves"),
    [
        ("horizontal_flip", [lambda x: x, lambda x: x.flip(-1)]),
        ("vertical_flip", [lambda x: x, lambda x: x.flip(-2)]),
        ("quarter_turns", [lambda x, k=k: torch.rot90(x, k, (-2, -1)) for k in range(4)]),
    ],
)
def test_flips_and_turns_are_exactly_that_and_equally_likely(setting, moves):
    spec = SegmentAugmentation(**{**STILL, setting: True})
    one = tile(16, 16)
    made = apply(batch([one] * 400, [ANYWHERE] * 400), draw(spec, 0, 0, np.arange(400)), spec, 16)["image"]
    expected = [move(one["bands"][1]) for move in moves]
    kinds = [[k for k, image in enumerate(expected) if torch.equal(image, sample[1])] for sample in made]
    assert all(len(kind) == 1 for kind in kinds)
    counts = np.bincount([kind[0] for kind in kinds], minlength=len(moves))
    assert np.abs(counts - 400 / len(moves)).max() < 50


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("crop", [1, 4, 7, 20])
def test_the_wanted_class_is_always_in_the_crop(jitter, crop):
    spec = SegmentAugmentation(jitter=jitter)
    tiles = []
    for n in range(200):  # a single pixel of class 2, also in corners
        one = tile(20, 27)
        one["mask"] = torch.zeros(20, 27, dtype=torch.uint8)
        one["mask"].view(-1)[[0, 26, 539, 513][n] if n < 4 else (n * 7919) % 540] = 2
        tiles.append(one)
    made = apply(batch(tiles, [2] * 200), draw(spec, 0, 0, np.arange(200)), spec, crop)
    assert ((made["mask"] == 2).sum((1, 2)) == 1).all()


def test_every_pixel_of_the_class_is_as_likely_to_be_chosen():
    spec = SegmentAugmentation(**STILL)
    mask = torch.zeros(12, 12, dtype=torch.uint8)
    chosen = [0, 5, 30, 31, 32, 77, 78, 143, 100, 101]
    mask.view(-1)[chosen] = 3
    one = tile(12, 12) | {"mask": mask}
    made = apply(batch([one] * 5000, [3] * 5000), draw(spec, 0, 0, np.arange(5000)), spec, 1)
    found, counts = np.unique(made["image"][:, 1, 0, 0].numpy() - 1000, return_counts=True)
    assert found.tolist() == sorted(chosen)
    assert ((counts - 500) ** 2 / 500).sum() < 35  # chi-squared with 9 degrees of freedom: 6e-5


def test_the_chosen_pixel_lies_where_jitter_leaves_it():
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[30, 33] = 1  # further from the border than the crop is wide
    one = tile(64, 64) | {"mask": mask}
    for crop, jitter, places in ((9, 0.0, {4}), (8, 0.0, {3, 4}), (9, 1.0, set(range(9))), (9, 0.5, {2, 3, 4, 5, 6})):
        spec = SegmentAugmentation(jitter=jitter, **STILL)
        made = apply(batch([one] * 1000, [1] * 1000), draw(spec, 0, 0, np.arange(1000)), spec, crop)
        _, y, x = torch.nonzero(made["mask"] == 1, as_tuple=True)
        for axis in (y, x):
            assert set(axis.tolist()) == places
            counts = np.bincount(axis, minlength=crop)[sorted(places)]
            assert np.abs(counts - 1000 / len(places)).max() < 4.5 * np.sqrt(1000 / len(places))
        if jitter == 1:
            assert abs(np.corrcoef(y, x)[0, 1]) < 0.12


def test_without_a_class_every_place_is_as_likely():
    spec = SegmentAugmentation(**STILL)
    made = apply(batch([tile(6, 9)] * 4000, [ANYWHERE] * 4000), draw(spec, 0, 0, np.arange(4000)), spec, 4)
    corners, counts = np.unique(made["image"][:, 1, 0, 0].numpy() - 1000, return_counts=True)
    assert corners.tolist() == [24 * 0 + 9 * row + column for row in range(3) for column in range(6)]
    assert ((counts - 4000 / 18) ** 2 / (4000 / 18)).sum() < 48  # 17 degrees of freedom: 1e-4


def test_evaluation_leaves_tiles_as_they_are():
    tiles = [tile(seed=n) for n in range(3)]
    made = apply(batch(tiles, [1, 2, ANYWHERE], row=torch.arange(3)), None, EVERYTHING, 9)
    assert made.keys() == {"image", "mask", "distance", "gain", "shift", "row"}
    assert same_bits(made["image"], torch.stack([one["bands"] for one in tiles]))
    assert torch.equal(made["mask"], torch.stack([one["mask"] for one in tiles]).long())
    assert (made["gain"] == 1).all() and (made["shift"] == 0).all() and made["gain"].shape == (3, 3)
    without = batch([{name: one[name] for name in ("bands", "mask")} for one in tiles], [0, 0, 0])
    del without["class_wanted"]
    assert apply(without, None, EVERYTHING, 9).keys() == {"image", "mask", "gain", "shift"}


def test_gain_shift_and_noise_are_as_strong_as_was_asked_for():
    spec = SegmentAugmentation(gain=0.2, shift=0.5, noise=2.0)
    made = apply(batch([tile()] * 500, [0] * 500), draw(spec, 0, 0, np.arange(500)), spec, 10)
    for name, middle, reach in (("gain", 1, 0.2), ("shift", 0, 0.5)):
        values = made[name] - middle
        assert (
            values.abs().max() <= reach + 1e-6 and values.abs().max() > 0.95 * reach and values.dtype == torch.float32
        )
        assert values.mean().abs() < 0.05 * reach and np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.2
    noise = made["noise"]
    assert noise.shape == made["image"].shape and noise.dtype == torch.float32
    level = noise.std((1, 2, 3))
    assert (
        level.max() < 2.2
        and level.min() < 0.1
        and abs(float(level.mean()) - 1) < 0.1
        and abs(float(noise.mean())) < 0.02
    )
    z = (noise / level.view(-1, 1, 1, 1)).numpy().ravel()
    assert abs((z**3).mean()) < 0.05 and abs((z**4).mean() - 2.7) < 0.1  # a sum of four: 2.7, normal: 3
    quiet = SegmentAugmentation(gain=0, shift=0)
    made = apply(batch([tile()] * 2, [0, 0]), draw(quiet, 0, 0, [0, 1]), quiet, 10)
    assert "noise" not in made and (made["gain"] == 1).all() and (made["shift"] == 0).all()


def test_switching_one_thing_on_leaves_the_others_as_they_were():
    one = batch([tile()] * 20, [1] * 20)
    first, second = (
        apply(one, draw(spec, 0, 0, np.arange(20)), spec, 8)
        for spec in (SegmentAugmentation(), SegmentAugmentation(noise=1.0))
    )
    assert all(same_bits(first[name], second[name]) for name in first)


def test_what_does_not_fit_is_named():
    draws = draw(EVERYTHING, 0, 0, np.arange(3))
    small = batch([tile(20, 24), tile(8, 24), tile(20, 9)], [0, 0, 0], row=torch.tensor([5, 6, 7]))
    with pytest.raises(DataError, match=r"crop of 10 pixels: row 6 is 8 x 24, row 7 is 20 x 9"):
        apply(small, draws, EVERYTHING, 10)
    with pytest.raises(DataError, match=r"masks lack: sample 1 of the batch: class 2, sample 2 of the batch: class 3"):
        apply(batch([tile()] * 3, [1, 2, 3]), draws, EVERYTHING, 10)
    with pytest.raises(DataError, match=r"different sizes are in one batch: 8 x 24, 20 x 9, 20 x 24"):
        apply(small, None, EVERYTHING, 10)
    for bad in ({"jitter": 1.1}, {"gain": 2}, {"shift": -1}, {"noise": -0.1}, {"rotation": 3}):
        with pytest.raises(ValidationError):
            SegmentAugmentation(**bad)
