"""The plan of an HKH preparation: the scenes, which windows are cut from them, and into which split each goes.

Decided from headers and outlines alone, before a pixel is read, and written down: a preparation that was killed goes on
with the same plan, and another one in its folder is refused.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rasterio
import rasterio.errors
import rasterio.warp
from rasterio.crs import CRS
from rasterio.transform import Affine

from outlast.base.files import sha256
from outlast.base.log import Progress
from outlast.errors import ConfigError, DataError, DataNotFoundError, listed
from outlast.tasks.glaciers.hkh import HKH_CHANNELS
from outlast.tasks.glaciers.hkh_geography import Box, Place, Window, block_of, place, starts
from outlast.tasks.glaciers.hkh_patch import DEBRIS, ICE
from outlast.tasks.glaciers.outlines import Outlines, corners, ground, read_areas, read_outlines

SPLITS = ("train", "val", "test")
_SUFFIXES = frozenset({".tif", ".tiff"})


@dataclass(frozen=True)
class Preparation:
    """What can be set; see `prepare_hkh.prepare`."""

    size: int = 512
    overlap: int = 6
    bands: tuple[str, ...] = HKH_CHANNELS
    attribute: str = "Glaciers"
    clean: tuple[str, ...] = ("Clean Ice",)
    debris: tuple[str, ...] = ("Debris covered",)
    left_out: tuple[str, ...] = ()
    minimum_share: float = 0.1
    split: str = "blocks"
    block_patches: int = 8
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigError with everything that makes no sense."""
        problems = []
        if self.size < 1 or not 0 <= self.overlap < self.size:
            problems.append(f"patches of {self.size} pixels can't overlap by {self.overlap}")
        if not 0 <= self.minimum_share <= 1:
            problems.append(f"a minimum share of {self.minimum_share} is not between 0 and 1")
        if self.split not in ("blocks", "scenes"):
            problems.append(f"split {self.split!r} is neither 'blocks' nor 'scenes'")
        if self.block_patches < 1:
            problems.append(f"blocks of {self.block_patches} patches don't exist")
        if min(self.fractions) < 0 or self.fractions[0] <= 0:
            problems.append(f"the fractions {self.fractions} of train, val and test need a positive train")
        if not self.bands or len(set(self.bands)) < len(self.bands):
            problems.append(f"the names of the bands must differ: {listed(self.bands, 20)}")
        values = [value.strip().casefold() for value in (*self.clean, *self.debris, *self.left_out)]
        if len(set(values)) < len(values):
            problems.append("a value of the attribute is named twice among clean ice, debris and left out")
        if problems:
            raise ConfigError("the preparation can't be done as asked", hint="correct these", details=problems)

    def shares(self) -> dict[str, float]:
        """{split: fraction}."""
        return dict(zip(SPLITS, self.fractions, strict=True))

    def least_glacier(self) -> float:
        """Pixels of glacier that a patch must hold."""
        return max(1, self.minimum_share * self.size**2)

    def labels(self) -> dict[str, int]:
        """{value of the attribute: class}; -1 is left out."""
        return dict.fromkeys(self.left_out, -1) | dict.fromkeys(self.clean, ICE) | dict.fromkeys(self.debris, DEBRIS)


@dataclass(frozen=True)
class Scene:
    """A GeoTIFF by its header."""

    path: Path
    height: int
    width: int
    crs: CRS
    transform: Affine

    def at(self, y: int, x: int) -> Affine:
        """The transform of a window that begins at (y, x)."""
        one = self.transform
        left, top = ground(one, y, x)
        return Affine(one.a, one.b, left, one.d, one.e, top)


@dataclass(frozen=True)
class Labels:
    """Outlines and border (none: everything is inside) near one scene, in its coordinate reference system."""

    outlines: Outlines
    border: Outlines | None

    def masks(self, shape: tuple[int, int], transform: Affine) -> tuple[Any, Any, Any]:
        """uint8 (H, W) each: clean ice, debris, inside the border or None; glacier outside it is not cleared here."""
        inside = None if self.border is None else self.border.burn(1, shape, transform)
        return self.outlines.burn(ICE, shape, transform), self.outlines.burn(DEBRIS, shape, transform), inside


@dataclass(frozen=True)
class Plan:
    """Windows that hold enough glacier, where each belongs, and counts: windows in all, with glacier, dropped."""

    windows: tuple[Window, ...]
    places: tuple[Place, ...]
    counts: dict[str, int]

    def names(self, at: int) -> tuple[str, str]:
        """Image and mask of a window as posix paths, numbered within its scene."""
        scene = self.windows[at].scene
        first = bisect.bisect_left(self.windows, scene, key=lambda window: window.scene)
        stem = f"{self.places[at].split}/slice_{scene:02}_{{}}_{at - first:03}.npy"
        return stem.format("img"), stem.format("mask")

    def to_json(self) -> dict[str, Any]:
        return {"counts": self.counts, "windows": self.windows, "places": self.places}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        windows = tuple(Window(scene, y, x, tuple(box), glacier) for scene, y, x, box, glacier in value["windows"])
        return cls(windows, tuple(Place(*place) for place in value["places"]), value["counts"])


