"""Figures of segmentations: predictions next to truth and image, and where along the boundaries they are wrong.

Promises: what a stage wrote with `outlast.data.pictures` is shown as it is; a file that is missing or damaged gives no
figure (None) and never stops a report. Classes keep their colour in every figure; class 0 (background) is not tinted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from outlast.data.pictures import IGNORED, SegmentationExamples, read_examples
from outlast.errors import DataError
from outlast.report.formats import count, finite, percent, shorten
from outlast.report.look import ON_IMAGE, Look, Theme, new_figure, quiet_axes, save, style
from outlast.report.parts import as_list, as_mapping, as_whole, inside, read_json
from outlast.report.records import Collected

MOST = 8  # examples in a figure
SIDE = 256  # pixels of a side that a tile is reduced to
BELOW = 0.42  # inches for the text below a row of tiles
COLUMNS = ("image", "truth", "prediction")
UNLABELLED = 0.5  # grey
ERRORS = (("missed", "#d55e00"), ("invented", "#3d9be0"), ("taken for another class", "#f0e442"))


@dataclass(frozen=True)
class BoundaryErrors:
    """What boundary.json says; `example` is the tile with the most wrong pixels, if there are examples."""

    pixels: np.ndarray
    wrong: np.ndarray
    pixel_size: float | None
    examples: SegmentationExamples | None


def load_examples(run: Path, source: object) -> SegmentationExamples | None:
    """The examples in a file under the run folder; None if there are none that can be read."""
    path = inside(run, source)
    try:
        return read_examples(path) if path else None
    except DataError:
        return None


def load_boundary(run: Path, source: str) -> BoundaryErrors | None:
    """The errors by distance in a boundary.json under the run folder; None if it has none."""
    record = as_mapping(read_json(run / source, []))
    pixels, wrong = ([as_whole(value) or 0 for value in as_list(record.get(name))] for name in ("pixels", "wrong"))
    if len(pixels) != len(wrong) or len(pixels) < 2 or sum(pixels) <= 0:
        return None
    named = record.get("examples")
    beside = (Path(source).parent / named).as_posix() if isinstance(named, str) else None
    size = finite(record.get("pixel_size"))
    return BoundaryErrors(
        np.array(pixels), np.array(wrong), size if size and size > 0 else None, load_examples(run, beside)
    )


def segmentation_examples(
    run: Collected,
    examples: SegmentationExamples,
    look: Look | None = None,
    title: str | None = "Examples",
    most: int = MOST,
) -> bytes | None:
    """Rows of image, truth and prediction; both masks are laid over the image in grey."""
    look = look or Look()
    shown = min(most, len(examples.names))
    groups = 1 if look.narrow or shown == 1 else 2
    rows = math.ceil(shown / groups)
    tile, gap, between, head = (1.18, 0.06, 0.3, 0.24) if look.narrow else (1.4, 0.06, 0.32, 0.24)
    height, width = examples.truth.shape[1:]
    tall = tile * height / width
    group = 3 * tile + 2 * gap
    across = groups * group + (groups - 1) * between + 2 * look.padding
    with style(look) as theme:
        figure = new_figure(
            (across, head + rows * (tall + BELOW) + 0.34), look, title, examples_finding(examples), run.synthetic
        )
        figure.set_layout_engine("none")
        total = figure.get_figheight()
        top = look.padding + 0.34 + rows * (tall + BELOW)
        for place in range(shown):
            row, column = divmod(place, groups)
            for part, pixels in enumerate(_tiles(examples, place)):
                left = look.padding + column * (group + between) + part * (tile + gap)
                bottom = top - row * (tall + BELOW) - tall
                axes = figure.add_axes((left / across, bottom / total, tile / across, tall / total))
                _picture(axes, pixels)
                if row == 0:
                    axes.set_title(COLUMNS[part], fontsize=8.5, color=theme.muted, loc="left", pad=4)
                if part == 0:
                    _caption(axes, examples, place, theme)
        patches = [Patch(color=colour_on_image(number), label=name) for number, name in enumerate(examples.classes)][1:]
        if (examples.truth == IGNORED).any():
            patches.append(Patch(color=(UNLABELLED,) * 3, label="no label"))
        figure.legend(
            handles=patches, loc="lower left", bbox_to_anchor=(look.padding / across, look.padding / total), ncols=8,
            borderaxespad=0, borderpad=0, handlelength=1.1, handleheight=1.1, columnspacing=1.4,
        )  # fmt: skip
        return save(figure, look, run)


def examples_finding(examples: SegmentationExamples) -> str:
    """How many of the pixels that are shown are right."""
    labelled = examples.truth != IGNORED
    right = (examples.truth == examples.prediction)[labelled]
    background = examples.classes[0] if examples.classes else "background"
    share = f"{percent(float(right.mean()))} of their labelled pixels are right" if right.size else "none has labels"
    tiles = "1 tile" if len(examples.names) == 1 else f"{count(len(examples.names))} tiles"
    return f"{tiles}: {share}. What is {background} is not tinted."


def boundary_error(
    run: Collected, errors: BoundaryErrors, look: Look | None = None, title: str | None = "Errors near boundaries"
) -> bytes | None:
    """The share of wrong pixels by their distance from the true boundary, and a map of the errors in one tile."""
    look = look or Look()
    examples = errors.examples
    size = (4.3, 5.6 if examples else 2.6) if look.narrow else (9.2 if examples else 6.4, 3.2)
    with style(look) as theme:
        figure = new_figure(size, look, title, boundary_finding(errors), run.synthetic)
        if examples is None:
            _rates(figure.subplots(), errors, theme)
            return save(figure, look, run)
        if look.narrow:
            chart, tile = figure.subplots(2, 1, height_ratios=(1, 1.35))
        else:
            chart, tile = figure.subplots(1, 2, width_ratios=(1.75, 1))
        _rates(chart, errors, theme)
        place = worst(examples)
        _picture(tile, _error_map(examples, place))
        tile.set_title(f"errors in {shorten(examples.names[place], 30)}", fontsize=8.5, color=theme.muted, loc="left")
        tile.legend(
            handles=[Patch(color=colour, label=label) for label, colour in ERRORS], loc="upper left",
            bbox_to_anchor=(0, -0.01), ncols=3, borderaxespad=0.2, handlelength=0.9, handleheight=0.9,
            columnspacing=0.8, handletextpad=0.4, fontsize=8,
        )  # fmt: skip
        return save(figure, look, run)


def boundary_finding(errors: BoundaryErrors) -> str:
    """How much of what is wrong lies along the boundaries."""
    pixels, wrong = errors.pixels, errors.wrong
    if wrong.sum() == 0:
        return f"No pixel of {count(int(pixels.sum()))} is wrong."
    all_wrong = percent(wrong.sum() / pixels.sum(), 1)
    near_wrong, near = percent(wrong[:2].sum() / wrong.sum()), percent(pixels[:2].sum() / pixels.sum())
    return (
        f"{all_wrong} of all pixels are wrong. {near_wrong} of the wrong ones, and {near} of all, lie within 2 pixels "
        "of a true boundary."
    )


def worst(examples: SegmentationExamples) -> int:
    """The example with the most wrong pixels, the first of equals."""
    wrong = (examples.truth != examples.prediction) & (examples.truth != IGNORED)
    return int(wrong.sum(axis=(1, 2)).argmax())


def colour_on_image(number: int) -> str:
    """The colour of a class over an image."""
    return ON_IMAGE[number % len(ON_IMAGE)]


def _rates(axes: Axes, errors: BoundaryErrors, theme: Theme) -> None:
    """A bar per pixel of distance; the last one, set apart, is everything further away."""
    quiet_axes(axes)
    known = errors.pixels > 0
    rates = 100 * errors.wrong / np.maximum(errors.pixels, 1)
    places = np.arange(len(rates)) + 0.5
    places[-1] += 0.7
    axes.bar(places[known], rates[known], width=0.86, color=theme.wrong)
    mean = 100 * errors.wrong.sum() / errors.pixels.sum()
    axes.axhline(mean, color=theme.muted, linewidth=1, linestyle=(0, (3, 2)))
    axes.annotate(
        f"all pixels {mean:.1f} %", (1, mean), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", ha="right", va="bottom", fontsize=8.5, color=theme.muted,
    )  # fmt: skip
    last = len(rates) - 1
    step = next(step for step in (1, 2, 5, 10, 20, 50, 10**9) if last / step <= 6)
    ticks = [tick for tick in range(0, last + 1, step) if tick <= last - 0.6 * step]
    axes.set_xticks([*ticks, places[-1]], [*(str(tick) for tick in ticks), f"over {last}"])
    metres = f" (of {errors.pixel_size:g} m)" if errors.pixel_size else ""
    axes.set_xlabel(f"distance from the true boundary in pixels{metres}")
    axes.set_ylabel("wrong pixels in %")
    axes.set_xlim(0, places[-1] + 0.6)
    axes.set_ylim(0, max(float(rates.max()) * 1.08, 1.0))


def _tiles(examples: SegmentationExamples, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, truth and prediction of one example as pictures."""
    image, truth, prediction = _reduced(examples, place)
    unlabelled = truth == IGNORED
    return image, _overlay(image, truth, unlabelled), _overlay(image, prediction, unlabelled)


