"""The figure of what boosted trees go by."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from outlast.report.importance import importance_finding, load_importance
from outlast.report.look import Look
from outlast.report.plots import draw
from outlast.task import Figure

FIGURE = Figure("importance", "ensemble/importance.json", "What the trees go by")


def write(run, columns):
    (run / "ensemble").mkdir()
    (run / "ensemble" / "importance.json").write_text(json.dumps({"models": 15, "columns": columns}))
    return run


def many(count):
    gains = np.arange(count, 0, -1.0) / np.arange(1, count + 1).sum()
    return [{"name": f"column_{at}", "gain": gain, "spread": gain / 3} for at, gain in enumerate(gains)]


@pytest.mark.parametrize("look", [Look(), Look(dark=True), Look(narrow=True)], ids=["light", "dark", "narrow"])
@pytest.mark.parametrize("count", [1, 60])
def test_it_is_a_picture_of_a_sane_size(make_run, look, count):
    image = Image.open(io.BytesIO(draw(FIGURE, write(make_run(), many(count)), look)))
    assert image.format == "PNG" and 500 < image.width < 2400 and 200 < image.height < 2400
    assert np.asarray(image.convert("L")).std() > 8


def test_it_says_what_counts_most_and_what_is_not_shown(make_run):
    known = load_importance(write(make_run(), many(60)[::-1]), FIGURE.source)
    assert known.names[0] == "column_0" and list(known.gains) == sorted(known.gains, reverse=True)
    said = importance_finding(known)
    rest = sum(known.gains[20:])
    assert said.startswith("3 % of the gain comes from column_0 (mean of 15 models)")
    assert f"40 more columns have {100 * rest:.1f} % together" in said


def test_columns_without_gain_and_damaged_records_are_left_out(make_run):
    assert draw(FIGURE, make_run()) is None
    columns = [{"name": "used", "gain": 1.0, "spread": 0.0}, {"name": "unused", "gain": 0.0}, {"gain": "much"}, 7]
    assert load_importance(write(make_run("damaged"), columns), FIGURE.source).names == ("used",)
