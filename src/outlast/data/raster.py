"""Scientific rasters (GeoTIFF): bands of any number type with their nodata and georeferencing, read and written.

Promises: what was not observed is NaN, whether a tag, a mask, a NaN, an infinity or a given fill marks it;
what is written has the CRS and the transform that were read, and is wholly there or not at all. A file is read by
windows, so a scene need not fit the memory. Every failure is a DataError that names the file. masks.py decodes
classes, nodata.py finds the fill that no tag names.
Does not do: resample, reproject, georeference by ground control points, apply scale and offset tags.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from outlast.base.files import TEMPORARY, sync_path
from outlast.errors import DataError

Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

EXTENSIONS = frozenset({".tif", ".tiff"})
_SAME_PLACE = 0.05  # pixels that the corners of two files of one tile may lie apart
_STRIP_VALUES = 4_000_000  # read or written at a time, where a whole file is gone through


class Window(NamedTuple):
    """A rectangle of pixels; it may reach beyond the file, where nothing was observed."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True)
class Georeference:
    """Where pixels lie on the ground. Hashable, picklable, no open file.

    crs: WKT, or "" where the file has none. transform: (a, b, c, d, e, f) of x = a*column + b*row + c and
    y = d*column + e*row + f, in the units of the CRS, for pixel corners; None where the file has none.
    """

    crs: str = ""
    transform: tuple[float, float, float, float, float, float] | None = None

    def point(self, row: float, column: float) -> tuple[float, float]:
        """(x, y) of a pixel position in the units of the CRS; (column, row) where there is no transform."""
        if self.transform is None:
            return column, row
        a, b, c, d, e, f = self.transform
        return a * column + b * row + c, d * column + e * row + f

    def contradicts(self, other: Georeference, height: int, width: int) -> str:
        """What of two files of one size can't both be true ("CRS", "transform"), or "". What is missing never does."""
        if self.crs and other.crs and not _same_crs(self.crs, other.crs):
            return "CRS"
        if self.transform is None or other.transform is None or self.transform == other.transform:
            return ""
        a, b, _, d, e, _ = self.transform
        pixel = math.sqrt(abs(a * e - b * d))
        corners = [(0, 0), (0, width), (height, 0), (height, width)]
        apart = max(math.dist(self.point(*corner), other.point(*corner)) for corner in corners)
        return "transform" if apart > _SAME_PLACE * pixel else ""


@dataclass(frozen=True)
class Header:
    """What a raster says about itself. nodata: the tag of each band. masked: it has a mask of what was observed."""

    path: Path
    bands: int
    height: int
    width: int
    dtype: str
    nodata: tuple[float | None, ...]
    georeference: Georeference
    masked: bool = False


@dataclass
class Raster:
    """A held resource: an opened raster (see `open_raster`). `infinite` counts the infinities met while reading."""

    header: Header
    dataset: Any = field(repr=False)
    infinite: int = 0

    def raw(self, band: int, window: Window) -> Array:
        """Values of a band (numbered from 1) as they are stored, (h, w): the part of the window inside the file."""
        return self._read(self.dataset.read, band, window)

    def values(self, band: int, window: Window, fill: float | None = None) -> Float32:
        """A band, float32 (height, width) of the window; NaN where nothing was observed, or beyond the file.

        fill: a value that stands for "not observed" too, as `nodata.negative_fill` finds it.
        """
        top, left, bottom, right = inside(window, self.header)
        values = np.full((window.height, window.width), np.nan, dtype=np.float32)
        if bottom > top and right > left:
            stored = self.raw(band, window)
            part = values[top - window.y : bottom - window.y, left - window.x : right - window.x]
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes an infinity, which is counted
                part[:] = stored
            for marker in (self.header.nodata[band - 1], fill):
                if marker is not None and not math.isnan(marker):
                    part[equal(stored, marker)] = np.nan
            if self.header.masked:
                part[self._read(self.dataset.read_masks, band, window) == 0] = np.nan
            infinite = np.isinf(part)
            self.infinite += int(infinite.sum())
            part[infinite] = np.nan
        return values

    def _read(self, read: Callable[..., Any], band: int, window: Window) -> Array:
        import rasterio

        top, left, bottom, right = inside(window, self.header)
        span = rasterio.windows.Window(left, top, max(right - left, 0), max(bottom - top, 0))
        try:
            return np.asarray(read(band, window=span))
        except rasterio.errors.RasterioError as error:
            raise _damaged(self.header.path, error) from error


@contextlib.contextmanager
def open_raster(path: Path) -> Iterator[Raster]:
    """A GeoTIFF to read from. Raises DataError for anything that isn't one."""
    import rasterio

    _accept_without_georeference()
    if not path.is_file():
        kind = "this is a folder, not a raster" if path.is_dir() else "the file doesn't exist (any more)"
        raise DataError(f"{path}: {kind}", hint="name a .tif file, or restore it")
    try:
        dataset = rasterio.open(path, driver="GTiff")
    except rasterio.errors.RasterioError as error:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty (0 bytes)", hint="copy it again, or delete it") from error
        raise _damaged(path, error) from error
    with dataset:
        if dataset.dtypes[0].startswith("complex"):
            raise DataError(
                f"{path}: complex numbers ({dataset.dtypes[0]})", hint="save amplitude or intensity instead"
            )
        yield Raster(_header(path, dataset), dataset)