def _overlay(image: np.ndarray, mask: np.ndarray, unlabelled: np.ndarray) -> np.ndarray:
    """The mask's colours over the image in grey, class 0 untinted."""
    grey = _grey(image)
    colours = np.array([to_rgb(colour_on_image(number)) for number in range(256)])
    tinted = np.where((mask > 0)[..., None], 0.38 * grey + 0.62 * colours[mask], grey)
    return np.where(unlabelled[..., None], UNLABELLED, tinted)


def _error_map(examples: SegmentationExamples, place: int) -> np.ndarray:
    """The image in dim grey, true boundaries light, wrong pixels in the colours of `ERRORS`."""
    image, truth, prediction = _reduced(examples, place)
    picture = 0.75 * _grey(image)
    edge = np.zeros(truth.shape, dtype=bool)
    edge[:, :-1] |= (truth[:, :-1] != truth[:, 1:]) & (truth[:, 1:] != IGNORED)
    edge[:-1] |= (truth[:-1] != truth[1:]) & (truth[1:] != IGNORED)
    picture[edge] = 0.35 * picture[edge] + 0.65
    wrong = (truth != prediction) & (truth != IGNORED)
    for kind, (_, colour) in zip((prediction == 0, truth == 0, (truth > 0) & (prediction > 0)), ERRORS, strict=True):
        picture[wrong & kind] = to_rgb(colour)
    picture[truth == IGNORED] = UNLABELLED
    return np.asarray(picture)


