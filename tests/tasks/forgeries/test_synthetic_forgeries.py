"""The synthetic set of forgeries: its layout, both kinds, several instances, the same files again, and its mark."""

import filecmp
from pathlib import Path

import numpy as np
import pytest

from outlast.data.readers import read_image
from outlast.errors import DataError
from outlast.tasks.forgeries.layout import examples
from outlast.tasks.forgeries.listing import unlabelled_images
from outlast.tasks.forgeries.synthetic import write
from outlast.tasks.forgeries.truth import read_masks


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forgeries")
    write(folder, cases=32)
    return folder


def test_it_is_read_like_any_data_and_every_split_has_both_kinds(root):
    found = examples(root, seed=0)
    assert (root / "SYNTHETIC.txt").read_text().startswith("SYNTHETIC DATA")
    assert set(zip(found.table["split"], found.table["forged"], strict=True)) == {
        (split, forged) for split in ("train", "val", "test") for forged in (0, 1)
    }
    assert any("8 case_ids are authentic and forged" in note for note in found.notes)
    assert found.table["instances"].max() > 1
    assert found.table[["height", "width"]].drop_duplicates().shape[0] == 4
    assert len(unlabelled_images(root)) == 4


def test_a_forged_image_differs_from_its_authentic_one_where_something_was_put(root):
    table = examples(root, seed=0).table.set_index("id")
    compared = 0
    for case in table.index[table["forged"] == 1]:
        other = case.replace("forged", "authentic")
        if other in table.index:
            row = table.loc[case]
            mask = read_masks(root / row["mask"], row["height"], row["width"]).any(axis=0)
            image, before = read_image(root / row["image"]), read_image(root / table.loc[other, "image"])
            assert (image != before).any(axis=2)[mask].mean() > 0.2
            compared += 1
    assert compared == 8


def test_the_same_seed_gives_the_same_files_and_another_one_others(root, tmp_path):
    write(tmp_path / "again", cases=32)
    write(tmp_path / "other", cases=4, seed=1)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    same, different, missing = filecmp.cmpfiles(root, tmp_path / "again", [str(file) for file in files], shallow=False)
    assert (len(same), different, missing) == (len(files), [], [])
    name = Path("train_images/forged/0.png")
    assert not np.array_equal(read_image(root / name), read_image(tmp_path / "other" / name))


def test_a_folder_that_holds_something_is_left_alone(root):
    with pytest.raises(DataError, match="not an empty folder"):
        write(root)
