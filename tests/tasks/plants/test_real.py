"""Real leaves, briefly: that the data is understood. How well it is learned, benchmarks/plants.py measures."""

import csv
import json

import pytest

import outlast

pytestmark = pytest.mark.real_data


def test_potato_is_split_by_leaf_and_trained_and_scored(real_data, tmp_path):
    run = tmp_path / "run"
    settings = ["model.name=tiny", "train.epochs=1", "data.center_crop=0.7", "train.threads=1"]
    outlast.train("plants", data=real_data / "plants" / "potato", preset="smoke", out=run, overrides=settings)
    with (run / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 920
    sides = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert len(sides) == 683  # 604 single leaves and 79 leaves in four versions each
    assert all(len(splits) == 1 for splits in sides.values())
    for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        assert sum(row["split"] == split for row in rows) / 920 == pytest.approx(share, abs=0.03)
        assert {row["label"] for row in rows if row["split"] == split} == {"0", "1", "2"}
    assert json.loads((run / "run.json").read_text())["synthetic"] is False
    result = outlast.evaluate(run, data=real_data / "plants" / "potato")
    assert result["images"] == 920


def test_rice_is_trained_and_scored(real_data, tmp_path):
    settings = ["model.name=tiny", "train.epochs=1", "train.threads=1"]
    result = outlast.train(
        "plants", data=real_data / "plants" / "rice", preset="smoke", out=tmp_path / "run", overrides=settings
    )
    assert result["status"] == "finished"
    assert result["stages"]["scores"]["images"] == pytest.approx(154 * 0.15, abs=4)
