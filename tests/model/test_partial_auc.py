import math
import pickle
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import auc as trapezoid
from sklearn.metrics import roc_auc_score, roc_curve

from outlast.errors import DataError
from outlast.model.partial_auc import PartialAUC, auc, partial_auc


def by_definition(labels, scores, share=0.2):
    """Flipped ROC curve, cut at a false positive rate of `share` with the point there interpolated, by trapezoids."""
    rate, height, _ = roc_curve(1 - np.asarray(labels, int), -np.asarray(scores), drop_intermediate=False)
    stop = np.searchsorted(rate, share, side="right")
    last = np.interp(share, rate[stop - 1 : stop + 1], height[stop - 1 : stop + 1])
    return trapezoid([*rate[:stop], share], [*height[:stop], last])


def by_sklearn(labels, scores, share=0.2):
    """The closed form of the specification: scikit-learn's standardised partial AUC, unstandardised."""
    scaled = roc_auc_score(1 - np.asarray(labels, int), -np.asarray(scores), max_fpr=share)
    chance = share**2 / 2
    return chance + (share - chance) / 0.5 * (scaled - 0.5)


def make(seed):
    """Labels and scores, from 2 to 400 rows: continuous, coarse (many ties), or all of a few tiny values."""
    rng = np.random.default_rng(seed)
    count = int(rng.choice([2, 3, 4, 5, 6, 11, 40, 400]))
    labels = rng.random(count) < rng.choice([0.02, 0.2, 0.5, 0.9])
    labels[:2] = rng.permutation([True, False])
    kind = seed % 5
    scores = rng.normal(size=count) + labels * rng.choice([0.0, 1.0, 3.0])
    if kind == 1:
        scores = np.round(scores, int(rng.integers(0, 2)))
    if kind == 2:
        scores = rng.integers(1, 4, count) * 1e-30
    if kind == 3:
        scores = scores.astype(np.float32)
    if kind == 4:
        scores = np.exp(20 * scores - 60)
    return labels, scores


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_it_equals_the_definition_on_random_tied_and_tiny_inputs(start):
    for seed in range(start, start + 100):
        labels, scores = make(seed)
        value = partial_auc(labels, scores)
        assert abs(value - by_definition(labels, scores)) < 1e-12, seed
        assert abs(value - by_sklearn(labels, scores)) < 1e-12, seed
        assert abs(auc(labels, scores) - roc_auc_score(labels, scores)) < 1e-12, seed


@pytest.mark.parametrize("positives", [1, 4, 5, 6, 10, 393])
@pytest.mark.parametrize("negatives", [1, 5, 1000])
def test_perfect_wrong_and_constant_scores_have_the_known_values(positives, negatives):
    labels = np.repeat([1, 0], [positives, negatives])
    assert partial_auc(labels, labels) == pytest.approx(0.2, abs=1e-15)
    assert partial_auc(labels, -labels) == pytest.approx(0.0, abs=1e-15)
    assert partial_auc(labels, np.zeros(len(labels))) == pytest.approx(0.02, abs=1e-15)
    assert auc(labels, np.zeros(len(labels))) == pytest.approx(0.5, abs=1e-15)


def test_tiny_scores_keep_their_order():
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.1
    scores = rng.normal(size=2000) + labels
    ranks = scores.argsort().argsort() + 1
    whole = partial_auc(labels, scores)
    assert partial_auc(labels, ranks * 1e-30) == partial_auc(labels, ranks * 1e-33) == whole
    assert by_definition(labels, ranks * 1e-30) == pytest.approx(whole, abs=1e-12)
    flipped_by_subtraction = partial_auc(labels, -(1 - ranks * 1e-30))
    assert flipped_by_subtraction == pytest.approx(0.02), "1 - p would tie them all, so this test could see it"


@pytest.mark.parametrize("change", [np.exp, lambda x: 3 * x - 7, np.arctan], ids=["exp", "linear", "arctan"])
def test_only_ranks_matter(change):
    labels, scores = make(55)
    assert partial_auc(labels, change(scores)) == partial_auc(labels, scores)


