"""Regions become instances if their matches agree with one similarity; submissions hold what the sample asks for."""

import numpy as np
import pandas as pd
import pytest

from outlast.errors import DataError
from outlast.model.forgery_metrics import decode, optimal_f1
from outlast.tasks.forgeries import geometry
from outlast.tasks.forgeries.instances import InstanceSettings, instances_of
from outlast.tasks.forgeries.submission import read_submission, write_submission

SIZE = (96, 160)
SETTINGS = InstanceSettings(keep_unmatched=False)


def scene(boxes, pairs, cell=4, wrong=0.0, seed=0):
    """A probability map with a box at each place, and offsets from each box to its partner, in a grid of cells."""
    generator = np.random.default_rng(seed)
    probability = np.full(SIZE, 0.1)
    for top, left in boxes:
        probability[top : top + 20, left : left + 20] = 0.9
    rows, columns = SIZE[0] // cell, SIZE[1] // cell
    offsets = generator.integers(-10, 10, (2, 2, rows, columns))
    for one, other in pairs:
        (top, left), (to_top, to_left) = boxes[one], boxes[other]
        window = np.s_[:, top // cell : (top + 20) // cell, left // cell : (left + 20) // cell]
        shift = np.array([(to_top - top) // cell, (to_left - left) // cell])[:, None, None]
        right = generator.random(offsets[1][window].shape[1:]) >= wrong
        offsets[1][window] = np.where(right, shift, offsets[1][window])
    return probability, offsets


def truth(boxes, groups):
    masks = np.zeros((len(groups), *SIZE), np.uint8)
    for number, group in enumerate(groups):
        for top, left in (boxes[member] for member in group):
            masks[number, top : top + 20, left : left + 20] = 1
    return masks


BOXES = [(8, 8), (60, 20), (12, 80), (56, 120)]


def test_regions_are_paired_by_their_offsets():
    probability, offsets = scene(BOXES, [(0, 3), (1, 2), (2, 1)])
    found = instances_of(probability, 1.0, 0.5, SETTINGS, offsets=offsets, cell=4)
    assert optimal_f1(found, truth(BOXES, [(0, 3), (1, 2)])) == 1


def test_a_source_and_its_copies_are_one_instance_also_where_some_offsets_are_wrong():
    probability, offsets = scene(BOXES, [(0, 1), (1, 3), (2, 0)], wrong=0.4)
    found = instances_of(probability, 1.0, 0.5, SETTINGS, offsets=offsets, cell=4)
    assert optimal_f1(found, truth(BOXES, [(0, 1, 2, 3)])) == 1


def test_regions_whose_matches_do_not_agree_are_dropped_or_kept_together():
    probability, offsets = scene(BOXES, [(0, 3)])
    found = instances_of(probability, 1.0, 0.5, SETTINGS, offsets=offsets, cell=4)
    assert optimal_f1(found, truth(BOXES, [(0, 3)])) == 1
    kept = instances_of(probability, 1.0, 0.5, InstanceSettings(), offsets=offsets, cell=4)
    assert optimal_f1(kept, truth(BOXES, [(0, 3), (1, 2)])) == 1


def test_matches_that_were_not_found_do_not_count():
    probability, offsets = scene(BOXES, [(0, 3)])
    none = np.zeros((2, *offsets.shape[2:]), bool)
    assert not len(instances_of(probability, 1.0, 0.5, SETTINGS, offsets=offsets, found=none, cell=4))


def test_touching_copies_that_make_one_region_are_an_instance():
    boxes = [(40, 40), (40, 60)]
    probability, offsets = scene(boxes, [(0, 1), (1, 0)])
    found = instances_of(probability, 1.0, 0.5, SETTINGS, offsets=offsets, cell=4)
    assert optimal_f1(found, truth(boxes, [(0, 1)])) == 1


def test_an_image_below_the_threshold_or_with_specks_only_is_authentic():
    probability, offsets = scene(BOXES, [(0, 3)])
    assert instances_of(probability, 0.4, 0.5, SETTINGS, offsets=offsets, cell=4).shape == (0, *SIZE)
    specks = np.zeros(SIZE)
    specks[10:13, 10:13] = specks[50:53, 90:93] = 1
    assert instances_of(specks, 1.0, 0.5, InstanceSettings()).shape == (0, *SIZE)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_similarity_is_found_among_outliers_and_leads_back(mirrored):
    generator = np.random.default_rng(5)
    source = geometry.places(*generator.uniform(0, 100, (2, 60)))
    true = geometry.Similarity(1.2 * np.exp(0.7j), 30 - 12j, mirrored)
    target = true(source)
    target[:30] = geometry.places(*generator.uniform(0, 100, (2, 30)))
    found, inliers = geometry.ransac(source, target, tolerance=1.0, mirrored=mirrored)
    assert inliers[30:].all()
    assert inliers[:30].mean() < 0.2
    assert abs(found.turn - true.turn) < 0.01
    np.testing.assert_allclose(found.inverse()(found(source)), source, atol=1e-9)


def test_a_similarity_beyond_the_limits_of_scale_is_none():
    source = geometry.places([0, 10, 20, 5], [0, 3, 9, 7])
    assert geometry.ransac(source, 3 * source, tolerance=1.0, scales=(0.5, 2.0)) is None
    assert geometry.ransac(source[:1], source[:1], tolerance=1.0) is None


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample_submission.csv"
    path.write_text("case_id,annotation\n7,authentic\n3,authentic\n12,authentic\n")
    return path


def test_a_submission_follows_its_sample_and_is_decoded_to_what_was_given(sample, tmp_path):
    masks = np.random.default_rng(0).random((2, 13, 21)) < 0.3
    nothing = np.zeros((0, 8, 9), bool)
    cases = iter([("12", masks), ("3", nothing), ("7", nothing)])
    written = write_submission(tmp_path / "submission.csv", cases, sample)
    assert written["case_id"].tolist() == ["7", "3", "12"]
    assert written["annotation"].tolist()[:2] == ["authentic", "authentic"]
    again = read_submission(tmp_path / "submission.csv")
    pd.testing.assert_frame_equal(written, again)
    np.testing.assert_array_equal(decode(again["annotation"].iloc[2], (13, 21)), masks)


def test_cases_that_differ_from_the_sample_are_named_and_nothing_is_written(sample, tmp_path):
    nothing = np.zeros((0, 8, 9), bool)
    with pytest.raises(DataError) as caught:
        write_submission(tmp_path / "submission.csv", [("7", nothing), ("4", nothing), ("7", nothing)], sample)
    text = str(caught.value)
    assert "2 cases without a prediction: 12, 3" in text
    assert "1 cases that sample_submission.csv does not name: 4" in text
    assert "the predictions: 1 cases are there twice: 7" in text
    assert not (tmp_path / "submission.csv").exists()
