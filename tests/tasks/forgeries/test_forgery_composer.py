"""Composed forgeries: exact masks, no overlap, the same for the same numbers, and what is copied stands there twice."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from outlast.tasks.forgeries.composer import NUMBERS, Composition, compose, draw

# Nothing but copies, as they are: what stands at a target is what stands at its source.
PLAIN = Composition(
    authentic=0, rotate=0, scale=0, flip=0, subpixel=0, brightness=0, soft_edge=0, jpeg=0, decoy=0, edge_pixels=1
)


def photo(number=0, height=120, width=160):
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)


def many(settings, count=60, **size):
    for number, numbers in enumerate(draw(0, 0, np.arange(count))):
        yield photo(number, **size), compose(photo(number, **size), numbers, settings)


def regions(mask):
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return [labels == number + 1 for number in range(count)]


def test_the_result_depends_on_photo_numbers_and_settings_alone():
    settings = Composition()
    rows = draw(4, 2, [7, 8, 9])
    assert rows.shape == (3, NUMBERS)
    np.testing.assert_array_equal(draw(4, 2, [9])[0], rows[2])
    for numbers in rows:
        original = photo()
        first, second = compose(original, numbers, settings), compose(original, numbers, settings)
        np.testing.assert_array_equal(original, photo())
        for one, other in zip(first, second, strict=True):
            assert one.dtype == np.uint8
            np.testing.assert_array_equal(one, other)


def test_pixels_change_only_where_the_mask_says_that_they_were_copied():
    changed = 0
    for original, result in many(PLAIN):
        differs = (result.image != original).any(axis=2)
        assert not (differs & (result.mask == 0)).any()
        changed += int(differs.sum())
        np.testing.assert_array_equal(result.mask, result.instances.any(axis=0))
    assert changed > 10_000


def test_every_region_of_an_instance_shows_the_same():
    seen = 0
    for original, result in many(PLAIN):
        for instance in result.instances:
            parts = regions(instance)
            assert 2 <= len(parts) <= 4
            pictures = [result.image[part] for part in parts]
            for picture in pictures[1:]:
                np.testing.assert_array_equal(picture, pictures[0])
            # One of them is the source, and as it was.
            unchanged = [np.array_equal(result.image[part], original[part]) for part in parts]
            assert sum(unchanged) == 1
            seen += 1
    assert seen > 40


@pytest.mark.parametrize("changes", [{"rotate": 1.0}, {"scale": 1.0}, {"flip": 1.0}, {"rotate": 1.0, "scale": 1.0}])
def test_masks_of_turned_and_scaled_copies_cover_what_changed_and_are_exact(changes):
    settings = PLAIN.model_copy(update=changes)
    areas = []
    for original, result in many(settings):
        differs = (result.image != original).any(axis=2)
        assert not (differs & (result.mask == 0)).any()
        for instance in result.instances:
            parts = regions(instance)
            source = [part for part in parts if not differs[part].any()]
            copies = [part for part in parts if differs[part].any()]
            assert len(source) == 1
            # Noise differs nearly everywhere once it stands elsewhere: the mask is not larger than what was put there.
            assert all(differs[copy].mean() > 0.95 for copy in copies)
            areas += [copy.sum() / source[0].sum() for copy in copies]
    low, high = settings.scale_range if settings.scale else (1.0, 1.0)
    assert 0.8 * low**2 < min(areas)
    assert max(areas) < 1.2 * high**2
    assert (max(areas) > 1.3) == bool(settings.scale)


def test_a_smooth_photo_is_moved_to_where_the_mask_says_also_between_pixels():
    rows, columns = np.mgrid[0:120, 0:160] / 11.0
    smooth = np.dstack([127 + 60 * np.sin(rows + k) * np.cos(columns * (1 + k / 3)) for k in range(3)])
    smooth = smooth.astype(np.uint8)
    settings = PLAIN.model_copy(update={"subpixel": 1.0, "most_sources": 1, "most_copies": 1})
    for numbers in draw(1, 0, np.arange(30)):
        result = compose(smooth, numbers, settings)
        for instance in result.instances:
            parts = sorted(regions(instance), key=lambda part: (result.image[part] != smooth[part]).any())
            (y0, x0), (y1, x1) = (ndimage.center_of_mass(part) for part in parts)
            shifted = ndimage.shift(smooth.astype(float), (y1 - y0, x1 - x0, 0), order=1, mode="nearest")
            inner = ndimage.binary_erosion(parts[1], iterations=2)
            # The middles of two masks tell the shift to about half a pixel; a wrong one would be off by tens of levels.
            assert np.abs(shifted - result.image)[inner].mean() < 6


def test_sizes_reach_from_the_smallest_side_to_a_third_of_the_image():
    settings = PLAIN.model_copy(update={"elongation": 1.0, "most_copies": 1, "most_sources": 1})
    sides = [
        float(np.sqrt(part.sum()))
        for _, result in many(settings, 150, height=200, width=220)
        for instance in result.instances
        for part in regions(instance)
    ]
    assert min(sides) < 12
    assert 50 < max(sides) < 0.36 * 200
    assert np.median(sides) < 40


def test_the_share_of_authentic_images_is_as_set_and_they_are_left_as_they_are():
    settings = PLAIN.model_copy(update={"authentic": 0.4})
    results = list(many(settings, 300, height=80, width=90))
    authentic = [result for _, result in results if not len(result.instances)]
    assert 0.3 < len(authentic) / len(results) < 0.55
    for original, result in results:
        if not len(result.instances):
            np.testing.assert_array_equal(result.image, original)
            assert not result.mask.any()


def test_a_decoy_changes_an_image_but_marks_nothing():
    settings = PLAIN.model_copy(update={"authentic": 1.0, "decoy": 1.0})
    changed = [(result.image != original).any() for original, result in many(settings) if not result.mask.any()]
    assert len(changed) == 60
    assert np.mean(changed) > 0.9


@pytest.mark.parametrize("size", [(20, 20), (64, 74), (14, 300), (31, 40)])
def test_images_of_any_size_are_served_and_the_smallest_stay_authentic(size):
    for original, result in many(Composition(authentic=0), 20, height=size[0], width=size[1]):
        assert result.image.shape == original.shape
        assert result.instances.shape[1:] == size
        if size == (20, 20):
            assert not result.mask.any()


def test_what_cannot_be_is_refused():
    for wrong in ({"scale_range": (2.0, 1.0)}, {"jpeg_quality": (95, 60)}, {"most_copies": 9}, {"copies": 2}):
        with pytest.raises(ValidationError):
            Composition(**wrong)