def find_scenes(folder: Path, bands: Sequence[str], size: int) -> list[Scene]:
    """Every GeoTIFF in a folder, by name. Raises DataError naming all that don't fit, DataNotFoundError for none."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in inside if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")]
    if not paths:
        reason = "holds no scenes" if folder.is_dir() else "is not a folder"
        raise DataNotFoundError(f"{folder} {reason}", hint="give the folder that holds the scenes as .tif files")
    scenes, problems = [], []
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # named below
                opened = rasterio.open(path)
            with opened:
                scene = Scene(path, opened.height, opened.width, opened.crs, opened.transform)
                count = opened.count
        except rasterio.errors.RasterioIOError as error:
            problems.append(f"{path.name}: not a readable GeoTIFF ({error}); copy it again")
            continue
        if scene.crs is None or scene.transform == Affine.identity():
            problems.append(f"{path.name}: has no coordinate reference system or position; set them with gdal_edit.py")
        if count != len(bands):
            problems.append(f"{path.name}: has {count} bands, {len(bands)} are named; name them all, in their order")
        if min(scene.height, scene.width) < size:
            problems.append(f"{path.name}: is {scene.width} x {scene.height} pixels, smaller than a patch of {size}")
        scenes.append(scene)
    if problems:
        raise DataError(
            f"{len(problems)} things are wrong with the scenes in {folder}", hint="see each line", details=problems
        )
    return scenes


def read_labels(outlines: Path, border: Path | None, settings: Preparation) -> Labels:
    """The outlines and the border as they are in their files. Raises DataError."""
    return Labels(
        read_outlines(outlines, settings.attribute, settings.labels()), None if border is None else read_areas(border)
    )


def labels_of(scene: Scene, labels: Labels) -> Labels:
    """What of the labels lies near a scene, in its coordinate reference system."""
    ground = corners((scene.height, scene.width), scene.transform)
    border = None if labels.border is None else labels.border.near(scene.crs, ground)
    return Labels(labels.outlines.near(scene.crs, ground), border)


def fingerprint(scenes: Sequence[Scene], outlines: Path, border: Path | None, settings: Preparation) -> dict[str, Any]:
    """What a preparation was asked for; the same request gives the same value on every machine (scenes by header)."""
    return {
        "settings": {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()
        },
        "outlines": sha256(outlines),
        "border": None if border is None else sha256(border),
        "scenes": [
            {"name": one.path.name, "bytes": one.path.stat().st_size, "height": one.height, "width": one.width}
            for one in scenes
        ],
    }


def make_plan(scenes: Sequence[Scene], labels: Labels, settings: Preparation) -> Plan:
    """The plan for scenes and labels.

    Raises DataError where the outlines touch no scene, no window holds enough, or the splits can't be filled.
    """
    common, pixel = _common(scenes)
    windows: list[Window] = []
    total = near = 0
    with Progress("looking for glaciers", len(scenes)) as progress:
        for number, scene in enumerate(scenes):
            here = labels_of(scene, labels)
            near += len(here.outlines.geometries)
            for window in _windows(number, scene, here, common, pixel, settings.size, settings.overlap):
                total += 1
                if window.glacier >= settings.least_glacier():
                    windows.append(window)
            progress.update(number + 1, scene.path.name)
    if not near:
        raise DataError(
            "the outlines touch no scene", hint="check that both show the same region, and the system of the outlines"
        )
    if not windows:
        raise DataError(
            f"no window of {settings.size} pixels holds {settings.minimum_share:g} of glacier",
            hint="lower the minimum share, or check the outlines",
        )
    places = _places(windows, scenes, pixel, settings)
    dropped = sum(1 for one in places if not one.split)
    counts = {"windows": total, "with glacier": len(windows), "dropped between splits": dropped}
    return Plan(tuple(windows), tuple(places), counts)


def _places(
    windows: Sequence[Window], scenes: Sequence[Scene], pixel: tuple[float, float], settings: Preparation
) -> list[Place]:
    fractions = settings.shares()
    patch = settings.size * settings.block_patches
    units = [
        scenes[window.scene].path.name
        if settings.split == "scenes"
        else block_of(window.box, (pixel[0] * patch, pixel[1] * patch))
        for window in windows
    ]
    places = place(windows, units, fractions, settings.seed)
    empty = [name for name, share in fractions.items() if share > 0 and name not in {one.split for one in places}]
    if empty:
        raise DataError(
            f"no patch is left for {' and '.join(empty)}: all of theirs share ground with another split",
            hint="take blocks of another size, another seed, or split by blocks instead of scenes",
        )
    return places


def _windows(
    number: int, scene: Scene, labels: Labels, common: CRS, pixel: tuple[float, float], size: int, overlap: int
) -> Iterator[Window]:
    for y in starts(scene.height, size, overlap):
        for x in starts(scene.width, size, overlap):
            clean, debris, inside = labels.masks((size, size), scene.at(y, x))
            glacier = (clean | debris) if inside is None else (clean | debris) & inside
            yield Window(number, y, x, _box(scene, y, x, (size, size), common, pixel), int(glacier.sum()))


def _common(scenes: Sequence[Scene]) -> tuple[CRS, tuple[float, float]]:
    """A coordinate reference system for all scenes, and the size of a pixel of the first in it."""
    first = scenes[0]
    same = all(scene.crs == first.crs for scene in scenes)
    common = first.crs if same else CRS.from_epsg(4326)
    left, bottom, right, top = _box(first, 0, 0, (first.height, first.width), common, (0.0, 0.0))
    return common, ((right - left) / first.width, (top - bottom) / first.height)


def _box(scene: Scene, y: int, x: int, shape: tuple[int, int], common: CRS, pixel: tuple[float, float]) -> Box:
    """The ground of a window in the common system; where that is another one, a box around it with a pixel to spare."""
    left, bottom, right, top = corners(shape, scene.at(y, x))
    if scene.crs == common:
        return left, bottom, right, top
    left, bottom, right, top = rasterio.warp.transform_bounds(scene.crs, common, left, bottom, right, top)
    if left > right:
        raise DataError(
            f"{scene.path.name} crosses the date line, where its ground can't be compared with that of others",
            hint="prepare it alone, or reproject all scenes to one system",
        )
    return left - pixel[0], bottom - pixel[1], right + pixel[0], top + pixel[1]
