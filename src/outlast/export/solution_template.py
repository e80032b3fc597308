"""Masks of clean ice, debris-covered ice and lakes from satellite bands: a submission that stands alone.

    from solution import maskgeration
    maskgeration(imagepath, out_dir)        # or: python solution.py imagepath out_dir

It needs torch (2.6 or newer), numpy and rasterio, and the two folders beside this file: `solution_parts` (the network
as operators of PyTorch, and how a scene is cut into tiles) and `solution_weights`. PROVENANCE says what was trained.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio  # type: ignore[import-untyped, unused-ignore]
import torch

PROVENANCE: dict[str, Any] = {}
SETTINGS: dict[str, Any] = {}

HERE = Path(__file__).resolve().parent
REFERENCE = "Band1"  # its files give the masks their names and their place on the ground
EXTENSIONS = (".tif", ".tiff")
VALUES = np.array([0, 85, 170, 255], dtype=np.uint8)  # background, clean ice, debris-covered ice, lake
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Array = npt.NDArray[Any]


def maskgeration(imagepath: str | Path, out_dir: str | Path) -> list[Path]:
    """Write a mask for every file of imagepath/Band1 into out_dir, under the same name; returns the masks' paths.

    imagepath: a folder with the band folders in SETTINGS["channels"], each with the same file names. A mask is uint8
    with the values 0 (background, or nothing observed), 85, 170 and 255, and has Band1's size, CRS and transform.
    Raises ValueError that names all missing files before anything is computed.
    """
    folder, target = Path(imagepath), Path(out_dir)
    names = _names(folder)
    target.mkdir(parents=True, exist_ok=True)
    return [_write(target / name, folder / REFERENCE / name, mask(_bands(folder, name))) for name in names]


def mask(bands: Array) -> Array:
    """The mask (H, W) of raw bands (C, H, W), NaN where nothing was observed."""
    observed = np.isfinite(bands).any(axis=0)
    prepared = _prepare(bands)
    channels, height, width = prepared.shape
    values = np.zeros((height, width), dtype=np.uint8)
    for y, x, probabilities in _part("mosaic").predict_scene(
        _network(),
        lambda y, x, rows, columns: prepared[:, y : y + rows, x : x + columns],
        height,
        width,
        channels,
        classes=len(VALUES),
        device=DEVICE,
        **SETTINGS["mosaic"],
    ):
        rows, columns = probabilities.shape[1:]
        values[y : y + rows, x : x + columns] = VALUES[probabilities.argmax(axis=0)]
    return np.where(observed, values, VALUES[0])


def _names(folder: Path) -> list[str]:
    """The names of all tiles. Every band must have each of them."""
    wanted = [REFERENCE, *(band for band in SETTINGS["channels"] if band != REFERENCE)]
    missing = [f"the folder {folder / band}" for band in wanted if not (folder / band).is_dir()]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}")
    names = sorted(path.name for path in (folder / REFERENCE).iterdir() if path.suffix.lower() in EXTENSIONS)
    if not names:
        raise ValueError(f"{folder / REFERENCE} holds no .tif file")
    missing = [str(folder / band / name) for name in names for band in wanted if not (folder / band / name).is_file()]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}")
    return names


def _bands(folder: Path, name: str) -> Array:
    """Raw bands (C, H, W), float32, NaN where nothing was observed: nodata, a fill without a tag, infinite."""
    fills = SETTINGS["fills"]
    bands = [_band(folder / band / name, fill) for band, fill in zip(SETTINGS["channels"], fills, strict=True)]
    sizes = {band.shape for band in bands}
    if len(sizes) > 1:
        raise ValueError(f"the bands of {folder / '*' / name} differ in size: {sorted(sizes)}")
    return np.stack(bands)


def _band(path: Path, fill: float | None) -> Array:
    with _opened(path) as dataset:
        if dataset.count != 1:
            raise ValueError(f"{path} holds {dataset.count} bands, not one")
        stored = dataset.read(1)
        unobserved = ~np.isfinite(stored) | (dataset.read_masks(1) == 0)  # the nodata tag, or a mask in the file
    if fill is not None:
        unobserved |= stored == fill
    band: Array = stored.astype(np.float32)
    band[unobserved | ~np.isfinite(band)] = np.nan
    return band


def _opened(path: Path) -> Any:
    with warnings.catch_warnings():
        # Tiles without a place on the ground are as good as any other.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path)


def _write(path: Path, like: Path, values: Array) -> Path:
    with _opened(like) as dataset:
        if dataset.shape != values.shape:
            raise ValueError(f"{like} has {dataset.shape} pixels, its bands have {values.shape}")
        place = {"crs": dataset.crs}
        if not dataset.transform.is_identity:
            place["transform"] = dataset.transform
    height, width = values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", count=1, height=height, width=width, dtype="uint8", compress="deflate", **place
        ) as written:
            written.write(values, 1)
    return path


def _prepare(bands: Array) -> Array:
    """The bands with whatever channels the network was trained with besides."""
    wanted = SETTINGS["prepare"]
    if wanted is None:
        return bands
    function = getattr(_part(wanted["module"]), wanted["function"])
    return np.asarray(function(bands, **wanted["options"]), dtype=np.float32)


@functools.cache
def _network() -> Callable[[torch.Tensor], torch.Tensor]:
    """All networks, with test-time augmentation, as one function from images to probabilities."""
    torch.backends.cudnn.benchmark = False  # the same bits at every call
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    mosaic = _part("mosaic")
    members = mosaic.ensemble([_member(**member) for member in SETTINGS["networks"]])
    forward: Callable[[torch.Tensor], torch.Tensor] = mosaic.tta(members, SETTINGS["tta"])
    return forward


def _member(source: str, weights: str) -> Callable[[torch.Tensor], torch.Tensor]:
    stored = torch.load(HERE / "solution_weights" / weights, map_location=DEVICE, weights_only=True)
    tensors = {name: value.float() if value.dtype == torch.float16 else value for name, value in stored.items()}
    return functools.partial(_part(source).probabilities, tensors)


def _part(name: str) -> Any:
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return importlib.import_module(f"solution_parts.{name}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python solution.py IMAGEPATH OUT_DIR")
    maskgeration(*sys.argv[1:])
