"""The classical model finds copies that were moved, turned ones by keypoints, and nothing where nothing was copied."""

import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from outlast.data.procedural import Dice
from outlast.data.readers import read_image
from outlast.errors import TaskError
from outlast.model.forgery_metrics import pixel_f1
from outlast.tasks.forgeries import keypoints
from outlast.tasks.forgeries.classical import ClassicalSettings, detect
from outlast.tasks.forgeries.composer import Composition, compose, draw

SHIFTS = ClassicalSettings(keypoints=False)
WITH_KEYPOINTS = ClassicalSettings()
PLAIN = Composition(
    authentic=0, rotate=0, scale=0, flip=0, brightness=0, soft_edge=0, jpeg=0, decoy=0, most_sources=1,
    smallest_side=18, elongation=1.3,
)  # fmt: skip


def photo(seed=0, height=150, width=190):
    """Something like a photo: structure of all sizes, and a little noise."""
    dice = Dice(seed, 0)
    grey = 120 + 45 * dice.fractal((height, width), 40, 6, 0.7) + 1.5 * dice.bell(height, width)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def forgery(seed, settings=PLAIN, **size):
    result = compose(photo(seed, **size), draw(seed, 0, [0])[0], settings)
    assert result.mask.any()
    return result


@pytest.fixture
def moved():
    return forgery(3)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_what_was_moved_is_marked_source_and_copies(seed):
    composed = forgery(seed)
    found = detect(composed.image, SHIFTS)
    assert found.probability.shape == composed.mask.shape
    assert found.score > SHIFTS.least_evidence
    assert pixel_f1(found.probability >= 0.5, composed.mask) > 0.75


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_marked_where_nothing_was_copied(seed):
    found = detect(photo(seed), SHIFTS)
    assert found.score < SHIFTS.least_evidence
    assert not (found.probability >= 0.5).any()


def test_a_copy_in_a_smooth_region_is_found_by_its_noise():
    dice = Dice(9, 0)
    grey = 150 + 10 * dice.fractal((140, 160), 90, 2) + ndimage.gaussian_filter(3 * dice.bell(140, 160), 0.6)
    grey[90:120, 100:130] = grey[20:50, 30:60]
    image = np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)
    truth = np.zeros((140, 160), bool)
    truth[90:120, 100:130] = truth[20:50, 30:60] = True
    assert pixel_f1(detect(image, SHIFTS).probability >= 0.5, truth) > 0.8


def test_what_repeats_itself_is_no_copy():
    rows, columns = np.mgrid[0:150, 0:190]
    wave = 120 + 50 * np.sin(rows / 2.5) * np.cos(columns / 3.1) + 3 * Dice(1, 0).bell(150, 190)
    image = np.repeat(wave.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    assert not (detect(image, SHIFTS).probability >= 0.5).any()


@pytest.mark.parametrize("change", ["turned", "scaled", "mirrored"])
def test_turned_scaled_and_mirrored_copies_are_found_by_keypoints_only(change):
    image = photo(5, 200, 260).copy()
    part = Image.fromarray(image[30:100, 20:90])
    copy = {
        "turned": part.rotate(35, Image.Resampling.BICUBIC),
        "scaled": part.resize((88, 88), Image.Resampling.BICUBIC),
        "mirrored": part.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }[change]
    side = copy.size[0]
    y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2
    disc = y * y + x * x <= (side / 2 - 2) ** 2
    image[100 : 100 + side, 150 : 150 + side][disc] = np.asarray(copy)[disc]
    truth = np.zeros(image.shape[:2], bool)
    truth[100 : 100 + side, 150 : 150 + side] = disc
    y, x = np.mgrid[0:70, 0:70] - 34.5
    truth[30:100, 20:90] = y * y + x * x <= 33.0**2
    assert pixel_f1(detect(image, WITH_KEYPOINTS).probability >= 0.5, truth) > 0.75
    assert pixel_f1(detect(image, SHIFTS).probability >= 0.5, truth) < 0.3


@pytest.mark.real_data
def test_turned_copies_in_small_photos_are_found_because_these_are_enlarged(real_data, monkeypatch):
    photo = read_image(real_data / "forgeries" / "crops256" / "images" / "fau_clean_walls_01.jpg")
    turned = PLAIN.model_copy(update={"rotate": 1.0, "smallest_side": 24.0})
    composed = compose(photo, draw(11, 0, [0])[0], turned)
    assert pixel_f1(detect(composed.image, WITH_KEYPOINTS).probability >= 0.5, composed.mask) > 0.8
    monkeypatch.setattr(keypoints, "_ENLARGED", 1.0)
    assert pixel_f1(detect(composed.image, WITH_KEYPOINTS).probability >= 0.5, composed.mask) < 0.5


def test_the_same_image_gives_the_same_result_and_opencv_keeps_its_threads(moved):
    import cv2

    before = cv2.getNumThreads()
    first, second = (detect(moved.image, WITH_KEYPOINTS) for _ in range(2))
    assert first.score == second.score
    np.testing.assert_array_equal(first.probability, second.probability)
    assert cv2.getNumThreads() == before


def test_without_opencv_the_error_names_the_extra_and_shifts_are_still_found(moved, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(TaskError) as caught:
        detect(moved.image, WITH_KEYPOINTS)
    assert "outlast[opencv]" in str(caught.value)
    assert detect(moved.image, SHIFTS).score > 0


@pytest.mark.parametrize("size", [(1, 1), (12, 40), (20, 20), (64, 74)])
def test_small_and_flat_images_are_searched_without_ado(size):
    for image in (np.full((*size, 3), 200, np.uint8), photo(1, *size)):
        found = detect(image, WITH_KEYPOINTS)
        assert found.probability.shape == size
        assert found.score < WITH_KEYPOINTS.least_evidence


def test_a_large_image_is_searched_at_the_limit_and_marked_at_its_own_size():
    composed = forgery(2, PLAIN.model_copy(update={"smallest_side": 40.0}), height=300, width=380)
    found = detect(composed.image, SHIFTS.model_copy(update={"longest_side": 190}))
    assert found.scale == 0.5
    assert found.probability.shape == (300, 380)
    assert pixel_f1(found.probability >= 0.5, composed.mask) > 0.6
