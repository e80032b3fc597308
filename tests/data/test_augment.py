import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from outlast.data.augment import COLUMNS, Augmentation, apply, colour, draw, geometry, normalise, warp
from outlast.errors import DataError

OFF = {
    "crop_scale": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "horizontal_flip": False,
    "brightness": 0.0, "contrast": 0.0, "saturation": 0.0,
}  # fmt: skip
EVERYTHING = Augmentation(
    vertical_flip=True, quarter_turns=True, rotation_degrees=25, hue=0.1, erase=0.5, crop_scale=(0.3, 1.0)
)


def pictures(count: int = 7, channels: int = 3, height: int = 40, width: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def only(**settings: object) -> Augmentation:
    return Augmentation(**{**OFF, **settings})


@pytest.mark.parametrize("size", [(32, 32), (31, 47), (15, 9), (40, 40)])
@pytest.mark.parametrize("shape", [(40, 40), (37, 53), (150, 141)])
@pytest.mark.parametrize(
    ("channels", "spec"),
    [
        (3, EVERYTHING),
        (3, Augmentation()),
        (3, only(brightness=0.5)),
        (1, Augmentation(saturation=0.0, rotation_degrees=10, erase=1.0)),
        (5, Augmentation(saturation=0.0)),
    ],
)
def test_a_sample_is_the_same_bits_in_any_batch(channels, spec, shape, size):
    images, keys = pictures(7, channels, *shape), np.array([5, 0, 2**40 + 5, 9, 8, 7, 6])
    draws = draw(spec, 1, 2, keys)
    together = apply(images, draws, spec, size)
    evaluated = apply(images, None, spec, size)
    assert together.shape == (7, channels, *size) and together.dtype == torch.float32
    for n in range(7):
        alone = draw(spec, 1, 2, keys[n : n + 1])
        assert np.array_equal(alone[0], draws[n])
        assert torch.equal(apply(images[n : n + 1].clone(), alone, spec, size)[0], together[n])
        assert torch.equal(apply(images[n : n + 1].clone(), None, spec, size)[0], evaluated[n])


def test_images_whose_channels_lie_last_give_the_same_bits():
    images, draws = pictures(), draw(EVERYTHING, 0, 0, np.arange(7))
    last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for numbers in (draws, None):
        assert torch.equal(apply(images, numbers, EVERYTHING, (32, 32)), apply(last, numbers, EVERYTHING, (32, 32)))


def test_results_stay_in_range_and_depend_on_the_epoch():
    images = pictures(64)
    first = apply(images, draw(EVERYTHING, 0, 0, np.arange(64)), EVERYTHING, (32, 32))
    assert first.min() >= 0 and first.max() <= 1 and torch.isfinite(first).all()
    assert not torch.equal(first, apply(images, draw(EVERYTHING, 0, 1, np.arange(64)), EVERYTHING, (32, 32)))


def test_everything_off_is_the_evaluation():
    images, spec = pictures(), only()
    draws = draw(spec, 0, 0, np.arange(7))
    assert draws.shape == (7, COLUMNS) and draws.dtype == np.float32 and not spec.moves and not spec.recolours
    for size in ((40, 40), (24, 24)):
        assert torch.allclose(apply(images, draws, spec, size), apply(images, None, spec, size), atol=1e-6)
    assert torch.allclose(apply(images, None, spec, (40, 40)), images / 255)


@pytest.mark.parametrize(
    ("setting", "moves"),
    [
        ("horizontal_flip", {0: lambda x: x, 1: lambda x: x.flip(-1)}),
        ("vertical_flip", {0: lambda x: x, 1: lambda x: x.flip(-2)}),
        ("quarter_turns", {k: (lambda x, k=k: torch.rot90(x, k, (-2, -1))) for k in range(4)}),
    ],
)
def test_flips_and_turns_are_exactly_that_and_equally_likely(setting, moves):
    spec = only(**{setting: True})
    image = pictures(1).expand(400, -1, -1, -1)
    made = apply(image, draw(spec, 0, 0, np.arange(400)), spec, (40, 40))
    expected = {k: move(image[0] / 255) for k, move in moves.items()}
    found = [[k for k, one in expected.items() if torch.allclose(sample, one, atol=1e-4)] for sample in made]
    assert all(len(kinds) == 1 for kinds in found)
    counts = np.bincount([kinds[0] for kinds in found], minlength=len(moves))
    assert np.abs(counts - 400 / len(moves)).max() < 50


def test_rotation_keeps_circles_round_and_the_centre_in_place():
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(128) - 63.5, indexing="ij")
    disc = ((x**2 + y**2 < 20**2) * 255).to(torch.uint8).expand(8, 3, 64, 128)
    spec = only(rotation_degrees=180)
    made = apply(disc, draw(spec, 0, 0, np.arange(8)), spec, (64, 128))
    middle = (..., slice(7, 57), slice(39, 89))  # outside of it the mirrored border begins
    assert (made - disc / 255)[middle].abs().mean() < 0.02
    bar = ((x.abs() < 50) & (y.abs() < 3) * 1).to(torch.uint8).expand(8, 3, 64, 128) * 255
    assert (apply(bar, draw(spec, 0, 0, np.arange(8)), spec, (64, 128)) - bar / 255).abs().mean() > 0.03


