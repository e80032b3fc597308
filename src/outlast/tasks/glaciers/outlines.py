"""Glacier outlines: read from GeoJSON (or a shapefile, where the package pyshp is there) and burnt into rasters.

Promises: outlines are brought into the raster's coordinate reference system, however their own is given; a value of the
attribute that nobody named is an error, never silently background. Does not do: repair geometries; those that are no
valid areas are counted and said.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.features
import rasterio.warp
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import Affine

from outlast.errors import DataError, listed

Geometry = dict[str, Any]
Bounds = tuple[float, float, float, float]  # left, bottom, right, top

_LONGITUDE_LATITUDE = "OGC:CRS84"  # what a GeoJSON file without another word is in (RFC 7946)
_AREAS = frozenset({"Polygon", "MultiPolygon"})


@dataclass(frozen=True)
class Outlines:
    """Areas with a label each, in one coordinate reference system; bounds: float64 (N, 4), left bottom right top."""

    crs: CRS
    geometries: tuple[Geometry, ...]
    labels: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.float64]
    notes: tuple[str, ...] = ()

    def near(self, crs: CRS, bounds: Bounds) -> Outlines:
        """The areas that may lie within `bounds` (given in `crs`), brought into `crs`."""
        left, bottom, right, top = rasterio.warp.transform_bounds(crs, self.crs, *bounds)
        inside = (self.bounds[:, 1] <= top) & (self.bounds[:, 3] >= bottom)
        if left <= right:  # else the raster crosses the date line: any longitude may be near
            inside &= (self.bounds[:, 0] <= right) & (self.bounds[:, 2] >= left)
        chosen = np.flatnonzero(inside)
        geometries = [self.geometries[at] for at in chosen]
        if crs != self.crs and geometries:
            geometries = rasterio.warp.transform_geom(self.crs, crs, geometries)
        return Outlines(crs, tuple(geometries), self.labels[chosen], _bounds(geometries))

    def burn(self, label: int, shape: tuple[int, int], transform: Affine) -> npt.NDArray[np.uint8]:
        """A raster (H, W) that is 1 where the centre of a pixel lies in an area with this label, and 0 elsewhere."""
        left, bottom, right, top = corners(shape, transform)
        hit = (self.labels == label) & (self.bounds[:, 0] <= right) & (self.bounds[:, 2] >= left)
        hit &= (self.bounds[:, 1] <= top) & (self.bounds[:, 3] >= bottom)
        areas = [self.geometries[at] for at in np.flatnonzero(hit)]
        if not areas:
            return np.zeros(shape, np.uint8)
        burnt: npt.NDArray[np.uint8] = rasterio.features.rasterize(
            areas, out_shape=shape, transform=transform, fill=0, default_value=1, dtype=np.uint8
        )
        return burnt


def read_outlines(path: Path, attribute: str, labels: Mapping[str, int]) -> Outlines:
    """The areas of a file whose `attribute` has one of the values in `labels`; a label of -1 leaves them out.

    Values are compared without regard to case and outer spaces. Raises DataError: a file that can't be read, an
    attribute that isn't there, values that nobody named.
    """
    wanted = {value.strip().casefold(): label for value, label in labels.items()}
    crs, features = _features(path)
    geometries, numbers, unknown, absent = [], [], Counter[str](), 0
    invalid = 0
    for geometry, properties in features:
        if attribute not in properties:
            absent += 1
            known = sorted(properties)
            continue
        label = wanted.get(str(properties[attribute]).strip().casefold())
        if label is None:
            unknown[str(properties[attribute])] += 1
        elif label >= 0 and _is_area(geometry):
            geometries.append(geometry)
            numbers.append(label)
        else:
            invalid += label >= 0
    if absent:
        raise DataError(
            f"{path}: {absent} outlines have no attribute {attribute!r}",
            hint=f"name the one that tells clean ice from debris; there are: {listed(known)}",
        )
    if unknown:
        raise DataError(
            f"{path}: the attribute {attribute!r} has values that were not named",
            hint="say what they are: clean ice, debris, or to be left out",
            details=[f"{value!r}: {amount} outlines" for value, amount in unknown.most_common(20)],
        )
    return _outlines(path, crs, geometries, numbers, invalid)


def read_areas(path: Path) -> Outlines:
    """Every area of a file, label 1: a border. Raises DataError."""
    crs, features = _features(path)
    every = [geometry for geometry, _ in features]
    areas = [geometry for geometry in every if _is_area(geometry)]
    return _outlines(path, crs, areas, [1] * len(areas), len(every) - len(areas))


def corners(shape: tuple[int, int], transform: Affine) -> Bounds:
    """The bounds of a raster (H, W), also of a rotated one."""
    height, width = shape
    points = [ground(transform, y, x) for y in (0, height) for x in (0, width)]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def ground(transform: Affine, y: float, x: float) -> tuple[float, float]:
    """Where a point of a raster (row, column) lies. By hand: affine 2 multiplies with *, affine 3 with @."""
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def _outlines(path: Path, crs: CRS, geometries: list[Geometry], labels: list[int], invalid: int) -> Outlines:
    if not geometries:
        raise DataError(f"{path} holds no areas", hint="give a file with polygons")
    notes = (f"{path.name}: {invalid} outlines are no valid areas and are left out",) if invalid else ()
    return Outlines(crs, tuple(geometries), np.asarray(labels, np.int64), _bounds(geometries), notes)


def _bounds(geometries: Sequence[Geometry]) -> npt.NDArray[np.float64]:
    return np.asarray([rasterio.features.bounds(one) for one in geometries], np.float64).reshape(-1, 4)


def _is_area(geometry: Any) -> bool:
    return bool(geometry) and geometry.get("type") in _AREAS and rasterio.features.is_valid_geom(geometry)


def _features(path: Path) -> tuple[CRS, Iterator[tuple[Any, dict[str, Any]]]]:
    if not path.is_file():
        raise DataError(f"{path} is not a file", hint="name the file with the outlines")
    if path.suffix.lower() == ".shp":
        return _shapefile(path)
    if path.suffix.lower() not in (".geojson", ".json"):
        raise DataError(f"{path}: outlines of this kind are not read", hint=_conversion(path))
    try:
        loaded = json.loads(path.read_text(encoding="utf-8-sig"))
        features = loaded["features"]
        pairs = [(feature.get("geometry"), dict(feature.get("properties") or {})) for feature in features]
        name = (loaded.get("crs") or {}).get("properties", {}).get("name", _LONGITUDE_LATITUDE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a GeoJSON FeatureCollection ({error})", hint=_conversion(path)) from error
    return _crs(path, name), iter(pairs)


def _shapefile(path: Path) -> tuple[CRS, Iterator[tuple[Any, dict[str, Any]]]]:
    if importlib.util.find_spec("shapefile") is None:
        raise DataError(
            f"{path}: reading a shapefile needs the package pyshp, which is not installed",
            hint=f"install pyshp, or convert the file once: {_conversion(path)}",
        )
    shapefile = importlib.import_module("shapefile")
    description = path.with_suffix(".prj")
    if not description.is_file():
        raise DataError(
            f"{path}: {description.name} is missing, which says the coordinate reference system",
            hint="copy all files of the shapefile (.shp, .shx, .dbf, .prj)",
        )
    crs = _crs(path, description.read_text(encoding="utf-8", errors="replace"))
    try:
        with shapefile.Reader(str(path)) as reader:
            pairs = [(item.shape.__geo_interface__, item.record.as_dict()) for item in reader.iterShapeRecords()]
    except (OSError, ValueError, shapefile.ShapefileException) as error:
        raise DataError(f"{path}: not a readable shapefile ({error})", hint="copy it again from its source") from error
    return crs, iter(pairs)


def _crs(path: Path, name: Any) -> CRS:
    try:
        return CRS.from_user_input(name)
    except CRSError as error:
        raise DataError(f"{path}: unknown coordinate reference system {name!r}", hint=_conversion(path)) from error


def _conversion(path: Path) -> str:
    return f"ogr2ogr -f GeoJSON -t_srs EPSG:4326 {path.stem}.geojson '{path}'"
