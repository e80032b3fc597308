"""A folder of photos becomes a labelled set: marked, exact, the same every time, and usable as it is."""

import numpy as np
import pytest
from PIL import Image

from outlast.data.readers import read_image
from outlast.errors import DataError
from outlast.tasks.forgeries import from_photos
from outlast.tasks.forgeries.layout import labelled


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    dice = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/c.png"):
        Image.fromarray(dice.integers(0, 255, (90, 110, 3), np.uint8)).save(folder / name)
    return folder


def test_every_photo_is_there_as_it_is_and_with_copies_in_its_group(photos, tmp_path):
    told = from_photos.write(photos, tmp_path / "set", copies=2)
    assert told == {"authentic": 3, "forged": 6}
    assert "SYNTHETIC" in (tmp_path / "set" / "SYNTHETIC.txt").read_text()
    table = labelled(tmp_path / "set").table.set_index("id")
    assert len(table) == 9
    assert table.loc["forged/b_1", "group"] == table.loc["authentic/b", "group"]
    photo, forged = (read_image(tmp_path / "set" / table.loc[name, "image"]) for name in ("authentic/c", "forged/c_0"))
    mask = np.load(tmp_path / "set" / table.loc["forged/c_0", "mask"]).any(axis=0)
    assert np.array_equal(photo, read_image(photos / "more" / "c.png"))
    assert mask.any() and (photo != forged).any()


def test_it_is_the_same_every_time_and_another_with_another_seed(photos, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        from_photos.write(photos, tmp_path / name, seed=seed)
    files = {
        name: [path.read_bytes() for path in sorted((tmp_path / name / "train_masks").iterdir())]
        for name in ("one", "again", "other")
    }
    assert files["one"] == files["again"] != files["other"]


def test_what_can_not_be_used_is_named(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there are no photos"):
        from_photos.write(tmp_path / "empty", tmp_path / "set")
    with pytest.raises(DataError, match="is not an empty folder"):
        from_photos.write(photos, photos)
    Image.new("RGB", (90, 90)).save(photos / "more" / "a.png")
    with pytest.raises(DataError, match="two photos called a"):
        from_photos.write(photos, tmp_path / "set")
