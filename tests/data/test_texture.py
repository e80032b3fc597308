import math
import tracemalloc

import numpy as np
import pytest
from pydantic import ValidationError
from skimage.feature import graycomatrix, graycoprops

from outlast.data.texture import Texture, glcm, quantised, with_texture
from outlast.errors import DataError


def picture(height: int = 24, width: int = 21, seed: int = 0) -> np.ndarray:
    """Smooth in parts and rough in others, so that windows hold few pairs of levels and many."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    return (np.cumsum(noise, axis=1) * (np.arange(height) % 9 > 3)[:, None]).astype(np.float32)


def by_scikit_image(levels: np.ndarray, settings: Texture) -> np.ndarray:
    """What scikit-image says of every window, cut off at the border of the image."""
    half = settings.window // 2
    result = np.empty((2, *levels.shape))
    for y, x in np.ndindex(*levels.shape):
        window = levels[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
        matrix = graycomatrix(
            window, settings.distances, np.deg2rad(settings.angles), settings.levels, settings.symmetric, normed=True
        )
        result[:, y, x] = [graycoprops(matrix, name).mean() for name in ("contrast", "energy")]
    return result


def by_counting(levels: np.ndarray, settings: Texture) -> np.ndarray:
    """The definition, pair by pair: also where pixels are not observed (level = settings.levels) or no pair exists."""
    half = settings.window // 2
    result = np.full((2, *levels.shape), np.nan)
    for y, x in np.ndindex(*levels.shape):
        window = levels[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1].astype(int)
        found = []
        for down, right in settings.steps:
            matrix = np.zeros((settings.levels, settings.levels))
            for a, b in np.ndindex(*window.shape):
                if 0 <= a + down < window.shape[0] and 0 <= b + right < window.shape[1]:
                    i, j = window[a, b], window[a + down, b + right]
                    if max(i, j) < settings.levels:
                        matrix[i, j] += 1
                        matrix[j, i] += settings.symmetric
            if matrix.any():
                p = matrix / matrix.sum()
                i, j = np.indices(p.shape)
                found.append(((p * (i - j) ** 2).sum(), math.sqrt((p**2).sum())))
        if found:
            result[:, y, x] = np.mean(found, axis=0)
    return result


@pytest.mark.parametrize(
    "settings",
    [
        Texture(),
        Texture(levels=32, window=5, symmetric=False),
        Texture(levels=256, window=3, angles=(90.0,)),
        Texture(levels=8, window=9, distances=(1, 3), angles=(0.0, 30.0, 200.0, 300.0)),
        Texture(levels=4, symmetric=False, angles=(225.0, 180.0, 315.0)),
    ],
    ids=lambda settings: f"window {settings.window}, levels {settings.levels}",
)
def test_every_window_has_the_numbers_of_scikit_image(settings):
    image = picture()
    levels = quantised(image, settings.levels, (-4.0, 4.0))
    assert len(np.unique(levels)) > min(settings.levels, 40) // 2
    found = glcm(image, settings, (-4.0, 4.0))
    assert found.dtype == np.float32 and found.shape == (2, *image.shape)
    np.testing.assert_allclose(found, by_scikit_image(levels, settings), rtol=1e-6, atol=1e-6)


def test_three_by_three_by_hand():
    image = np.array([[0, 0, 1], [0, 2, 1], [2, 2, 1]])
    settings = Texture(window=3, levels=3, angles=(0.0,), symmetric=False)
    contrast, energy = glcm(image, settings, (0, 3))
    # In the middle: 00 01 | 02 21 | 22 21: twice 21, four others once; squared differences 0 1 4 1 0 1.
    assert contrast[1, 1] == pytest.approx(7 / 6) and energy[1, 1] == pytest.approx(math.sqrt(8) / 6)
    # Both ways round there are 12: 00 and 22 twice; 01 10 02 20 once; 12 21 twice.
    both = glcm(image, Texture(window=3, levels=3, angles=(0.0,)), (0, 3))[:, 1, 1]
    assert both[0] == pytest.approx(7 / 6) and both[1] == pytest.approx(math.sqrt(4 + 4 + 4 + 4 + 4) / 12)
    # In the corner: 00 | 02.
    assert contrast[0, 0] == pytest.approx(2) and energy[0, 0] == pytest.approx(math.sqrt(2) / 2)
    # Four angles, average of their numbers: 90 degrees has 00 02 | 02 22 | 11 11 in the middle.
    upward = glcm(image, Texture(window=3, levels=3, angles=(90.0,)), (0, 3))[:, 1, 1]
    both_angles = glcm(image, Texture(window=3, levels=3, angles=(0.0, 90.0)), (0, 3))[:, 1, 1]
    assert upward[0] == pytest.approx(8 / 6)
    assert both_angles == pytest.approx((both + upward) / 2)


def test_a_constant_image_has_contrast_0_and_energy_1():
    contrast, energy = glcm(np.full((9, 12), 3.0), Texture(), (0, 10))
    assert (contrast == 0).all() and (energy == 1).all()


def test_pixels_that_were_not_observed_take_no_part():
    image = picture()
    image[np.random.default_rng(1).random(image.shape) < 0.3] = np.nan
    image[3, 4], image[5, 6] = np.inf, -np.inf
    image[:, 10:18] = np.nan
    for settings in (Texture(levels=6, window=5), Texture(levels=6, window=5, symmetric=False)):
        found = glcm(image, settings, (-4.0, 4.0))
        expected = by_counting(quantised(image, 6, (-4.0, 4.0)), settings)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        assert np.isnan(found[:, :, 12:16]).all() and np.isfinite(found[:, 5:, 18:]).all()
    assert np.isnan(glcm(np.full((4, 4), np.nan), Texture(), (0, 1))).all()


def test_an_angle_without_a_pair_is_left_out_and_a_window_without_any_is_nan():
    row = np.array([[0.0, 1.0, 0.0, 1.0]])
    found = glcm(row, Texture(levels=2, window=3), (0, 2))  # only 0 degrees has pairs
    np.testing.assert_array_equal(found[0], [[1, 1, 1, 1]])
    np.testing.assert_allclose(found[1], np.full((1, 4), math.sqrt(0.5)), rtol=1e-7)
    assert np.isnan(glcm(row[:, :1], Texture(), (0, 2))).all()
    assert glcm(np.zeros((0, 5)), Texture(), (0, 1)).shape == (2, 0, 5)


def test_levels_divide_the_range_equally_and_hold_what_lies_beyond():
    values = np.array([[-5.0, 0.0, 0.249, 0.25, 0.999, 1.0, 7.0, np.nan, np.inf]])
    assert quantised(values, 4, (0.0, 1.0)).tolist() == [[0, 0, 0, 1, 3, 3, 3, 4, 4]]
    dn = np.arange(256, dtype=np.uint8)[None]
    assert (quantised(dn, 16, (0, 256)) == dn // 16).all()


def test_the_size_of_the_blocks_changes_no_bit():
    image = picture(60, 53)
    image[20:22, 30:40] = np.nan
    whole = glcm(image, Texture(), (-4.0, 4.0), working_bytes=2**30)
    for working_bytes in (9_000, 20_000, 60_000, 200_000):
        np.testing.assert_array_equal(glcm(image, Texture(), (-4.0, 4.0), working_bytes=working_bytes), whole)
    small = image[15:30, 25:38]
    by_pixel = glcm(small, Texture(), (-4.0, 4.0), working_bytes=1)
    np.testing.assert_array_equal(by_pixel, glcm(small, Texture(), (-4.0, 4.0)))
    part = glcm(image[10:50, 10:40], Texture(), (-4.0, 4.0))  # away from the cut, also in a tile of the scene
    np.testing.assert_array_equal(part[:, 3:-3, 3:-3], whole[:, 13:47, 13:37])


def test_memory_stays_within_what_was_allowed():
    image = picture(400, 500)
    allowed = 2**21
    tracemalloc.start()
    try:
        result = glcm(image, Texture(levels=256), (-4.0, 4.0), working_bytes=allowed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < 1.05 * allowed


@pytest.mark.parametrize("seed", range(25))
def test_random_settings_agree_with_the_definition(seed):
    random = np.random.default_rng(seed)
    window = int(random.choice([3, 5, 7, 9]))
    settings = Texture(
        window=window,
        distances=tuple(random.integers(1, window, size=random.integers(1, 3)).tolist()),
        angles=tuple(random.choice(np.arange(0, 360, 15.0), size=random.integers(1, 4)).tolist()),
        levels=int(random.choice([2, 3, 16, 22, 23, 100])),
        symmetric=bool(random.integers(2)),
    )
    image = random.normal(size=random.integers(1, 14, size=2)).cumsum(axis=1)
    image[random.random(image.shape) < random.choice([0.0, 0.2, 0.6])] = np.nan
    found = glcm(image, settings, (-2.0, 2.0), working_bytes=int(random.integers(1, 60_000)))
    expected = by_counting(quantised(image, settings.levels, (-2.0, 2.0)), settings)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_textures_stand_behind_the_bands():
    bands = np.stack([picture(seed=n) for n in range(3)])
    bands[0, 2, 3] = np.nan
    made = with_texture(bands, Texture(), 1, (-4.0, 4.0))
    assert made.shape == (5, *bands.shape[1:]) and made.dtype == np.float32
    np.testing.assert_array_equal(made[:3], bands)
    np.testing.assert_array_equal(made[3:], glcm(bands[1], Texture(), (-4.0, 4.0)))


def test_what_cannot_be_is_refused():
    for bad in (
        {"window": 6}, {"window": 1}, {"levels": 1}, {"levels": 257}, {"distances": ()}, {"angles": ()},
        {"distances": (0,)}, {"distances": (7,)}, {"window": 3, "distances": (1, 3)}, {"size": 7},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            Texture(**bad)
    with pytest.raises(DataError, match="one band"):
        glcm(np.zeros((2, 4, 4)), Texture(), (0, 1))
    for low, high in ((1, 1), (2, 1), (0, math.nan), (-math.inf, 0)):
        with pytest.raises(DataError, match="grey levels"):
            glcm(np.zeros((4, 4)), Texture(), (low, high))
