import numpy as np
import pytest

from outlast.errors import DataError
from outlast.model import area_bootstrap as module
from outlast.model.area_bootstrap import bootstrap, paired_bootstrap
from outlast.model.partial_auc import auc, partial_auc


def make(seed=0, patients=30, rows=300, strength=1.0):
    rng = np.random.default_rng(seed)
    whose = rng.integers(0, patients, rows)
    labels = rng.random(rows) < 0.2 + 0.3 * (whose % 3 == 0)
    scores = rng.normal(size=rows) + strength * labels
    return labels, np.round(scores, 1), np.array([f"IP_{number:07}" for number in whose])


@pytest.mark.parametrize(("area", "function"), [("pauc", partial_auc), ("auc", auc)])
def test_resamples_equal_a_loop_that_copies_rows(area, function):
    labels, scores, patients = make()
    curve = module._Curve(labels, scores, patients, area)
    drawn = np.concatenate(list(curve.draws(3, 40)), axis=1)
    rows_of = [np.flatnonzero(patients == name) for name in np.unique(patients)]
    for number, made in enumerate(curve.areas(drawn)):
        rows = np.concatenate([np.tile(rows_of[at], int(times)) for at, times in enumerate(drawn[:, number])])
        assert made == pytest.approx(function(labels[rows], scores[rows]), abs=1e-12)


def test_the_interval_is_a_function_of_data_and_seed_in_any_order_and_in_any_parts(monkeypatch):
    labels, scores, patients = make()
    first = bootstrap(labels, scores, patients, seed=1, resamples=200)
    order = np.random.default_rng(2).permutation(len(labels))
    assert bootstrap(labels[order], scores[order], patients[order], seed=1, resamples=200) == first
    assert bootstrap(labels, scores, patients, seed=2, resamples=200) != first
    monkeypatch.setattr(module, "_MOST_NUMBERS", 1000)
    assert bootstrap(labels, scores, patients, seed=1, resamples=200) == first
    assert first.value == partial_auc(labels, scores) and first.low < first.value < first.high
    assert first.resamples == 200 and first.above_zero == 1.0


def test_patients_that_are_alike_within_make_the_interval_wider_than_lesions_would():
    rng = np.random.default_rng(0)
    whose = np.repeat(np.arange(40), 20)
    labels = whose % 3 == 0
    scores = labels + rng.normal(size=40)[whose] + 0.1 * rng.normal(size=800)
    by_patient = bootstrap(labels, scores, whose, area="auc", resamples=300)
    by_lesion = bootstrap(labels, scores, np.arange(800), area="auc", resamples=300)
    assert by_lesion.value == by_patient.value
    assert by_patient.high - by_patient.low > 2 * (by_lesion.high - by_lesion.low)


def test_a_better_score_is_seen_and_an_equal_one_is_not():
    labels, scores, patients = make(rows=2000, patients=100)
    noise = np.random.default_rng(9).normal(size=len(labels))
    better = paired_bootstrap(labels, scores + labels, scores, patients, resamples=300)
    assert better.low > 0 and better.above_zero == 1.0
    assert better.value == partial_auc(labels, scores + labels) - partial_auc(labels, scores)
    worse = paired_bootstrap(labels, scores, scores + labels, patients, resamples=300)
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low), abs=1e-12)
    same = paired_bootstrap(labels, scores, np.exp(scores), patients, resamples=300)
    assert (same.value, same.low, same.high, same.above_zero) == (0, 0, 0, 0)
    chance = paired_bootstrap(labels, noise, np.roll(noise, 1), patients, area="auc", resamples=300)
    assert chance.low < 0 < chance.high


def test_pairing_tells_more_than_two_intervals_do():
    labels, scores, patients = make(rows=1000, patients=60)
    slightly = scores + 0.3 * labels
    pair = paired_bootstrap(labels, slightly, scores, patients, area="auc", resamples=300)
    alone = bootstrap(labels, scores, patients, area="auc", resamples=300)
    assert pair.high - pair.low < (alone.high - alone.low) / 2


def test_resamples_without_a_class_do_not_count():
    labels = np.array([1, 1] + [0] * 20)
    result = bootstrap(labels, np.arange(22), np.arange(22), area="auc", resamples=500)
    assert 350 < result.resamples < 480  # (1 - 2/22)**22 = 0.12 of them have neither positive


def test_one_patient_with_all_positives_is_an_error():
    with pytest.raises(DataError, match="all positives are of one patient"):
        bootstrap([1, 1, 0, 0], [4, 3, 2, 1], ["a", "a", "b", "c"])
    with pytest.raises(DataError, match="all negatives are of one patient"):
        bootstrap([1, 1, 0, 0], [4, 3, 2, 1], ["a", "d", "b", "b"])
    with pytest.raises(DataError, match="1 of them missing"):
        bootstrap([1, 1, 0, 0], [4, 3, 2, 1], ["a", "d", "b", None])
    with pytest.raises(DataError, match="needs both classes"):
        bootstrap([0, 0], [4, 3], ["a", "b"])
