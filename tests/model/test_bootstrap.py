"""The cluster bootstrap gives what drawing scenes and scoring them one draw after the other gives."""

import numpy as np
import pytest

from outlast.model.bootstrap import Draws, draw_groups, drawn_scores, interval
from outlast.model.multilabel_metrics import multilabel

NAMES = ("fire", "smoke")


@pytest.fixture
def scored():
    dice = np.random.default_rng(3)
    labels = (dice.random((60, 2)) < 0.4).astype(np.float32)
    logits = np.round(labels + dice.normal(0, 1, (60, 2)), 1)  # with ties
    groups = [f"scene {number % 7}" for number in range(60)]
    return logits, labels, groups


def test_every_draw_scores_as_its_samples_written_out(scored):
    logits, labels, groups = scored
    draws = draw_groups(groups, number=25, seed=1)
    found = drawn_scores(logits, labels, NAMES, (0.5, 0.6), draws)
    for number, counts in enumerate(draws.counts):
        rows = np.repeat(np.arange(60), counts[draws.of_sample])
        expected = multilabel(logits[rows], labels[rows], NAMES, (0.5, 0.6))
        for name in ("macro_f1", "macro_auc", "exact_match", "hamming"):
            assert found[name][number] == pytest.approx(expected[name], nan_ok=True), name
        for label in NAMES:
            for score in ("f1", "precision", "recall", "auc"):
                assert found[f"{label} {score}"][number] == pytest.approx(expected[label][score], nan_ok=True)


def test_scenes_are_drawn_whole_and_the_same_for_the_same_seed(scored):
    _, _, groups = scored
    one, two, other = (draw_groups(groups, number=50, seed=seed) for seed in (0, 0, 1))
    assert one.groups == 7
    assert (one.counts.sum(axis=1) == 7).all()
    assert np.array_equal(one.counts, two.counts)
    assert not np.array_equal(one.counts, other.counts)


def test_in_parts_it_is_the_same(scored, monkeypatch):
    logits, labels, groups = scored
    draws = draw_groups(groups, number=40)
    whole = drawn_scores(logits, labels, NAMES, (0.5, 0.5), draws)
    monkeypatch.setattr("outlast.model.bootstrap._AT_ONCE", 100)
    parts = drawn_scores(logits, labels, NAMES, (0.5, 0.5), draws)
    assert all(np.array_equal(whole[name], parts[name], equal_nan=True) for name in whole)


def test_an_interval_that_the_data_do_not_give_is_none():
    values = np.linspace(0, 1, 1001)
    assert interval(values) == pytest.approx((0.025, 0.975))
    values[:100] = np.nan
    assert interval(values) is None


def test_one_group_gives_no_spread(scored):
    logits, labels, _ = scored
    draws = Draws(np.ones((10, 1), np.int64), np.zeros(60, np.int64))
    found = drawn_scores(logits, labels, NAMES, (0.5, 0.5), draws)
    assert len(set(found["macro_f1"])) == 1
