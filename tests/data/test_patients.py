import hashlib
import math
import statistics

import numpy as np
import pandas as pd
import pytest

from outlast.data.patients import hash_folds, patient_features, patient_folds, read_folds, write_folds
from outlast.errors import DataError

NAMES = {"patient": "patient_id", "target": "target"}


def make(rows=200, patients=30, seed=0):
    rng = np.random.default_rng(seed)
    whose = rng.integers(0, patients, rows)
    whose[0] = patients  # a patient with one lesion
    table = pd.DataFrame(
        {
            "isic_id": [f"ISIC_{number:07}" for number in range(rows)],
            "patient_id": [f"IP_{number}" for number in whose],
            "target": (rng.random(rows) < 0.3).astype(np.int64),
            "area": rng.lognormal(size=rows),
            "hue": np.round(rng.normal(size=rows), 1),
            "flat": 0.1,
            "site": rng.choice(["arm", "leg", "torso"], rows),
        }
    )
    table.loc[rng.choice(rows, 20, replace=False), "area"] = np.nan
    table.loc[rng.choice(rows, 20, replace=False), "site"] = None
    return table


def by_loop(table, numeric, categorical):
    """The same features, one row and one neighbour at a time."""
    result = []
    for _, row in table.iterrows():
        others = [other for _, other in table.iterrows() if other["patient_id"] == row["patient_id"]]
        made = {"patient_lesions": float(len(others))}
        for name in numeric:
            own = row[name]
            values = [other[name] for other in others if not math.isnan(other[name])]
            made[f"{name}_z"] = made[f"{name}_rank"] = made[f"{name}_from_median"] = made[f"{name}_ratio"] = math.nan
            if math.isnan(own):
                continue
            if len(values) > 1:
                alike = all(value == own for value in values)
                made[f"{name}_z"] = 0.0 if alike else (own - statistics.fmean(values)) / statistics.stdev(values)
            lower, same = sum(value < own for value in values), sum(value == own for value in values)
            made[f"{name}_rank"] = (lower + (same + 1) / 2) / len(values)
            made[f"{name}_from_median"] = own - statistics.median(values)
            cancel = abs(statistics.fmean(values)) < 1e-9 * max(map(abs, values))
            made[f"{name}_ratio"] = math.nan if cancel else own / statistics.fmean(values)
        for name in categorical:
            kind = row[name]
            known = isinstance(kind, str)
            made[f"{name}_count"] = float(sum(other[name] == kind for other in others)) if known else math.nan
        result.append(made)
    return pd.DataFrame(result, index=table.index)


def test_features_equal_a_naive_loop():
    table = make().sample(frac=1, random_state=1)
    made = patient_features(table, patient="patient_id", numeric=["area", "hue", "flat"], categorical=["site"])
    expected = by_loop(table, ["area", "hue", "flat"], ["site"])
    pd.testing.assert_frame_equal(made, expected, check_exact=False, rtol=1e-9, atol=1e-12)
    assert made["area_z"].isna().sum() > 0 and made["hue_z"].notna().sum() > 150


def test_values_that_are_all_equal_have_no_spread_to_divide_by():
    for rows in (2, 3, 7, 1000):
        table = pd.DataFrame({"patient_id": "P", "flat": [0.1] * rows})
        made = patient_features(table, patient="patient_id", numeric=["flat"])
        assert (made["flat_z"] == 0).all() and made["flat_rank"].tolist() == [(rows + 1) / 2 / rows] * rows
    alone = patient_features(table.iloc[:1], patient="patient_id", numeric=["flat"])
    assert math.isnan(alone["flat_z"].iat[0]) and alone["flat_from_median"].iat[0] == 0


def test_a_feature_depends_on_its_own_patient_alone():
    table = make()
    names = {"patient": "patient_id", "numeric": ["area", "hue"], "categorical": ["site"]}
    whole = patient_features(table, **names)
    some = table["patient_id"].isin(["IP_1", "IP_2"])
    pd.testing.assert_frame_equal(patient_features(table[some], **names), whole[some])
    turned = patient_features(table.assign(target=1 - table["target"]), **names)
    pd.testing.assert_frame_equal(turned, whole)


def test_a_row_without_patient_is_an_error():
    table = make()
    table.loc[7, "patient_id"] = None
    with pytest.raises(DataError, match="1 of 200 rows have no patient_id, such as row 7"):
        patient_features(table, patient="patient_id", numeric=["area"])
    with pytest.raises(DataError, match="no patient_id"):
        patient_folds(table, 5, 0, **NAMES)
    with pytest.raises(DataError, match="no column 'who'"):
        patient_features(table, patient="who", numeric=["area"])


def test_folds_keep_patients_whole_and_do_not_depend_on_the_order_of_rows():
    table = make()
    folds = patient_folds(table, 5, 0, **NAMES)
    assert (folds.groupby(table["patient_id"]).nunique() == 1).all()
    assert table["target"].groupby(folds).nunique().tolist() == [2] * 5
    turned = table.sample(frac=1, random_state=3)
    assert patient_folds(turned, 5, 0, **NAMES).sort_index().equals(folds)
    assert not patient_folds(table, 5, 1, **NAMES).equals(folds)


