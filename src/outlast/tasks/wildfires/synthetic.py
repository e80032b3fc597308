"""Procedural flights over burning land, RGB and infrared registered: the data of the demo and of the smoke tests.

Promises: the FLAME 2 layout with scenes.csv; all four combinations of fire and smoke; a file SYNTHETIC.txt that marks
the folder from the first moment; the same pixels for the same seed with any numpy on any machine, before the JPEG
encoder of Pillow (outlast.data.procedural).
Does not: look like any real place, fire or camera closely enough to say anything about real fires.

A scene is a strip of land with its own soil, trees, season and light; a frame is a window on it. What makes it hard for
a camera of visible light, and easy with infrared: fires burn small, under trees and behind smoke; trees in autumn, red
roofs and cars have the colours of flames; burnt ground stays where fires are out; smoke drifts in from elsewhere. What
makes infrared alone no oracle: rock, roofs and embers are warm too, and smoke does not show in it. How hot a place is,
the visible picture tells in part: flames, glow and scorched crowns grow with the heat.
What there is: fire where at least 3 pixels of flames are at FIRE_LEVEL or more in the thermal picture (embers are
below), smoke where it covers a visible part of the frame; anything fainter is left out of the frame.
What labels.csv says of it: the same, but for a share of labels that is noted wrongly, as happens to people who note
what they see of a film: fires under trees are missed and red leaves taken for fires, smoke is seldom mistaken. A model
of both pictures learns in spite of that what is there, and can teach it; a student that sees too little to tell a wrong
label from a hidden fire learns them by heart. truth.csv has the right ones.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from outlast.data.procedural import Dice
from outlast.errors import DataError

MARKER = "SYNTHETIC.txt"
MARKER_TEXT = """SYNTHETIC DATA

