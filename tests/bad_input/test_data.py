"""Bad data: each is refused before a run folder exists, with the files named and a remedy; odd but good data works."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import outlast
from bad_input.conftest import CLASSES, SETTINGS, photo, write_leaves
from outlast.data import find


@pytest.fixture
def no_data(monkeypatch):
    """A machine without the Kaggle mounts."""
    defaults = {**find.find_root.__kwdefaults__, "kaggle_input": Path("/no/kaggle/input")}
    monkeypatch.setattr(find.find_root, "__kwdefaults__", defaults)


# -- no data -----------------------------------------------------------------------------------------------------------


def test_without_data_the_error_says_where_it_looked(refused, no_data, tmp_path):
    run = tmp_path / "run"
    message = refused("train", "plants", "--preset", "cpu", "--out", run, keeps=run)
    for place in ("--data", "OUTLAST_DATA", "/no/kaggle/input", str(tmp_path / "here" / "data")):
        assert place in message


def test_the_environment_variable_is_obeyed_or_refused(refused_training, monkeypatch):
    monkeypatch.setenv("OUTLAST_DATA", "/no/such/leaves")
    refused_training(None, names=["$OUTLAST_DATA", "/no/such/leaves"])


def test_data_that_does_not_exist_is_named(refused_training, tmp_path):
    refused_training(tmp_path / "nowhere", names=["--data", tmp_path / "nowhere"])


def test_data_that_is_a_file_is_named(refused_training, tmp_path):
    (tmp_path / "leaves.zip").write_bytes(b"PK")
    refused_training(tmp_path / "leaves.zip", names=["leaves.zip", "not a folder"])


def test_an_empty_folder_is_refused_with_the_expected_layout(refused_training, tmp_path):
    (tmp_path / "empty").mkdir()
    refused_training(tmp_path / "empty", names=[tmp_path / "empty", "one folder per class"])


def test_an_empty_argument_is_not_the_current_folder(refused_training):
    refused_training("", names="--data", code=2)


def test_a_name_that_the_task_does_not_know_is_refused(refused_training, leaves):
    refused_training(f"masks={leaves}", names="'masks'", code=2)


def test_synthetic_and_data_exclude_each_other(refused_training, leaves):
    refused_training(leaves, "--synthetic", names=["--synthetic", "--data"], code=2)


# -- classes -----------------------------------------------------------------------------------------------------------


def test_one_class_only_is_refused(refused_training, tmp_path):
    data = write_leaves(tmp_path / "one", classes={"blight": (1, 2, 3)})
    refused_training(data, names=["one class only", "blight"])


def test_a_class_with_one_image_is_named(refused_training, leaves):
    for path in sorted((leaves / "rust").iterdir())[1:]:
        path.unlink()
    refused_training(leaves, names=["rust", "single image"])


def test_a_class_with_too_few_images_to_split_is_counted(refused_training, leaves):
    for path in sorted((leaves / "rust").iterdir())[2:]:
        path.unlink()
    refused_training(leaves, names="rust: 2 rows in 2 groups")


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_truncated_jpeg_is_named(refused_training, leaves):
    path = leaves / "blight" / "3.jpg"
    path.write_bytes(path.read_bytes()[:400])
    refused_training(leaves, names=[path, "damaged"])


def test_a_zero_byte_jpeg_is_named(refused_training, leaves):
    (leaves / "blight" / "3.jpg").write_bytes(b"")
    refused_training(leaves, names=["blight/3.jpg", "0 bytes"])


def test_a_text_file_named_jpg_is_named(refused_training, leaves):
    (leaves / "rust" / "notes.jpg").write_text("leaves are green")
    refused_training(leaves, names=[leaves / "rust" / "notes.jpg", "not an image"])


def test_all_damaged_files_are_listed_together(refused_training, leaves):
    for name in ("0", "1", "2"):
        (leaves / "rust" / f"{name}.jpg").write_text(f"not an image {name}")
    refused_training(leaves, names=["3 of 18", *(leaves / "rust" / f"{name}.jpg" for name in "012")])


@pytest.fixture
def as_nobody(monkeypatch):
    """A folder to write into; where the tests run as root, for whom nothing is forbidden, as another user."""
    me, nobody = os.geteuid(), 65534
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        monkeypatch.setenv("OUTLAST_CACHE", str(folder / "cache"))
        monkeypatch.chdir(folder)
        os.seteuid(nobody if me == 0 else me)
        try:
            if not os.access(outlast.__file__, os.R_OK, effective_ids=True):
                pytest.skip(f"the user {nobody} may not read {outlast.__file__}")
            yield folder
        finally:
            os.seteuid(me)


def test_a_file_without_permission_is_named(refused, as_nobody):
    data = write_leaves(as_nobody / "leaves", per_class=6)
    (data / "rust" / "2.jpg").chmod(0)
    run = as_nobody / "run"
    refused(
        "train", "plants", "--data", data, "--out", run, *SETTINGS,
        names=[data / "rust" / "2.jpg", "chmod u+r"], keeps=run,
    )  # fmt: skip
    assert not run.exists()


def test_a_class_folder_without_permission_is_named(refused, as_nobody):
    data = write_leaves(as_nobody / "leaves", per_class=6)
    (data / "rust").chmod(0)
    run = as_nobody / "run"
    refused("train", "plants", "--data", data, "--out", run, *SETTINGS, names=[data / "rust", "chmod u+rx"], keeps=run)
    (data / "rust").chmod(0o700)


def test_a_place_that_may_not_be_written_is_named(refused, as_nobody):
    data = write_leaves(as_nobody / "leaves", per_class=6)
    locked = as_nobody / "locked"
    locked.mkdir(mode=0o500)
    refused(
        "train", "plants", "--data", data, "--out", locked / "run", *SETTINGS, names=[locked, "--out"], keeps=locked
    )


def test_a_file_name_that_is_not_utf8_is_named(refused_training, leaves):
    os.rename(os.fsencode(leaves / "rust" / "0.jpg"), os.fsencode(leaves / "rust") + b"/caf\xe9.jpg")
    refused_training(leaves, names=["caf\\udce9.jpg", "UTF-8"])


# -- duplicates, groups, splits ----------------------------------------------------------------------------------------


def test_the_same_image_in_two_classes_is_named(refused_training, leaves):
    shutil.copy(leaves / "rust" / "0.jpg", leaves / "blight" / "copy.jpg")
    refused_training(leaves, names=["blight/copy.jpg", "rust/0.jpg", "several classes"])


def test_groups_that_name_missing_files_are_refused_by_name(refused_training, leaves):
    (leaves / "groups.csv").write_text("file,label,group\nrust/0.jpg,rust,a\nrust/gone.jpg,rust,a\n")
    refused_training(leaves, names=["groups.csv", "rust/gone.jpg"])


def test_groups_without_the_needed_columns_are_refused_with_those_there(refused_training, leaves):
    (leaves / "groups.csv").write_text("image,plant\nrust/0.jpg,a\n")
    refused_training(leaves, names=[leaves / "groups.csv", "file and group", "image, plant"])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00bad", b'file,group\n"open'], ids=["empty", "binary", "quote"])
def test_groups_that_are_no_csv_are_refused(refused_training, leaves, content):
    (leaves / "groups.csv").write_bytes(content)
    refused_training(leaves, names="groups.csv")


@pytest.fixture
def given_split(tmp_path):
    """A data set whose split is given."""
    for number, split in enumerate(("train", "val", "test")):
        write_leaves(tmp_path / "given" / split, 3, {name: (60 * number, *rgb[1:]) for name, rgb in CLASSES.items()})
    return tmp_path / "given"


def test_a_file_on_two_sides_of_a_given_split_is_named(refused_training, given_split):
    shutil.copy(given_split / "train" / "rust" / "0.jpg", given_split / "test" / "rust" / "again.jpg")
    refused_training(given_split, names=["train/rust/0.jpg", "test/rust/again.jpg", "leak"])


def test_a_group_on_two_sides_of_a_given_split_is_named(refused_training, given_split):
    (given_split / "groups.csv").write_text("file,group\ntrain/rust/0.jpg,leaf7\nval/rust/0.jpg,leaf7\n")
    refused_training(given_split, names=["leaf7", "train and val", "leak"])


def test_a_class_that_is_not_in_the_training_folder_is_named(refused_training, given_split):
    shutil.rmtree(given_split / "train" / "rust")
    refused_training(given_split, names=["training folder", "rust"])


# -- odd, but good -----------------------------------------------------------------------------------------------------


def test_names_with_spaces_and_other_scripts_links_and_loops_work(command, tmp_path):
    odd = {"feuille brûlée": (120, 60, 30), "здоровый лист": (40, 150, 40), "葉 さび": (200, 110, 30)}
    data = write_leaves(tmp_path / "my leaves ü", 6, odd)
    for name in odd:
        (data / name / "0.jpg").rename(data / name / "a photo (1) 🍃.jpg")
    (data / "葉 さび" / "up").symlink_to(data)  # a loop over the root
    (data / "葉 さび" / "self").symlink_to(data / "葉 さび")
    (data / "circle.jpg").symlink_to(data / "circle.jpg")
    (data / "around").symlink_to(data)
    real = tmp_path / "elsewhere.png"
    Image.fromarray(photo(77)).save(real)
    (data / "feuille brûlée" / "linked.png").symlink_to(real)
    run = tmp_path / "a run é"
    ended = command("train", "plants", "--data", data, "--out", run, *SETTINGS)
    assert ended.code == 0, ended.err
    table = (run / "split.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 1 + 19
    assert "feuille brûlée/linked.png" in table
    ended = command("predict", run, data / "葉 さび")
    assert ended.code == 0, ended.err
    assert len((run / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 1 + 6


def test_smoke_without_data_takes_the_synthetic_set_and_says_so(command, no_data, tmp_path):
    run = tmp_path / "run"
    ended = command(
        "train", "plants", "--preset", "smoke", "--out", run, "train.epochs=1", "model.name=tiny",
        "data.image_size=16",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "SYNTHETIC" in ended.err
    assert '"synthetic": true' in (run / "run.json").read_text()


# -- any picture can be predicted --------------------------------------------------------------------------------------


def probabilities(command, run, *images):
    """{file name: probabilities} from the CSV that predict prints."""
    ended = command("predict", run, *images, "--to", "-")
    assert ended.code == 0, ended.err
    _, *lines = ended.out.splitlines()
    rows = [line.rsplit(",", 4) for line in lines]
    return {Path(row[0]).name: np.array([float(value) for value in row[2:]]) for row in rows}


def test_predict_takes_every_mode_and_every_shape(command, trained, tmp_path):
    run, _ = trained
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    image = Image.fromarray(photo(5, size=(50, 70)))
    image.convert("L").save(pictures / "grey.png")
    image.convert("1").save(pictures / "one bit.png")
    image.convert("RGBA").save(pictures / "rgba.png")
    image.convert("LA").save(pictures / "grey alpha.png")
    image.quantize(16).save(pictures / "palette.png")
    image.quantize(16).save(pictures / "see-through palette.png", transparency=3)
    image.convert("CMYK").save(pictures / "cmyk.jpg")
    Image.fromarray(photo(6)[..., 0].astype(np.uint16) * 257).save(pictures / "sixteen bits.png")
    image.save(pictures / "photo.webp")
    image.save(pictures / "photo.bmp")
    image.save(pictures / "PHOTO.TIF")
    Image.fromarray(photo(7, size=(1, 1))).save(pictures / "pixel.png")
    Image.fromarray(photo(8, size=(1, 3000))).save(pictures / "wide.png")
    Image.fromarray(photo(9, size=(3000, 2))).save(pictures / "tall.jpg")
    found = probabilities(command, run, pictures)
    assert set(found) == {path.name for path in pictures.iterdir()}
    for name, values in found.items():
        assert np.isfinite(values).all() and values.sum() == pytest.approx(1, abs=1e-5), name
    grey = np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "grey as rgb.png")
    assert np.array_equal(
        found["grey.png"], probabilities(command, run, tmp_path / "grey as rgb.png")["grey as rgb.png"]
    )
    assert not np.array_equal(found["grey.png"], found["rgba.png"])


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 1), (8, 3)])
def test_a_picture_turned_by_exif_is_predicted_as_the_upright_one(command, trained, tmp_path, orientation, turn):
    upright = photo(11, size=(40, 60))
    upright[:20, :20] = (250, 30, 30)  # no symmetry
    Image.fromarray(upright).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(upright, turn)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(upright, turn)).save(tmp_path / "plain.png")
    found = probabilities(command, trained[0], *(tmp_path / f"{name}.png" for name in ("upright", "turned", "plain")))
    assert np.array_equal(found["upright.png"], found["turned.png"])
    assert not np.array_equal(found["upright.png"], found["plain.png"])