def test_rows_may_come_in_any_order():
    labels, scores = make(406)
    order = np.random.default_rng(1).permutation(len(labels))
    assert partial_auc(labels[order], scores[order]) == partial_auc(labels, scores)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1], [1], []])
def test_one_class_is_an_error_that_says_so(labels):
    with pytest.raises(DataError, match="needs both classes") as caught:
        partial_auc(labels, np.zeros(len(labels)))
    assert caught.value.hint and f"of {len(labels)} samples {sum(labels)} are positive" in caught.value.message


@pytest.mark.parametrize(
    ("labels", "scores", "sentence"),
    [
        ([0, 1, 1], [0.1, np.nan, 0.3], "1 of 3 scores are not finite"),
        ([0, 1, 1], [0.1, np.inf, np.nan], "2 of 3 scores are not finite"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "neither 0 nor 1, such as 2"),
        ([0, 1, 0.5], [0.1, 0.2, 0.3], "neither 0 nor 1, such as 0.5"),
        ([0, 1], [0.1, 0.2, 0.3], "do not belong together"),
        ([[0], [1]], [[0.1], [0.2]], "do not belong together"),
    ],
)
def test_what_has_no_score_is_named(labels, scores, sentence):
    with pytest.raises(DataError, match=sentence):
        partial_auc(labels, scores)


def test_parts_of_several_processes_merge_to_the_whole():
    labels, scores = make(387)
    parts = []
    for rank in range(3):
        metric = PartialAUC()
        rows = np.arange(rank, len(labels), 3)
        for batch in np.array_split(rows, 4):
            metric.update(
                {"logits": torch.tensor(scores[batch])[:, None]}, {"label": torch.tensor(labels[batch]).long()}
            )
        parts.append(pickle.loads(pickle.dumps(metric)))
    for other in parts[1:]:
        parts[0].merge(other)
    result = parts[0].compute()
    assert result["pauc"] == partial_auc(labels, scores) and result["auc"] == auc(labels, scores)
    assert result["images"] == len(labels) and result["positives"] == labels.sum()
    assert all(type(result[name]) in (float, int) for name in result)


def test_the_metric_keeps_scores_as_they_came_and_little_else():
    metric = PartialAUC()
    metric.update({"probabilities": torch.tensor([1e-30, 2e-30])}, {"label": torch.tensor([0, 1])})
    metric.update({"logits": torch.tensor([0.5, 0.25], dtype=torch.bfloat16)}, {"label": torch.tensor([1.0, 0.0])})
    assert sum(part.nbytes for part in metric.scores + metric.labels) == 4 * 5
    assert metric.compute() == {
        "pauc": partial_auc([0, 1, 1, 0], [1, 2, 4, 3]),
        "auc": 0.75,
        "images": 4,
        "positives": 2,
    }
    with pytest.raises(DataError, match="one score per sample"):
        metric.update({"logits": torch.zeros(2, 2)}, {"label": torch.tensor([0, 1])})


def test_a_metric_without_both_classes_says_so():
    metric = PartialAUC()
    with pytest.raises(DataError, match="of 0 samples"):
        metric.compute()
    metric.update({"logits": torch.zeros(3)}, {"label": torch.zeros(3)})
    with pytest.raises(DataError, match="needs both classes"):
        metric.compute()


def test_four_hundred_thousand_rows_take_a_moment():
    rng = np.random.default_rng(0)
    labels = np.zeros(400_000, bool)
    labels[rng.choice(400_000, 393, replace=False)] = True
    scores = rng.normal(size=400_000) + labels
    seconds = math.inf
    for _ in range(3):
        start = time.process_time()
        value = partial_auc(labels, scores)
        seconds = min(seconds, time.process_time() - start)
    assert abs(value - by_definition(labels, scores)) < 1e-12
    assert seconds < 1.0, "it takes 0.03 s; this only sees that it is no loop over rows"