def read_header(path: Path) -> Header:
    """Size, bands, number type, nodata and georeference of a raster. Raises DataError."""
    with open_raster(path) as raster:
        return raster.header


def read_bands(
    path: Path,
    window: Window | None = None,
    *,
    bands: Sequence[int] | None = None,
    fills: Sequence[float | None] | None = None,
) -> Float32:
    """Bands of a raster, float32 (C, h, w), NaN where nothing was observed.

    window: none for all of it. bands: numbered from 1, none for all. fills: for each band read, a value that stands for
    "not observed" besides the nodata tag. Raises DataError.
    """
    with open_raster(path) as raster:
        wanted = list(bands) if bands is not None else list(range(1, raster.header.bands + 1))
        span = window or whole(raster.header)
        markers = fills if fills is not None else [None] * len(wanted)
        return np.stack([raster.values(band, span, fill) for band, fill in zip(wanted, markers, strict=True)])


def write_geotiff(path: Path, array: npt.ArrayLike, georeference: Georeference, nodata: float | None = None) -> None:
    """Write (H, W) or (C, H, W) as a compressed GeoTIFF of the array's number type; it replaces `path` at once, whole.

    A memory-mapped array is written strip by strip. Raises DataError for a number type that GeoTIFF doesn't have.
    """
    import rasterio

    _accept_without_georeference()
    values = np.asanyarray(array)
    values = values[None] if values.ndim == 2 else values
    bands, height, width = values.shape
    if not rasterio.dtypes.check_dtype(values.dtype.name):
        raise DataError(
            f"{path}: a GeoTIFF can't hold numbers of type {values.dtype}", hint="convert to uint8 or float32 first"
        )
    whole_numbers = np.issubdtype(values.dtype, np.integer)
    profile = {
        "driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype.name,
        "nodata": nodata, "compress": "deflate", "predictor": 2 if whole_numbers else 3, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    if min(height, width) > 256:
        profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    if georeference.crs:
        profile["crs"] = rasterio.crs.CRS.from_wkt(georeference.crs)
    if georeference.transform is not None:
        profile["transform"] = rasterio.Affine(*georeference.transform)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        with rasterio.open(temporary, "w", **profile) as target:
            for y, x, strip_height, strip_width in strips(Header(path, bands, height, width, "", (), georeference)):
                strip = rasterio.windows.Window(x, y, strip_width, strip_height)
                target.write(values[:, y : y + strip_height], window=strip)
        sync_path(temporary)
        temporary.replace(path)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path} cannot be written: {error}", hint="check the free space on the disk") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)


def whole(header: Header) -> Window:
    """All of a raster."""
    return Window(0, 0, header.height, header.width)


def strips(header: Header) -> Iterator[Window]:
    """Windows over the full width that cover a raster from top to bottom, a bounded number of values each."""
    rows = max(1, _STRIP_VALUES // max(1, header.width * header.bands))
    rows = rows if rows < 256 else rows // 256 * 256  # whole blocks of the file
    for y in range(0, header.height, rows):
        yield Window(y, 0, min(rows, header.height - y), header.width)


def inside(window: Window, header: Header) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the part of a window that lies in the file."""
    bottom, right = window.y + window.height, window.x + window.width
    return max(window.y, 0), max(window.x, 0), min(bottom, header.height), min(right, header.width)


def equal(stored: Array, marker: float) -> npt.NDArray[np.bool_]:
    """Where stored numbers are the marker, which a tag gives with more digits than a float32 has."""
    if np.issubdtype(stored.dtype, np.floating):
        with np.errstate(over="ignore"):
            return np.asarray(stored == stored.dtype.type(marker))
    return np.asarray(stored == marker)


def _header(path: Path, dataset: Any) -> Header:
    import rasterio

    transform = dataset.transform
    placed = tuple(float(value) for value in transform[:6]) if not transform.is_identity else None
    crs = dataset.crs.to_wkt() if dataset.crs else ""
    return Header(
        path,
        dataset.count,
        dataset.height,
        dataset.width,
        str(dataset.dtypes[0]),
        tuple(dataset.nodatavals),
        Georeference(crs, placed),  # type: ignore[arg-type]
        # An alpha band is no mask: GDAL takes the fourth band of any four bands of bytes for one.
        dataset.mask_flag_enums[0] == [rasterio.enums.MaskFlags.per_dataset],
    )


def _same_crs(one: str, other: str) -> bool:
    import rasterio

    return one == other or bool(rasterio.crs.CRS.from_wkt(one) == rasterio.crs.CRS.from_wkt(other))


def _damaged(path: Path, error: Exception) -> DataError:
    cause = str(error.__cause__ or error).replace(f"{path}: ", "").strip().rstrip(".")
    return DataError(f"{path}: this is not a whole GeoTIFF ({cause})", hint="copy the file again from its source")


def _accept_without_georeference() -> None:
    """A raster without georeferencing is ordinary here; its warning would come with every file."""
    import rasterio

    # catch_warnings is not safe between threads. The check comes first because filterwarnings takes a filter that is
    # already there out for a moment.
    category = rasterio.errors.NotGeoreferencedWarning
    if not any(action == "ignore" and kind is category for action, _, kind, _, _ in warnings.filters):
        warnings.filterwarnings("ignore", category=category)