def test_too_few_patients_with_positives_are_an_error_with_the_counts():
    table = make()
    table["target"] = (table["patient_id"] == "IP_3").astype(int)
    with pytest.raises(DataError, match="5 folds") as caught:
        patient_folds(table, 5, 0, **NAMES)
    assert any(line.endswith("in 1 groups") for line in caught.value.details)


def test_folds_are_written_once_and_obeyed_in_any_order_of_rows(tmp_path):
    table, path = make(), tmp_path / "folds.csv"
    folds = patient_folds(table, 5, 0, **NAMES)
    digest = write_folds(path, table, folds, id="isic_id", **NAMES)
    lines = "".join(f"{name}\0{fold}\n" for name, fold in zip(table["isic_id"], folds, strict=True))
    assert digest == hashlib.sha256(lines.encode()).hexdigest()
    turned = table.sample(frac=1, random_state=3)
    read = read_folds(path, turned, id="isic_id", expected=digest, **NAMES)
    assert read.sort_index().equals(folds)
    order = turned.index.to_numpy()
    assert hash_folds(turned["isic_id"].tolist(), folds.to_numpy()[order].tolist()) == digest


def _edit(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *change(lines[1:])]) + "\n")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: [rows[0].rpartition(",")[0] + ",9", *rows[1:]], "fold 9 lacks a class"),
        (
            lambda rows: [rows[5].rpartition(",")[0] + f",{1 - int(rows[5][-1] == '1')}", *rows[:5], *rows[6:]],
            "two sides",
        ),
        (lambda rows: [row[:-1] + str((int(row[-1]) + 1) % 5) for row in rows], "not the folds that this run"),
        (lambda rows: [row[:-1] + "x" for row in rows], "not whole numbers"),
        (lambda rows: rows[:-1], "1 files added"),
        (lambda rows: [rows[0], *rows], "twice"),
    ],
    ids=["alone", "torn", "renumbered", "text", "short", "doubled"],
)
def test_folds_that_were_edited_are_not_obeyed(tmp_path, change, sentence):
    table, path = make(), tmp_path / "folds.csv"
    digest = write_folds(path, table, patient_folds(table, 5, 0, **NAMES), id="isic_id", **NAMES)
    _edit(path, change)
    with pytest.raises(DataError, match=sentence):
        read_folds(path, table, id="isic_id", expected=digest, **NAMES)


def test_a_table_that_changed_under_its_folds_is_named(tmp_path):
    table, path = make(), tmp_path / "folds.csv"
    write_folds(path, table, patient_folds(table, 5, 0, **NAMES), id="isic_id", **NAMES)
    table.loc[4, "target"] = 1 - table.loc[4, "target"]
    table.loc[5, "patient_id"] = "IP_other"
    with pytest.raises(DataError, match="0 files added, 0 gone, 2 changed") as caught:
        read_folds(path, table, id="isic_id", **NAMES)
    assert set(caught.value.details) == {"changed label: ISIC_0000004", "changed group: ISIC_0000005"}


def test_a_patient_in_two_folds_is_never_written(tmp_path):
    table = make()
    torn = pd.Series(np.arange(len(table)) % 5, name="fold")
    with pytest.raises(DataError, match="two sides of the split"):
        write_folds(tmp_path / "folds.csv", table, torn, id="isic_id", **NAMES)
    assert not (tmp_path / "folds.csv").exists()


def test_values_that_cancel_have_no_ratio_to_their_mean():
    table = pd.DataFrame({"patient_id": "P", "hue": [0.1, 0.2, -0.3]})  # their sum is 5.6e-17
    assert patient_features(table, patient="patient_id", numeric=["hue"])["hue_ratio"].isna().all()


def test_a_hundred_thousand_rows_are_no_loop():
    rng = np.random.default_rng(0)
    whose = np.char.add("IP_", rng.integers(0, 1042, 100_000).astype(str))
    table = pd.DataFrame(
        {"patient_id": whose, "area": rng.normal(size=100_000), "site": rng.choice(["a", "b"], 100_000)}
    )
    made = patient_features(table, patient="patient_id", numeric=["area"], categorical=["site"])
    assert made.shape == (100_000, 6) and made.notna().all(axis=None)
    rows = np.flatnonzero(whose == "IP_5")
    assert made["area_z"].to_numpy()[rows].std(ddof=1) == pytest.approx(1)


@pytest.mark.real_data
def test_the_real_table_is_folded_by_lesion_group(real_data, tmp_path):
    table = pd.read_csv(real_data / "lesions" / "isic" / "train-metadata.csv")
    folds = patient_folds(table, 5, 0, **NAMES)
    share = table["target"].groupby(folds).mean()
    assert (share - table["target"].mean()).abs().max() < 0.02
    digest = write_folds(tmp_path / "folds.csv", table, folds, id="isic_id", **NAMES)
    assert read_folds(tmp_path / "folds.csv", table, id="isic_id", expected=digest, **NAMES).equals(folds)