def _grey(image: np.ndarray) -> np.ndarray:
    """The image without colour and with less contrast, 0..1, so that colours laid over it stay the same."""
    light = image @ np.array([0.299, 0.587, 0.114]) / 255
    return np.repeat((0.12 + 0.7 * light)[..., None], 3, axis=2)


def _reduced(examples: SegmentationExamples, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every n-th pixel, so that no side is over SIDE pixels."""
    step = math.ceil(max(examples.truth.shape[1:]) / SIDE)
    image, truth, prediction = (
        part[place, ::step, ::step] for part in (examples.composites, examples.truth, examples.prediction)
    )
    return image, truth, prediction


def _caption(axes: Axes, examples: SegmentationExamples, place: int, theme: Theme) -> None:
    labelled = examples.truth[place] != IGNORED
    right = (examples.truth[place] == examples.prediction[place])[labelled]
    said = f"{percent(float(right.mean()))} right" if right.size else "no label"
    axes.annotate(
        f"{shorten(examples.names[place], 40)}: {said}", (0, 0), xycoords="axes fraction", xytext=(0, -4),
        textcoords="offset points", ha="left", va="top", fontsize=8, color=theme.text,
    )  # fmt: skip


def _picture(axes: Axes, pixels: np.ndarray) -> None:
    quiet_axes(axes, grid=None)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.imshow(pixels, interpolation="nearest", aspect="equal")
