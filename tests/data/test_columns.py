import numpy as np
import pandas as pd
import pytest

from outlast.data.columns import MOST_CATEGORIES, Columns, Declared, choose_columns, encode, read_table
from outlast.errors import DataError

DECLARED = Declared(
    id="isic_id",
    patient="patient_id",
    target="target",
    leaks={"attribution": "one archive has more cancers", "iddx_full": "it is the diagnosis"},
    left_out=("licence",),
)


def make(rows=6):
    return pd.DataFrame(
        {
            "isic_id": [f"ISIC_{number}" for number in range(rows)],
            "patient_id": [f"P{number // 2}" for number in range(rows)],
            "target": [number % 2 for number in range(rows)],
            "age": [50.0, np.nan, 70, 45, 30, 60][:rows],
            "sex": ["male", "female", None, "male", "male", "female"][:rows],
            "attribution": ["A", "B"] * (rows // 2),
            "iddx_full": ["nevus", "melanoma"] * (rows // 2),
            "thickness": [0.0, 1.0] * (rows // 2),
            "licence": ["CC-0"] * rows,
        }
    )


def make_test(rows=6):
    table = make(rows).drop(columns=["target", "iddx_full", "thickness"])
    table["isic_id"] = [f"TEST_{number}" for number in range(rows)]
    return table.assign(scanner="x")


def test_features_are_the_intersection_without_ids_target_and_leaks():
    columns = choose_columns(make(), make_test(), DECLARED)
    assert columns.names == ("age", "sex")
    assert columns.numeric == ("age",) and columns.categories == {"sex": ("female", "male")}
    notes = "\n".join(columns.notes)
    assert "attribution (one archive has more cancers), iddx_full (it is the diagnosis)" in notes
    assert "only the training table has it: thickness" in notes and "only the test table has it: scanner" in notes
    assert "target" not in notes and "licence" not in notes


def test_a_leak_in_both_tables_is_dropped_by_declaration_and_not_by_luck():
    undeclared = Declared("isic_id", "patient_id", "target", leaks={})
    assert "attribution" in choose_columns(make(), make_test(), undeclared).names
    assert "attribution" not in choose_columns(make(), make_test(), DECLARED).names


def test_wanted_columns_that_can_not_be_used_are_refused_all_together_with_reasons():
    wanted = ["age", "attribution", "iddx_full", "target", "isic_id", "thickness", "scanner", "agee"]
    with pytest.raises(DataError, match="7 of the wanted columns") as caught:
        choose_columns(make(), make_test(), DECLARED, wanted)
    assert caught.value.details == (
        "attribution: it gives the answer away (one archive has more cancers)",
        "iddx_full: it gives the answer away (it is the diagnosis)",
        "target: it is the answer",
        "isic_id: it is no property of the lesion",
        "thickness: the test table does not have it",
        "scanner: the training table does not have it",
        "agee: there is no such column. Did you mean 'age'?",
    )
    assert "age, sex" in caught.value.hint
    assert choose_columns(make(), make_test(), DECLARED, ["sex", "sex"]).names == ("sex",)


def test_columns_that_say_nothing_or_too_much_are_left_out_and_named():
    rows = MOST_CATEGORIES + 2
    train = pd.DataFrame({"isic_id": [str(n) for n in range(rows)], "patient_id": "P", "target": 0})
    train["empty"], train["comment"], train["right"] = np.nan, train["isic_id"] + "!", [True, False] * (rows // 2)
    columns = choose_columns(train, train, DECLARED)
    assert columns.names == ("right",) and columns.categories["right"] == ("False", "True")
    assert any(note.startswith("empty is left out") for note in columns.notes)
    assert any(note.startswith("comment is left out: text with 202 values") for note in columns.notes)


def test_categories_have_the_same_codes_everywhere_and_the_unseen_are_missing_and_named():
    train, test = make(), make_test(4)
    test["sex"] = ["other", "female", None, "male"]
    columns = choose_columns(train, test, DECLARED)
    encoded, notes = encode(train, columns, DECLARED)
    assert encoded["sex"].cat.codes.tolist() == [1, 0, -1, 1, 1, 0]
    seen, more = encode(test, columns, DECLARED)
    assert seen["sex"].cat.codes.tolist() == [-1, 0, -1, 1]
    assert seen["sex"].dtype == encoded["sex"].dtype
    assert "sex: 1 rows have a category that training never saw (other): missing" in more
    assert "age: missing in 1 of 6 rows, and left missing" in notes


def test_missing_numbers_stay_missing_and_are_never_filled():
    encoded, _ = encode(make(), choose_columns(make(), make_test(), DECLARED), DECLARED)
    assert encoded["age"].dtype == np.float64
    assert np.array_equal(encoded["age"], [50, np.nan, 70, 45, 30, 60], equal_nan=True)
    test = make_test().assign(age=None)
    assert encode(test, Columns(("age",), {}), DECLARED)[0]["age"].isna().all()


def test_text_and_infinity_in_numbers_are_named_by_id():
    table = make().astype({"age": object})
    table.loc[2, "age"], table.loc[3, "age"] = "old", "inf"
    with pytest.raises(DataError, match="no number") as caught:
        encode(table, Columns(("age",), {}), DECLARED)
    assert caught.value.details == ("age is no number: ISIC_2 (old)", "age is infinite: ISIC_3 (inf)")
    with pytest.raises(DataError, match="no column height"):
        encode(table, Columns(("height",), {}), DECLARED)


def test_a_good_table_is_read_with_ids_as_text(tmp_path):
    path = tmp_path / "train.csv"
    table = make().assign(isic_id=[f"00{number}" for number in range(6)], patient_id=[7, 7, 8, 8, 9, 9])
    table.to_csv(path, index=False)
    read = read_table(path, DECLARED, labelled=True)
    assert read["isic_id"].tolist() == table["isic_id"].tolist() and read["patient_id"].iat[0] == "7"
    assert read["target"].dtype == np.int64
    make_test().to_csv(path, index=False)
    assert len(read_table(path, DECLARED, labelled=False)) == 6


def test_everything_wrong_with_the_rows_is_named_at_once(tmp_path):
    table = make().astype({"target": object})
    table.loc[0, "isic_id"] = None
    table.loc[3, "isic_id"] = "ISIC_2"
    table.loc[4, "patient_id"] = None
    table.loc[5, "target"] = 2
    table.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(DataError, match=r"train.csv can't be used") as caught:
        read_table(tmp_path / "train.csv", DECLARED, labelled=True)
    assert caught.value.details == (
        "line 2: no isic_id; fill it in or remove the row",
        "ISIC_2: two rows with this isic_id; keep one",
        "ISIC_4: no patient_id; fill it in (one patient is one group)",
        "ISIC_5: target is neither 0 nor 1; correct it",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "not a readable CSV table"),
        ("", "not a readable CSV table"),
        ("a,b\n1\n2,3,4,5\n", "not a readable CSV table"),
        ("isic_id,age\nx,3\n", "has no column patient_id, target"),
        ("isic_id,patient_id,target\n", "has no rows"),
    ],
)
def test_what_is_no_table_says_so(tmp_path, text, sentence):
    path = tmp_path / "train.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_table(path, DECLARED, labelled=True)


@pytest.mark.real_data
def test_the_real_tables_lose_their_leaks_by_rule(real_data):
    folder = real_data / "lesions" / "isic"
    why = {"attribution": "the archive", "dx_type": "only some were biopsied", "iddx_full": "the diagnosis"}
    declared = Declared("isic_id", "patient_id", "target", {**why, "lesion_id": "names the lesion"})
    train = read_table(folder / "train-metadata.csv", declared, labelled=True)
    test = read_table(folder / "test-metadata.csv", declared, labelled=False)
    columns = choose_columns(train, test, declared)
    assert set(columns.names) == {"age_approx", "sex", "anatom_site_general"}
    with pytest.raises(DataError) as caught:
        choose_columns(train, test, declared, ["dx_type", "attribution"])
    assert len(caught.value.details) == 2
    frame, notes = encode(test, columns, declared)
    assert len(frame) == 320 and len(notes) == 3
