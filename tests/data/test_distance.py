"""Signed distances equal a search over all pixels."""

from __future__ import annotations

import numpy as np

from outlast.data.distance import FARTHEST, signed_distance


def by_search(inside: np.ndarray) -> np.ndarray:
    found = np.zeros(inside.shape)
    for place in np.ndindex(inside.shape):
        others = np.argwhere(inside != inside[place])
        nearest = np.sqrt(((others - place) ** 2).sum(axis=1)).min()
        found[place] = -nearest if inside[place] else nearest
    return np.clip(found, -FARTHEST, FARTHEST)


def test_equals_a_search_over_all_pixels() -> None:
    mask = np.random.default_rng(0).choice([0, 1, 2, 255], size=(9, 11), p=[0.5, 0.3, 0.1, 0.1]).astype(np.uint8)
    found = signed_distance(mask, 3)
    assert found.shape == (3, 9, 11) and found.dtype == np.float16
    for number in range(3):
        np.testing.assert_array_equal(found[number], by_search(mask == number).astype(np.float16))


def test_by_hand_in_a_row() -> None:
    mask = np.array([[0, 0, 0, 1, 255]], np.uint8)
    np.testing.assert_array_equal(signed_distance(mask, 3), [[[-3, -2, -1, 1, 2]], [[3, 2, 1, -1, 1]], [[0] * 5]])


def test_no_distance_where_there_is_no_boundary() -> None:
    assert not signed_distance(np.ones((4, 4), np.uint8), 2).any()


def test_far_away_is_cut_off() -> None:
    mask = np.zeros((1, 300), np.uint8)
    mask[0, 150:] = 1
    found = signed_distance(mask, 2)
    assert found.min() == -FARTHEST and found.max() == FARTHEST
    np.testing.assert_array_equal(found[1, 0, 140:160], [*range(10, 0, -1), *range(-1, -11, -1)])
