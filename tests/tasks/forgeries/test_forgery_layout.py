"""The layout of forgeries: found, checked, grouped, split; what is wrong is named, all of it at once."""

import shutil

import numpy as np
import pytest
from PIL import Image

from outlast.data.readers import read_image
from outlast.errors import DataError
from outlast.tasks.forgeries.layout import examples, labelled
from outlast.tasks.forgeries.listing import looks_like_forgeries, unlabelled_images
from outlast.tasks.forgeries.truth import read_masks

HEIGHT, WIDTH = 40, 60


def picture(number, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)


def mask(count=2, height=HEIGHT, width=WIDTH):
    instances = np.zeros((count, height, width), np.uint8)
    for number in range(count):
        instances[number, 4 + 8 * number : 10 + 8 * number, 5:20] = 1
    return instances


@pytest.fixture
def root(tmp_path):
    """Ten forged and ten authentic images, of which three share their case_id."""
    for folder in ("train_images/authentic", "train_images/forged", "train_masks"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(10):
        Image.fromarray(picture(number)).save(tmp_path / f"train_images/forged/{number}.png")
        np.save(tmp_path / f"train_masks/{number}.npy", mask())
        Image.fromarray(picture(100 + number)).save(tmp_path / f"train_images/authentic/{number + 7}.png")
    return tmp_path


def problems(root, **limits):
    with pytest.raises(DataError) as caught:
        examples(root, seed=0, **limits)
    return "\n".join(caught.value.details)


def test_every_image_has_its_own_mask_size_and_hash(root):
    table = examples(root, seed=0).table.set_index("id")
    assert len(table) == 20
    row = table.loc["forged/3"]
    assert (row["mask"], row["height"], row["width"], row["instances"]) == ("train_masks/3.npy", HEIGHT, WIDTH, 2)
    assert table.loc["authentic/8", "mask"] == ""
    assert table["hash"].str.fullmatch("[0-9a-f]{64}").all()
    assert table["hash"].is_unique


def test_a_case_that_is_authentic_and_forged_stays_on_one_side(root):
    found = examples(root, seed=0)
    assert any("3 case_ids are authentic and forged" in note for note in found.notes)
    for case_id in ("7", "8", "9"):
        rows = found.table[found.table["case_id"] == case_id]
        assert len(rows) == 2
        assert rows["split"].nunique() == 1
        assert rows["group"].nunique() == 1


def test_the_split_does_not_depend_on_the_order_of_the_files(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(root, copy)
    first, second = examples(root, seed=3), examples(copy, seed=3)
    assert first.fingerprint == second.fingerprint
    assert first.table["split"].tolist() == second.table["split"].tolist()
    assert set(first.table["split"]) == {"train", "val", "test"}


def test_groups_csv_and_copies_of_a_file_join_groups(root):
    (root / "groups.csv").write_text("case_id,group\n0,paper\n1,paper\n")
    shutil.copy(root / "train_images/forged/2.png", root / "train_images/forged/3.png")
    found = examples(root, seed=0)
    groups = found.table.set_index("id")["group"]
    assert groups["forged/0"] == groups["forged/1"] == "paper"
    assert groups["forged/2"] == groups["forged/3"]
    assert any("1 images are exact copies" in note for note in found.notes)


def test_supplemental_images_are_forged_and_the_test_folder_is_listed(root):
    for folder in ("supplemental_images", "supplemental_masks", "test_images"):
        (root / folder).mkdir()
    Image.fromarray(picture(50)).save(root / "supplemental_images/0.png")
    np.save(root / "supplemental_masks/0.npy", mask(5))
    Image.fromarray(picture(51)).save(root / "test_images/45.png")
    row = examples(root, seed=0).table.set_index("id").loc["supplemental/0"]
    assert (row["forged"], row["instances"], row["group"]) == (1, 5, "0")
    assert [path.name for path in unlabelled_images(root)] == ["45.png"]


@pytest.mark.parametrize("stored", ["NHW", "HWN", "HW", "bool", "float", "255", "picture"])
def test_every_usual_form_of_a_mask_means_the_same(tmp_path, stored):
    instances = mask(1 if stored in ("HW", "picture") else 3)
    path = tmp_path / ("mask.png" if stored == "picture" else "mask.npy")
    if stored == "picture":
        Image.fromarray(instances[0] * 255).save(path)
    else:
        forms = {"HWN": instances.transpose(1, 2, 0), "HW": instances[0], "bool": instances > 0, "255": instances * 255}
        np.save(path, forms.get(stored, instances.astype(np.float32) if stored == "float" else instances))
    read = read_masks(path, HEIGHT, WIDTH)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, instances)


def test_a_mask_of_another_image_is_refused_also_where_only_the_axes_are_exchanged(tmp_path):
    for shape in ((1, WIDTH, HEIGHT), (HEIGHT, WIDTH + 1), (2, 2, HEIGHT, WIDTH), ()):
        np.save(tmp_path / "mask.npy", np.ones(shape, np.uint8))
        with pytest.raises(DataError, match=r"its image 40 x 60 pixels"):
            read_masks(tmp_path / "mask.npy", HEIGHT, WIDTH)


def test_everything_that_is_wrong_is_named_in_one_error(root):
    (root / "train_masks/0.npy").unlink()
    np.save(root / "train_masks/1.npy", mask(height=41))
    np.save(root / "train_masks/2.npy", mask() * 3)
    np.save(root / "train_masks/3.npy", mask() * 0)
    (root / "train_masks/4.npy").write_bytes(b"nothing")
    np.save(root / "train_masks/5.npy", np.array([{"a": 1}], dtype=object))
    Image.fromarray(picture(0)).save(root / "train_images/forged/6.jpg")
    (root / "train_images/authentic/8.png").write_bytes(b"no picture")
    Image.fromarray(picture(0, 10, 90)).save(root / "train_images/authentic/9.png")
    text = problems(root)
    for sentence in (
        "train_images/forged/0.png: a forged image without its mask train_masks/0.npy",
        "train_masks/1.npy: the mask is 2 x 41 x 60, its image 40 x 60",
        "train_masks/2.npy: a mask holds 0 and 1, this one also 3",
        "train_masks/3.npy: marks no pixel of a forged image",
        "train_masks/4.npy: the mask can't be read",
        "train_masks/5.npy: the mask can't be read",
        "6.jpg and train_images/forged/6.png are one case_id twice",
        "train_images/authentic/8.png: no readable image",
        "train_images/authentic/9.png: 10 x 90 pixels, smaller than a patch of 14",
    ):
        assert sentence in text
    assert str(root) not in text


def test_a_mask_is_never_that_of_a_similar_name(root):
    (root / "train_masks/1.npy").rename(root / "train_masks/1_0.npy")
    assert "train_images/forged/1.png: a forged image without its mask" in problems(root)


def test_a_picture_beyond_the_limit_is_named_by_its_header_alone(root):
    Image.new("1", (9000, 20)).save(root / "train_images/authentic/7.png")
    assert "train_images/authentic/7.png: 20 x 9000 pixels, beyond the limit of 8192" in problems(root)
    assert len(examples(root, seed=0, largest_side=9000).table) == 20


def test_empty_instances_and_masks_without_image_are_left_out_and_said(root):
    np.save(root / "train_masks/0.npy", np.concatenate([mask(), mask(1) * 0]))
    np.save(root / "train_masks/stray.npy", mask())
    found = examples(root, seed=0)
    assert "1 instances without a single pixel are left out" in found.notes
    assert any("1 masks in train_masks belong to no forged image" in note and "stray" in note for note in found.notes)
    assert found.table.set_index("id").loc["forged/0", "instances"] == 2
    assert len(read_masks(root / "train_masks/0.npy", HEIGHT, WIDTH)) == 2


def test_grey_transparent_and_deep_pictures_are_read_as_rgb(root):
    grey = picture(1)[:, :, 0]
    Image.fromarray(grey).save(root / "train_images/forged/0.png")
    Image.fromarray(np.dstack([picture(1), np.full((HEIGHT, WIDTH), 255, np.uint8)])).save(
        root / "train_images/forged/1.png"
    )
    Image.fromarray(grey.astype(np.uint16) * 257).save(root / "train_images/forged/2.png")
    found = examples(root, seed=0)
    for name, expected in (("0", np.dstack([grey] * 3)), ("1", picture(1)), ("2", np.dstack([grey] * 3))):
        row = found.table.set_index("id").loc[f"forged/{name}"]
        np.testing.assert_array_equal(read_image(root / row["image"]), expected)


def test_a_photo_lying_on_its_side_has_the_size_that_is_read(root):
    upright = Image.fromarray(picture(0))
    exif = upright.getexif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).save(root / "train_images/authentic/x.jpg", exif=exif)
    row = examples(root, seed=0).table.set_index("id").loc["authentic/x"]
    assert (row["height"], row["width"]) == read_image(root / row["image"]).shape[:2] == (HEIGHT, WIDTH)


