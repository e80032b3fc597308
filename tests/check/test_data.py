"""Each check of the data's table fires at what it is for, and is silent where there is nothing."""

from dataclasses import replace

import numpy as np
import pytest

from outlast.check import data
from outlast.check.finding import CannotCheck, run
from outlast.errors import DataError, DataNotFoundError
from toys.subjects import of_pictures, only, pictures, severities, subject


def failing(tmp_path, error):
    made = subject(tmp_path)

    def examples():
        raise error

    made.find_examples = examples
    return made


def test_data_that_is_not_there_is_one_error_that_says_where_it_looked(tmp_path):
    missing = DataNotFoundError("no data found for toy", hint="name it with --data", details=["./data: no such folder"])
    finding = only(data.found, failing(tmp_path, missing))
    assert finding.severity == "error" and "./data: no such folder" in finding.evidence and "--data" in finding.remedy


def test_every_problem_of_the_folders_is_a_finding_of_its_own(tmp_path):
    wrong = DataError("can't be used", hint="see each line", details=["a.jpg: in two classes", "b.jpg: 0 bytes"])
    assert [finding.sentence for finding in data.found(failing(tmp_path, wrong))] == list(wrong.details)


def test_without_data_the_other_checks_say_that_they_could_not_look(tmp_path):
    findings = list(run([data], failing(tmp_path, DataError("gone", hint="bring it back"))))
    assert [finding.severity for finding in findings].count("error") == 1
    assert {finding.severity for finding in findings[1:]} == {"unchecked"}


def on_kaggle(made, folder):
    """The same subject on Kaggle, with what is in `folder` mounted."""
    host = replace(made.machine.host, kind="kaggle")
    made.machine = replace(made.machine, host=host, kaggle_input=folder)
    return made


def missing(tmp_path):
    return failing(tmp_path, DataNotFoundError("no data found for toy", hint="name it"))


def test_data_still_processing_is_seen_by_an_empty_mount_in_both_layouts(tmp_path):
    mounted = tmp_path / "input"
    for place in ("leaves", "datasets/me/masks/train"):
        (mounted / place).mkdir(parents=True)
    findings = list(data.still_processing(on_kaggle(missing(tmp_path), mounted)))
    assert [finding.severity for finding in findings] == ["warning", "warning"]
    assert "me/masks is empty" in findings[0].sentence and "leaves is empty" in findings[1].sentence
    assert all("datasets status" in finding.remedy for finding in findings)


def test_data_still_processing_is_seen_by_folders_that_are_empty_and_a_whole_mount_is_silent(tmp_path):
    leaves = pictures(tmp_path / "input")
    assert severities(data.still_processing, on_kaggle(of_pictures(tmp_path, leaves), tmp_path / "input")) == []
    (leaves / "c").mkdir()
    finding = only(data.still_processing, on_kaggle(of_pictures(tmp_path, leaves), tmp_path / "input"))
    assert finding.severity == "warning" and "in part only" in finding.sentence and finding.evidence == "c"
    # Another mount than that of the data is not this training's business, unless nothing is in it at all.
    elsewhere = on_kaggle(subject(tmp_path / "scratch", root=tmp_path / "else"), tmp_path / "input")
    assert severities(data.still_processing, elsewhere) == []


@pytest.mark.parametrize(("kaggle", "why"), [(True, "nothing is mounted"), (False, "not Kaggle's")])
def test_data_still_processing_is_not_checked_where_nothing_can_be_seen(tmp_path, kaggle, why):
    made = missing(tmp_path)
    finding = only(data.still_processing, on_kaggle(made, tmp_path / "input") if kaggle else made)
    assert finding.severity == "unchecked" and "not checked here" in finding.sentence and why in finding.sentence
    assert severities(data.still_processing, subject(tmp_path)) == []  # the data is here


def test_notes_of_the_data_are_told_and_data_without_notes_is_silent(tmp_path):
    assert severities(data.found, subject(tmp_path)) == []
    empty = subject(tmp_path, table=lambda frame: frame[:0])
    assert severities(data.found, empty) == ["error"]


def test_examples_are_counted_by_class_and_split(tmp_path):
    (finding,) = data.counts(subject(tmp_path))
    assert finding.severity == "note" and "50 train, 10 val" in finding.sentence
    assert "dark: 20 train, 0 val; light: 20 train, 0 val; striped: 10 train, 10 val" in finding.evidence


