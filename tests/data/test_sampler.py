import numpy as np
import pytest

from outlast.data.sampler import (
    OCCURRENCE,
    balanced,
    batch_bounds,
    batches_in,
    equal_batches,
    in_rounds,
    occurrence_keys,
    pixel_balanced,
    shuffled,
)
from outlast.errors import DataError


def test_shuffled_is_a_permutation_that_depends_on_seed_and_epoch():
    order = shuffled(1000, 1, 2)
    assert order.dtype == np.int64 and sorted(order) == list(range(1000))
    assert np.array_equal(order, shuffled(1000, 1, 2))
    for other in (shuffled(1000, 1, 3), shuffled(1000, 2, 2)):
        assert (other == order).mean() < 0.05
    assert len(shuffled(0, 0, 0)) == 0


def test_shuffled_never_changes_between_versions():
    assert shuffled(8, 0, 0).tolist() == [4, 6, 5, 0, 2, 3, 7, 1]


@pytest.mark.parametrize(("count", "size"), [(100, 32), (96, 32), (1, 32), (97, 8), (7, 7), (33, 32)])
def test_batches_are_nearly_equal_and_found_without_the_ones_before(count, size):
    order = shuffled(count, 0, 0)
    batches = equal_batches(order, size)
    assert np.array_equal(np.concatenate(batches), order)
    lengths = [len(batch) for batch in batches]
    assert len(batches) == batches_in(count, size) and max(lengths) <= size and max(lengths) - min(lengths) <= 1
    assert [part.tolist() for part in np.array_split(order, len(batches))] == [batch.tolist() for batch in batches]
    start, stop = batch_bounds(count, size, len(batches) - 1)
    assert np.array_equal(order[start:stop], batches[-1])


def test_balanced_gives_every_class_its_share_in_every_batch():
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    order = balanced(labels, 0, 0)
    assert np.bincount(labels[order]).tolist() == [334, 333, 333]
    for batch in equal_batches(order, 30):
        assert np.bincount(labels[batch], minlength=3).min() >= len(batch) // 3 - 1
    rare = np.bincount(order, minlength=1000)[990:]
    assert rare.max() - rare.min() <= 1, "whole rounds of a rare class, not chance"
    assert len(np.unique(order[labels[order] == 0])) == 334, "a common class is drawn without replacement"


def test_balanced_changes_with_the_epoch_and_obeys_shares():
    labels = np.array([0] * 80 + [1] * 20)
    assert not np.array_equal(balanced(labels, 0, 0), balanced(labels, 0, 1))
    assert np.array_equal(balanced(labels, 0, 5), balanced(labels, 0, 5))
    assert np.bincount(labels[balanced(labels, 0, 0, count=40, shares={0: 1, 1: 3})]).tolist() == [10, 30]
    with pytest.raises(DataError, match="classes"):
        balanced(labels, 0, 0, shares={0: 1, 7: 1})


def test_occurrence_keys_tell_repeated_rows_apart():
    rows = np.array([5, 3, 5, 5, 3, 9])
    assert occurrence_keys(rows).tolist() == [5, 3, 5 + OCCURRENCE, 5 + 2 * OCCURRENCE, 3 + OCCURRENCE, 9]
    assert occurrence_keys(np.array([], np.int64)).tolist() == []


def test_a_pixel_balanced_epoch_draws_each_class_from_rows_that_hold_it_in_the_shares_asked_for():
    pixels = np.array([[100, 0, 0, 0], [50, 50, 0, 0], [0, 10, 90, 0], [99, 0, 1, 0]])
    shares = {0: 0.1, 1: 0.35, 2: 0.4, 3: 0.15}  # class 3 exists nowhere: left out, the others scaled
    drawn = pixel_balanced(pixels, shares, 5, 2, count=850)
    wanted = drawn.columns["class_wanted"]
    assert np.bincount(wanted, minlength=4).tolist() == [100, 350, 400, 0]
    assert (pixels[drawn.positions, wanted] > 0).all()
    rows_for_debris = np.bincount(drawn.positions[wanted == 2], minlength=4)
    assert rows_for_debris.tolist() == [0, 0, 200, 200], "a row with one pixel of a class is as likely as a full one"
    again, other = pixel_balanced(pixels, shares, 5, 2, count=850), pixel_balanced(pixels, shares, 5, 3, count=850)
    assert np.array_equal(again.positions, drawn.positions) and not np.array_equal(other.positions, drawn.positions)
    first = np.bincount(wanted[:85], minlength=3)
    assert np.abs(first[:3] - [10, 35, 40]).max() <= 1, "every batch holds the shares, too"


def test_a_pixel_balanced_sampler_without_any_wanted_class_says_so():
    with pytest.raises(DataError, match="no row holds a pixel"):
        pixel_balanced([[5, 0]], {1: 1.0}, 0, 0, count=4)


def test_rounds_show_every_row_as_often_but_for_one_each_in_a_new_order():
    order = in_rounds(5, seed=3, epoch=2, count=13)
    assert order.dtype == np.int64 and len(order) == 13
    assert [sorted(order[:5]), sorted(order[5:10])] == [list(range(5))] * 2
    assert len(set(order[10:])) == 3
    assert order[:5].tolist() != order[5:10].tolist()
    other = in_rounds(5, seed=3, epoch=3, count=13)
    assert other.tolist() != order.tolist() and in_rounds(5, seed=3, epoch=2, count=13).tolist() == order.tolist()
    assert in_rounds(5, seed=3, epoch=2, count=5).tolist() == shuffled(5, 3, 2).tolist()
