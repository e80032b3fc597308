"""The figures of a segmentation: real pictures that show what was written, whatever was written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from outlast.data.pictures import IGNORED, errors_by_distance, write_boundary, write_examples
from outlast.report.collect import collect
from outlast.report.look import Look
from outlast.report.page import default_figures, write
from outlast.report.plots import draw, explain
from outlast.task import Figure

CLASSES = ("background", "ice", "debris", "lake")
FIGURES = (
    Figure("segmentation_examples", "scores/examples.npz", "Predictions next to truth"),
    Figure("boundary_error", "scores/boundary.json", "Errors near boundaries"),
    Figure("per_class_curves", "train/metrics.jsonl", "Classes during the training"),
    Figure("class_table", "scores/metrics.json", "Scores per class"),
)
LOOKS = (Look(), Look(dark=True), Look(narrow=True))
VALUES = {"background": 0.9, "ice": 0.7, "debris": 0.4}


def scene(
    tiles: int = 4, side: tuple[int, int] = (48, 48)
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Pictures, truth (with a corner without labels) and a prediction that is the truth moved by two pixels."""
    noise = np.random.default_rng(3)
    y, x = np.mgrid[: side[0], : side[1]]
    pictures, truth, prediction = [], [], []
    for tile in range(tiles):
        mask = np.zeros(side, np.uint8)
        mask[np.abs(x - 20 - 3 * tile) < 9] = 1
        mask[(np.abs(x - 20 - 3 * tile) < 7) & (y > 25)] = 2
        mask[(y > side[0] - 6) & (x < 12)] = 3
        prediction.append(np.roll(mask, 2, axis=1))
        mask[:4, :4] = IGNORED
        truth.append(mask)
        pictures.append(noise.integers(0, 256, (*side, 3)).astype(np.uint8))
    return pictures, truth, prediction


@pytest.fixture
def segmented(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """A finished run of a segmentation."""

    def made(name: str = "glaciers", classes: tuple[str, ...] = CLASSES, **changes: Any) -> Path:
        run = make_run(name, facts={"train": {"classes": list(classes)}}, score={"train": "+mcc"}, **changes)
        pictures, truth, prediction = scene()
        scores = run / "scores"
        names = [f"r{tile:03d}_c064.tif" for tile in range(len(truth))]
        write_examples(scores / "examples.npz", pictures, truth, prediction, names, classes)
        counts = sum(errors_by_distance(one, two) for one, two in zip(truth, prediction, strict=True))
        write_boundary(scores / "boundary.json", np.asarray(counts), 30.0, "examples.npz")
        values = dict(zip(classes, (0.9, 0.8, 0.5, float("nan")), strict=True))
        metrics = {"mcc": 0.7, "iou": values, "f1": values, "precision": values, "recall": values, "class_mcc": values}
        confusion = [[90, 5, 5, 0], [3, 40, 2, 0], [8, 2, 10, 0], [0, 0, 0, 0]]
        told = {"split": "val", "unit": "pixels", "metrics": metrics, "classes": [*classes], "confusion": confusion}
        (scores / "metrics.json").write_text(json.dumps(told))
        (scores / "mistakes.json").unlink()
        rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row["val_iou"] = {name: row["step"] / 500 * (1 - 0.2 * at) for at, name in enumerate(classes[:3])}
            row["val_f1"] = {**row["val_iou"], classes[3]: None}
        save_rows(run, rows)
        return run

    return made


def save_rows(run: Path, rows: list[dict[str, Any]]) -> None:
    (run / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.kind)
def test_figures_are_pictures_of_a_sane_size_and_always_the_same(
    segmented: Callable[..., Path], figure: Figure
) -> None:
    run = segmented()
    for look in LOOKS:
        data = draw(figure, run, look)
        image = opened(data)
        assert image.format == "PNG" and 500 < image.width < 2400 and 250 < image.height < 2600
        pixels = np.asarray(image.convert("L"))
        assert pixels.std() > 8, "an empty picture"
        assert (pixels[0].mean() < 60) == look.dark
    assert draw(figure, run, look) == data


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.kind)
def test_svg_says_synthetic_and_the_names_as_they_are(segmented: Callable[..., Path], figure: Figure) -> None:
    names = ("background", "<script>", 'a "quoted" $x^2$', "冰")
    data = draw(figure, segmented(classes=names, synthetic=True), Look(form="svg"))
    assert data is not None and b"<script" not in data
    text = " ".join(ElementTree.fromstring(data).itertext())
    assert "SYNTHETIC DATA" in text
    if figure.kind != "boundary_error":
        assert 'a "quoted" $x^2$' in text and "<script>" in text