def test_crops_have_the_area_and_the_place_that_was_asked_for():
    spec = only(crop_scale=(0.25, 0.5), crop_aspect=(0.5, 2.0))
    height, width, centre_y, centre_x = draw(spec, 0, 0, np.arange(5000))[:, :4].T
    area = height * width
    assert area.max() <= 0.5 + 1e-6 and abs(area.mean() - 0.375) < 0.02 and height.max() <= 1 and width.max() <= 1
    for side, centre in ((height, centre_y), (width, centre_x)):
        assert (np.abs(centre) + side).max() <= 1 + 1e-6 and abs(centre.mean()) < 0.02
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).view(1, 1, 1, 64).expand(16, 3, 64, 64)
    made = apply(ramp, draw(spec, 0, 0, np.arange(16)), spec, (32, 32))
    span = made[:, 0, 16, -1] - made[:, 0, 16, 0]
    assert torch.allclose(span, torch.tensor(width[:16]) * 31 / 32 * (256 / 255), atol=0.03)


def test_colour_changes_mean_what_they_say():
    grey = torch.full((50, 3, 8, 8), 100, dtype=torch.uint8)
    for spec in (only(saturation=1.0), only(hue=0.5)):  # the grey axis stays where it is
        assert torch.allclose(apply(grey, draw(spec, 0, 0, np.arange(50)), spec, (8, 8)), grey / 255, atol=1e-4)
    spec = only(brightness=0.5)
    factors = apply(grey, draw(spec, 0, 0, np.arange(50)), spec, (8, 8))[:, 0, 0, 0] / (100 / 255)
    assert factors.min() > 0.49 and factors.max() < 1.51 and factors.std() > 0.2
    spec = only(contrast=0.5)
    middle = torch.full((50, 3, 8, 8), 127.5)
    assert torch.allclose(colour(middle, torch.as_tensor(draw(spec, 0, 0, np.arange(50))), spec), torch.tensor(0.5))
    spec = only(hue=0.5)
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(400, 3, 4, 4)
    made = apply(red, draw(spec, 0, 0, np.arange(400)), spec, (4, 4))[:, :, 0, 0]
    assert all(made[:, channel].max() > 0.7 for channel in range(3)), "red turns through all hues"


def test_erasing_greys_a_box_with_the_probability_that_was_asked_for():
    spec = only(erase=0.5)
    white = torch.full((400, 3, 32, 32), 255, dtype=torch.uint8)
    made = apply(white, draw(spec, 0, 0, np.arange(400)), spec, (32, 32))
    erased = (made == 0.5).float().mean((1, 2, 3))
    assert 150 < int((erased > 0).sum()) < 250 and erased.max() < 0.25 and ((made == 0.5) | (made == 1)).all()


def test_masks_move_with_their_images():
    images = pictures(4, 1)
    spec = only(crop_scale=(0.4, 0.9), rotation_degrees=30, horizontal_flip=True)
    grid = geometry(torch.as_tensor(draw(spec, 0, 0, np.arange(4))), spec, (32, 32))
    values = warp(images, grid, mode="nearest", reflect=True)
    assert torch.equal(values, values.round()) and set(values.unique().tolist()) <= set(range(256))
    mask = (images > 127).to(torch.uint8)
    assert torch.equal(warp(mask, grid, mode="nearest", reflect=True) > 0, values > 127)


def test_large_images_are_averaged_before_sampling():
    stripes = (torch.arange(256) % 2 * 255).to(torch.uint8).view(1, 1, 1, 256).expand(4, 3, 256, 256)
    spec = only(crop_scale=(0.9, 1.0))
    made = apply(stripes, draw(spec, 0, 0, np.arange(4)), spec, (32, 32))
    assert (made - 0.5).abs().max() < 0.15


def test_switching_one_thing_on_leaves_the_others_as_they_were():
    first = draw(only(rotation_degrees=10, brightness=0.3), 0, 0, np.arange(9))
    second = draw(only(rotation_degrees=10, brightness=0.3, erase=1.0, vertical_flip=True), 0, 0, np.arange(9))
    same = [column for column in range(21) if column != 5]
    assert np.array_equal(first[:, same], second[:, same])


def test_settings_out_of_range_are_refused():
    for bad in ({"crop_scale": (0, 1)}, {"crop_scale": (0.9, 0.1)}, {"hue": 0.6}, {"rotation_degrees": -1}, {"x": 1}):
        with pytest.raises(ValidationError):
            Augmentation(**bad)
    with pytest.raises(DataError, match="three channels"):
        apply(pictures(2, 1), draw(Augmentation(), 0, 0, [0, 1]), Augmentation(), (8, 8))


def test_normalise_is_per_channel():
    images = torch.rand(2, 3, 4, 4)
    made = normalise(images, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert torch.allclose(made[:, 1], (images[:, 1] - 0.2) / 0.6)


def test_a_batch_takes_a_few_milliseconds_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images, spec, times = pictures(32, 3, 80, 80), Augmentation(), []
        for epoch in range(20):
            start = time.perf_counter()
            apply(images, draw(spec, 0, epoch, np.arange(32)), spec, (64, 64))
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(times) < 6e-3
