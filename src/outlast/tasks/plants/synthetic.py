"""Procedural photos of leaves, healthy and with three kinds of disease: the data of the demo and of the smoke tests.

Promises: the folder-per-class layout with groups.csv; a file SYNTHETIC.txt that marks the folder from the first moment;
the same bytes for the same seed, sizes and versions of numpy and Pillow.
Does not: look like any real crop or disease closely enough to say anything about real leaves.

A leaf is painted once, flat, on a texture that is longer than the photos are wide: outline, veins, pigment, damage that
every class has (holes, dry tips, dirt, yellowing), and the lesions of its class. Each of its photos then shows that
texture in another pose, light and place, with another camera. Shape, pigment, damage and photo are drawn independently
of the class, so the colour of a photo says little about it; the lesions do.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from outlast.errors import DataError

CLASSES = ("early_blight", "healthy", "late_blight", "rust")
MARKER = "SYNTHETIC.txt"
MARKER_TEXT = """SYNTHETIC DATA

Every image in this folder was computed by outlast.tasks.plants.synthetic (seed {seed}); none is a photo. The set exists
to try the software out. A score on it says nothing about real leaves. While this file is here, everything that is made
from the folder says that it is synthetic.
"""

LEFT, RIGHT, HALF = -0.3, 1.1, 0.5  # extent of a texture: u along the midrib (base 0, tip 1), v across it (+-HALF)
NEIGHBOURS = 8  # healthy leaves that stand behind and in front of the leaf that a photo is about

Array = np.ndarray


def write(folder: Path, *, images_per_class: int = 100, size: int = 96, seed: int = 0) -> None:
    """Write 4 x `images_per_class` JPEG files of `size` x `size` pixels, groups.csv and SYNTHETIC.txt into `folder`.

    Two to four photos show the same leaf; they share a group. Raises DataError if the folder holds anything already.
    """
    if images_per_class < 1 or size < 16:
        raise DataError(f"a synthetic set needs 1 image per class and 16 pixels, not {images_per_class} and {size}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not an empty folder", hint="name a new folder for the synthetic set")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(MARKER_TEXT.format(seed=seed), encoding="utf-8")  # first: no half set without it
    rows = _write_photos(folder, images_per_class, size, seed)
    with (folder / "groups.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "label", "group"), *rows])


def _write_photos(folder: Path, images_per_class: int, size: int, seed: int) -> list[tuple[str, str, str]]:
    neighbours = [paint(np.random.default_rng([seed, 0, i]), "healthy", size) for i in range(NEIGHBOURS)]
    rows: list[tuple[str, str, str]] = []
    for number, label in enumerate(CLASSES, start=1):
        (folder / label).mkdir()
        done = leaf_number = 0
        while done < images_per_class:
            leaf_seed = (seed, number, leaf_number)
            rng = np.random.default_rng(leaf_seed)
            photos = min(int(rng.integers(2, 5)), images_per_class - done)
            leaf = paint(rng, label, size)
            for photo in range(photos):
                name = f"{label}/leaf{leaf_number:03d}_{'abcd'[photo]}.jpg"
                jpeg = photograph(np.random.default_rng([*leaf_seed, photo]), leaf, neighbours, size)
                (folder / name).write_bytes(jpeg)
                rows.append((name, label, f"{label}-{leaf_number:03d}"))
            done, leaf_number = done + photos, leaf_number + 1
    return rows


# -- a leaf, painted flat ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """A painted leaf: colour and opacity (RGBA), relief in lengths of the leaf, texture pixels per length, shine."""

    paint: Image.Image
    relief: Image.Image
    scale: float
    gloss: float


@dataclass
class Canvas:
    """What lesions are painted on. Arrays (height, width) over the grid u, v; `colour` has a third axis of 3."""

    u: Array
    v: Array
    midrib: Array  # v of the bent midrib
    half_width: Array  # of the blade, from the midrib to the outline on this side
    rim: Array  # 0 on the outline, 1 on the midrib
    colour: Array
    opacity: Array
    relief: Array
    scale: float

    def window(self, u: float, v: float, radius: float) -> tuple[slice, slice]:
        """The part of the arrays within `radius` of a point."""
        row, column, reach = (v + HALF) * self.scale, (u - LEFT) * self.scale, radius * self.scale + 1
        return (
            slice(max(0, int(row - reach)), max(0, int(row + reach) + 1)),
            slice(max(0, int(column - reach)), max(0, int(column + reach) + 1)),
        )

    def tint(self, where: tuple[slice, slice], weight: Array, colour: Array) -> None:
        """Mix `colour` into the window, by `weight` in 0..1."""
        part = self.colour[where]
        part += weight[..., None] * (colour - part)


def paint(rng: np.random.Generator, label: str, size: int) -> Leaf:
    """Paint one leaf of a class for photos of `size` pixels (the texture has about twice their resolution)."""
    scale = 1.9 * size
    canvas = _blade(rng, scale)
    _pigment(rng, canvas)
    for harm in (_bites, _dry_tip, _dirt):  # each with the same odds in every class
        if rng.random() < 0.35:
            harm(rng, canvas)
    LESIONS[label](rng, canvas)
    rgba = np.concatenate([canvas.colour, canvas.opacity[..., None]], axis=2)
    image = Image.fromarray((rgba.clip(0, 1) * 255 + 0.5).astype(np.uint8), "RGBA")
    return Leaf(image, Image.fromarray(canvas.relief.astype(np.float32)), scale, gloss=float(rng.uniform(0.1, 0.7)))


def _blade(rng: np.random.Generator, scale: float) -> Canvas:
    """Outline, midrib and secondary veins."""
    u, flat_v = np.meshgrid(
        np.arange(LEFT, RIGHT, 1 / scale, dtype=np.float32), np.arange(-HALF, HALF, 1 / scale, dtype=np.float32)
    )
    wave = _waves(rng, u, flat_v, 9, 4)
    midrib_v = (rng.uniform(-0.25, 0.25) * u * (1 - u) + 0.006 * wave).astype(np.float32)
    v = flat_v - midrib_v
    side = np.abs(v)
    upper = v > 0
    inside = u.clip(1e-4, 1 - 1e-4)
    base, tip = rng.uniform(0.45, 0.95), rng.uniform(0.6, 1.3)
    peak = base / (base + tip)
    profile = (inside / peak) ** base * ((1 - inside) / (1 - peak)) ** tip
    if rng.random() < 0.25:  # lobed
        lobes = rng.integers(3, 6)
        profile = profile * (1 - rng.uniform(0.15, 0.3) * np.cos(np.pi * lobes * inside) ** 2)
    teeth, depth = rng.integers(14, 30), rng.choice([0.0, 0.05, 0.1])
    saw = (inside * teeth + np.where(upper, 0.0, rng.random())) % 1
    width = rng.uniform(0.22, 0.36) * np.where(upper, 1, rng.uniform(0.88, 1.12))
    half_width = (width * profile * (1 - depth * saw + 0.04 * _waves(rng, u, v, 14, 3))).astype(np.float32)
    blade = ((half_width - side) * scale * 0.7 + 0.5).clip(0, 1) * (u > 0) * (u < 1)
    stalk_width = np.float32(rng.uniform(0.008, 0.014))
    stalk = ((stalk_width - side) * scale + 0.5).clip(0, 1) * (u <= 0.02) * (u > rng.uniform(-0.28, -0.1))

    slope, curve, count = rng.uniform(0.5, 1.1), rng.uniform(0.2, 1.2), rng.integers(6, 12)
    across = (u - slope * side - curve * side**2) * count + np.where(upper, 0.0, rng.uniform(0.2, 0.8))
    across = across + 0.12 * wave
    to_vein = np.abs(across % 1 - 0.5) / count  # 0 on a secondary vein
    rim = (1 - side / np.maximum(half_width, 1e-3)).clip(0, 1)
    secondary = np.exp(-((to_vein / (0.004 + 0.006 * rim)) ** 2)) * (0.35 + 0.65 * rim)
    midrib = np.exp(-((side / (0.016 * (1.15 - u.clip(0, 1)))) ** 2))
    fine = np.exp(-((np.abs(_waves(rng, u, v, 55, 5)) / 0.12) ** 2))
    veins = np.maximum(np.maximum(midrib, 0.7 * secondary), 0.18 * fine)
    quilting = np.cos(2 * np.pi * across) * 0.5 + 0.5  # the blade bulges or sinks between its veins
    relief = 0.010 * rng.uniform(-1, 1.5) * quilting * (0.3 + rim) + 0.010 * midrib + 0.004 * secondary
    relief = relief + 0.018 * rng.uniform(0.3, 1) * _waves(rng, u, v, 7, 4) - rng.uniform(-0.3, 0.8) * v**2
    opacity = np.maximum(blade, stalk)
    colour = np.repeat(np.maximum(veins * blade, stalk)[..., None], 3, axis=2)  # veins, until _pigment colours them
    relief = relief.astype(np.float32)
    return Canvas(u, flat_v, midrib_v, half_width, rim, colour.astype(np.float32), opacity, relief, scale)


def _pigment(rng: np.random.Generator, canvas: Canvas) -> None:
    """Green, yellow with age, or bronze; the same choice for every class. Age comes in from the rim."""
    u, v, veins = canvas.u, canvas.v, canvas.colour[..., :1]
    green = np.array([rng.uniform(0.17, 0.38), rng.uniform(0.36, 0.54), rng.uniform(0.08, 0.22)])
    old = np.array([[0.74, 0.66, 0.18], [0.66, 0.70, 0.26], [0.52, 0.36, 0.17], [0.50, 0.20, 0.16]][rng.integers(4)])
    age = rng.beta(0.6, 1.5) * 1.15 - 0.05
    old_here = (age + 0.22 * _waves(rng, u, v, 8, 4) * (age > 0.1) + 0.5 * age * (0.4 - canvas.rim)).clip(0, 1)
    colour = green + old_here[..., None] * (old - green)
    colour = colour * (1 + 0.10 * _waves(rng, u, v, 18, 4) + 0.05 * _waves(rng, u, v, 60, 4))[..., None]
    vein_colour = 0.55 * green + np.array([0.34, 0.36, 0.22]) * rng.uniform(0.6, 1.1)
    canvas.colour = (colour + 0.75 * veins * (vein_colour - colour)).astype(np.float32)


def _bites(rng: np.random.Generator, canvas: Canvas) -> None:
    """Holes that insects ate, with a thin dry edge."""
    for _ in range(rng.integers(1, 6)):
        u, v = _point(rng, canvas, 0.0)
        radius = rng.uniform(0.015, 0.05)
        where, distance = _ragged(rng, canvas, u, v, radius, 0.35)
        canvas.tint(where, np.exp(-(((distance - 1.1) / 0.2) ** 2)), np.array([0.45, 0.36, 0.2]))
        canvas.opacity[where] *= ((distance - 1) * radius * canvas.scale + 0.5).clip(0, 1)


def _dry_tip(rng: np.random.Generator, canvas: Canvas) -> None:
    """A tip that dried out: light brown, crisp edge, no halo."""
    start = rng.uniform(0.82, 0.95)
    dry = ((canvas.u - start + 0.02 * _waves(rng, canvas.u, canvas.v, 20, 3)) * 60).clip(0, 1)
    canvas.tint((slice(None), slice(None)), dry * 0.85, np.array([0.56, 0.42, 0.25]) * rng.uniform(0.7, 1.1))


def _dirt(rng: np.random.Generator, canvas: Canvas) -> None:
    """A few splashes of soil or dust, and a mechanical scratch."""
    earth = np.array([0.36, 0.27, 0.18]) * rng.uniform(0.7, 1.9)
    for _ in range(rng.integers(3, 14)):
        u, v = _point(rng, canvas, 0.0)
        where, distance = _ragged(rng, canvas, u, v, rng.uniform(0.006, 0.02), 0.5)
        canvas.tint(where, 0.8 * (1.5 - distance).clip(0, 1), earth)
    u, v = _point(rng, canvas, 0.2)
    where, angle = canvas.window(u, v, 0.12), rng.uniform(0, np.pi)
    along = (canvas.u[where] - u) * np.cos(angle) + (canvas.v[where] - v) * np.sin(angle)
    off = (canvas.v[where] - v) * np.cos(angle) - (canvas.u[where] - u) * np.sin(angle) + along**2
    canvas.tint(where, 0.6 * np.exp(-((off / 0.006) ** 2)) * (np.abs(along) < 0.09), np.array([0.55, 0.5, 0.36]))


# -- what the classes differ in ----------------------------------------------------------------------------------------


def _healthy(rng: np.random.Generator, canvas: Canvas) -> None:
    """Nothing."""


def _early_blight(rng: np.random.Generator, canvas: Canvas) -> None:
    """Round to angular brown spots with concentric rings, most with a yellow halo."""
    brown = np.array([0.34, 0.21, 0.11]) * rng.uniform(0.75, 1.25)
    halo = np.array([0.72, 0.66, 0.20])
    ring_count, halo_strength = rng.uniform(2.2, 3.6), rng.choice([0.15, 0.5, 0.8])
    for _ in range(rng.integers(2, 9)):
        u, v = _point(rng, canvas, 0.15)
        radius = rng.uniform(0.035, 0.105)
        where, distance = _ragged(rng, canvas, u, v, radius, 0.16)
        canvas.tint(where, halo_strength * (1 - (distance - 1) / 0.6).clip(0, 1) * (distance > 0.8), halo)
        rings = 0.5 + 0.5 * np.cos(2 * np.pi * ring_count * distance)
        inside = ((1 - distance) * radius * canvas.scale + 0.5).clip(0, 1)
        canvas.tint(where, 0.92 * inside, brown * 0.75)
        canvas.tint(where, 0.75 * inside * rings, brown * 1.6 + 0.08)
        canvas.relief[where] -= 0.004 * inside * rings


def _late_blight(rng: np.random.Generator, canvas: Canvas) -> None:
    """Large dark irregular patches that spread from the outline, with a soft water-soaked border, some with mould."""
    dead = np.array([0.20, 0.17, 0.11]) * rng.uniform(0.7, 1.5) + np.array([0.0, rng.uniform(0, 0.05), 0.0])
    soaked = np.array([0.33, 0.38, 0.20]) * rng.uniform(0.7, 1.1)
    mould = rng.random() < 0.4
    for _ in range(rng.integers(1, 4)):
        u, v = _point(rng, canvas, 0.0, at_rim=True)
        radius = rng.uniform(0.12, 0.30)
        where, distance = _ragged(rng, canvas, u, v, radius, 0.38)
        canvas.tint(where, 0.75 * ((1.35 - distance) / 0.4).clip(0, 1), soaked)
        core = ((0.95 - distance) / 0.18).clip(0, 1)
        patches = 0.85 + 0.3 * _waves(rng, canvas.u[where], canvas.v[where], 45, 7)
        canvas.tint(where, 0.9 * core, (dead * patches[..., None]).astype(np.float32))
        if mould:
            fluff = np.exp(-(((distance - 1.0) / 0.14) ** 2))
            fluff = fluff * (0.5 + _waves(rng, canvas.u[where], canvas.v[where], 80, 4)).clip(0, 1)
            canvas.tint(where, 0.65 * fluff, np.array([0.78, 0.79, 0.74]))
        canvas.relief[where] -= 0.006 * core


def _rust(rng: np.random.Generator, canvas: Canvas) -> None:
    """Many small raised orange pustules in loose clusters, each with a faint pale ring."""
    orange = np.array([0.70, 0.33, 0.07]) * rng.uniform(0.65, 1.15)
    centres = [_point(rng, canvas, 0.35) for _ in range(rng.integers(2, 6))]
    spread = rng.uniform(0.06, 0.16)
    for _ in range(rng.integers(45, 150)):
        u, v = centres[rng.integers(len(centres))] + rng.normal(0, spread, 2)
        radius = rng.uniform(0.009, 0.02)
        where = canvas.window(u, v, 2 * radius)
        stretch = rng.uniform(0.8, 1.3)
        distance = np.hypot((canvas.u[where] - u) / stretch, canvas.v[where] - v) / radius
        canvas.tint(where, 0.35 * (2 - distance).clip(0, 1), np.array([0.74, 0.68, 0.28]))
        inside = ((1.15 - distance) * 2.2).clip(0, 1)
        canvas.tint(where, 0.9 * inside, orange * rng.uniform(0.8, 1.1))
        canvas.relief[where] += 0.006 * inside


LESIONS: dict[str, Callable[[np.random.Generator, Canvas], None]] = {
    "early_blight": _early_blight,
    "healthy": _healthy,
    "late_blight": _late_blight,
    "rust": _rust,
}


def _point(rng: np.random.Generator, canvas: Canvas, from_rim: float, at_rim: bool = False) -> Array:
    """(u, v) on the blade, at least `from_rim` of its half width away from the outline; or on the outline."""
    column = int((rng.uniform(0.12, 0.9) - LEFT) * canvas.scale)
    upper = rng.random() < 0.5
    row = int(canvas.u.shape[0] * (0.7 if upper else 0.3))
    width = float(canvas.half_width[row, column])
    v = width * (rng.uniform(0.85, 1.0) if at_rim else rng.uniform(0.0, 1 - from_rim)) * (1 if upper else -1)
    return np.array([float(canvas.u[row, column]), float(canvas.midrib[row, column]) + v])


def _ragged(
    rng: np.random.Generator, canvas: Canvas, u: float, v: float, radius: float, raggedness: float
) -> tuple[tuple[slice, slice], Array]:
    """A window around a point, and the distance to the point in it: 1 on an irregular outline of about `radius`."""
    where = canvas.window(u, v, 2 * radius)
    du, dv = canvas.u[where] - u, canvas.v[where] - v
    squeeze, angle = rng.uniform(0.75, 1.33), rng.uniform(0, np.pi)
    along = (du * np.cos(angle) + dv * np.sin(angle)) * squeeze
    off = (dv * np.cos(angle) - du * np.sin(angle)) / squeeze
    noise = _waves(rng, du, dv, 3.0 / radius, 4) + 0.5 * _waves(rng, du, dv, 8.0 / radius, 3)
    return where, np.hypot(along, off) / radius * (1 + raggedness * noise)


def _waves(rng: np.random.Generator, u: Array, v: Array, frequency: float, count: int) -> Array:
    """Smooth noise, mean 0, deviation about 0.5: plane waves of random direction, `frequency` in radians per unit."""
    total = np.zeros_like(u)
    for angle, phase, pace in zip(
        rng.uniform(0, 2 * np.pi, count),
        rng.uniform(0, 2 * np.pi, count),
        frequency * rng.uniform(0.6, 1.6, count),
        strict=True,
    ):
        total += np.sin(np.float32(pace * np.cos(angle)) * u + np.float32(pace * np.sin(angle)) * v + np.float32(phase))
    return total * np.float32(0.7 / np.sqrt(count))


# -- a photo -----------------------------------------------------------------------------------------------------------


def photograph(rng: np.random.Generator, leaf: Leaf, neighbours: list[Leaf], size: int) -> bytes:
    """One photo of a leaf as JPEG bytes: pose, background, shadow, light, camera."""
    direction = rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(direction), np.sin(direction)]) * rng.uniform(0.3, 0.9)
    scene = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](rng, size)
    for _ in range(rng.integers(0, 3) if rng.random() < 0.5 else 0):
        behind = neighbours[rng.integers(len(neighbours))]
        scene = _lay(rng, scene, behind, _pose(rng, size, away=rng.uniform(0.5, 1.0)), light, blur=rng.uniform(0, 2))
    scene = _lay(rng, scene, leaf, _pose(rng, size, away=rng.uniform(0, 0.15)), light, blur=0)
    if rng.random() < 0.2:
        front = neighbours[rng.integers(len(neighbours))]
        scene = _lay(rng, scene, front, _pose(rng, size, away=rng.uniform(0.95, 1.2)), light, blur=rng.uniform(0, 1))
    return _camera(rng, scene)


def _pose(rng: np.random.Generator, size: int, away: float) -> Array:
    """The homography (3, 3) from photo pixels to (u, v, 1); the leaf lies `away` half photos off the centre."""
    turn, off = rng.uniform(0, 2 * np.pi, 2)
    length = rng.uniform(0.85, 1.25) * size
    squeeze, lean = rng.uniform(0.78, 1.0), rng.uniform(-0.25, 0.25, 2)
    cos, sin = np.cos(turn), np.sin(turn)
    x, y = size / 2 * (1 + away * np.array([np.cos(off), np.sin(off)]))
    to_photo = np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]]) @ np.diag([length, length * squeeze, 1])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [lean[0], lean[1], 1]])
    return np.asarray(np.linalg.inv(to_photo @ tilt @ np.array([[1, 0, -0.45], [0, 1, 0], [0, 0, 1]])))


def _lay(rng: np.random.Generator, scene: Array, leaf: Leaf, pose: Array, light: Array, blur: float) -> Array:
    """Lay a leaf on the scene (size, size, 3): its shadow first, then its lit colours."""
    size = scene.shape[0]
    to_texture = np.array([[leaf.scale, 0, -LEFT * leaf.scale], [0, leaf.scale, HALF * leaf.scale], [0, 0, 1]])
    half_pixel = np.array([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]])  # warped at twice the size, then reduced
    warp = to_texture @ pose @ half_pixel
    coefficients = tuple((warp / warp[2, 2]).ravel()[:8])
    double = (2 * size, 2 * size)
    perspective, bilinear = Image.Transform.PERSPECTIVE, Image.Resampling.BILINEAR
    image = leaf.paint.transform(double, perspective, coefficients, bilinear).reduce(2)
    relief = np.asarray(leaf.relief.transform(double, perspective, coefficients, bilinear).reduce(2))
    if blur > 0.3:
        image = image.filter(ImageFilter.GaussianBlur(blur * size / 96))
    rgba = np.asarray(image, dtype=np.float32) / 255
    opacity = rgba[..., 3:]

    dx, dy = light * rng.uniform(2, 9) * size / 96
    shadow = image.getchannel("A").filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 5) * size / 96))
    shadow = shadow.transform((size, size), Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy), Image.Resampling.BILINEAR)
    darkening = np.asarray(shadow, dtype=np.float32)[..., None] * np.float32(rng.uniform(0.25, 0.7) / 255)
    scene = scene * (1 - darkening)

    slope_y, slope_x = np.gradient(relief * np.float32(size))
    normal_z = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = (normal_z * (1 - slope_x * light[0] - slope_y * light[1]) / np.sqrt(1 + light @ light)).clip(0, 1.3)
    glance = (facing - 0.97).clip(0, 0.06) / 0.06 + 3 * (facing.clip(0, 1) ** 60 - 0.6).clip(0, 1)
    lit = rgba[..., :3] * (0.35 + 0.75 * facing)[..., None] + (0.12 * leaf.gloss * glance)[..., None]
    return np.asarray(scene + opacity * (lit - scene), dtype=np.float32)


def _camera(rng: np.random.Generator, scene: Array) -> bytes:
    """White balance, exposure, vignette, a shade across the picture, noise, gamma, focus and JPEG compression."""
    size = scene.shape[0]
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    warmth, tint = rng.normal(0, 0.06), rng.normal(0, 0.03)
    scene = scene * (np.array([1 + warmth, 1 - tint, 1 - warmth]) * rng.uniform(0.85, 1.4))
    falloff = 1 - rng.uniform(0, 0.3) * (x**2 + y**2) / 2
    if rng.random() < 0.3:  # something outside the picture throws a soft shadow
        angle, edge = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.6)
        shade = (x * np.cos(angle) + y * np.sin(angle) - edge) / rng.uniform(0.1, 0.5)
        falloff = falloff * (1 - rng.uniform(0.2, 0.5) * shade.clip(0, 1))
    scene = (scene * falloff[..., None]).clip(0, 1.2) ** rng.uniform(0.8, 1.15)
    grain = rng.normal(0, 1, scene.shape).astype(np.float32) * rng.uniform(0.005, 0.03)
    scene = scene + grain * (0.4 + np.sqrt(scene))
    image = Image.fromarray((scene.clip(0, 1) * 255 + 0.5).astype(np.uint8), "RGB")
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8) * size / 96))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    return buffer.getvalue()


# -- backgrounds: (size, size, 3), float32 in 0..1 ---------------------------------------------------------------------


def _soil(rng: np.random.Generator, size: int) -> Array:
    earth = np.array([0.38, 0.29, 0.20]) * rng.uniform(0.6, 1.4) + rng.uniform(0, 0.06)
    clods = _fractal(rng, size + 1, (4, 9, 20, 45), (1, 0.9, 0.8, 0.7))
    rough = clods[1:, 1:] - clods[:-1, :-1]
    return _shaded(earth, 1 + 0.35 * clods[1:, 1:] + 1.2 * rough)


def _cloth(rng: np.random.Generator, size: int) -> Array:
    colour = rng.uniform(0.2, 0.85) * (1 + rng.uniform(-0.25, 0.25, 3))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * np.float32(96 / size)
    pace = rng.uniform(0.9, 2.2)
    weave = np.sin(pace * x) * np.sin(pace * y)
    folds = np.sin(rng.uniform(0.03, 0.12) * (x + rng.uniform(-1, 1) * y) + 3 * _fractal(rng, size, (3,), (1,)))
    return _shaded(colour, 1 + 0.08 * weave + 0.12 * folds + 0.05 * _fractal(rng, size, (40,), (1,)))


def _grass(rng: np.random.Generator, size: int) -> Array:
    """Blades in a few directions, the later ones over the earlier ones."""
    scene = np.full((size, size, 3), 0.12, dtype=np.float32) * np.array([0.8, 1.0, 0.6], dtype=np.float32)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    for _ in range(rng.integers(4, 8)):
        angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        across = across + bend * along**2
        strength = np.interp(across, np.linspace(-2, 2, 90), rng.normal(0, 1, 90))
        blades = ((strength - 0.5) * 2).clip(0, 1).astype(np.float32)[..., None]
        dry = rng.random() ** 2
        colour = np.array([0.20 + 0.35 * dry, 0.42, 0.12 + 0.1 * dry]) * rng.uniform(0.5, 1.3)
        scene += blades * (colour.astype(np.float32) * (0.7 + 0.3 * blades) - scene)
    return scene


def _table(rng: np.random.Generator, size: int) -> Array:
    """Wood, or with little grain a plain board or paper."""
    plain = rng.random() < 0.4
    wood = np.array([0.52, 0.38, 0.25]) * rng.uniform(0.6, 1.4)
    colour = np.full(3, rng.uniform(0.35, 0.9)) * (1 + rng.uniform(-0.06, 0.06, 3)) if plain else wood
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    across = x * np.cos(angle) + y * np.sin(angle) + 0.15 * _fractal(rng, size, (3, 5), (1, 0.5))
    grain = np.sin(across * rng.uniform(15, 40)) + 0.6 * np.sin(across * rng.uniform(50, 90))
    return _shaded(colour, 1 + (0.01 if plain else 0.1) * grain + 0.05 * _fractal(rng, size, (6, 50), (1, 0.6)))


def _foliage(rng: np.random.Generator, size: int) -> Array:
    """Plants far out of focus."""
    tones = _fractal(rng, size, (4, 7), (1, 0.6))[..., None]
    green = np.array([0.24, 0.36, 0.14]) * rng.uniform(0.5, 1.3)
    other = np.array([rng.uniform(0.3, 0.7), rng.uniform(0.35, 0.6), 0.25])
    spots = (_fractal(rng, size, (5, 8), (1, 0.5))[..., None] - 0.3).clip(0, 1)
    return np.asarray(green * (1 + 0.5 * tones) + 0.5 * spots * (other - green), dtype=np.float32).clip(0, 1)


BACKGROUNDS: tuple[Callable[[np.random.Generator, int], Array], ...] = (_soil, _cloth, _grass, _table, _foliage)


def _shaded(colour: Array, brightness: Array) -> Array:
    return (colour.astype(np.float32) * brightness.astype(np.float32)[..., None]).clip(0, 1)


def _fractal(rng: np.random.Generator, size: int, cells: tuple[int, ...], weights: tuple[float, ...]) -> Array:
    """Noise (size, size), mean 0, deviation about 0.5: random grids of `cells` per side, scaled up and summed."""
    total = np.zeros((size, size), dtype=np.float32)
    for count, weight in zip(cells, weights, strict=True):
        grid = Image.fromarray(rng.normal(0, 0.7, (count, count)).astype(np.float32))
        total += weight * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return total / np.float32(np.sqrt(sum(weight**2 for weight in weights)))
