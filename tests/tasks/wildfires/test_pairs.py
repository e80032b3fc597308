"""Pairs of RGB and infrared: every spelling of the layout is read the same, and whatever is wrong is named at once."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from outlast.errors import DataError
from outlast.tasks.wildfires import pairs
from outlast.tasks.wildfires.pairs import Thermal, examples, labelled, looks_like_pairs, read
from outlast.tasks.wildfires.split import Splitting

HEADER = ("id", "rgb_frame", "ir_frame", "fire", "smoke")
SCENES = 3
FRAMES = 8  # of a scene, two of each combination
SIDE = 24


def picture(number: int, channels: int) -> Image.Image:
    rng = np.random.default_rng([number, channels])
    coarse = rng.integers(0, 255, (4, 4, channels)).astype(np.uint8)
    image = Image.fromarray(coarse if channels == 3 else coarse[:, :, 0])
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def labels_of(number: int) -> tuple[int, int]:
    return number % 2, number // 2 % 2


def make(
    root: Path, *, thermal: str = "IR", cells=lambda rgb, ir: (rgb.name, ir.name), word=str, header=HEADER
) -> Path:
    """A small set in the layout; `cells` writes the paths of the CSV, `word` the labels."""
    rows = []
    for number in range(1, SCENES * FRAMES + 1):
        rgb = root / "254p RGB Images" / f"254p RGB Frame ({number}).jpg"
        ir = root / f"254p {thermal} Images" / f"254p {thermal} Frame ({number}).jpg"
        for path, channels in ((rgb, 3), (ir, 1)):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number, channels).save(path, quality=95)
        fire, smoke = labels_of(number)
        rows.append((number, *cells(rgb, ir), word(fire), word(smoke)))
    write_csv(root / "labels.csv", [header, *rows])
    scenes = [(row[0], f"video {(row[0] - 1) // FRAMES}") for row in rows]
    write_csv(root / "scenes.csv", [("id", "scene"), *scenes])
    return root


def write_csv(path: Path, rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def change(root: Path, line: int, **cells: str) -> None:
    """Overwrite cells of a row of labels.csv (line 2 is the first pair)."""
    rows = rows_of(root / "labels.csv")
    for name, value in cells.items():
        rows[line - 1][rows[0].index(name)] = value
    write_csv(root / "labels.csv", rows)


def problems(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        examples(root, Splitting())
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "set")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return examples(make(tmp_path_factory.mktemp("plain") / "set"), Splitting())


def test_every_pair_has_its_labels_scene_order_and_split(expected):
    table = expected.table
    assert list(table.columns) == ["id", "hash", "rgb", "ir", "fire", "smoke", "scene", "order", "split", "group"]
    assert len(table) == SCENES * FRAMES and table["id"].is_unique
    for row in table.to_dict("records"):
        assert (row["fire"], row["smoke"]) == labels_of(int(row["id"]))
        assert row["scene"] == row["group"] == f"video {(int(row['id']) - 1) // FRAMES}"
        assert row["order"] == int(row["id"])
        assert row["rgb"] == f"254p RGB Images/254p RGB Frame ({row['id']}).jpg"
    assert str(table["fire"].dtype) == str(table["order"].dtype) == "int64"
    assert set(table["split"]) == {"train", "val", "test"}
    assert expected.batch_columns == ("fire", "smoke")
    assert expected.facts["classes"] == ["fire", "smoke"]
    json.dumps(expected.facts)


@pytest.mark.parametrize(
    "spelling",
    [
        {"word": lambda value: str(bool(value))},
        {"word": lambda value: ("no", "YES")[value]},
        {"word": lambda value: f" {value}.0"},
        {"header": ("id", "rgb_path", "ir_path", "fire", "smoke")},
        {"header": ("ID", "RGB_Frame", "Thermal Frame", "Fire", "Smoke")},
        {"thermal": "Thermal"},
        {"cells": lambda rgb, ir: (rgb.absolute(), ir.absolute())},
        {"cells": lambda rgb, ir: (f"{rgb.parent.name}/{rgb.name}", f"{ir.parent.name}\\{ir.name}")},
        {"cells": lambda rgb, ir: (f"/elsewhere/{rgb.parent.name}/{rgb.name}", f"/gone/{ir.name}")},
    ],
)
def test_every_spelling_of_the_layout_gives_the_same_examples(tmp_path, expected, spelling):
    found = examples(make(tmp_path / "set", **spelling), Splitting())
    assert found.fingerprint == expected.fingerprint
    columns = ["id", "rgb", "fire", "smoke", "scene", "order", "split"]
    assert found.table[columns].equals(expected.table[columns])


def test_a_csv_of_another_name_with_semicolons_and_a_byte_order_mark_is_found(root, expected):
    text = (root / "labels.csv").read_text().replace(",", ";")
    (root / "labels.csv").unlink()
    (root / "annotations.csv").write_text(text, encoding="utf-8-sig")
    assert looks_like_pairs(root)
    assert examples(root, Splitting()).fingerprint == expected.fingerprint


def test_two_label_files_are_not_chosen_from(root):
    shutil.move(root / "labels.csv", root / "one.csv")
    shutil.copy(root / "one.csv", root / "two.csv")
    assert "one.csv, two.csv" in problems(root)


@pytest.mark.parametrize("name", ["Frame Pair Labels.txt", "labels.tsv"])
def test_the_intervals_of_the_published_set_give_the_same_labels(root, expected, name):
    lines = [
        f"{number}\t{number}\t{''.join('NY'[value] for value in labels_of(number))}"
        for number in range(1, SCENES * FRAMES + 1)
    ]
    (root / "labels.csv").unlink()
    (root / name).write_text("First\tLast\tFire and smoke\n" + "\n".join(lines) + "\n")
    assert examples(root, Splitting()).fingerprint == expected.fingerprint


def test_intervals_that_overlap_or_name_missing_frames_are_problems(root):
    (root / "labels.csv").unlink()
    (root / "scenes.csv").unlink()
    (root / "labels.txt").write_text("1\t12\tNN\n12\t20\tYY\n21\t30\tYN\nand so on\n")
    (root / "254p IR Images" / "254p IR Frame (3).jpg").unlink()
    said = problems(root)
    assert "12 to 20 is empty or overlaps the line before" in said
    assert "the interval 21 to 30: 6 RGB frames do not exist (25 to 30)" in said
    assert "the interval 1 to 12: 1 infrared frames do not exist (3)" in said
    assert "line 4: 'and so on'" in said


def test_everything_that_is_wrong_is_named_at_once_with_its_remedy(root):
    frame = "254p {0} Images/254p {0} Frame ({1}).jpg"
    change(root, 2, fire="maybe")
    change(root, 3, ir_frame="")
    (root / frame.format("IR", 3)).unlink()
    (root / frame.format("RGB", 4)).unlink()
    picture(5, 1).resize((SIDE, SIDE + 2)).save(root / frame.format("IR", 5))
    (root / frame.format("RGB", 6)).write_text("not a picture")
    change(root, 8, id="8")
    change(root, 10, smoke="2")
    change(root, 12, ir_frame="254p IR Frame (10).jpg")
    said = problems(root)
    for sentence in (
        "line 2: fire is 'maybe'; write 0 or 1",
        "id 2: the row names no infrared frame; fill it in",
        "id 3: the infrared frame 254p IR Frame (3).jpg does not exist; restore",
        "id 4: the RGB frame 254p RGB Frame (4).jpg does not exist; restore",
        f"id 5: RGB is {SIDE}x{SIDE} and infrared {SIDE}x{SIDE + 2} pixels; register",
        "id 6: the RGB frame is no readable image; copy it again",
        "the id 8 stands in the lines 8, 9; give every pair an id of its own",
        "line 10: smoke is '2'",
        "id 11: the infrared frame 254p IR Frame (10).jpg is that of id 10 too",
    ):
        assert sentence in said, sentence


def test_halves_of_two_moments_are_a_problem(root):
    """Two frames of the infrared are swapped: each row names files that exist."""
    change(root, 5, ir_frame="254p IR Frame (5).jpg")
    change(root, 6, ir_frame="254p IR Frame (4).jpg")
    said = problems(root)
    assert "id 4: frame 4 is paired with infrared frame 5, another moment; correct the row" in said


def test_cameras_that_number_differently_throughout_are_noted(tmp_path):
    root = make(tmp_path / "set")
    folder = root / "254p IR Images"
    for number in range(SCENES * FRAMES, 0, -1):
        shutil.move(folder / f"254p IR Frame ({number}).jpg", folder / f"254p IR Frame ({number + 100}).jpg")
        change(root, number + 1, ir_frame=f"254p IR Frame ({number + 100}).jpg")
    notes = examples(root, Splitting()).notes
    assert any("number their frames differently (24 of 24 pairs)" in note for note in notes)


def test_images_that_no_row_names_are_counted(root):
    picture(99, 3).save(root / "254p RGB Images" / "254p RGB Frame (99).jpg")
    notes = examples(root, Splitting()).notes
    assert any(note.startswith("1 images stand in no row") and "(99).jpg" in note for note in notes)


def test_smoke_without_fire_that_never_occurs_is_a_note(root):
    for number in range(1, SCENES * FRAMES + 1):
        if labels_of(number) == (0, 1):
            change(root, number + 1, smoke="0")
    assert "no pair shows smoke without fire (NY)" in examples(root, Splitting()).notes


def test_scenes_come_from_ranges_of_frames_or_a_column_too(root, expected):
    ranges = [(1 + FRAMES * scene, FRAMES * (scene + 1), f"video {scene}") for scene in range(SCENES)]
    write_csv(root / "scenes.csv", [("first", "last", "video"), *ranges])
    assert examples(root, Splitting()).table.equals(expected.table)
    scenes = ["scene", *(f"video {(number - 1) // FRAMES}" for number in range(1, SCENES * FRAMES + 1))]
    (root / "scenes.csv").unlink()
    write_csv(root / "labels.csv", [[*row, s] for row, s in zip(rows_of(root / "labels.csv"), scenes, strict=True)])
    assert examples(root, Splitting()).table.equals(expected.table)


def test_a_scenes_file_that_lacks_pairs_is_a_problem(root):
    write_csv(root / "scenes.csv", rows_of(root / "scenes.csv")[:-2])
    assert "scenes.csv gives 2 of 24 pairs no scene: 23, 24" in problems(root)


def test_a_picture_damaged_behind_its_header_is_named(root):
    path = root / "254p RGB Images" / "254p RGB Frame (7).jpg"
    path.write_bytes(path.read_bytes()[:-120])
    assert "254p RGB Frame (7).jpg" in problems(root)


def test_labelled_pairs_need_no_split_and_not_every_class(root):
    for number in range(1, SCENES * FRAMES + 1):
        change(root, number + 1, fire="0")
    (root / "scenes.csv").unlink()
    found = labelled(root, {"classes": ["fire", "smoke"], "more": 1})
    assert len(found.table) == SCENES * FRAMES and "split" not in found.table.columns
    assert found.facts["more"] == 1 and found.batch_columns == ("fire", "smoke")


def test_a_sample_is_both_halves_at_one_size_with_the_thermal_level_kept(root):
    dark = Image.fromarray(np.full((SIDE, SIDE), 40, np.uint8))
    dark.save(root / "254p IR Images" / "254p IR Frame (1).jpg")
    row = {"rgb": "254p RGB Images/254p RGB Frame (1).jpg", "ir": "254p IR Images/254p IR Frame (1).jpg"}
    sample = read(root, row, side=20, thermal=Thermal())
    assert sample["rgb"].shape == (3, 20, 20) and sample["ir"].shape == (1, 20, 20)
    assert sample["rgb"].dtype == sample["ir"].dtype == np.uint8
    assert abs(sample["ir"].astype(int) - 40).max() <= 1  # not stretched to 0..255
    dark.convert("RGB").save(root / "254p IR Images" / "254p IR Frame (1).jpg")  # grey, saved with three channels
    assert abs(read(root, row, side=20, thermal=Thermal())["ir"].astype(int) - 40).max() <= 1
    alone = read(root, {**row, "ir": ""}, side=20, thermal=Thermal())
    assert not alone["ir"].any() and np.array_equal(alone["rgb"], sample["rgb"])


def test_sixteen_bits_are_scaled_by_one_range_for_all_images(tmp_path):
    thermal = Thermal(coldest=1000, hottest=5000)
    for name, level, becomes in (("a", 1000, 0), ("b", 3000, 128), ("c", 5000, 255), ("d", 60000, 255)):
        values = np.full((8, 8), level, np.uint16)
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        assert pairs.read_thermal(tmp_path / f"{name}.png", thermal, 8).tolist() == [[[becomes]] * 8] * 8
    with pytest.raises(ValueError, match="coldest must be below hottest"):
        Thermal(coldest=5, hottest=5)


def test_hashes_are_remembered_and_a_changed_picture_is_noticed(root, tmp_path):
    first = examples(root, Splitting(), memo=tmp_path / "memo").fingerprint
    assert examples(root, Splitting(), memo=tmp_path / "memo").fingerprint == first
    picture(1000, 1).save(root / "254p IR Images" / "254p IR Frame (1).jpg")
    assert examples(root, Splitting(), memo=tmp_path / "memo").fingerprint != first


@pytest.mark.real_data
def test_real_road_scenes_and_fires_are_read(real_data):
    roads = labelled(real_data / "wildfires" / "roadscene")
    assert len(roads.table) == 74 and not roads.table[["fire", "smoke"]].any(axis=None)
    fires = labelled(real_data / "wildfires" / "flame")
    assert len(fires.table) == 127
    for found in (roads, fires):
        sample = read(found.root, found.table.iloc[0].to_dict(), side=64, thermal=Thermal())
        assert sample["rgb"].shape == (3, 64, 64) and sample["ir"].shape == (1, 64, 64)
