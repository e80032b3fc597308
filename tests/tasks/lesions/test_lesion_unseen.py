"""Another test set in the place of the run's own: the same submission for the same rows, for new ones exactly those."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

import outlast
from outlast.base.files import sha256
from outlast.config.load import read_config
from outlast.errors import DataError, RunError, UsageError
from outlast.tasks.lesions import TASK, boosted, unseen
from outlast.tasks.lesions.ensemble_columns import table_columns
from outlast.tasks.lesions.ensemble_scores import TABLE
from toys.lesion_set import ROWS, picture, tables, write_hdf5, write_set

SETTINGS = [
    "sampling.negatives_per_positive=null", "train.epochs=1", "train.batch_size=16", "views=flips", "train.threads=1",
]  # fmt: skip
SAMPLE = "sample_submission.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("unseen") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen") / "run"
    outlast.train("lesions", data=data, out=folder, preset="smoke", overrides=SETTINGS)
    return folder


def test_set(folder, rows, *, first=500, sample=True):
    """A test set of other images, ids and patients, and nothing to train on. Returns its folder."""
    folder.mkdir(parents=True)
    _, test = tables(ROWS, rows)
    ids = [f"NEW_{first + number}" for number in range(rows)]
    test = test.assign(isic_id=ids, patient_id=[f"Q{number // 3}" for number in range(rows)])
    test.to_csv(folder / "test-metadata.csv", index=False)
    write_hdf5(folder / "test-image.hdf5", {name: picture(first + number) for number, name in enumerate(ids)})
    if sample:
        pd.DataFrame({"isic_id": ids, "target": 0.3}).to_csv(folder / SAMPLE, index=False)
    return folder


test_set.__test__ = False


def predict(run, data, tmp_path, **options):
    to = tmp_path / "submission.csv"
    told = outlast.predict(run, data=data, to=to, **options)
    return pd.read_csv(to, dtype={"isic_id": str}), told


def tree(folder):
    return {path: (path.stat().st_mtime_ns, sha256(path)) for path in folder.rglob("*") if path.is_file()}


def test_the_run_s_own_test_set_gives_its_own_submission_byte_for_byte_without_training_rows(run, data, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("test-metadata.csv", "test-image.hdf5", SAMPLE):
        shutil.copyfile(data / name, alone / name)
    before = tree(run)
    told = outlast.predict(run, data=alone, to=tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_bytes() == (run / "submit" / "submission.csv").read_bytes()
    assert told["rows"] == 12 and told["filled"] == {}
    assert json.loads((tmp_path / "submission.json").read_text())["run"] == str(run)
    assert tree(run) == before


@pytest.mark.parametrize("rows", [1, 40])
def test_another_test_set_gives_exactly_its_rows(run, tmp_path, rows):
    found, _ = predict(run, test_set(tmp_path / "set", rows), tmp_path)
    assert found["isic_id"].tolist() == [f"NEW_{500 + number}" for number in range(rows)]
    assert found["target"].between(0, 1).all() and found["target"].notna().all()
    assert rows == 1 or found["target"].nunique() > 3


def test_a_row_depends_on_its_image_and_on_its_own_patients_rows(run, tmp_path):
    """The whole ensemble predicts: another image changes a row and its patient's others, and nobody else's."""
    folder = test_set(tmp_path / "set", 9, sample=False)
    before, _ = predict(run, folder, tmp_path)
    with_images(folder, NEW_503=picture(505))
    after, _ = predict(run, folder, tmp_path)
    changed = np.flatnonzero(before["target"] != after["target"])
    assert 3 in changed and set(changed) <= {3, 4, 5}


def test_the_sample_gives_the_order_and_without_it_the_table_does(run, tmp_path):
    folder = test_set(tmp_path / "set", 5)
    in_order, _ = predict(run, folder, tmp_path)
    pd.read_csv(folder / SAMPLE)[::-1].to_csv(folder / SAMPLE, index=False)
    reversed_, _ = predict(run, folder, tmp_path)
    assert reversed_["isic_id"].tolist() == in_order["isic_id"].tolist()[::-1]
    (folder / SAMPLE).unlink()
    assert predict(run, folder, tmp_path)[0].equals(in_order)


def test_images_that_are_missing_or_damaged_are_all_named(run, tmp_path):
    folder = broken(test_set(tmp_path / "set", 6))
    with pytest.raises(DataError, match="2 of 6 test rows have no image that can be read") as caught:
        predict(run, folder, tmp_path)
    assert "NEW_501" in str(caught.value) and "NEW_504" in str(caught.value) and "--gaps fill" in caught.value.hint
    assert not (tmp_path / "submission.csv").exists()


def broken(folder):
    """One image is missing, and one is cut off."""
    return with_images(folder, NEW_501=None, NEW_504=picture(504)[:200])


def with_images(folder, **changes):
    """Other images in a new file, as one that was opened before stays open."""
    path = folder / "test-image.hdf5"
    with h5py.File(path, locking=False) as file:
        images = {name: bytes(file[name][()]) for name in file} | changes
    path.unlink()
    write_hdf5(path, {name: data for name, data in images.items() if data is not None})
    return folder


def test_gaps_are_filled_by_the_trees_that_see_the_table_alone_and_said(run, tmp_path, capsys):
    folder = test_set(tmp_path / "set", 6)
    whole, _ = predict(run, folder, tmp_path)
    found, told = predict(run, broken(folder), tmp_path, gaps="fill")
    assert list(told["filled"]) == ["NEW_501", "NEW_504"] and told["how"] == "predicted by the table alone"
    asked = SimpleNamespace(config=read_config(TASK.config, run / "config.yaml"), run=run)
    columns = table_columns(unseen.read_test(folder, asked))
    units = boosted.read(run / "ensemble").units
    by_table = np.mean([unit.predict(TABLE, columns) for unit in units], axis=0)
    assert found["target"][[1, 4]].to_numpy() == pytest.approx(by_table[[1, 4]], rel=1e-12)
    assert not np.isin(found["target"][[0, 2, 3, 5]], by_table).any()
    assert (found["target"] != whole["target"])[[1, 4]].all()
    assert "2 of them are predicted by the table alone" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "submission.json").read_text())["filled"]) == ["NEW_501", "NEW_504"]


def test_gaps_are_not_filled_where_there_is_nothing_else(run, tmp_path):
    folder = test_set(tmp_path / "set", 3)
    with_images(folder, NEW_500=None, NEW_501=None, NEW_502=None)
    with pytest.raises(DataError, match="3 of 3 test rows have no image"):
        predict(run, folder, tmp_path, gaps="fill")


def test_a_sample_of_other_ids_is_refused_or_said(run, tmp_path, capsys):
    folder = test_set(tmp_path / "set", 4)
    pd.DataFrame({"isic_id": ["OLD_1"], "target": [0.3]}).to_csv(folder / SAMPLE, index=False)
    with pytest.raises(DataError, match="name other ids") as caught:
        predict(run, folder, tmp_path)
    assert "--gaps fill" in caught.value.hint
    found, _ = predict(run, folder, tmp_path, gaps="fill")
    assert len(found) == 4 and "the rows of the table are predicted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "test-image.hdf5").unlink(), "there is no test-image.hdf5"),
        (lambda f: edit(f, lambda t: t.drop(columns="age_approx")), "has no column age_approx"),
        (lambda f: edit(f, lambda t: t.assign(isic_id="NEW_500")), "two rows with this isic_id"),
        (lambda f: edit(f, lambda t: t.assign(tbp_lv_A="?")), "tbp_lv_A is no number"),
    ],
)
def test_what_is_wrong_with_a_test_set_is_one_sentence(run, tmp_path, damage, told):
    folder = test_set(tmp_path / "set", 4)
    damage(folder)
    with pytest.raises(DataError, match=told.replace("?", r"\?")) as caught:
        predict(run, folder, tmp_path)
    assert caught.value.hint


def edit(folder, change):
    path = folder / "test-metadata.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


def test_only_a_finished_run_predicts_and_it_is_found_below_a_folder(run, data, tmp_path):
    place = tmp_path / "input" / "notebooks" / "me" / "training"
    shutil.copytree(run, place / "lesions-t4")
    shutil.copytree(run, place / "other")
    (place / "other" / "submit" / "stage.json").unlink()
    found, told = predict(tmp_path / "input", data, tmp_path)
    assert told["run"] == str(place / "lesions-t4") and len(found) == 12
    with pytest.raises(RunError, match="it is not finished, submit is not done"):
        predict(place / "other", data, tmp_path)
    shutil.copytree(run, place / "third")
    with pytest.raises(RunError, match="2 finished runs") as caught:
        predict(tmp_path / "input", data, tmp_path)
    assert str(place / "third") in caught.value.details
    with pytest.raises(RunError, match="no finished run"):
        predict(data, data, tmp_path)
    model = next((place / "lesions-t4" / "ensemble" / "models").glob("*-both.txt"))
    model.write_text(model.read_text() + "\n")
    with pytest.raises(RunError, match="is not what was recorded"):
        predict(place / "lesions-t4", data, tmp_path)


def test_a_pack_predicts_too_unpacked_by_a_platform_or_as_the_file_that_it_is(run, data, tmp_path):
    place = tmp_path / "input" / "datasets" / "me" / "packed"
    place.mkdir(parents=True)
    outlast.pack(run, place / "run.zip", everything=True)
    own = (run / "submit" / "submission.csv").read_bytes()
    told = outlast.predict(tmp_path / "input", data=data, to=tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_bytes() == own
    assert not Path(told["run"]).is_relative_to(tmp_path)  # unpacked to the scratch disk: inputs can't be written to
    shutil.unpack_archive(place / "run.zip", place)
    (place / "run.zip").unlink()
    assert outlast.predict(tmp_path / "input", data=data, to=tmp_path / "again.csv")["run"] == str(place)
    assert (tmp_path / "again.csv").read_bytes() == own


def test_images_and_a_test_set_are_two_questions(run, data, tmp_path):
    with pytest.raises(UsageError, match="whole test set"):
        outlast.predict(run, [data / "train-image"], data=data)
    with pytest.raises(UsageError, match=r"\.csv"):
        outlast.predict(run, data=data, to=tmp_path / "submission.zip")


def test_a_finished_run_needs_no_published_weights(data, tmp_path):
    """What its training began with, a file that was attached, is not there any more."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "published.safetensors")
    weights = [f"first.weights={tmp_path / 'published.safetensors'}"]
    outlast.train("lesions", data=data, out=tmp_path / "run", preset="smoke", overrides=[*SETTINGS, *weights])
    (tmp_path / "published.safetensors").unlink()
    predict(tmp_path / "run", data, tmp_path)
    own = tmp_path / "run" / "submit" / "submission.csv"
    assert (tmp_path / "submission.csv").read_bytes() == own.read_bytes()
