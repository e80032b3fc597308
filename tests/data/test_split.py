import numpy as np
import pandas as pd
import pytest

from outlast.data.split import assign_folds, check_split, complete_split, freeze, obey, split_by_group
from outlast.errors import DataError


def make(per_class: tuple[int, ...] = (200, 100, 40), in_group: int = 4) -> pd.DataFrame:
    labels = np.repeat(np.arange(len(per_class)), per_class)
    rows = np.arange(len(labels))
    return pd.DataFrame(
        {
            "id": [f"c{label}/ä {row},1.png" for label, row in zip(labels, rows, strict=True)],
            "label": labels,
            "group": [f"g{label}-{row // in_group}" for label, row in zip(labels, rows, strict=True)],
            "hash": [f"{row:064x}" for row in rows],
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_classes_keep_their_proportions(seed):
    table = make()
    table["split"] = split_by_group(table, seed=seed)
    check_split(table)
    counts = table.groupby(["split", "label"]).size().unstack()
    assert (counts > 0).all(axis=None)
    for split, share in {"train": 0.7, "val": 0.15, "test": 0.15}.items():
        assert abs(counts.loc[split].sum() / len(table) - share) < 0.05
        assert np.abs(counts.loc[split] / counts.loc[split].sum() - counts.sum() / len(table)).max() < 0.06


def test_the_split_is_a_function_of_table_and_seed():
    table = make()
    first = split_by_group(table, seed=1)
    assert first.equals(split_by_group(table, seed=1)) and not first.equals(split_by_group(table, seed=2))


@pytest.mark.parametrize("per_class", [(12, 12), (200, 12), (100, 100, 12)])
def test_three_groups_of_a_class_are_enough_for_three_splits(per_class):
    table = make(per_class)
    table["split"] = split_by_group(table, seed=0)
    assert (table.groupby(["split", "label"]).size().unstack() > 0).all(axis=None)
    check_split(table)


def test_a_class_with_too_few_groups_is_an_error_with_the_counts():
    with pytest.raises(DataError, match="every class") as caught:
        split_by_group(make((100, 8)), seed=0)
    assert "1: 8 rows in 2 groups" in caught.value.details and caught.value.hint
    with pytest.raises(DataError, match="5 folds"):
        assign_folds(make((100, 16)), 5, 0)


def test_other_fractions_and_columns_are_possible():
    table = make().rename(columns={"label": "kind", "group": "scene"})
    split = split_by_group(table, fractions={"a": 0.5, "b": 0.5}, seed=0, label="kind", group="scene")
    assert abs((split == "a").mean() - 0.5) < 0.05
    with pytest.raises(DataError, match="no column 'label'"):
        split_by_group(table, seed=0)


def test_folds_are_grouped_and_hold_every_class():
    table = make()
    table["fold"] = assign_folds(table, 5, 0)
    assert table["fold"].dtype == np.int64 and set(table["fold"]) == set(range(5))
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    assert (table.groupby(["fold", "label"]).size().unstack() > 0).all(axis=None)
    assert table["fold"].tolist() == assign_folds(table, 5, 0).tolist() != assign_folds(table, 5, 1).tolist()


def test_a_complete_given_split_is_untouched():
    table = make().assign(split=["train", "val", "test", "train"] * 85)
    assert complete_split(table, seed=0).tolist() == table["split"].tolist()


def test_a_leaking_group_is_named():
    table = make((4, 4)).assign(split=["train", "train", "val", "val"] + ["test"] * 4)
    with pytest.raises(DataError, match="g0-0"):
        check_split(table)


def test_a_frozen_split_is_obeyed_in_any_order_of_rows(tmp_path):
    table = make()
    table["split"], table["fold"] = split_by_group(table, seed=0), assign_folds(table, 5, 0)
    freeze(table, tmp_path / "run" / "split.csv", decided=("split", "fold"))
    again = obey(make().iloc[::-1].reset_index(drop=True), tmp_path / "run" / "split.csv", decided=("split", "fold"))
    again = again.iloc[::-1].reset_index(drop=True)
    assert again["split"].tolist() == table["split"].tolist() and again["fold"].tolist() == table["fold"].tolist()
    assert again["fold"].dtype == np.int64 and [path.name for path in (tmp_path / "run").iterdir()] == ["split.csv"]


def test_data_that_changed_under_a_frozen_split_is_named(tmp_path):
    table = make((8, 8)).assign(split="train")
    freeze(table, tmp_path / "split.csv")
    changed = table.drop(columns="split").drop(index=3)
    changed.loc[5, "hash"] = "f" * 64
    changed.loc[6, "label"] = 1
    new = changed.loc[[0]].assign(id="c0/new.png")
    with pytest.raises(DataError, match="1 files added, 1 gone, 2 changed") as caught:
        obey(pd.concat([changed, new], ignore_index=True), tmp_path / "split.csv")
    assert set(caught.value.details) == {
        "added: c0/new.png",
        "gone: c0/ä 3,1.png",
        "changed contents: c0/ä 5,1.png",
        "changed label: c0/ä 6,1.png",
    }


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "id,split\nx,train\nx,val\n"])
def test_a_damaged_split_file_is_named(tmp_path, text):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(DataError, match=r"split\.csv"):
        obey(make((8, 8)), tmp_path / "split.csv")
