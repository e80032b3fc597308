import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from outlast.data.folders import class_folders, looks_like_classes
from outlast.data.split import check_split, complete_split, split_by_group
from outlast.errors import DataError

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "plants"


def put(root: Path, *names: str) -> Path:
    """Small images, each with contents of its own, decided by its name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = abs(hash(name)) % 2**32
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)).save(path)
    return root


def problems(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        class_folders(root)
    assert caught.value.hint
    return str(caught.value)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return put(tmp_path, *(f"{name}/{k}.png" for name in ("blight", "healthy") for k in range(3)))


def test_a_class_folder_tree_becomes_a_table(tree):
    examples = class_folders(tree)
    table = examples.table
    assert table.columns.tolist() == ["id", "path", "label", "class", "split", "group", "hash"]
    assert table["id"].tolist() == [f"{name}/{k}.png" for name in ("blight", "healthy") for k in range(3)]
    assert table["label"].tolist() == [0, 0, 0, 1, 1, 1] and table["label"].dtype == np.int64
    assert set(table["split"]) == {""} and table["group"].is_unique and table["hash"].str.len().eq(64).all()
    assert examples.facts == {"classes": ["blight", "healthy"], "channels": 3} and examples.notes == ()


def test_the_fingerprint_is_the_same_elsewhere_and_changes_with_a_file(tree, tmp_path_factory):
    first = class_folders(tree).fingerprint
    other = tmp_path_factory.mktemp("other") / "place"
    tree.rename(other)
    assert class_folders(other).fingerprint == first
    put(other, "blight/new.png")
    assert class_folders(other).fingerprint != first
    other.rename(tree)


@pytest.mark.parametrize("prefix", ["", "datasets/"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_a_given_split_is_kept(tmp_path, prefix, val):
    names = [f"{prefix}{part}/{kind}/{k}.png" for part in ("train", val, "test") for kind in "ab" for k in range(2)]
    table = class_folders(put(tmp_path, *names)).table
    assert table.groupby("split").size().to_dict() == {"test": 4, "train": 4, "val": 4}
    assert set(table["class"]) == {"a", "b"} and table["id"].iat[0].startswith(prefix)
    assert looks_like_classes(tmp_path)


def test_what_a_given_split_lacks_is_cut_off_from_its_training_rows(tmp_path):
    names = [f"train/{kind}/{k}.png" for kind in "ab" for k in range(20)]
    table = class_folders(put(tmp_path, *names, "test/a/x.png", "test/b/y.png")).table
    table["split"] = complete_split(table, seed=0)
    counts = table["split"].value_counts().to_dict()
    assert counts["test"] == 2 and 4 <= counts["val"] <= 10 and sum(counts.values()) == 42


def test_odd_names_deep_folders_and_link_loops_work(tree):
    decomposed = unicodedata.normalize("NFD", "blätter grün")
    put(tree, f"blight/2024/{decomposed}/ein bild.PNG", "healthy/2024/05/x.png")
    (tree / "healthy" / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "top").symlink_to(tree, target_is_directory=True)
    (tree / "healthy" / "self").symlink_to(tree / "healthy" / "self")
    table = class_folders(tree).table
    assert "blight/2024/blätter grün/ein bild.PNG" in table["id"].tolist()
    assert all((tree / path).is_file() for path in table["path"]) and set(table["class"]) == {"blight", "healthy"}


def test_what_is_left_out_is_noted(tree):
    put(tree, "cover.png")
    (tree / "docs").mkdir()
    notes = " ".join(class_folders(tree).notes)
    assert "1 images lie outside" in notes and "docs" in notes


def test_empty_folders_are_refused(tmp_path):
    assert "no images" in problems(tmp_path)
    (tmp_path / "a").mkdir()
    assert "no images" in problems(tmp_path)
    assert not looks_like_classes(tmp_path)


def test_all_problems_are_shown_together(tmp_path):
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "1.jpg")
    assert "one class only" in problems(tmp_path)
    put(tmp_path, "b/1.png", "b/2.png")
    (tmp_path / "b" / "zero byte.png").touch()
    (tmp_path / "groups.csv").write_text("file,label,group\nb/1.png,a,g\nb/9.png,b,g\nb/2.png,b,g\nb/2.png,b,h\n")
    text = problems(tmp_path)
    for part in (
        "class a has a single image",
        "b/zero byte.png: the file is empty",
        "b/1.png is labelled a",
        "b/9.png doesn't exist",
        "b/2.png stands in two groups",
    ):
        assert part in text


def test_groups_are_read_and_images_they_do_not_list_stand_alone(tree):
    (tree / "groups.csv").write_text(
        "file,label,group\nblight/0.png,blight,leaf\n./blight\\1.png,blight,leaf\n", "utf-8-sig"
    )
    examples = class_folders(tree)
    groups = dict(zip(examples.table["id"], examples.table["group"], strict=True))
    assert groups["blight/0.png"] == groups["blight/1.png"] == "leaf" and groups["blight/2.png"] == "blight/2.png"
    assert "4 images are not in groups.csv" in " ".join(examples.notes)


@pytest.mark.parametrize("text", ["", "path,kind\na,b\n", "file,group\na,b,c,d\n"])
def test_an_unusable_groups_file_is_named(tree, text):
    (tree / "groups.csv").write_text(text)
    assert "groups.csv" in problems(tree)


def test_duplicates_within_a_class_become_one_group(tree):
    (tree / "blight" / "copy.png").write_bytes((tree / "blight" / "0.png").read_bytes())
    (tree / "groups.csv").write_text("file,group\nblight/copy.png,one\nblight/1.png,one\nblight/0.png,two\n")
    examples = class_folders(tree)
    groups = dict(zip(examples.table["id"], examples.table["group"], strict=True))
    assert len({groups[f"blight/{name}.png"] for name in ("0", "1", "copy")}) == 1
    assert "1 exact duplicates" in " ".join(examples.notes)


def test_duplicates_across_classes_are_named_in_pairs(tree):
    (tree / "healthy" / "copy.png").write_bytes((tree / "blight" / "0.png").read_bytes())
    assert "blight/0.png = healthy/copy.png: the same image in several classes" in problems(tree)


def test_leaks_between_given_splits_are_named(tmp_path):
    put(tmp_path, *(f"{part}/{kind}/{k}.png" for part in ("train", "val") for kind in "ab" for k in range(2)))
    (tmp_path / "val/a/copy.png").write_bytes((tmp_path / "train/a/0.png").read_bytes())
    (tmp_path / "groups.csv").write_text("file,group\ntrain/b/0.png,leaf\nval/b/1.png,leaf\n")
    text = problems(tmp_path)
    assert "train/a/0.png = val/a/copy.png: the same image in several splits" in text
    assert "group leaf stands in train and val" in text


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}")
@pytest.mark.parametrize("name", ["potato", "rice"])
def test_real_leaves_are_read_and_split_by_group(name):
    table = class_folders(REAL / name).table
    table["split"] = split_by_group(table, seed=0)
    check_split(table)
    counts = table.groupby(["split", "label"]).size().unstack()
    assert counts.shape == (3, 3) and (counts > 0).all(axis=None)
    shares = table["split"].value_counts(normalize=True)
    assert abs(shares["train"] - 0.7) < 0.05 and abs(shares["test"] - 0.15) < 0.04
