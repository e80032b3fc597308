"""Another test set in the place of the visible one: its cases, judged as `predict` judges pictures."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest

import outlast
from outlast.errors import DataError
from outlast.tasks.forgeries import unseen, use
from outlast.tasks.forgeries.evidence import Evidence
from outlast.tasks.forgeries.synthetic import write

SETTINGS = ["train.epochs=1", "data.samples=16", "train.threads=1"]
SAMPLE = "sample_submission.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen") / "data"
    write(folder, cases=16, seed=1)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen") / "run"
    outlast.train("forgeries", data=data, preset="smoke", out=folder, overrides=SETTINGS)
    return folder


@pytest.fixture(autouse=True)
def marks_much(monkeypatch):
    """The hasty network finds nothing, so a rule that marks much; and instead of the slow search the brightness."""
    real = use.rules_of

    def lenient(folder):
        rules = real(folder)
        own = replace(rules.models[rules.chosen], weight=0.5, threshold=0.35, authentic=0.0, minimum_area=4)
        return rules._replace(models={**rules.models, rules.chosen: own})

    for module in (use, unseen):
        monkeypatch.setattr(module, "rules_of", lenient)
    monkeypatch.setattr(use, "classical", lambda image, _: Evidence(image.mean(axis=2) / 255, 0.5))


@pytest.fixture
def tests(data, tmp_path):
    """Pictures under other names, one more than the visible test set has, and nothing to train on."""
    folder = tmp_path / "set"
    (folder / "test_images").mkdir(parents=True)
    pictures = [*sorted((data / "test_images").iterdir()), data / "train_images" / "forged" / "2.png"]
    for number, picture in enumerate(pictures):
        shutil.copyfile(picture, folder / "test_images" / f"new{number}.png")
    cases = [f"new{number}" for number in range(len(pictures))]
    pd.DataFrame({"case_id": cases[::-1], "annotation": "authentic"}).to_csv(folder / SAMPLE, index=False)
    return folder


def predict(run, data, tmp_path, **options):
    told = outlast.predict(run, data=data, to=tmp_path / "submission.csv", **options)
    return pd.read_csv(tmp_path / "submission.csv", dtype=str), told


def test_the_visible_test_set_is_judged_as_its_pictures_are(run, data, tmp_path):
    outlast.predict(run, [data / "test_images"], to=tmp_path / "found")
    found, _ = predict(run, data, tmp_path)
    assert (tmp_path / "submission.csv").read_bytes() == (tmp_path / "found" / "submission.csv").read_bytes()
    assert (found["annotation"] != "authentic").any()


def test_another_test_set_gives_exactly_its_cases_in_the_order_of_the_sample(run, data, tests, tmp_path):
    found, _ = predict(run, tests, tmp_path)
    assert found["case_id"].tolist() == ["new4", "new3", "new2", "new1", "new0"]
    before, _ = predict(run, data, tmp_path)
    assert found["annotation"].tolist()[1:] == before["annotation"].tolist()[::-1]
    (tests / SAMPLE).unlink()
    assert predict(run, tests, tmp_path)[0]["case_id"].tolist() == [f"new{number}" for number in range(5)]
    for number in range(1, 5):
        (tests / "test_images" / f"new{number}.png").unlink()
    assert predict(run, tests, tmp_path)[0]["case_id"].tolist() == ["new0"]


def test_cases_without_a_readable_picture_are_all_named_or_called_authentic(run, tests, tmp_path, capsys):
    whole, _ = predict(run, tests, tmp_path)
    (tests / "test_images" / "new1.png").unlink()
    damaged = tests / "test_images" / "new3.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    (tmp_path / "submission.csv").unlink()
    with pytest.raises(DataError, match="2 of 5 cases have no picture that can be judged") as caught:
        predict(run, tests, tmp_path)
    assert "new1" in str(caught.value) and "new3" in str(caught.value) and "--gaps fill" in caught.value.hint
    assert not (tmp_path / "submission.csv").exists()
    found, told = predict(run, tests, tmp_path, gaps="fill")
    assert sorted(told["filled"]) == ["new1", "new3"] and told["how"] == "called authentic"
    assert (found.set_index("case_id")["annotation"][["new1", "new3"]] == "authentic").all()
    same = ["new0", "new2", "new4"]
    assert found.set_index("case_id").loc[same].equals(whole.set_index("case_id").loc[same])
    assert "2 of them are called authentic" in capsys.readouterr().err
    assert sorted(json.loads((tmp_path / "submission.json").read_text())["filled"]) == ["new1", "new3"]


def test_pictures_that_nobody_asks_for_are_said_and_left_out(run, tests, tmp_path, capsys):
    sample = pd.read_csv(tests / SAMPLE)
    sample.iloc[:3].to_csv(tests / SAMPLE, index=False)
    found, _ = predict(run, tests, tmp_path)
    assert len(found) == 3 and "2 pictures in test_images are not in sample_submission.csv" in capsys.readouterr().err
    sample.assign(case_id="new1").to_csv(tests / SAMPLE, index=False)
    with pytest.raises(DataError, match="one of them twice"):
        predict(run, tests, tmp_path)
    (tests / SAMPLE).unlink()
    shutil.rmtree(tests / "test_images")
    with pytest.raises(DataError, match="no pictures in test_images"):
        predict(run, tests, tmp_path)
