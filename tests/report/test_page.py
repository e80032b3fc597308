"""The page stands alone, escapes what came from data, and renders whatever there is of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from outlast.errors import RunError
from outlast.report.page import write
from outlast.task import Figure

HOSTILE = ("<script>alert(1)</script>", 'x" onload="alert(2)', "Ржавчина's 玉米")
VOID = {"meta", "img", "source", "br", "rect", "line", "link", "input"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page; every tag must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def assert_stands_alone(page: Reader) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form", "base"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "srcset", "href", "action", "data", "poster"):
                assert value.startswith(("data:image/", "#")), (tag, name, value[:80])


def test_whole_run(make_run: Callable[..., Path]) -> None:
    path = make_run()
    assert write(path) == path / "report.html"
    page = read(path / "report.html")
    assert_stands_alone(page)
    assert "url(" not in (path / "report.html").read_text() and "@import" not in (path / "report.html").read_text()
    for words in (
        "TEST",
        "VALIDATION",
        "0.971",
        "9c1f0a7be2d94411",
        "sclusterformer",
        "outlast predict",
        "Worst mistakes",
    ):
        assert words in page.text, words
    assert "SYNTHETIC" not in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links <= set(ids)


def test_every_picture_has_an_alternative_text(make_run: Callable[..., Path]) -> None:
    path = write(make_run())
    pictures = [attributes for tag, attributes in read(path).tags if tag == "img"]
    assert len(pictures) == 6 and all(len(picture["alt"]) > 10 for picture in pictures)
    assert any("resumed at steps 120 and 250" in picture["alt"] for picture in pictures)


def test_headings_go_down_one_level_at_a_time(make_run: Callable[..., Path]) -> None:
    levels = [int(tag[1]) for tag, _ in read(write(make_run())).tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_synthetic_is_not_to_be_overlooked(make_run: Callable[..., Path]) -> None:
    page = read(write(make_run(synthetic=True)))
    assert "SYNTHETIC DATA" in page.text and page.text.count("SYNTHETIC") >= 3
    assert any(attributes.get("class") == "banner" for _, attributes in page.tags)
    assert "outlast train plants --data YOUR_FOLDER" in page.text


def test_synthetic_data_make_the_run_synthetic_whatever_else_it_says(make_run: Callable[..., Path]) -> None:
    data = {"data": {"path": "p", "fingerprint": "f", "synthetic": True, "examples": 3, "notes": []}}
    assert "SYNTHETIC DATA" in read(write(make_run(synthetic=False, data=data))).text


def test_hostile_names_stay_text(make_run: Callable[..., Path]) -> None:
    path = make_run(
        "<b>run</b>",
        classes=HOSTILE,
        task="<i>",
        reason="</style><script>",
        warnings=['<img src="http://x">', "\x00\ud800"],
    )
    (path / "config.yaml").write_text("a: '</pre><script>'\n")
    page = read(write(path))
    assert_stands_alone(page)
    for name in HOSTILE:
        assert name in page.text


def test_fallback_is_told_in_capitals(make_run: Callable[..., Path]) -> None:
    rung = {"train": {"name": "minimal", "wanted": "sclusterformer", "reason": "out of memory at batch 32"}}
    page = read(write(make_run(rung=rung)))
    assert "FELL BACK" in page.text and "OUT OF MEMORY AT BATCH 32" in page.text


def test_a_smaller_micro_batch_is_told_and_is_no_fallback(make_run: Callable[..., Path]) -> None:
    rung = {"name": "tiny", "wanted": "tiny", "reason": "no more", "micro_batch": 4, "checkpointing": True}
    page = read(write(make_run(rung={"train": rung})))
    assert "micro-batches of 4, activations computed again" in page.text
    assert "because memory is short: no more" in page.text
    assert "FELL BACK" not in page.text


def test_stopped_run_says_how_to_go_on(make_run: Callable[..., Path]) -> None:
    command = "outlast train plants --data 'my leaves' --out runs/potato"
    path = make_run(status="stopped", reason="session limit", next_command=command)
    (path / "train" / "stage.json").unlink()
    for name in ("metrics.json", "mistakes.json", "stage.json"):
        (path / "scores" / name).unlink()
    page = read(write(path))
    assert page.text.count(command) >= 2
    assert "There is no test score yet" in page.text and "best so far" in page.text
    assert not any("test" in attributes.get("class", "").split() for tag, attributes in page.tags if tag == "span")


@pytest.mark.parametrize("status", ["running", "failed", "stopped", "finished", "strange", None])
def test_only_run_json(tmp_path: Path, status: str | None) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": status, "reason": "the loss is not finite at step 12"}))
    page = read(write(tmp_path))
    assert_stands_alone(page)
    assert "n/a" in page.text and "What to do next" in page.text


def test_nan_null_and_absent_read_not_available(make_run: Callable[..., Path]) -> None:
    path = make_run(
        parameters={}, host={}, versions={}, config_hash=None, sessions=[{}, {"started": "2026-03-01T00:00:00"}]
    )
    metrics = {
        "accuracy": float("nan"),
        "kappa": None,
        "per_class": {"a": {"f1": float("nan"), "recall": None}, "b": {}},
    }
    found = {"split": "test", "images": None, "metrics": metrics, "classes": ["a", "b"], "confusion": [[0, 0], [0, 0]]}
    (path / "scores" / "metrics.json").write_text(json.dumps(found))
    (path / "scores" / "mistakes.json").write_text(json.dumps({"mistakes": [{}, "no mapping"]}))
    text = read(write(path)).text
    assert text.count("n/a") >= 8 and not re.search(r"\b(nan|NaN|None|null)\b", text)


def test_a_figure_without_its_file_says_so(make_run: Callable[..., Path]) -> None:
    figures = (Figure("curves", "absent/metrics.jsonl", "Teacher"), Figure("hologram", "x", "Hologram"))
    text = read(write(make_run(), figures)).text
    assert "Nothing to show yet" in text and "hologram" in text


def test_images_that_are_none_are_not_embedded(make_run: Callable[..., Path]) -> None:
    path = make_run()
    (path / "scores" / "fake.png").write_text("<html>")
    page = read(write(path, (Figure("image", "scores/fake.png", "Fake"),)))
    assert not any(tag == "img" for tag, _ in page.tags) and "Nothing to show" in page.text


def test_failure_keeps_the_previous_report(make_run: Callable[..., Path]) -> None:
    path = make_run()
    before = write(path).read_text()
    (path / "run.json").write_text("{")
    with pytest.raises(RunError):
        write(path)
    assert (path / "report.html").read_text() == before
    assert not [name for name in path.iterdir() if "tmp" in name.name]


def test_it_can_be_written_elsewhere(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run()
    assert write(path, to=tmp_path / "site" / "page.html").is_file()
    assert not (path / "report.html").exists()