def test_an_index_names_images_masks_and_scenes(tmp_path):
    rows = ["image,mask,forged,source_image,scene"]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(12):
        forged = number % 2
        Image.fromarray(picture(number)).save(tmp_path / f"images/{number}.jpg")
        Image.fromarray(mask(1)[0] * 255 * forged).save(tmp_path / f"masks/{number}.png")
        rows.append(f"{number}.jpg,{number}.png,{forged},x,{'abcdef'[number // 2]}")
    (tmp_path / "index.csv").write_text("\n".join([*rows, rows[1]]))
    found = examples(tmp_path, seed=0)
    assert looks_like_forgeries(tmp_path)
    assert len(found.table) == 12
    assert any("1 rows of index.csv" in note for note in found.notes)
    row = found.table.set_index("id").loc["forged/3"]
    assert (row["image"], row["mask"], row["group"]) == ("images/3.jpg", "masks/3.png", "b")
    assert found.table.set_index("id").loc["authentic/2", "mask"] == ""

    Image.fromarray(mask(1)[0] * 255).save(tmp_path / "masks/0.png")
    (tmp_path / "masks/1.png").unlink()
    (tmp_path / "images/2.jpg").unlink()
    text = problems(tmp_path)
    assert "masks/0.png: marks pixels of an authentic image" in text
    assert "1.png, the mask of 1.jpg, does not exist" in text
    assert "the image '2.jpg' does not exist" in text


