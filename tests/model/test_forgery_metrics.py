"""The official metric's known answers, its text both ways, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from outlast.errors import DataError
from outlast.model.forgery_metrics import AUTHENTIC, decode, encode, optimal_f1, pixel_f1

SHAPE = (720, 960)


def official(truths: list[str], predictions: list[str]) -> float:
    scores = [optimal_f1(decode(p, SHAPE), decode(t, SHAPE)) for t, p in zip(truths, predictions, strict=True)]
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("truths", "predictions", "score"),
    [
        ([AUTHENTIC] * 3, [AUTHENTIC] * 3, 1.0),
        ([AUTHENTIC] * 3, ["[101, 102]"] * 3, 0.0),
        (["[101, 102]"] * 3, [AUTHENTIC] * 3, 0.0),
        (["[101, 102]"] * 3, ["[101, 102]"] * 3, 1.0),
        (["[101, 103]", "[101, 102]", "[101, 102]"], ["[101, 102]"] * 3, 0.9983739837398374),
        (["[101, 102];[300, 100]", "[101, 102]", "[101, 102]"], ["[101, 102]"] * 3, 0.8333333333333334),
        (["[101, 102]"], ["[101, 102];[300, 100];[600, 5]"], 1 / 3),
    ],
)
def test_known_answers_of_the_official_metric(truths: list[str], predictions: list[str], score: float) -> None:
    assert official(truths, predictions) == pytest.approx(score, abs=1e-15)


def test_the_best_assignment_is_found_where_the_greedy_one_is_not() -> None:
    generator = np.random.default_rng(0)
    differ = 0
    for count, true_count in itertools.product(range(1, 5), range(1, 5)):
        predicted = generator.random((count, 6, 9)) < 0.4
        truth = generator.random((true_count, 6, 9)) < 0.4
        f1 = np.array([[pixel_f1(one, other) for other in truth] for one in predicted])
        wide = f1 if count <= true_count else f1.T
        everything = [
            sum(wide[row, column] for row, column in enumerate(columns))
            for columns in itertools.permutations(range(wide.shape[1]), len(wide))
        ]
        differ += sum(wide.max(axis=1)) > max(everything) + 1e-9
        assert optimal_f1(predicted, truth) == pytest.approx(max(everything) / max(count, true_count))
    assert differ > 3  # several instances want the same partner, so the assignment mattered


def test_an_instance_without_a_pixel_matches_nothing() -> None:
    empty, full = np.zeros((1, 4, 5), np.uint8), np.ones((1, 4, 5), np.uint8)
    assert optimal_f1(empty, empty) == 0 and optimal_f1(empty, full) == 0
    assert optimal_f1(np.concatenate([full, empty]), full) == 0.5


@pytest.mark.parametrize("shape", [(7, 13), (13, 7), (1, 9), (9, 1)])
def test_text_of_random_masks_comes_back(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    for share in (0.05, 0.5, 0.95, 1.0):
        masks = generator.random((3, *shape)) < share
        masks[:, 0, 0] = True
        assert np.array_equal(decode(encode(masks), shape), masks)


def test_text_runs_down_the_columns_and_counts_from_1() -> None:
    mask = np.array([[[0, 1, 0], [1, 1, 0]], [[0, 0, 0], [0, 0, 1]]], np.uint8)
    assert encode(mask) == "[2, 3];[6, 1]"


def test_instances_without_a_pixel_are_left_out() -> None:
    mask = np.zeros((2, 3, 4), bool)
    assert encode(mask) == encode(mask[:0]) == AUTHENTIC
    mask[1, 2, 0] = True
    assert encode(mask) == "[3, 1]"
    assert decode(AUTHENTIC, (3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize(
    "text",
    ["", "Authentic", "[1, 2, 3]", "[1.5, 2]", "[true, 2]", "1 2", "{}", "[1, 2];"]
    + [f"[{runs}]" for runs in ("5, 2, 1, 2", "1, 3, 3, 2", "0, 2", "3, 0", "3, -1", "12, 2")],
)
def test_what_is_no_annotation_is_named(text: str) -> None:
    with pytest.raises(DataError, match=r"of an annotation|an annotation holds"):
        decode(text, (3, 4))


def test_runs_may_touch_and_end_with_the_image() -> None:
    assert decode("[1, 3, 4, 9]", (3, 4)).all()


def test_pixel_f1_by_hand_and_on_valid_pixels() -> None:
    truth = np.array([[1, 1, 0, 0], [0, 0, 0, 1]])
    predicted = np.array([[1, 0, 1, 0], [0, 0, 0, 0]])
    assert pixel_f1(predicted, truth) == pytest.approx(2 / (2 + 3))
    assert pixel_f1(predicted, truth, np.array([[1, 1, 0, 1], [1, 1, 1, 0]])) == pytest.approx(2 / (1 + 2))
    assert pixel_f1(truth, truth) == 1 and pixel_f1(0 * truth, truth) == 0
    assert math.isnan(pixel_f1(predicted, 0 * truth)) and math.isnan(pixel_f1(predicted, truth, 0 * truth))


def test_masks_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="of one image"):
        optimal_f1(np.ones((1, 3, 4)), np.ones((1, 4, 3)))
    with pytest.raises(ValueError, match="one shape"):
        pixel_f1(np.ones((3, 4)), np.ones((1, 3, 4)))
