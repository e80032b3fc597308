"""Procedural Landsat-like scenes of mountains with glaciers: the data of the smoke tests and of tests of pretraining.

Promises: the competition layout (`write`) and the HKH layout (`write_hkh`); a file SYNTHETIC.txt that marks the folder
from the first moment; the same pixels for the same seed with any numpy on any machine (every number comes from
`outlast.data.randomness` and goes only through operations that IEEE 754 defines to the bit: + - * / sqrt, comparisons).
Does not: look like any real place or sensor closely enough to say anything about real glaciers.

A scene is a range of mountains with valleys carved along curves. Glaciers follow the curves: snow and clean ice high,
debris-covered tongues low, sometimes a lake that the end moraine dams. What makes it hard stands in the picture too:
debris has the colours of rock (it is smoother, striped along the flow, and a little colder), snow outside the glaciers
has those of ice, moraines those of debris, and shadow lies over everything.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from outlast.data.procedural import Dice
from outlast.errors import DataError

MARKER = "SYNTHETIC.txt"
MARKER_TEXT = """SYNTHETIC DATA

Every pixel in this folder was computed by outlast.tasks.glaciers.synthetic (seed {seed}); none was seen by a satellite.
The set exists to try the software out. A score on it says nothing about real glaciers. While this file is here,
everything that is made from the folder says that it is synthetic.
"""

PIXEL = 30.0  # metres
EPSG = 32645  # UTM zone 45 north
WEST, NORTH = 460_000.0, 3_120_000.0  # metres: the corner of the first scene; the next ones follow to the east
BACKGROUND, ICE, DEBRIS, LAKE = range(4)
ON_DISK = np.array([0, 85, 170, 255], np.uint8)
NODATA = 0  # of the uint8 bands; what was observed is at least 1
GLACIER_SPACING = 60  # pixels between two heads of valleys

Array = np.ndarray


def write(folder: Path, *, scenes: int = 2, rows: int = 4, columns: int = 7, size: int = 64, seed: int = 0) -> None:
    """Write `scenes` x `rows` x `columns` tiles of `size` pixels: Band1..Band5, label, index.csv and SYNTHETIC.txt.

    Bands: blue, green, red, SWIR1, thermal, uint8 with 0 = nodata. The western columns are train, the eastern two
    sevenths val. Raises DataError if the folder holds anything already.
    """
    _begin(folder, seed)
    for name in (*(f"Band{band}" for band in range(1, 6)), "label"):
        (folder / name).mkdir()
    index = [("file", "split")]
    for number in range(scenes):
        scene = make_scene(seed, number, rows * size, columns * size)
        bands = _digital(scene)
        for row, column in np.ndindex(rows, columns):
            name = f"s{number}_r{row * size:03d}_c{column * size:03d}.tif"
            window = slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size)
            corner = (
                WEST + PIXEL * size * (columns * number + column),
                NORTH - PIXEL * size * row,
            )
            for band, values in enumerate(bands, start=1):
                _write_tiff(folder / f"Band{band}" / name, values[window], corner, NODATA)
            _write_tiff(folder / "label" / name, ON_DISK[scene.classes[window]], corner, None)
            index.append((name, "train" if column < columns - max(1, round(columns * 2 / 7)) else "val"))
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(index)


def write_hkh(
    folder: Path, *, scenes: int = 3, rows: int = 3, columns: int = 4, size: int = 64, overlap: int = 6, seed: int = 1
) -> None:
    """Write patches (size, size, 15) float32 and masks (size, size, 2) uint8, named as the slices of the HKH set.

    train/slice_SCENE_img_NNN.npy with train/slice_SCENE_mask_NNN.npy, of the last scene dev/ in place of train/.
    Channels as in the HKH set (B1-B5, thermal low and high gain, SWIR2, pan, BQA, NDVI, NDSI, NDWI, elevation, slope),
    NaN where nothing was observed; mask: clean ice, debris. Neighbours share `overlap` pixels; a patch without a
    glacier is left out. Raises DataError if the folder holds anything already.
    """
    _begin(folder, seed)
    step = size - overlap
    for number in range(scenes):
        place = folder / ("train" if number < max(1, scenes - 1) else "dev")
        place.mkdir(exist_ok=True)
        scene = make_scene(seed, number, rows * step + overlap, columns * step + overlap)
        channels = _hkh_channels(scene)
        mask = np.stack([scene.classes == ICE, scene.classes == DEBRIS], axis=2) & scene.observed[..., None]
        for patch, (row, column) in enumerate(np.ndindex(rows, columns)):
            window = slice(row * step, row * step + size), slice(column * step, column * step + size)
            if mask[window].any():
                np.save(place / f"slice_{number}_img_{patch:03d}.npy", channels[window])
                np.save(place / f"slice_{number}_mask_{patch:03d}.npy", mask[window].astype(np.uint8))


def _begin(folder: Path, seed: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder", hint="name a new folder for the synthetic set")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(MARKER_TEXT.format(seed=seed), encoding="utf-8")  # first: no half set without it


def _write_tiff(path: Path, values: Array, corner: tuple[float, float], nodata: int | None) -> None:
    height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=1, dtype=values.dtype, nodata=nodata,
        crs=f"EPSG:{EPSG}", transform=Affine(PIXEL, 0.0, corner[0], 0.0, -PIXEL, corner[1]),
    ) as file:  # fmt: skip
        file.write(values, 1)


# -- a scene -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """What a satellite would see, arrays (height, width).

    reflectance: blue, green, red, NIR, SWIR1, SWIR2 at the sensor (0..1 and more); kelvin: brightness temperature;
    elevation in metres; slope as rise over run; classes: 0 background, 1 clean ice, 2 debris, 3 lake; observed: bool.
    """

    reflectance: tuple[Array, ...]
    kelvin: Array
    elevation: Array
    slope: Array
    classes: Array
    observed: Array


@dataclass
class Valleys:
    """Where the valleys run, arrays (height, width).

    ratio: distance to the nearest curve over the half width of its glacier (1: the margin of the ice); down: share of
    the way down that curve; cover: share from which debris covers its ice; floors, weights: sums over all curves,
    weighted by nearness, of the elevation of their floors, so that valleys join without a step; lakes: bool.
    """

    ratio: Array
    down: Array
    cover: Array
    floors: Array
    weights: Array
    lakes: Array


def make_scene(seed: int, number: int, height: int, width: int) -> Scene:
    """Scene `number` of the set `seed`, height x width pixels of 30 m."""
    dice = Dice(seed, number)
    shape = (height, width)
    crest = height * (0.16 + 0.07 * dice.fractal((1, width), 90, 3)[0])  # row of the main ridge in every column
    valleys = _valleys(dice, crest, shape)
    elevation, rock_detail = _terrain(dice, valleys, crest, shape)
    slope, _, _ = _gradient(elevation)
    classes = _classes(dice, valleys, elevation, slope)
    light = _light(elevation + np.where(classes == BACKGROUND, rock_detail, 0.25 * rock_detail * (classes == DEBRIS)))
    cover = _cover(dice, valleys, elevation, slope, classes)
    reflectance, kelvin = _seen(dice, cover, light, elevation, classes)
    return Scene(reflectance, kelvin, elevation, slope, classes, _observed(dice, shape, gaps=number % 2 == 1))


def _valleys(dice: Dice, crest: Array, shape: tuple[int, int]) -> Valleys:
    height, width = shape
    ratio, down, covered, floors, weights = (np.full(shape, start) for start in (99.0, 0.0, 9.0, 0.0, 1e-9))
    found = Valleys(ratio, down, covered, floors, weights, np.zeros(shape, dtype=bool))
    heads = max(1, round(width / GLACIER_SPACING))
    wobble = 0.15 * dice.fractal(shape, 9, 2) + 0.16 * dice.fractal(shape, 30, 1)
    for head in range(heads):
        x = min(width - 1.0, max(0.0, (head + 0.5 + dice.one(-0.28, 0.28)) * width / heads))
        y = float(crest[int(x)]) + 4
        length = height * dice.one(0.34, 0.68)
        half = dice.one(4, 9.5)
        top, bottom = dice.one(5750, 6000), 5900 - 1500 * length / height + dice.one(-100, 100)
        cover = 1.3 if head % 3 == 1 else dice.one(0.22, 0.6)  # every third glacier is clean down to its snout
        bends = [(x + dice.one(-40, 40), y + length * share) for share in (0.35, 0.7, 1.0)]
        trunk = _curve((x, y), *bends)
        _carve(found, trunk, half, 0.0, 1.0, top, bottom, cover, wobble)
        for side in (-1, 1):
            if dice.one(0, 1) < 0.6:
                meet = int(dice.one(0.3, 0.55) * len(trunk))
                end = trunk[meet]
                start = (end[0] + side * dice.one(22, 34), end[1] - dice.one(26, 44))
                branch = _curve(
                    start, (start[0] - side * 4, start[1] + 14), (end[0] + side * 6, end[1] - 12), tuple(end)
                )
                joined = meet / len(trunk)
                _carve(
                    found, branch, half * 0.65, 0.05, joined, top - 150, top + (bottom - top) * joined, cover, wobble
                )
        if cover < 1 or dice.one(0, 1) < 0.4:
            _dam(dice, found.lakes, trunk, half, wobble)
    return found


def _curve(*corners: tuple[float, ...]) -> Array:
    """(24, 2) points x, y along the cubic Bezier curve with these four corners."""
    t = np.arange(24)[:, None] / 23
    a, b, c, d = (np.asarray(corner)[None] for corner in corners)
    back = 1 - t
    return np.asarray(back * back * back * a + 3 * back * back * t * b + 3 * back * t * t * c + t * t * t * d)


def _carve(
    found: Valleys,
    curve: Array,
    half: float,
    start: float,
    end: float,
    top: float,
    bottom: float,
    cover: float,
    wobble: Array,
) -> None:
    """Let the curve take the pixels to which it is the nearest, measured in half widths."""
    rows, columns = found.ratio.shape
    best = np.full((rows, columns), 1e9)
    place = np.zeros((rows, columns))
    y, x = np.arange(rows)[:, None], np.arange(columns)[None]
    for number in range(len(curve) - 1):
        at, way = curve[number], curve[number + 1] - curve[number]
        east, south = x - at[0], y - at[1]
        share = ((east * way[0] + south * way[1]) / (way * way).sum()).clip(0, 1)
        east, south = east - share * way[0], south - share * way[1]
        away = east * east + south * south
        closer = away < best
        best[closer] = away[closer]
        place[closer] = (number + share)[closer]
    share = place / (len(curve) - 1)
    down = start + (end - start) * share
    # A wide basin at the head, a tongue that narrows a little.
    width = half * (1.0 + 1.1 * _step(0.3, 0.0, down) - 0.4 * _step(0.6, 1.0, down))
    ratio = (np.sqrt(best) / width + wobble).clip(0)
    weight = 1 / (0.05 + ratio * ratio * ratio * ratio)
    found.floors += weight * (top + (bottom - top) * share)
    found.weights += weight
    closer = ratio < found.ratio
    for mine, values in ((found.ratio, ratio), (found.down, down), (found.cover, np.full_like(down, cover))):
        mine[closer] = values[closer]


def _dam(dice: Dice, lakes: Array, curve: Array, half: float, wobble: Array) -> None:
    """A lake below the snout, longer than wide, with an uneven shore."""
    radius = dice.one(4.5, 8.5)
    ahead = curve[-1] - curve[-3]
    ahead = ahead / np.sqrt((ahead * ahead)[0] + (ahead * ahead)[1])
    centre = curve[-1] + ahead * (0.62 * half + 0.55 * radius)
    rows, columns = lakes.shape
    x, y = np.arange(columns)[None] - centre[0], np.arange(rows)[:, None] - centre[1]
    along, across = (x * ahead[0] + y * ahead[1]) / (1.25 * radius), (x * ahead[1] - y * ahead[0]) / (0.8 * radius)
    lakes |= along * along + across * across + 1.6 * wobble < 1


def _terrain(dice: Dice, valleys: Valleys, crest: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    """The elevation in metres, and the fine relief of rock."""
    away = np.abs(np.arange(shape[0])[:, None] - crest[None]) / shape[0]
    rough = dice.fractal(shape, 70, 2)
    ridges = 1 - np.abs(dice.fractal(shape, 46, 4, 0.52))  # sharp crests where the noise crosses zero
    land = 6150 - 1500 * away + 240 * rough + 520 * (ridges - 0.6)
    reach = valleys.ratio * valleys.ratio / 6
    floor = valleys.floors / valleys.weights
    elevation = land + (np.minimum(floor, land - 30) - land) / (1 + reach * reach)
    return elevation, 38 * dice.fractal(shape, 7, 3, 0.7)


def _classes(dice: Dice, valleys: Valleys, elevation: Array, slope: Array) -> Array:
    shape = elevation.shape
    high = elevation + 130 * dice.fractal(shape, 24, 3)
    basin = (valleys.down < 0.3) & (valleys.ratio < 2.0) & (high > 5500) & (slope < 0.85)
    ice = (valleys.ratio < 1) & (slope < 1.3) | basin
    bands = dice.fractal((shape[0], shape[1]), 12, 2)
    edge = valleys.ratio.clip(0, 1)
    # Debris comes down along the sides and in stripes, so its upper end is a set of tongues.
    begins = valleys.cover - 0.14 * edge * edge * edge + 0.11 * bands
    classes = np.where(ice, np.where(valleys.down > begins, DEBRIS, ICE), BACKGROUND)
    return np.where(valleys.lakes, LAKE, classes).astype(np.uint8)


@dataclass(frozen=True)
class Cover:
    """Share of each kind of surface, 0..1, and how the ground looks."""

    snow: Array
    bare_ice: Array
    water: Array
    milky: Array
    green: Array
    tone: Array
    iron: Array
    loose: Array  # moraine and debris: smooth, without the colours of bedrock


def _cover(dice: Dice, valleys: Valleys, elevation: Array, slope: Array, classes: Array) -> Cover:
    shape = elevation.shape
    line = elevation + 160 * dice.fractal(shape, 20, 4, 0.6)
    ice = classes == ICE
    # Snow that has stayed on the ground beside the glaciers has the look of ice without being one.
    patches = _step(5560, 5680, line) * _step(1.15, 0.85, slope) * (classes == BACKGROUND)
    fresh = np.where(ice, _step(5250, 5600, line), patches)
    bare = np.where(ice, 1 - fresh, 0.0)
    debris = classes == DEBRIS
    moraine = (valleys.ratio < 1.5) & (valleys.down > 0.45) & (classes == BACKGROUND)
    bands = dice.fractal(shape, 5, 2)
    bed = dice.fractal(shape, 30, 4, 0.65) + 0.9 * dice.fractal(shape, 3, 1)
    tone = np.where(debris | moraine, 0.35 * bands + 0.12 * bed, 0.55 * bed)
    return Cover(
        snow=fresh,
        bare_ice=bare,
        water=(classes == LAKE).astype(np.float64),
        milky=_step(-0.4, 0.4, dice.fractal(shape, 60, 1)),
        green=_step(4950, 4700, line) * (classes == BACKGROUND) * np.where(moraine, 0.25, 1.0),
        tone=tone,
        iron=dice.fractal(shape, 40, 3) * np.where(debris | moraine, 0.3, 1.0),
        loose=(debris | moraine).astype(np.float64),
    )


#         blue   green  red    NIR    SWIR1  SWIR2   (reflectance of each surface, full sun)
SNOW = (0.90, 0.89, 0.87, 0.78, 0.10, 0.06)
BARE_ICE = (0.60, 0.59, 0.53, 0.40, 0.06, 0.04)
ROCK = (0.15, 0.17, 0.19, 0.22, 0.27, 0.23)
IRON = (-0.02, 0.00, 0.03, 0.04, 0.05, 0.03)
GREEN = (0.05, 0.09, 0.07, 0.30, 0.21, 0.12)
DARK_WATER = (0.09, 0.08, 0.05, 0.03, 0.02, 0.01)
MILKY_WATER = (0.22, 0.27, 0.20, 0.09, 0.03, 0.02)
HAZE = (0.060, 0.035, 0.020, 0.010, 0.004, 0.002)
NOISE = (0.010, 0.010, 0.011, 0.012, 0.012, 0.012)


def _seen(dice: Dice, cover: Cover, light: Array, elevation: Array, classes: Array) -> tuple[tuple[Array, ...], Array]:
    """Reflectance at the sensor (six bands) and brightness temperature in kelvin."""
    shape = light.shape
    crevasses = 1 + 0.10 * dice.fractal(shape, 4, 2)
    ground = 1 - cover.snow - cover.bare_ice - cover.water
    texture = (1 + 0.45 * cover.tone).clip(0.35, 2)
    seen = []
    for snow, ice, rock, iron, green, dark, milky, haze, noise in zip(
        SNOW, BARE_ICE, ROCK, IRON, GREEN, DARK_WATER, MILKY_WATER, HAZE, NOISE, strict=True
    ):
        soil = (rock + iron * cover.iron) * texture
        soil = soil + cover.green * (green - soil)
        water = dark + cover.milky * (milky - dark)
        albedo = cover.snow * snow + cover.bare_ice * ice * crevasses + ground * soil
        flat = 0.85 * water * cover.water  # water lies flat: no slope lights or shades it
        seen.append(albedo * (0.07 + 0.95 * light) + flat + haze + noise * dice.bell(*shape))
    warm = 296 - 0.0058 * (elevation - 4000) + 7.5 * (light - 0.5) + 1.2 * cover.iron + 1.5 * dice.fractal(shape, 30, 2)
    frozen = np.minimum(272.5, warm - 8)
    debris = (classes == DEBRIS) * 4.5  # ice below cools the stones
    kelvin = warm - debris
    kelvin = kelvin + (cover.snow + cover.bare_ice) * (frozen - kelvin) + cover.water * (277.5 - kelvin)
    return tuple(seen), _coarse(kelvin) + 0.8 * dice.bell(*shape)


def _light(elevation: Array) -> Array:
    """Share of the full sun, 0..1: the angle of the slope to a sun in the south-east, and shadows that are cast."""
    _, east, south = _gradient(elevation)
    steep = np.sqrt(1 + east * east + south * south)
    sun = np.array([0.55, 0.55, 0.63])  # from the south-east, 39 degrees high
    lit = (-sun[0] * east - sun[1] * south + sun[2]) / steep
    shadow = np.zeros(elevation.shape, dtype=bool)
    rise = PIXEL * sun[2] / sun[0]  # metres that the ray climbs for one pixel east and one south
    for step in range(1, 26):
        shadow[:-step, :-step] |= elevation[step:, step:] > elevation[:-step, :-step] + step * rise
    return np.asarray(np.where(shadow, 0.0, lit.clip(0)))


def _gradient(elevation: Array) -> tuple[Array, Array, Array]:
    """Slope, and the rise to the east and to the south, all as rise over run."""
    padded = np.pad(elevation, 1, mode="edge")
    east = (padded[1:-1, 2:] - padded[1:-1, :-2]) / (2 * PIXEL)
    south = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / (2 * PIXEL)
    return np.sqrt(east * east + south * south), east, south


def _coarse(values: Array) -> Array:
    """The mean of each pixel and three neighbours: a thermal sensor sees half as sharply."""
    padded = np.pad(values, ((0, 1), (0, 1)), mode="edge")
    return np.asarray((padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]) / 4)


def _observed(dice: Dice, shape: tuple[int, int], gaps: bool) -> Array:
    """Everything, or without a slanted border in the west and the gaps of a broken scan mirror in the east."""
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])[None]
    if not gaps:
        return np.ones(shape, dtype=bool)
    border = x + 0.18 * y > dice.one(30, 44)
    from_east = shape[1] - x
    wide = 0.045 * (80 - from_east).clip(0)  # the gaps widen towards the border
    return border & ((y + 0.14 * x) % 22 >= wide)


def _step(low: float, high: float, values: Array) -> Array:
    """0 at `low`, 1 at `high` (which may be the lower one), smooth between."""
    t = ((values - low) / (high - low)).clip(0, 1)
    return np.asarray(t * t * (3 - 2 * t))


# -- as numbers on disk ------------------------------------------------------------------------------------------------

GAIN, OFFSET = 300.0, 2.0  # digital numbers per reflectance: snow in the sun saturates
THERMAL_GAIN, COLDEST = 3.2, 240.0  # digital numbers per kelvin


def _digital(scene: Scene) -> list[Array]:
    """Blue, green, red, SWIR1, thermal as uint8: 1..255, 0 where nothing was observed."""
    blue, green, red, _, infrared, _ = scene.reflectance
    numbers = [OFFSET + GAIN * band for band in (blue, green, red)]
    numbers += [OFFSET + 1.6 * GAIN * infrared, THERMAL_GAIN * (scene.kelvin - COLDEST)]
    return [np.where(scene.observed, band.clip(1, 255) + 0.5, NODATA).astype(np.uint8) for band in numbers]


def _hkh_channels(scene: Scene) -> Array:
    """(height, width, 15) float32 in the order of the HKH set; all NaN where nothing was observed."""
    blue, green, red, near, short, far = ((OFFSET + GAIN * band).clip(1, 255) for band in scene.reflectance)
    low = 1.6 * (scene.kelvin - COLDEST)
    channels = (
        blue, green, red, near, short, low, 2 * low, far,
        (green + red + near) / 3, np.full(blue.shape, 672.0),
        (near - red) / (near + red), (green - short) / (green + short), (green - near) / (green + near),
        scene.elevation, scene.slope,
    )  # fmt: skip
    together = np.stack([np.where(scene.observed, channel, np.nan) for channel in channels], axis=2)
    return together.astype(np.float32)