def test_folders_in_a_folder_are_read_together_and_scenes_join_photos_with_their_crops(root, tmp_path):
    together = tmp_path / "together"
    together.mkdir()
    kept = [root / name for name in ("train_images", "train_masks")]
    (together / "photos").mkdir()
    for folder in kept:
        shutil.move(folder, together / "photos" / folder.name)
    for folder in ("images", "masks"):
        (together / "crops" / folder).mkdir(parents=True)
    lines = ["image,mask,forged,scene"]
    for number in range(3):
        Image.fromarray(picture(200 + number)).save(together / f"crops/images/{number}.png")
        np.save(together / f"crops/masks/{number}.npy", mask()[0])
        lines.append(f"{number}.png,{number}.npy,1,photos_{number}")
    (together / "crops" / "index.csv").write_text("\n".join(lines), encoding="utf-8")
    found = examples(together, seed=0)
    table = found.table.set_index("id")
    assert len(table) == 23
    assert not table.index.duplicated().any()
    assert table.loc["forged/crops_1", "group"] == table.loc["forged/photos_1", "group"]
    assert (together / table.loc["forged/crops_1", "mask"]).is_file()
    assert any("photos: 20 labelled images" in note for note in found.notes)
    (together / "photos" / "train_masks" / "3.npy").unlink()
    assert "photos: train_images/forged/3.png: a forged image without its mask" in problems(together)


def test_a_folder_without_the_layout_says_what_is_expected(root, tmp_path_factory):
    with pytest.raises(DataError, match="did you mean"):
        labelled(root / "train_images")
    with pytest.raises(DataError, match="does not exist"):
        labelled(root / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    assert not looks_like_forgeries(empty)
    with pytest.raises(DataError) as caught:
        labelled(empty)
    assert "train_images/{authentic,forged}" in str(caught.value)


def test_a_labelled_folder_may_hold_one_kind_only(root):
    shutil.rmtree(root / "train_images/authentic")
    found = labelled(root, {"classes": ["authentic", "forged"], "run": 1})
    assert len(found.table) == 10
    assert found.facts["run"] == 1
