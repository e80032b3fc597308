"""The figures are real pictures of a sane size, whatever the run is like."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from outlast.errors import TaskError
from outlast.report.collect import collect
from outlast.report.look import Look
from outlast.report.plots import draw, explain
from outlast.task import Figure

FIGURES = (
    Figure("curves", "train/metrics.jsonl", "Training curves"),
    Figure("confusion_matrix", "scores/metrics.json", "Confusion matrix"),
    Figure("per_class", "scores/metrics.json", "Scores per class"),
    Figure("image_grid", "scores/mistakes.json", "Worst mistakes"),
)
HOSTILE = ("<script>alert(1)</script>", 'a "quoted" $x^2$ & name', "玉米 ржавчина 🌽")


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.kind)
@pytest.mark.parametrize("look", [Look(), Look(dark=True), Look(narrow=True)], ids=["light", "dark", "narrow"])
def test_figures_are_pictures_of_a_sane_size(make_run: Callable[..., Path], figure: Figure, look: Look) -> None:
    image = opened(draw(figure, make_run(), look))
    assert image.format == "PNG" and 500 < image.width < 2400 and 300 < image.height < 2400
    pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 8, "an empty picture"
    assert (pixels[0].mean() < 60) == look.dark


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.kind)
def test_svg_is_well_formed_and_says_synthetic_and_the_names_as_they_are(
    make_run: Callable[..., Path], figure: Figure
) -> None:
    data = draw(figure, make_run(classes=HOSTILE, synthetic=True), Look(form="svg"))
    assert data is not None
    ElementTree.fromstring(data)
    text = " ".join(ElementTree.fromstring(data).itertext())
    assert "SYNTHETIC DATA" in text
    assert b"<script" not in data
    if figure.kind == "confusion_matrix":
        assert 'a "quoted" $x^2$ & name' in text and "玉米" in text


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.kind)
def test_the_same_run_gives_the_same_bytes(make_run: Callable[..., Path], figure: Figure) -> None:
    run = make_run()
    for look in (Look(), Look(form="svg")):
        assert draw(figure, run, look) == draw(figure, run, look)


def test_png_carries_provenance(make_run: Callable[..., Path]) -> None:
    said = opened(draw(FIGURES[0], make_run("grün", synthetic=True))).info["Description"]
    assert "SYNTHETIC" in said and "config 9c1f0a7be2d94411" in said and "data 4be8d1c05a77f3e2" in said


@pytest.mark.parametrize("classes", [2, 12, 30, 60])
def test_confusion_matrix_of_any_number_of_classes(make_run: Callable[..., Path], classes: int) -> None:
    image = opened(draw(FIGURES[1], make_run(classes=[f"class number {place}" for place in range(classes)])))
    assert image.width < 2400 and image.height < 2400


def test_curves_take_gaps_nan_and_one_point(make_run: Callable[..., Path]) -> None:
    path = make_run()
    rows = path / "train" / "metrics.jsonl"
    for text in (
        '{"step": 3, "train_loss": 1.5, "val_balanced_accuracy": 0.5}\n',
        '{"step": 1, "train_loss": NaN}\n{"step": 2, "train_loss": 1e9, "val_loss": null}\n'
        '{"step": 3, "train_loss": 1e-3}\n',
        '{"step": 0, "learning_rate": 0.0, "val_balanced_accuracy": 1.0}\n',
    ):
        rows.write_text(text)
        opened(draw(FIGURES[0], path))


def test_many_sessions_still_fit(make_run: Callable[..., Path]) -> None:
    sessions = [{"from_step": 10 * place, "to_step": 10 * place + 10, "seconds": 5.0} for place in range(40)]
    for look in (Look(), Look(narrow=True)):
        opened(draw(FIGURES[0], make_run(f"run-{look.narrow}", sessions=sessions), look))


def test_nothing_to_show_is_none(make_run: Callable[..., Path]) -> None:
    path = make_run()
    (path / "train" / "metrics.jsonl").write_text('{"step": 1, "train_loss": NaN}\n')
    (path / "scores" / "metrics.json").write_text(json.dumps({"metrics": {"accuracy": None}}))
    (path / "scores" / "mistakes.json").write_text(json.dumps({"mistakes": []}))
    assert [draw(figure, path) for figure in FIGURES] == [None] * 4
    assert draw(Figure("image", "scores/absent.png", ""), path) is None


def test_an_image_is_passed_on_as_it_is(make_run: Callable[..., Path]) -> None:
    path = make_run()
    assert (
        draw(Figure("image", "scores/mistakes/0000.png", ""), path) == (path / "scores/mistakes/0000.png").read_bytes()
    )


def test_damaged_thumbnail_leaves_an_empty_tile(make_run: Callable[..., Path]) -> None:
    path = make_run()
    (path / "scores/mistakes/0000.png").write_bytes(b"\x89PNG torn")
    (path / "scores/mistakes/0001.png").unlink()
    opened(draw(FIGURES[3], path))


def test_unknown_kind_lists_the_known_ones(make_run: Callable[..., Path]) -> None:
    with pytest.raises(TaskError, match="Did you mean 'curves'"):
        draw(Figure("curve", "train/metrics.jsonl", ""), make_run())


def test_a_class_that_does_not_occur_is_named_and_the_others_are_told_as_ever(make_run: Callable[..., Path]) -> None:
    run = make_run()
    path = run / "scores" / "metrics.json"
    counts = [[5, 1, 0, 0], [1, 4, 0, 0], [0, 0, 0, 0], [0, 2, 0, 7]]
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": ["NN", "YN", "NY", "YY"],
                                "confusion": counts}))  # fmt: skip
    figure = Figure("confusion_matrix", "scores/metrics.json", "Combinations")
    finding, _ = explain(figure, collect(run))
    assert "16 of 20 images right" in finding and finding.endswith("Of NY there are no images.")
    assert opened(draw(figure, run)).width > 300
