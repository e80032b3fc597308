"""Pictures of embeddings: every group with its mark, empty ones named, nothing fetched, nothing from data executed."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from outlast.errors import TaskError
from outlast.report.embedding import COLOURS, MARKERS, Embedding, Panel, legend, marks, page, picture
from outlast.report.look import Look
from outlast.task import Mark
from toys.pair import MARKS

OCCURRING = ("no fire no smoke", "fire only", "fire and smoke")


def made(titles=("teacher", "student"), groups=OCCURRING, every=MARKS, ids=None, **settings):
    """An embedding of 30 samples per panel."""
    random = np.random.default_rng(0)
    names = [groups[number % len(groups)] for number in range(30)]
    ids = ids or [f"frame {number}" for number in range(30)]
    panels = [Panel(title, random.normal(0, 1, (30, 2)), ids, names) for title in titles]
    given = {"title": "t-SNE: run", "finding": "30 samples", "synthetic": False, "said": "task x", **settings}
    return Embedding(panels=panels, marks=every, **given)


def traces(text):
    """The traces of a page, as its drawing program gets them."""
    start = text.index("Plotly.newPlot(", text.rindex("<script"))
    values, _ = json.JSONDecoder().raw_decode(text[text.index("[", start) :])
    return values


def without_program(text):
    """The page without the drawing program itself, which is full of addresses that it does not go to."""
    return "".join(part for part in re.split(r"(<script.*?</script>)", text, flags=re.S) if len(part) < 500_000)


def test_the_four_classes_have_their_colours_and_markers_and_the_empty_one_is_named_empty():
    text = page(made())
    found = {trace["name"]: (trace["marker"]["color"], trace["marker"]["symbol"]) for trace in traces(text)}
    assert found == {
        "no fire no smoke (10)": ("#1f5fbf", "circle"),
        "fire only (10)": ("#d62728", "square"),
        "smoke only (empty)": ("#7f7f7f", "triangle-up-open"),
        "fire and smoke (10)": ("#ff7f0e", "diamond"),
    }
    drawn = picture(made(), Look(form="svg")).decode()
    for label in found:
        assert label in drawn
    for colour in ("#1f5fbf", "#d62728", "#7f7f7f", "#ff7f0e"):
        assert colour in drawn


def test_panels_stand_side_by_side_with_one_legend():
    values = traces(page(made()))
    assert [trace["xaxis"] for trace in values] == ["x"] * 4 + ["x2"] * 4
    assert [trace["showlegend"] for trace in values] == [True] * 4 + [False] * 4
    one, two = (Image.open(io.BytesIO(picture(made(titles)))).size for titles in (("a",), ("a", "b")))
    assert two[0] > 1.8 * one[0]
    drawn = picture(made(), Look(form="svg")).decode()
    assert drawn.count("fire only (10)") == 1
    assert "teacher" in drawn and "student" in drawn


def test_all_points_are_drawn_with_their_ids():
    embedding = made(("teacher",))
    values = traces(page(embedding))
    assert sorted(name for trace in values for name in trace["text"]) == sorted(embedding.panels[0].ids)
    xs = [x for trace in values for x in trace["x"] if x is not None]
    assert sorted(xs) == pytest.approx(sorted(embedding.panels[0].points[:, 0]))


def test_the_page_fetches_nothing_and_offers_to_send_nothing():
    text = page(made())
    assert "default-src 'none'" in text
    assert '"showSendToCloud": false' in text and '"displaylogo": false' in text
    rest = without_program(text)
    assert not re.search(r"""(src|href)\s*=""", rest)
    assert "://" not in rest


def test_names_from_data_are_shown_and_never_executed():
    bad = "</script><script>alert(1)</script><b>x</b>"
    groups = [bad, "$x_1$", "a%{x}b"]
    every = marks(groups)
    text = page(made((bad,), groups, every, ids=[f"{bad}{number}" for number in range(30)], title=bad, said=bad))
    assert "<script>alert" not in text
    assert "<b>x</b>" not in without_program(text)
    assert len(traces(text)[0]["text"]) == 10
    assert traces(text)[0]["text"][0].startswith("&lt;/script&gt;")
    picture(made((bad,), groups, every, title=bad, said=bad + " é"))


def test_the_same_embedding_gives_the_same_bytes():
    assert picture(made()) == picture(made())
    assert page(made()) == page(made())


def test_synthetic_data_is_named():
    assert "SYNTHETIC DATA" in page(made(synthetic=True))
    assert "SYNTHETIC DATA" not in page(made())
    assert "SYNTHETIC DATA" in picture(made(synthetic=True), Look(form="svg")).decode()


def test_counts_that_differ_between_panels_are_left_out():
    one, two = made(("a",)), made(("b",), OCCURRING[:2])
    both = Embedding("t", "f", [*one.panels, *two.panels], MARKS, False, "s")
    assert legend(both)["fire only"] == "fire only"
    assert legend(both)["smoke only"] == "smoke only (empty)"
    assert legend(both)["fire and smoke"] == "fire and smoke"


def test_ordinary_classes_get_a_colour_and_a_marker_of_their_own():
    every = marks([f"class {number}" for number in range(64)])
    assert len({(mark.colour, mark.marker) for mark in every.values()}) == 64
    assert {mark.colour for mark in every.values()} == set(COLOURS)
    assert {mark.marker for mark in every.values()} == set(MARKERS)
    names = list(every)
    drawn = picture(made(("train",), names, every), Look(form="svg")).decode()
    assert "class 0 (1)" in drawn and "class 63 (empty)" in drawn


def test_a_task_that_gives_no_sense_is_told():
    with pytest.raises(TaskError, match="there is no marker blob"):
        made(every={**MARKS, "fire only": Mark("#000000", "blob")})
    with pytest.raises(TaskError, match="groups without a mark: fire only"):
        made(every={name: mark for name, mark in MARKS.items() if name != "fire only"})
