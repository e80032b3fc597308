"""The split of pairs: whole scenes, blocks with guard gaps where that can't be, and an honest account of both."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from outlast.errors import DataError
from outlast.tasks.wildfires import alike
from outlast.tasks.wildfires.pairs import examples
from outlast.tasks.wildfires.split import SPLITS, Splitting, split_pairs

NN, YN, NY, YY = range(4)


@pytest.fixture
def made(tmp_path):
    """A table from (scene, [(frames, combination), ...]), and its pictures; every scene has its own look."""

    def make(*scenes, named=True):
        rows, paths = [], []
        for number, (scene, intervals) in enumerate(scenes):
            look = np.random.default_rng(number).integers(0, 255, (6, 6, 3)).astype(np.uint8)
            picture = tmp_path / f"{scene}.png"
            Image.fromarray(look).resize((48, 48), Image.Resampling.BILINEAR).save(picture)
            for frames, combination in intervals:
                for _ in range(frames):
                    at = len(rows) + 1
                    labels = {"fire": combination & 1, "smoke": combination >> 1}
                    rows.append({"id": str(at), **labels, "scene": scene if named else "", "order": at})
                    paths.append(picture)
        return pd.DataFrame(rows), paths

    return make


def gap_of(table):
    """Frames between the nearest two of different splits, over the whole table, the slow way."""
    table = table.sort_values("order")
    times, splits = table["order"].tolist(), table["split"].tolist()
    return min(b - a for a, b, one, two in zip(times, times[1:], splits, splits[1:], strict=False) if one != two)


def test_scenes_stay_whole_and_every_combination_is_in_every_split(made):
    table, pictures = made(*((f"s{n}", [(10, NN), (6, YN), (5, NY), (9, YY)]) for n in range(10)))
    split = split_pairs(table, pictures, Splitting())
    assert len(split.table) == 300
    assert (split.table.groupby("scene")["split"].nunique() == 1).all()
    assert split.table["group"].equals(split.table["scene"])
    counts = split.account["counts"]
    assert {name: counts[name]["pairs"] for name in SPLITS} == {"train": 210, "val": 30, "test": 60} or {
        name: counts[name]["pairs"] for name in SPLITS
    } == {"train": 210, "val": 60, "test": 30}
    assert all(counts[name][combination] for name in SPLITS for combination in ("NN", "YN", "NY", "YY"))
    assert split.account["smallest_gap_frames"] is None and split.account["frames_left_out"] == 0
    json.dumps(split.account)


def test_the_same_data_gives_the_same_split_and_another_seed_another(made):
    table, pictures = made(*((f"s{n}", [(5, NN), (5, YY)]) for n in range(10)))
    one, two = (split_pairs(table, pictures, Splitting()).table for _ in range(2))
    assert one.equals(two)
    assert not one.equals(split_pairs(table, pictures, Splitting(split_seed=1)).table)


def test_a_combination_of_two_videos_is_split_inside_them_by_guarded_blocks(made):
    """As in FLAME 2: neither fire nor smoke is in the first two of seven videos alone."""
    videos = [(f"v{n}", [(1400, NN)] if n < 2 else [(700, YN), (900, YY)]) for n in range(7)]
    split = split_pairs(*made(*videos), Splitting())
    counts = split.account["counts"]
    assert all(counts[name][combination] for name in SPLITS for combination in ("NN", "YN", "YY"))
    assert set(split.account["scenes"]["cut_into_blocks"]) <= {"v0", "v1"}
    whole = split.table[split.table["scene"].str.fullmatch("v[2-6]")]
    assert len(whole) == 5 * 1600 and (whole.groupby("scene")["split"].nunique() == 1).all()
    assert (split.table.groupby("group")["split"].nunique() == 1).all()
    cut = split.table[~split.table["scene"].str.fullmatch("v[2-6]")]
    gaps = [gap_of(rows) for _, rows in cut.groupby((cut["order"] - 1) // 1400) if rows["split"].nunique() > 1]
    assert min(gaps) == split.account["smallest_gap_frames"] > split.account["guard_frames"] == 66  # a third of 200
    assert split.account["frames_left_out"] == len(made(*videos)[0]) - len(split.table) > 0
    assert any("NN occurs in fewer than three scenes" in note for note in split.notes)
    share = counts["train"]["pairs"] / len(split.table)
    assert 0.6 < share < 0.8


def test_a_guard_gap_of_the_wanted_width_lies_at_every_border(made):
    table, pictures = made(("only", [(100, NN), (100, YY)] * 14))
    split = split_pairs(table, pictures, Splitting(guard_frames=20))
    assert split.account["scenes"]["cut_into_blocks"] == ["only"]
    assert split.account["guard_frames"] == 20
    assert gap_of(split.table) == split.account["smallest_gap_frames"] == 21


def test_without_names_the_scenes_are_found_where_the_pictures_change(made):
    scenes = [(f"s{n}", [(30, NN), (30, YY)]) for n in range(9)]
    table, pictures = made(*scenes, named=False)
    split = split_pairs(table, pictures, Splitting(guard_frames=3))
    assert split.account["scenes"] == {"how": "detected", "count": 9, "cut_into_blocks": []}
    true_scene = (split.table["order"] - 1) // 60
    assert (split.table["split"].groupby(true_scene).nunique() == 1).all()
    assert split.account["smallest_gap_frames"] == gap_of(split.table) == 4  # a boundary may be a few frames off


def test_stills_without_scenes_are_split_by_blocks(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for number in range(140):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 255, (16, 18), dtype=np.uint8)).save(paths[-1])
    table = pd.DataFrame({"id": [str(n) for n in range(140)], "scene": "", "order": range(140)})
    table = table.assign(fire=table["order"] % 2, smoke=table["order"] // 2 % 2)
    split = split_pairs(table, paths, Splitting())
    assert split.account["scenes"]["how"] == "none"
    assert any("by blocks of frames" in note for note in split.notes)
    assert gap_of(split.table) == split.account["smallest_gap_frames"] > split.account["guard_frames"] > 1


def test_a_label_that_can_not_be_everywhere_is_an_error_with_the_counts(made):
    table, pictures = made(("a", [(40, NN)]), ("b", [(40, NN)]), ("c", [(40, NN), (2, YY)]))
    with pytest.raises(DataError, match="fire and no fire, smoke and no smoke must each be in") as caught:
        split_pairs(table, pictures, Splitting())
    assert "c: 42 pairs; 40 NN, 0 YN, 0 NY, 2 YY" in caught.value.details


def test_a_label_without_both_values_is_an_error(made):
    table, pictures = made(*((f"s{n}", [(10, NN), (10, NY)]) for n in range(4)))
    with pytest.raises(DataError, match="0 of 80 pairs have fire"):
        split_pairs(table, pictures, Splitting())


def test_a_combination_too_rare_to_split_may_be_missing_and_the_notes_say_so(made):
    scenes = [(f"s{n}", [(20, NN), (20, YY), *([(2, NY)] if n == 0 else [])]) for n in range(6)]
    split = split_pairs(*made(*scenes), Splitting())
    assert split.account["may_be_missing"] == ["NY"]
    assert split.account["scenes"]["cut_into_blocks"] == []
    assert "too few pairs to be needed in every split: NY" in split.notes


def test_look_alikes_on_two_sides_are_counted_and_shown(made):
    scenes = [(f"s{n}", [(6, NN), (6, YY)]) for n in range(8)]
    table, pictures = made(*scenes)
    clean = split_pairs(table, pictures, Splitting())
    assert all(item["frames"] == 0 for key, item in clean.account["near_duplicates"].items() if key != "most_bits")
    sides = clean.table.groupby("split")["scene"].first()
    twins = [pictures[table.index[table["scene"] == sides["train"]][0]]] * 3
    at = table.index[table["scene"] == sides["test"]][:3]
    for row, twin in zip(at, twins, strict=True):
        pictures[row] = twin
    leaky = split_pairs(table, pictures, Splitting())
    found = leaky.account["near_duplicates"]["train-test"]
    assert found["frames"] == 3 and found["pairs"][0][1] == table["id"][at[0]] and found["pairs"][0][2] == 0
    assert any("3 of" in note and "train-test" in note for note in leaky.notes)


def test_near_duplicates_are_those_that_comparing_all_with_all_finds():
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**63, 400).astype(np.uint64)
    hashes = seeds[rng.integers(0, 400, 3000)]
    for _ in range(4):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, 3000).astype(np.uint64))
    splits = np.array(SPLITS, dtype=object)[rng.integers(0, 3, 3000)]
    names = [str(number) for number in range(3000)]
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).astype(np.int32)
    for most in (0, 3, 6):
        report = alike.near_duplicates(hashes, splits, names, most_bits=most)
        for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
            first, second = bits[splits == one], bits[splits == two]
            distance = first.sum(1)[:, None] + second.sum(1)[None] - 2 * first @ second.T
            assert report[f"{one}-{two}"]["frames"] == (distance.min(axis=0) <= most).sum()
            assert report[f"{one}-{two}"]["frames"] > 0 or most == 0


def test_near_duplicates_of_a_whole_set_take_seconds():
    """53,451 frames of slowly changing video; all with all would be 400 million comparisons."""
    rng = np.random.default_rng(1)
    flips = np.uint64(1) << rng.integers(0, 64, 53_451).astype(np.uint64)
    flips[rng.random(53_451) < 0.7] = 0
    hashes = np.bitwise_xor.accumulate(flips)
    hashes[:9000] = hashes[0] ^ (np.uint64(1) << (np.arange(9000, dtype=np.uint64) % np.uint64(20)))
    splits = np.repeat(np.array(SPLITS, dtype=object), [37_451, 8000, 8000])
    start = time.process_time()
    report = alike.near_duplicates(hashes, splits, [str(n) for n in range(53_451)], most_bits=4)
    assert report["train-val"]["frames"] > 0
    assert time.process_time() - start < 20


def test_hashes_of_a_picture_survive_noise_and_light_but_not_another_picture():
    rng = np.random.default_rng(2)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 5), dtype=np.uint8))
    frame = np.asarray(coarse.resize((alike.WIDTH, alike.HEIGHT), Image.Resampling.BICUBIC)).astype(float)
    noisy = frame * 0.8 + 20 + rng.normal(0, 1, frame.shape)
    frames = np.stack([frame, noisy, frame[:, ::-1]]).clip(0, 255).astype(np.uint8)
    one, two, other = alike.perceptual_hashes(frames).tolist()
    assert bin(one ^ two).count("1") <= 4 < 20 < bin(one ^ other).count("1")


def test_a_flash_is_no_boundary_and_a_cut_is():
    rng = np.random.default_rng(3)
    places = rng.integers(0, 255, (2, alike.HEIGHT, alike.WIDTH))
    film = np.repeat(places, 40, axis=0) + rng.normal(0, 4, (80, alike.HEIGHT, alike.WIDTH))
    film[20] = 255
    assert alike.boundaries(film.clip(0, 255).astype(np.uint8)).tolist() == [40]
    assert alike.boundaries(film[:40].clip(0, 255).astype(np.uint8)).tolist() == []
    assert alike.boundaries(film[:8].clip(0, 255).astype(np.uint8)).tolist() == []


@pytest.mark.real_data
def test_scenes_that_are_named_for_a_split_are_that_split_whatever_they_hold(made):
    table, pictures = made(*((f"s{n}", [(6, NN), (4, YY)]) for n in range(6)), ("odd", [(7, YN), (5, NN)]))
    for scene in ("s2", "odd"):
        split = split_pairs(table, pictures, Splitting(test_scenes=(scene,)))
        assert set(split.table["scene"][split.table["split"] == "test"]) == {scene}
        assert all(split.account["counts"][name]["YY"] for name in ("train", "val"))
        assert f"named for test: {scene}" in split.notes
    both = split_pairs(table, pictures, Splitting(val_scenes=("s1", "s3"), test_scenes=("odd",)))
    sides = both.table.groupby("scene")["split"].first().to_dict()
    assert sides == {
        "s0": "train",
        "s1": "val",
        "s2": "train",
        "s3": "val",
        "s4": "train",
        "s5": "train",
        "odd": "test",
    }
    assert both.account["scenes"]["named_for_a_split"] == {"s1": "val", "s3": "val", "odd": "test"}


def test_scenes_that_can_not_be_named_for_a_split_are_refused(made):
    table, pictures = made(*((f"s{n}", [(6, NN), (4, YY)]) for n in range(5)), ("calm", [(12, NN)]))
    with pytest.raises(DataError, match="there is no scene 'S1'") as caught:
        split_pairs(table, pictures, Splitting(test_scenes=("S1", "s2")))
    assert "s0, s1" in str(caught.value.hint)
    with pytest.raises(DataError, match="0 of 12 pairs of val_scenes have fire"):
        split_pairs(table, pictures, Splitting(val_scenes=("calm",)))
    with pytest.raises(ValueError, match="s1 can't be in val_scenes and in test_scenes"):
        Splitting(val_scenes=("s1",), test_scenes=("s1", "s2"))


def test_real_tiles_are_split_by_scene(real_data):
    found = examples(real_data / "wildfires" / "flame", Splitting())
    assert len(found.table) == 127
    sides = found.table.groupby("scene")["split"].agg(set)
    assert all(len(splits) == 1 for splits in sides) and len(sides) == 4
    counts = found.facts["split"]["counts"]
    assert counts["train"]["pairs"] == 93
    for name in SPLITS:
        rows = counts[name]
        assert 0 < rows["fire"] < rows["pairs"] and 0 < rows["smoke"] < rows["pairs"] and rows["NY"] > 0
    assert found.facts["split"]["may_be_missing"] == ["YN"]  # two tiles of one scene