Every image in this folder was computed by outlast.tasks.wildfires.synthetic (seed {seed}); none was seen by a camera.
The set exists to try the software out. A score on it says nothing about real fires. While this file is here, everything
that is made from the folder says that it is synthetic.
"""

FIRE_LEVEL = 165.0  # of 255 in the thermal picture
_FEWEST_HOT = 3  # pixels
_LEAST_SMOKE = 0.035  # mean opacity of the frame
WRONG_LABELS = (0.15, 0.05)  # share of those of fire, and of smoke
_NOTING = 1 << 12  # scenes from which on the streams of random numbers are those of the noting
_MARGIN = 12  # pixels of land around what is seen
_JPEG_QUALITY = 92
RGB_NAME, IR_NAME = "254p RGB Images/254p RGB Frame ({}).jpg", "254p IR Images/254p IR Frame ({}).jpg"

Array = np.ndarray


def write(
    folder: Path, *, scenes: int = 12, frames: int = 32, size: int = 64, seed: int = 0, careful: bool = False
) -> None:
    """Write `scenes` x `frames` pairs of `size` x `size` pixels, labels.csv, scenes.csv, truth.csv and SYNTHETIC.txt.

    careful: no label is noted wrongly. Raises DataError if the folder holds anything already.
    """
    if scenes < 1 or frames < 1 or size < 32:
        raise DataError(f"a synthetic set needs a scene, a frame and 32 pixels, not {scenes}, {frames} and {size}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder", hint="name a new folder for the synthetic set")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(MARKER_TEXT.format(seed=seed), encoding="utf-8")  # first: no half set without it
    for name in (RGB_NAME, IR_NAME):
        (folder / name).parent.mkdir()
    labels: list[tuple[str, ...]] = [("id", "rgb_frame", "ir_frame", "fire", "smoke")]
    truth: list[tuple[str, ...]] = [("id", "fire", "smoke")]
    places = [("id", "scene")]
    for scene in range(scenes):
        dice, noting = Dice(seed, scene), Dice(seed, _NOTING + scene)
        land = make_land(dice, frames, size)
        for frame in range(frames):
            number = str(scene * frames + frame + 1)
            rgb, ir, *there = photograph(dice, land, frame, size)
            names = RGB_NAME.format(number), IR_NAME.format(number)
            for name, picture in zip(names, (rgb, ir), strict=True):
                Image.fromarray(picture).save(folder / name, "JPEG", quality=_JPEG_QUALITY)
            slips = [noting.one(0, 1) < share and not careful for share in WRONG_LABELS]
            noted = [label != slip for label, slip in zip(there, slips, strict=True)]
            labels.append((number, *(Path(name).name for name in names), *(str(int(label)) for label in noted)))
            truth.append((number, *(str(int(label)) for label in there)))
            places.append((number, f"flight {scene + 1:02d}"))
    for name, rows in (("labels.csv", labels), ("truth.csv", truth), ("scenes.csv", places)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


@dataclass
class Land:
    """A strip of land, arrays (height, width) or (height, width, 3).

    colour: in daylight, 0..1. thermal: level of 255. canopy: how much the crowns hide, 0..1. heat: of flames and
    embers, 0..1 and more, before the crowns hide part of it. smoke: opacity 0..1; smoke_tone: its brightness. light:
    that of the day. step: pixels from frame to frame.
    """

    colour: Array
    thermal: Array
    canopy: Array
    heat: Array
    smoke: Array
    smoke_tone: float
    light: float
    step: int


def make_land(dice: Dice, frames: int, size: int) -> Land:
    """The land below one flight."""
    step = round(0.62 * size)
    shape = (size + _MARGIN, step * (frames - 1) + size + _MARGIN)
    unit = size / 64
    colour, thermal = _ground(dice, shape, unit)
    canopy = _forest(dice, colour, thermal, unit)
    _buildings(dice, colour, thermal, canopy, unit)
    heat, smoke = np.zeros(shape), np.zeros(shape)
    wind = np.array([dice.one(-1, 1), dice.one(-1, 1)])
    wind = wind / np.sqrt((wind * wind).sum() + 1e-6)
    for number in range(round(shape[1] / step)):
        x = (number + dice.one(0, 1)) * step
        y = dice.one(0.15, 0.9) * size
        fate, smokes = dice.one(0, 1), dice.one(0, 1)
        if fate < 0.42:
            burning = dice.one(0.85, 1.5)
        elif fate < 0.52:
            burning = dice.one(0.30, 0.72)  # embers
        else:
            burning = 0.0
        if burning:
            _burn(dice, heat, (y, x), burning, unit)
        if smokes < (0.05 if not burning else 0.25 + 0.4 * burning):
            _smoke(dice, smoke, (y, x), wind, unit)
    for _ in range(round(shape[1] / (5 * step))):  # fires that are out
        scar = np.zeros(shape)
        _burn(dice, scar, (dice.one(0, shape[0]), dice.one(0, shape[1])), 1.2, 2 * unit)
        _tint(colour, 0.8 * scar.clip(0, 1) * (1 - canopy), (0.10, 0.09, 0.08))
    smoke *= 0.62 + 0.38 * _step(-0.7, 0.5, dice.fractal(shape, 9 * unit, 3, 0.6))
    tone = dice.one(0.62, 0.92)
    return Land(colour, thermal, canopy, heat, smoke.clip(0, 0.95), tone, dice.one(0.7, 1.12), step)


def photograph(dice: Dice, land: Land, frame: int, size: int) -> tuple[Array, Array, bool, bool]:
    """RGB uint8 (size, size, 3), thermal uint8 (size, size), whether there is fire, whether there is smoke."""
    top, left = int(dice.one(0, _MARGIN)), frame * land.step + int(dice.one(0, _MARGIN))
    window = slice(top, top + size), slice(left, left + size)
    canopy, smoke = land.canopy[window], land.smoke[window]
    heat = land.heat[window]
    seen_heat = heat * (1 - 0.35 * canopy)
    background = land.thermal[window]
    thermal = _blurred(background + (252 - background) * _step(0.0, 1.25, seen_heat)) * (1 - 0.05 * smoke)
    hot = int(((thermal >= FIRE_LEVEL) & (heat > 0)).sum())
    if 0 < hot < _FEWEST_HOT:  # a fire of which hardly anything lies in the frame
        heat, hot = heat * 0, 0
        thermal = _blurred(background) * (1 - 0.05 * smoke)
    if smoke.mean() < _LEAST_SMOKE:
        smoke = smoke * 0
    colour = _with_fire(dice, land.colour[window].copy(), heat, canopy)
    colour = colour * land.light
    thick = dice.fractal((size, size), size / 3, 2) * 0.08
    veil = smoke[..., None] * (land.smoke_tone + thick)[..., None] * np.array([0.97, 0.99, 1.0])
    colour = colour * (1 - smoke[..., None]) + veil
    haze = dice.one(0, 0.16)
    colour = colour * (1 - haze) + 0.72 * haze
    colour = colour * dice.one(0.85, 1.12) + 0.07 * (dice(size, size, 3) - 0.5)
    thermal = thermal + dice.one(-5, 5) + 6 * (dice(size, size) - 0.5)
    rgb = (colour.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    ir = (thermal.clip(0, 255) + 0.5).clip(0, 255).astype(np.uint8)
    return rgb, ir, hot >= _FEWEST_HOT, bool(smoke.any())


# -- the land ----------------------------------------------------------------------------------------------------------

SOILS = ((0.55, 0.47, 0.31), (0.44, 0.36, 0.26), (0.36, 0.43, 0.22), (0.58, 0.53, 0.44), (0.40, 0.34, 0.24))
TREES = ((0.12, 0.21, 0.10), (0.17, 0.27, 0.12), (0.10, 0.17, 0.12), (0.22, 0.27, 0.12))
AUTUMN = ((0.72, 0.34, 0.10), (0.78, 0.50, 0.14), (0.62, 0.22, 0.10))
ROOFS = ((0.68, 0.24, 0.16), (0.55, 0.20, 0.16), (0.62, 0.60, 0.58), (0.80, 0.36, 0.14))


def _ground(dice: Dice, shape: tuple[int, int], unit: float) -> tuple[Array, Array]:
    """Soil with rock that the sun has heated, pale patches, and a road."""
    soil = np.array(SOILS[int(dice.one(0, len(SOILS)))]) * dice.one(0.8, 1.15)
    rough = dice.fractal(shape, 22 * unit, 5, 0.6)
    colour = soil * (1 + 0.20 * rough + 0.25 * (dice(*shape) - 0.5))[..., None]
    thermal = dice.one(48, 72) + 7 * rough
    pale = _step(0.55, 1.0, dice.fractal(shape, 26 * unit, 3))
    _tint(colour, 0.7 * pale, (0.80, 0.78, 0.74))
    rock = _step(0.5, 0.75, dice.fractal(shape, 15 * unit, 3, 0.6))
    _tint(colour, 0.85 * rock, (0.50, 0.47, 0.44))
    colour *= (1 + 0.18 * rock * dice.fractal(shape, 4 * unit, 2))[..., None]
    thermal = thermal + rock * (42 + 22 * dice.fractal(shape, 12 * unit, 2))
    across = np.arange(shape[0])[:, None] - shape[0] * (0.5 + 0.4 * dice.fractal((1, shape[1]), 90 * unit, 1))
    road = _step(3.0 * unit, 2.0 * unit, np.abs(across)) * _step(-0.1, 0.1, dice.fractal((1, shape[1]), 120 * unit, 1))
    _tint(colour, 0.9 * road, (0.62, 0.57, 0.50))
    return colour, thermal + 18 * road


def _forest(dice: Dice, colour: Array, thermal: Array, unit: float) -> Array:
    """Crowns over part of the land, some of them in autumn colours. Returns how much they hide."""
    shape = thermal.shape
    cover = dice.one(-0.35, 0.3)
    crowns = dice.fractal(shape, 5 * unit, 2, 0.5)
    where = _step(cover - 0.12, cover + 0.12, dice.fractal(shape, 28 * unit, 3) + 0.35 * crowns)
    shadow = np.pad(where, ((2, 0), (2, 0)))[:-2, :-2]
    colour *= (1 - 0.45 * shadow * (1 - where))[..., None]
    tree = np.array(TREES[int(dice.one(0, len(TREES)))])
    green = tree * (1 + 0.55 * crowns + 0.5 * (dice(*shape) - 0.5))[..., None].clip(0.25, 2)
    autumn = _step(0.62, 0.8, dice.fractal(shape, 7 * unit, 2) - dice.one(0, 1.6))
    leaves = np.array(AUTUMN[int(dice.one(0, len(AUTUMN)))]) * (1 + 0.3 * crowns)[..., None].clip(0.4, 1.5)
    green = green + autumn[..., None] * (leaves - green)
    colour += where[..., None] * (green - colour)
    thermal += where * (40 + 4 * crowns - thermal) * 0.85
    return np.asarray(where * (0.55 + 0.45 * _step(-0.6, 0.3, crowns)))


def _buildings(dice: Dice, colour: Array, thermal: Array, canopy: Array, unit: float) -> None:
    """Roofs and cars, many of them red or orange; warm in the sun."""
    height, width = thermal.shape
    for _ in range(round(width / (80 * unit))):
        car = dice.one(0, 1) < 0.6
        tall, wide = (dice.one(1.5, 3.2), dice.one(2.0, 4.5)) if car else (dice.one(4, 9), dice.one(5, 12))
        top, left = int(dice.one(0, height)), int(dice.one(0, width))
        place = slice(top, top + max(1, round(tall * unit))), slice(left, left + max(1, round(wide * unit)))
        paint = np.array(ROOFS[int(dice.one(0, len(ROOFS)))]) * dice.one(0.8, 1.3)
        colour[place] = paint
        thermal[place] = dice.one(65, 128)
        canopy[place] = 0


def _burn(dice: Dice, heat: Array, centre: tuple[float, float], strength: float, unit: float) -> None:
    """A ragged patch of flames or embers, hottest in specks within it."""
    radius = dice.one(4.0, 11.0) * unit
    window, y, x = _around(heat, centre, 2.5 * radius)
    if not y.size or not x.size:
        return
    stretch = dice.one(0.5, 1.0)
    away = np.sqrt((y * y) / (stretch * stretch) + x * x) / radius
    specks = dice.fractal((y.shape[0], x.shape[1]), 3 * unit, 2, 0.7)
    patch = _step(1.5, 0.2, away + 0.35 * specks) * (0.8 + 0.25 * specks.clip(-1, 1))
    heat[window] = np.maximum(heat[window], strength * patch)


def _smoke(dice: Dice, smoke: Array, source: tuple[float, float], wind: Array, unit: float) -> None:
    """A plume that widens and thins out with the wind."""
    length, thick = dice.one(25, 70) * unit, dice.one(0.35, 1.25)
    window, y, x = _around(smoke, source, 1.4 * length)
    if not y.size or not x.size:
        return
    along = (x * wind[0] + y * wind[1]) / length
    width = 0.10 + 0.45 * along.clip(0, 2)
    off = (x * wind[1] - y * wind[0]) / length / width + 0.5 * dice.fractal((y.shape[0], x.shape[1]), 14 * unit, 2)
    plume = _step(1.1, 0.1, np.abs(off)) * _step(-0.06, 0.05, along) * _step(1.15, 0.35, along)
    smoke[window] = 1 - (1 - smoke[window]) * (1 - (thick * plume).clip(0, 0.97))


def _around(land: Array, centre: tuple[float, float], reach: float) -> tuple[tuple[slice, slice], Array, Array]:
    """The window within `reach` pixels of a point, and distances to it down (h, 1) and to the right (1, w)."""
    (top, bottom), (left, right) = (
        (max(0, int(middle - reach)), min(length, max(0, int(middle + reach) + 1)))
        for middle, length in zip(centre, land.shape, strict=True)
    )
    y, x = np.arange(top, bottom)[:, None] - centre[0], np.arange(left, right)[None] - centre[1]
    return (slice(top, bottom), slice(left, right)), y, x


# -- a frame -----------------------------------------------------------------------------------------------------------


def _with_fire(dice: Dice, colour: Array, heat: Array, canopy: Array) -> Array:
    """What of the heat can be seen: burnt ground, scorched crowns, glow and, where nothing hides them, flames."""
    open_ = 1 - canopy
    spread = _blurred(_blurred(heat))
    _tint(colour, 0.8 * _step(0.05, 0.5, spread) * open_, (0.11, 0.09, 0.08))
    _tint(colour, 0.75 * _step(0.1, 1.0, spread) * canopy, (0.30, 0.20, 0.11))
    _tint(colour, 0.6 * _step(0.4, 1.2, spread) * open_, (0.75, 0.30, 0.08))
    flames = _step(0.6, 1.1, heat) * (1 - 0.9 * canopy) * _step(0.1, 0.5, dice(*heat.shape))
    _tint(colour, flames, (1.20, 0.85, 0.30))
    return colour


def _tint(colour: Array, weight: Array, paint: tuple[float, float, float]) -> None:
    """Mix a colour into (h, w, 3), by `weight` (h, w) in 0..1."""
    colour += weight[..., None] * (np.array(paint) - colour)


def _blurred(values: Array) -> Array:
    """The mean over 3 x 3 pixels, the middle weighing more: 1 2 1 in both directions."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16)


def _step(low: float, high: float, values: Array) -> Array:
    """0 at `low`, 1 at `high` (which may be the lower one), smooth between."""
    t = ((values - low) / (high - low)).clip(0, 1)
    return np.asarray(t * t * (3 - 2 * t))
