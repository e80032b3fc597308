"""Tables, folds and images of lesions: what is bad is named with its remedy, what leaks is never used."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from outlast.data.cache import build as build_cache
from outlast.errors import DataError
from outlast.task import Work
from outlast.tasks.lesions import folds, layout, learner, table
from outlast.tasks.lesions.config import DataConfig, LesionsData, QuickTest, StageConfig
from toys.lesion_set import ROWS, TEST_ROWS, edit, picture, write_hdf5, write_set

THREE = DataConfig(data=LesionsData(folds=3, image_size=32))


def examples(root, config=THREE):
    return learner.examples(config, {"data": root})


def refused(root, config=THREE):
    with pytest.raises(DataError) as caught:
        examples(root, config)
    assert caught.value.hint
    return str(caught.value)


def folded(root, out, config=THREE, found=None):
    """What the stage `folds` makes, in the folder `out`."""
    out.mkdir()
    about = folds.build(Work(config, {}, out, found or examples(root, config), False, out, lambda: None))
    return out, about


def test_rows_of_both_tables_have_their_fold_split_and_label(lesions):
    found = examples(lesions).table
    train, test = found[found["split"] == "train"], found[found["split"] == "test"]
    assert (len(train), len(test)) == (ROWS, TEST_ROWS)
    assert sorted(train["fold"].unique()) == [0, 1, 2]
    assert set(test["fold"]) == {-1}
    assert set(test["label"]) == {-1}
    assert train.groupby("group")["fold"].nunique().max() == 1
    assert train.groupby("fold")["label"].nunique().min() == 2
    assert set(found["source"]) == {"train-image/image", "test-image.hdf5"}


def test_a_file_of_training_images_gives_the_same_rows_and_pixels_as_a_folder(lesions, tmp_path):
    one, two = examples(lesions), examples(write_set(tmp_path / "file", train_file=True))
    assert one.fingerprint == two.fingerprint
    config = StageConfig(data=THREE.data)
    for place in (0, 17, ROWS + 3):
        first, second = (learner.read(config, item.root, item.table.iloc[place].to_dict()) for item in (one, two))
        assert np.array_equal(first["image"], second["image"])


def test_leaks_are_left_out_by_what_is_declared_and_refused_where_they_are_wanted(lesions):
    columns = table.read_tables(lesions, THREE).columns
    assert set(columns.names) == {"age_approx", "sex", "tbp_lv_A"}
    assert "attribution (which collection" in columns.notes[0]
    for name in ("attribution", "dx_type", "lesion_id", "iddx_full"):
        wanted = DataConfig(data=LesionsData(folds=3, columns=("age_approx", name)))
        assert f"{name}: it gives the answer away" in refused(lesions, wanted)


def test_a_data_set_declares_leaks_of_its_own(lesions):
    for name in ("train-metadata.csv", "test-metadata.csv"):
        edit(lesions / name, lambda frame: frame.assign(note=frame["isic_id"].str[-1]))
    assert "note" in table.read_tables(lesions, THREE).columns.names
    (lesions / "leaks.json").write_text(json.dumps({"note": "written afterwards"}))
    assert "note" not in table.read_tables(lesions, THREE).columns.names
    wanted = DataConfig(data=LesionsData(folds=3, columns=("note",)))
    assert "note: it gives the answer away (written afterwards)" in refused(lesions, wanted)
    named = DataConfig(data=LesionsData(folds=3, leaks=("sex",)))
    assert "sex" not in table.read_tables(lesions, named).columns.names


def test_a_leak_that_nobody_declared_is_told(lesions):
    for name in ("train-metadata.csv", "test-metadata.csv"):
        edit(
            lesions / name,
            lambda f: f.assign(depth=np.where(f["isic_id"].str[-1].isin(["0", "5"]), 4.0, np.nan)),
        )
    notes = table.read_tables(lesions, THREE).notes
    assert any("depth alone tells malignant from benign (AUC 1.000)" in note for note in notes)
    assert not any("tbp_lv_A alone" in note or "sex alone" in note for note in notes)


@pytest.mark.real_data
def test_the_leaks_of_the_real_sample_are_dropped_and_refused(real_data):
    root = real_data / "lesions" / "isic"
    config = DataConfig()
    assert set(table.read_tables(root, config).columns.names) == {"age_approx", "sex", "anatom_site_general"}
    for name in ("attribution", "dx_type"):
        wanted = DataConfig(data=LesionsData(columns=(name,)))
        with pytest.raises(DataError, match="can't be used") as caught:
            table.read_tables(root, wanted)
        assert "it gives the answer away" in str(caught.value)


def drop_image(root):
    (root / "train-image" / "image" / "ISIC_0007.jpg").unlink()


def drop_test_image(root):
    with h5py.File(root / "test-image.hdf5", "a") as file:
        del file[f"ISIC_{ROWS + 2:04d}"]


def add_image(root):
    (root / "train-image" / "image" / "ISIC_9999.jpg").write_bytes(picture(0))


def add_test_image(root):
    with h5py.File(root / "test-image.hdf5", "a") as file:
        file["ISIC_9998"] = np.void(picture(0))


BAD = {
    "an id twice": (
        lambda root: edit(root / "train-metadata.csv", lambda f: pd.concat([f, f.iloc[[3]]])),
        ["ISIC_0003: two rows with this isic_id; keep one"],
    ),
    "a row without an image": (drop_image, ["ISIC_0007", "without an image", "add the image or remove the row"]),
    "a test row that is not in the file": (drop_test_image, ["ISIC_0062", "test-image.hdf5", "add the image"]),
    "an image without a row": (add_image, ["ISIC_9999", "without a row", "data.unlisted_images=allow"]),
    "a test image without a row": (add_test_image, ["ISIC_9998", "without a row", "data.unlisted_images=allow"]),
    "a sample submission of other ids": (
        lambda root: edit(root / "sample_submission.csv", lambda f: f.assign(isic_id="X" + f["isic_id"])),
        ["sample_submission.csv", "in test-metadata.csv, not in", "same release"],
    ),
    "a sample submission of other columns": (
        lambda root: edit(root / "sample_submission.csv", lambda f: f.rename(columns={"target": "p"})),
        ["its columns must be isic_id,target"],
    ),
    "too few patients with positives": (
        lambda root: edit(
            root / "train-metadata.csv", lambda f: f.assign(target=(f["patient_id"] == "P000").astype(int))
        ),
        ["every class must be in each of 3 folds", "1: 4 rows in 1 groups"],
    ),
    "text among numbers": (
        lambda root: edit(
            root / "test-metadata.csv", lambda f: f.assign(age_approx=["old", *f["age_approx"].astype(str)[1:]])
        ),
        ["age_approx is no number: ISIC_0060 (old)", "correct these"],
    ),
    "no patient": (
        lambda root: edit(
            root / "train-metadata.csv", lambda f: f.assign(patient_id=[None, *f["patient_id"].tolist()[1:]])
        ),
        ["ISIC_0000: no patient_id; fill it in"],
    ),
    "a lesion in both tables": (
        lambda root: edit(
            root / "train-metadata.csv", lambda f: f.assign(isic_id=["ISIC_0060", *f["isic_id"].tolist()[1:]])
        ),
        ["both tables: ISIC_0060", "take them out"],
    ),
    "no test file": (lambda root: (root / "test-image.hdf5").unlink(), ["there is no test-image.hdf5", "copy them"]),
    "a broken declaration": (lambda root: (root / "leaks.json").write_text("[1]"), ["leaks.json", "{column: why}"]),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_data_is_named_with_its_remedy(lesions, what):
    damage, told = BAD[what]
    damage(lesions)
    message = refused(lesions)
    for part in told:
        assert part in message, message


def test_everything_that_is_wrong_is_told_at_once(lesions):
    drop_image(lesions)
    drop_test_image(lesions)
    message = refused(lesions)
    assert "ISIC_0007" in message
    assert "ISIC_0062" in message


def test_images_without_a_row_are_left_out_where_that_is_allowed(lesions):
    add_image(lesions)
    allowed = DataConfig(data=LesionsData(folds=3, unlisted_images="allow"))
    found = examples(lesions, allowed)
    assert "ISIC_9999" not in set(found.table["id"])
    assert any("1 images in train-image/image have no row" in note for note in found.notes)


@pytest.mark.parametrize("damaged", ["cut off", "no picture"])
def test_a_damaged_picture_in_the_test_file_is_named_and_never_black(lesions, tmp_path, damaged):
    name = f"ISIC_{ROWS + 5:04d}"
    with h5py.File(lesions / "test-image.hdf5", "a") as file:
        whole = file[name][()].tobytes()
        del file[name]
        file[name] = np.void(whole[: len(whole) // 2] if damaged == "cut off" else b"hello")
    found, config = examples(lesions), StageConfig(data=THREE.data)
    rows = found.table.to_dict("records")
    with pytest.raises(DataError) as caught:
        build_cache(
            rows, lambda row: learner.read(config, found.root, row), key="k", folder=tmp_path / "cache",
            budget_bytes=10**8,
        )  # fmt: skip
    assert name in str(caught.value)
    assert "1 of 72 samples can't be read" in str(caught.value)


def test_a_missing_age_and_an_unseen_category_stay_missing_and_are_told(lesions, tmp_path):
    edit(lesions / "train-metadata.csv", lambda f: f.assign(age_approx=f["age_approx"].where(f.index != 9)))
    edit(lesions / "test-metadata.csv", lambda f: f.assign(sex=["unknown", *f["sex"].tolist()[1:]]))
    found = examples(lesions)
    assert "train-metadata.csv: age_approx: missing in 1 of 60 rows, and left missing" in found.notes
    assert any(
        "test-metadata.csv: sex: 1 rows have a category that training never saw (unknown)" in n for n in found.notes
    )
    features = table.read_features(folded(lesions, tmp_path / "folds", found=found)[0])
    values = features.values.set_index(features.rows["isic_id"])
    assert np.isnan(values.loc["ISIC_0009", "age_approx"])
    assert pd.isna(values.loc[f"ISIC_{ROWS:04d}", "sex"])
    assert values["age_approx"].isna().sum() == 1


def test_folds_are_written_with_their_hash_and_read_back_with_the_same_numbers(lesions, tmp_path):
    found = examples(lesions)
    out, about = folded(lesions, tmp_path / "folds", found=found)
    assert sorted(path.name for path in out.iterdir()) == sorted(folds.MAKES)
    features = table.read_features(out)
    known = found.table.set_index("id")["fold"]
    assert known.loc[features.rows["isic_id"]].tolist() == features.rows["fold"].tolist()
    train = table.read_tables(lesions, THREE).train
    exact = features.values["tbp_lv_A"].set_axis(features.rows["isic_id"])
    assert exact.loc[train["isic_id"]].tolist() == train["tbp_lv_A"].tolist()
    assert json.loads((out / "folds.json").read_text())["hash"] == about["hash"]
    again = folded(lesions, tmp_path / "again")[1]
    assert again["hash"] == about["hash"]
    other = folded(lesions, tmp_path / "other", DataConfig(data=LesionsData(folds=3, split_seed=1)))[1]
    assert other["hash"] != about["hash"]


def test_folds_and_watched_rows_in_any_order_of_rows_are_the_same(lesions):
    config = DataConfig(data=LesionsData(folds=3, validation_negatives=5))
    before = examples(lesions, config).table.set_index("id")[["fold", "watched"]]
    edit(lesions / "train-metadata.csv", lambda f: f.sample(frac=1, random_state=3))
    after = examples(lesions, config).table.set_index("id")[["fold", "watched"]]
    assert after.loc[before.index].equals(before)


def test_a_patient_in_two_folds_is_refused(lesions, tmp_path):
    found = examples(lesions)
    moved = found.table.copy()
    moved.loc[0, "fold"] = (moved.loc[0, "fold"] + 1) % 3
    with pytest.raises(DataError, match=r"stand on two sides of the split.*P000"):
        folded(lesions, tmp_path / "folds", found=type(found)(moved, found.root, found.facts))


def test_a_fold_without_positives_is_refused():
    train = pd.DataFrame({"fold": [0, 0, 1, 1], "label": [0, 0, 0, 1]})
    with pytest.raises(DataError, match="fold 0: 0 malignant of 2 rows") as caught:
        folds.check_classes(train)
    assert "data.folds=2" in str(caught.value.hint)


def test_folds_that_somebody_changed_are_refused(lesions, tmp_path):
    out, _ = folded(lesions, tmp_path / "folds")
    edit(out / "folds.csv", lambda f: f.assign(fold=np.where(f["group"] == "P000", (f["fold"] + 1) % 3, f["fold"])))
    with pytest.raises(DataError, match="disagree about the folds"):
        table.read_features(out)


def test_a_quick_test_takes_whole_patients_of_the_folds_of_a_full_run(lesions, tmp_path):
    full = examples(lesions).table.set_index("id")
    quick = examples(lesions, DataConfig(data=THREE.data, quick=QuickTest(enabled=True, rows=24)))
    part = quick.table[quick.table["split"] == "train"].set_index("id")
    assert 0 < len(part) < ROWS
    assert part["fold"].equals(full.loc[part.index, "fold"])
    whole = full[full["split"] == "train"].groupby("group").size()
    assert part.groupby("group").size().equals(whole.loc[sorted(part["group"].unique())])
    assert part.groupby("fold")["label"].nunique().min() == 2
    assert any("quick test" in note for note in quick.notes)


def test_watched_rows_hold_all_positives_and_the_wanted_number_of_negatives(lesions):
    found = examples(lesions, DataConfig(data=LesionsData(folds=3, validation_negatives=5))).table
    train = found[found["split"] == "train"]
    seen = train[train["watched"] >= 0]
    assert (seen["watched"] == seen["fold"]).all()
    assert seen["label"].sum() == train["label"].sum()
    assert (seen[seen["label"] == 0].groupby("fold").size() == 5).all()
    assert (examples(lesions).table["watched"] == examples(lesions).table["fold"]).all()


def test_a_labelled_folder_needs_no_test_set(lesions):
    facts = examples(lesions).facts
    for name in (layout.TEST_FILE, layout.TEST_TABLE, layout.SAMPLE):
        (lesions / name).unlink()
    found = learner.labelled(StageConfig(data=THREE.data), lesions, facts)
    assert len(found.table) == ROWS
    assert found.table["label"].sum() == ROWS // 5
    shutil.rmtree(lesions / "train-image")
    with pytest.raises(DataError, match="no labelled lesions"):
        learner.labelled(StageConfig(data=THREE.data), lesions, facts)


def test_images_that_changed_in_place_are_seen(lesions):
    config = StageConfig(data=THREE.data)
    row = {"id": f"ISIC_{ROWS:04d}", "source": "test-image.hdf5"}
    before = learner.read(config, lesions, row)["image"]
    pictures = {f"ISIC_{ROWS + n:04d}": picture(ROWS + n + 1) for n in range(TEST_ROWS)}
    (lesions / "test-image.hdf5").unlink()
    write_hdf5(lesions / "test-image.hdf5", pictures)
    assert not np.array_equal(learner.read(config, lesions, row)["image"], before)