def balanced(frame):
    return frame.assign(split=np.where(np.arange(len(frame)) // 3 % 5 == 0, "val", "train"))


def test_a_class_without_training_examples_is_an_error_and_without_validation_a_warning(tmp_path):
    assert severities(data.class_in_every_split, subject(tmp_path, table=balanced)) == []
    finding = only(data.class_in_every_split, subject(tmp_path))
    assert finding.severity == "warning" and "dark, light" in finding.sentence
    never = subject(
        tmp_path, table=lambda frame: balanced(frame)[lambda rows: (rows.label > 0) | (rows.split == "val")]
    )
    finding = only(data.class_in_every_split, never)
    assert finding.severity == "error" and "dark" in finding.sentence


def of_pixels(frame):
    """Every example shows dark, only those of val light, none stripes."""
    split = balanced(frame)
    light = np.where(split["split"] == "val", 3, 0)
    return split.drop(columns="label").assign(pixels_0=5, pixels_1=light, pixels_2=0)


def test_classes_of_pixels_are_counted_by_the_examples_that_show_them(tmp_path):
    made = subject(tmp_path, table=of_pixels)
    (counted,) = data.counts(made)
    assert "dark: 48 train, 12 val; light: 0 train, 12 val" in counted.evidence
    finding = only(data.class_in_every_split, made)
    assert finding.severity == "warning" and finding.sentence == "no training example of light"


def test_a_class_with_a_handful_of_examples_is_named(tmp_path):
    assert severities(data.few_of_a_class, subject(tmp_path)) == []
    few = subject(tmp_path, table=lambda frame: frame[(frame.label != 1) | (np.arange(len(frame)) < 12)])
    finding = only(data.few_of_a_class, few)
    assert finding.severity == "warning" and finding.sentence.startswith("light has 4 ")


def test_more_than_fifty_times_as_many_is_noted(tmp_path):
    assert severities(data.imbalance, subject(tmp_path)) == []
    config = {"label": np.r_[np.zeros(59, dtype=np.int64), 1], "split": "train"}
    finding = only(data.imbalance, subject(tmp_path, table=lambda frame: frame.assign(**config)))
    assert finding.severity == "note" and "dark has 59 times" in finding.sentence


def test_the_same_file_in_two_splits_or_classes_is_an_error(tmp_path):
    assert severities(data.same_file_twice, subject(tmp_path)) == []

    def twins(frame, first, second):
        frame.loc[second, "hash"] = frame.loc[first, "hash"]
        return frame

    # Rows 2 and 5 are of one class; row 5 is validated on. Rows 0 and 1 are trained on and of two classes.
    leak = only(data.same_file_twice, subject(tmp_path, table=lambda frame: twins(frame, 2, 5)))
    assert "several splits" in leak.sentence and "image-002, image-005" in leak.evidence
    contradiction = only(data.same_file_twice, subject(tmp_path, table=lambda frame: twins(frame, 0, 1)))
    assert "several labels" in contradiction.sentence
    assert severities(data.same_file_twice, subject(tmp_path, table=lambda frame: twins(frame, 0, 3))) == []


@pytest.mark.parametrize("column", ["group", "video", "patient_id"])
def test_what_belongs_together_is_on_one_side(tmp_path, column):
    apart = subject(tmp_path, table=lambda frame: frame.assign(**{column: frame["split"] + frame["id"].str[-1]}))
    assert severities(data.kept_together, apart) == []
    torn = subject(tmp_path, table=lambda frame: frame.assign(**{column: [f"v{n // 30}" for n in range(len(frame))]}))
    finding = only(data.kept_together, torn)
    assert finding.severity == "error" and column in finding.sentence and "v0, v1" in finding.evidence


@pytest.mark.parametrize("kind", ["number", "text"])
def test_a_column_that_gives_the_label_away_is_named(tmp_path, kind):
    noise = np.random.default_rng(0).normal(size=60)
    silent = subject(tmp_path, table=lambda frame: frame.assign(age=noise, site=["x", "y"] * 30))
    assert severities(data.leaking_columns, silent) == []

    def tell(frame):
        return frame.assign(
            diagnosis=frame["label"] * 10.0 + noise / 10
            if kind == "number"
            else frame["label"].map(["b", "c", "a"].__getitem__)
        )

    finding = only(data.leaking_columns, subject(tmp_path, table=tell))
    assert finding.severity == "warning" and "'diagnosis'" in finding.sentence


def test_data_without_classes_is_said_to_be_unchecked(tmp_path):
    with pytest.raises(CannotCheck):
        list(data.imbalance(subject(tmp_path, facts={"classes": None})))
