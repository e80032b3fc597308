"""Metrics of independent labels: scikit-learn is the reference, what the data can't say is NaN and told."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from outlast.base.files import plain
from outlast.errors import DataError
from outlast.model.multilabel_metrics import (
    BINS,
    Multilabel,
    calibration_error,
    combination_names,
    combination_numbers,
    multilabel,
    sigmoid,
    tuned_thresholds,
)

NAMES = ("fire", "smoke")


def made(count=400, seed=0, shift=-0.7):
    """Logits (N, 2) that know something, and labels; smoke is rarer than fire and never alone."""
    random = np.random.default_rng(seed)
    fire = random.random(count) < 0.6
    smoke = fire & (random.random(count) < 0.5)
    labels = np.stack([fire, smoke], axis=1).astype(np.float32)
    logits = random.normal(0, 1.2, (count, 2)) + 1.5 * labels + shift
    return logits.astype(np.float32), labels


def test_scores_per_label_are_those_of_scikit_learn():
    logits, labels = made()
    found = multilabel(logits, labels, NAMES)
    for place, name in enumerate(NAMES):
        truth, guess = labels[:, place], logits[:, place] >= 0
        assert found[name]["precision"] == pytest.approx(reference.precision_score(truth, guess))
        assert found[name]["recall"] == pytest.approx(reference.recall_score(truth, guess))
        assert found[name]["f1"] == pytest.approx(reference.f1_score(truth, guess))
        assert found[name]["auc"] == pytest.approx(reference.roc_auc_score(truth, logits[:, place]))
        ap = reference.average_precision_score(truth, logits[:, place])
        assert found[name]["average_precision"] == pytest.approx(ap)
        assert found[name]["support"] == int(truth.sum())
        assert found[name]["threshold"] == 0.5
        assert "reason" not in found[name]


def test_scores_over_labels_are_those_of_scikit_learn():
    logits, labels = made()
    found, guess = multilabel(logits, labels, NAMES), logits >= 0
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, guess, average="macro"))
    assert found["macro_auc"] == pytest.approx(reference.roc_auc_score(labels, logits, average="macro"))
    assert found["macro_average_precision"] == pytest.approx(reference.average_precision_score(labels, logits))
    assert found["exact_match"] == pytest.approx(reference.accuracy_score(labels, guess))
    assert found["hamming"] == pytest.approx(reference.hamming_loss(labels, guess))
    losses = [reference.log_loss(labels[:, place], sigmoid(logits[:, place])) for place in (0, 1)]
    assert found["loss"] == pytest.approx(np.mean(losses))
    assert found["images"] == 400
    json.dumps(plain(found), allow_nan=False)


def test_calibration_error_is_the_weighted_gap_of_the_reliability_curve():
    logits, labels = made()
    probabilities, truth = sigmoid(logits[:, 0]), labels[:, 0]
    often, said = calibration_curve(truth, probabilities, n_bins=BINS)
    edges = np.linspace(0, 1, BINS + 1)
    counts, _ = np.histogram(probabilities, edges)
    expected = (np.abs(often - said) * counts[counts > 0]).sum() / len(truth)
    assert calibration_error(probabilities, truth) == pytest.approx(expected)
    assert multilabel(logits, labels, NAMES)["fire"]["ece"] == pytest.approx(expected)


def test_calibration_error_of_bins_of_equal_mass_differs_and_is_right_on_two_values():
    probabilities = np.repeat([0.2, 0.9], 30)
    truth = np.concatenate([np.arange(30) < 6, np.arange(30) < 15]).astype(float)  # 20 % as said, 50 % instead of 90 %
    assert calibration_error(probabilities, truth) == pytest.approx(0.2)
    in_bins = [np.arange(60)[start : start + 4] for start in range(0, 60, 4)]
    expected = sum(abs((probabilities[part] - truth[part]).sum()) for part in in_bins) / 60
    assert calibration_error(probabilities, truth, equal_mass=True) == pytest.approx(expected)


def test_means_are_over_the_labels():
    logits, labels = made()
    found = multilabel(logits, labels, NAMES)
    for mean, name in (("macro_f1", "f1"), ("macro_auc", "auc"), ("ece", "ece"), ("ece_equal_mass", "ece_equal_mass")):
        assert found[mean] == pytest.approx((found["fire"][name] + found["smoke"][name]) / 2)


def test_confusion_over_combinations_names_the_empty_one_and_leaves_it_out_of_means():
    logits, labels = made()
    found, guess = multilabel(logits, labels, NAMES), logits >= 0
    assert found["combination_names"] == ["NN", "YN", "NY", "YY"]
    true, guessed = labels[:, 0] + 2 * labels[:, 1], guess[:, 0] + 2 * guess[:, 1]
    assert found["combinations"] == reference.confusion_matrix(true, guessed, labels=range(4)).tolist()
    assert found["empty_combinations"] == ["NY"]
    assert sum(found["combinations"][2]) == 0
    assert math.isnan(found["per_combination"]["NY"]["recall"]) and math.isnan(found["per_combination"]["NY"]["f1"])
    assert found["combination_balanced_accuracy"] == pytest.approx(
        reference.recall_score(true, guessed, labels=[0, 1, 3], average="macro")
    )
    assert found["combination_macro_f1"] == pytest.approx(
        reference.f1_score(true, guessed, labels=[0, 1, 3], average="macro")
    )


def test_combinations_are_numbered_as_they_are_named():
    labels = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
    names = combination_names(3)
    assert [names[number] for number in combination_numbers(labels)] == ["NNN", "YNN", "NYN", "YYN", "NNY", "YYY"]


@pytest.mark.parametrize(("value", "word"), [(0.0, "none"), (1.0, "all")])
def test_a_label_of_one_class_has_no_auc_and_says_why(value, word):
    logits, labels = made()
    labels[:, 1] = value
    found = multilabel(logits, labels, NAMES)
    assert math.isnan(found["smoke"]["auc"]) and math.isnan(found["smoke"]["average_precision"])
    assert found["smoke"]["reason"] == f"no AUC: {word} of the 400 images have the label"
    assert found["macro_auc"] == found["fire"]["auc"]


def test_f1_of_a_label_that_is_nowhere_is_nan_and_of_one_that_is_missed_is_zero():
    logits, labels = made()
    logits[:, 1] = -5
    found = multilabel(logits, labels, NAMES)
    assert found["smoke"]["f1"] == 0.0 and math.isnan(found["smoke"]["precision"])
    assert found["macro_f1"] == pytest.approx(found["fire"]["f1"] / 2)
    labels[:, 1] = 0
    found = multilabel(logits, labels, NAMES)
    assert math.isnan(found["smoke"]["f1"])
    assert found["macro_f1"] == found["fire"]["f1"]


def test_logits_that_are_not_finite_are_told_and_never_raise():
    logits, labels = made()
    logits[3, 0] = np.nan
    found = multilabel(logits, labels, NAMES)
    assert found["fire"]["reason"] == "no AUC: 1 of 400 logits are not finite"
    assert math.isnan(found["fire"]["auc"]) and math.isnan(found["fire"]["ece"]) and math.isnan(found["loss"])
    assert isinstance(found["macro_f1"], float)


def test_labels_that_are_no_zeros_and_ones_are_refused():
    logits, labels = made()
    labels[0, 0] = 0.5
    with pytest.raises(DataError, match=r"a label holds 0\.5"):
        multilabel(logits, labels, NAMES)


def test_tuned_thresholds_reach_the_best_f1_that_any_threshold_reaches():
    logits, labels = made()
    tuned = tuned_thresholds(logits, labels)
    found = multilabel(logits, labels, NAMES, tuned)
    for place, name in enumerate(NAMES):
        probabilities = sigmoid(logits[:, place])
        every = [reference.f1_score(labels[:, place], probabilities >= cut) for cut in np.unique(probabilities)]
        assert found[name]["f1"] == pytest.approx(max(every))
        assert found[name]["f1"] > multilabel(logits, labels, NAMES)[name]["f1"]
        assert found[name]["threshold"] == tuned[place]


def test_a_tuned_threshold_stands_between_two_probabilities_and_near_a_half_among_equals():
    logits = np.log(np.array([[0.9], [0.8], [0.3], [0.1]]) / np.array([[0.1], [0.2], [0.7], [0.9]]))
    (cut,) = tuned_thresholds(logits, np.array([[1.0], [1.0], [0.0], [0.0]]))
    assert cut == pytest.approx(0.55)
    same = np.zeros((4, 1))  # one probability for all: the only choices are all and none
    (cut,) = tuned_thresholds(same, np.array([[1.0], [0.0], [1.0], [0.0]]))
    assert multilabel(same, np.array([[1.0], [0.0], [1.0], [0.0]]), ["fire"], [cut])["fire"]["recall"] == 1.0


def test_a_label_of_one_class_keeps_its_threshold():
    logits, labels = made()
    labels[:, 0] = 1
    assert tuned_thresholds(logits, labels)[0] == 0.5


def test_parts_of_several_processes_give_what_one_gives():
    logits, labels = made()
    one, two, other = Multilabel(NAMES), Multilabel(NAMES), Multilabel(NAMES)
    one.update({"logits": torch.from_numpy(logits)}, {"labels": torch.from_numpy(labels)})
    two.update({"logits": torch.from_numpy(logits[:150])}, {"labels": torch.from_numpy(labels[:150])})
    other.update({"logits": torch.from_numpy(logits[150:])}, {"labels": torch.from_numpy(labels[150:])})
    two.merge(other)
    assert plain(one.compute()) == plain(two.compute())
    assert one.compute([0.3, 0.9])["smoke"]["threshold"] == 0.9


def test_sigmoid_is_right_for_any_logit():
    values = np.array([-1000.0, -3.0, 0.0, 3.0, 1000.0])
    expected = torch.from_numpy(values).sigmoid().numpy()
    assert np.allclose(sigmoid(values), expected, rtol=1e-14, atol=0)
