"""Real pairs of flights over fires, briefly: that the data is understood. Benchmarks tell how well they are learned."""

import csv
import json

import pytest

import outlast

pytestmark = pytest.mark.real_data
SETTINGS = ["data.image_size=32", "teacher.train.epochs=1", "train.epochs=1", "train.threads=1"]


def test_flights_stay_whole_and_what_was_trained_on_them_is_scored_and_used(real_data, tmp_path):
    data, run = real_data / "wildfires" / "flame", tmp_path / "run"
    result = outlast.train("wildfires", data=data, preset="smoke", out=run, overrides=SETTINGS)
    assert result["status"] == "finished"
    sides = {}
    for row in csv.DictReader((run / "split.csv").read_text().splitlines()):
        sides.setdefault(row["group"], set()).add(row["split"])
    assert len(sides) == 4
    assert all(len(splits) == 1 for splits in sides.values())
    assert set.union(*sides.values()) == {"train", "val", "test"}
    told = json.loads((run / "scores" / "models.json").read_text())
    assert told["synthetic"] is False
    assert told["scenes"] == 1
    assert told["intervals_by"] == f"{told['images']} pairs"  # a single scene can't tell how much scenes differ
    assert outlast.evaluate(run, data=data)["images"] == 127
    without_fire = outlast.evaluate(run, data=real_data / "wildfires" / "roadscene")
    assert "no AUC: none of the 74 images have the label" in without_fire["metrics"]["fire"]["reason"]