def test_masks_are_tinted_in_the_colour_of_their_class_and_background_is_not(make_run: Callable[..., Path]) -> None:
    run = make_run()
    black = np.zeros((40, 40, 3), np.uint8)
    for number, tinted in ((0, False), (1, True)):
        mask = np.full((40, 40), number)
        write_examples(run / "scores" / "examples.npz", [black], [mask], [mask], ["a"], ["background", "ice"])
        pixels = np.asarray(opened(draw(FIGURES[0], run)).convert("RGB")).astype(int)
        middle = pixels[pixels.shape[0] // 2, :]
        truth = middle[len(middle) // 2]
        assert (truth[2] - truth[0] > 40) == tinted


def test_what_each_figure_shows_is_said_in_a_sentence(segmented: Callable[..., Path]) -> None:
    run = collect(segmented())
    told = {figure.kind: explain(figure, run)[0] for figure in FIGURES}
    assert (
        told["segmentation_examples"].startswith("4 tiles: 8")
        and "background is not tinted" in told["segmentation_examples"]
    )
    assert "within 2 pixels of a true boundary" in told["boundary_error"]
    assert "debris has the lowest IoU, 0.480" in told["per_class_curves"]
    assert told["class_table"] == (
        "VAL split: IoU from 0.500 (debris) to 0.900 (background). Neither in the truth nor predicted: lake."
    )
    for figure in FIGURES:
        assert explain(figure, run)[1].startswith(figure.title)


def test_a_class_that_was_better_before_is_told(segmented: Callable[..., Path]) -> None:
    run = segmented()
    save_rows(run, [{"step": step, "val_iou": {"ice": 0.9, "lake": lake}} for step, lake in ((1, 0.4), (2, 0.1))])
    assert explain(FIGURES[2], collect(run))[0] == (
        "At the last evaluation lake has the lowest IoU, 0.100. It had 0.400 at step 1."
    )


@pytest.mark.parametrize(
    "row",
    [
        {"val_iou": VALUES},
        {"iou": VALUES},
        {"val_per_class": {name: {"iou": value, "pixels": 3} for name, value in VALUES.items()}},
        {f"val_iou_{name}": value for name, value in VALUES.items()},
    ],
    ids=lambda row: next(iter(row)),
)
def test_scores_of_classes_are_found_in_every_form(segmented: Callable[..., Path], row: dict[str, Any]) -> None:
    run = segmented()
    save_rows(run, [{"step": 10, **row}, {"step": 20, "train_loss": 1.0}, {"step": 30, **row}])
    opened(draw(FIGURES[2], run))
    assert "debris has the lowest IoU, 0.400" in explain(FIGURES[2], collect(run))[0]


def test_curves_take_gaps_nan_and_one_point(segmented: Callable[..., Path]) -> None:
    run = segmented()
    for rows in (
        [{"step": 3, "val_iou": {"ice": 0.5}}],
        [{"step": 1, "val_iou": {"ice": float("nan"), "lake": None}}, {"step": 2, "val_iou": {"ice": 0.2}}],
        [{"step": 1, "val_class_mcc": {"ice": -0.3, "lake": "broken"}}],
    ):
        save_rows(run, rows)
        opened(draw(FIGURES[2], run))


def test_nothing_to_show_is_none(segmented: Callable[..., Path]) -> None:
    run = segmented()
    (run / "scores" / "examples.npz").write_bytes(b"PK torn")
    opened(draw(FIGURES[1], run))  # the chart without the map
    (run / "scores" / "boundary.json").write_text('{"pixels": [0, 0], "wrong": [0, 0]}')
    (run / "scores" / "metrics.json").write_text(json.dumps({"metrics": {"mcc": 0.1}, "classes": []}))
    save_rows(run, [{"step": 1, "val_iou": {"ice": None}}])
    assert [draw(figure, run) for figure in FIGURES] == [None] * 4
    for broken in ("{", "[]", '{"pixels": 3, "wrong": null}', '{"pixels": [1, 2], "wrong": [1]}'):
        (run / "scores" / "boundary.json").write_text(broken)
        assert draw(FIGURES[1], run) is None


def test_examples_outside_the_run_are_not_shown(segmented: Callable[..., Path], tmp_path: Path) -> None:
    run = segmented()
    (run / "scores" / "examples.npz").rename(tmp_path / "elsewhere.npz")
    figure = Figure("segmentation_examples", "../elsewhere.npz", "")
    assert (run / figure.source).is_file() and draw(figure, run) is None


def test_large_and_odd_tiles_are_reduced(make_run: Callable[..., Path]) -> None:
    run = make_run()
    write_examples(run / "scores" / "examples.npz", *scene(1, (500, 200)), ["a"], CLASSES)
    image = opened(draw(FIGURES[0], run))
    assert image.width < 2400 and image.height < 2600


def test_a_run_without_errors_and_one_without_labels(make_run: Callable[..., Path]) -> None:
    run = make_run()
    write_boundary(run / "scores" / "boundary.json", np.array([[10, 5, 1], [0, 0, 0]]))
    opened(draw(FIGURES[1], run))
    assert explain(FIGURES[1], collect(run))[0] == "No pixel of 16 is wrong."
    pictures, truth, prediction = scene(1)
    truth = [np.full_like(truth[0], IGNORED)]
    write_examples(run / "scores" / "examples.npz", pictures, truth, prediction, ["a"], CLASSES)
    opened(draw(FIGURES[0], run))


def test_the_page_finds_them_by_itself_and_counts_pixels(segmented: Callable[..., Path]) -> None:
    run = segmented()
    kinds = [figure.kind for figure in default_figures(collect(run))]
    assert kinds == [
        "curves", "per_class_curves", "confusion_matrix", "class_table", "segmentation_examples", "boundary_error",
    ]  # fmt: skip
    page = write(run).read_text()
    assert "140 of 165 pixels right" in page and "images right" not in page
    assert ">MCC</th>" in page and ">IoU</th>" in page
    assert "within 2 pixels of a true boundary" in page
    assert page.count("data:image/svg+xml") == 4 + 4 + 2 + 2 + 2  # curves also for a phone, each light and dark
