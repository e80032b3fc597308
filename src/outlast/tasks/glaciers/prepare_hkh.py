"""HKH patches from scenes and glacier outlines: `python -m outlast.tasks.glaciers.prepare_hkh --scenes DIR ...`.

What is made: train/, val/ and test/ with `slice_<scene>_img_<number>.npy` (size, size, bands) float32 and their masks
(size, size, 2) uint8, clean ice and debris; statistics.json (mean and standard deviation per band of the training
patches); index.csv, written last. Values stay as they are in the scenes; where nothing was observed, or outside the
border, they are NaN and the mask is 0.

Promises: no piece of ground lies in two splits; one window of a scene is in memory at a time; killed at any instant, it
goes on where it was, and nothing that is half written can be taken for a patch.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
import rasterio.errors
from rasterio.windows import Window as Area

from outlast.base.files import locked, read_json, sweep, write_bytes, write_json, write_text
from outlast.base.log import Progress, say
from outlast.errors import DataError, OutlastError, SaveError
from outlast.tasks.glaciers.hkh import STATISTICS, sensing
from outlast.tasks.glaciers.hkh_geography import Window
from outlast.tasks.glaciers.hkh_pairs import INDEX, PLAN
from outlast.tasks.glaciers.hkh_patch import bits_of, measure
from outlast.tasks.glaciers.hkh_plan import (
    SPLITS,
    Labels,
    Plan,
    Preparation,
    Scene,
    find_scenes,
    fingerprint,
    labels_of,
    make_plan,
    read_labels,
)
from outlast.tasks.glaciers.layout import CLASSES

JOURNAL = "journal.jsonl"  # a line for every window that is done
_CACHE_BYTES = 256 * 2**20  # of decoded blocks that GDAL may keep; its own default is a part of the machine's memory

Done = dict[int, dict[str, Any]]  # window -> what the journal says of it


def prepare(
    scenes: Path, outlines: Path, out: Path, *, border: Path | None = None, settings: Preparation | None = None
) -> dict[str, int]:
    """Cut patches from every GeoTIFF in `scenes` into `out`; gives counts: windows, patches, patches per split.

    outlines: GeoJSON or shapefile. border: areas outside of which nothing is used. settings: size and overlap of the
    patches in pixels; names of the scenes' bands in their order; attribute of the outlines and its values for clean
    ice, debris, and what is left out; minimum share of glacier in a patch; the split, by "blocks" of so many patches a
    side or whole "scenes", its fractions and seed. Does what is missing only; done twice, it does nothing.
    Raises DataError, ConfigError, SaveError (no room), RunError (another preparation is at work there).
    """
    settings = settings or Preparation()
    settings.check()
    found = find_scenes(scenes, settings.bands, settings.size)
    labels = read_labels(outlines, border, settings)
    for note in (*labels.outlines.notes, *(labels.border.notes if labels.border else ())):
        say(note)
    with locked(out / ".lock", f"another preparation is at work in {out}"):
        plan = _plan(out, found, labels, fingerprint(found, outlines, border, settings), settings)
        for folder in (out, *(out / split for split in SPLITS)):
            sweep(folder)
        done = _read_journal(out / JOURNAL)
        todo = [at for at, place in enumerate(plan.places) if place.split and at not in done]
        _check_room(out, len(todo), settings)
        _cut_all(out, found, labels, plan, todo, done, settings)
        return plan.counts | _finish(out, plan, found, done, settings)


def _plan(out: Path, scenes: Sequence[Scene], labels: Labels, request: dict[str, Any], settings: Preparation) -> Plan:
    """The plan that was begun in `out`, or a new one."""
    path = out / PLAN
    if path.is_file():
        written = read_json(path)
        changed = [name for name in request if written["request"].get(name) != request[name]]
        if changed:
            raise DataError(
                f"{out} was begun with other {' and '.join(changed)}", hint="give the same again, or another --out"
            )
        return Plan.from_json(written)
    if any(out.glob("**/*.npy")) or (out / INDEX).exists():
        raise DataError(f"{out} holds patches of another origin", hint="give another --out, or empty the folder")
    plan = make_plan(scenes, labels, settings)
    write_json(path, {"request": request, **plan.to_json()})
    return plan


def _cut_all(
    out: Path,
    scenes: Sequence[Scene],
    labels: Labels,
    plan: Plan,
    todo: Sequence[int],
    done: Done,
    settings: Preparation,
) -> None:
    """Make the patches `todo`, scene by scene, and write into the journal what was done."""
    finished = sum(1 for place in plan.places if place.split) - len(todo)
    with (
        rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES),
        (out / JOURNAL).open("a", encoding="utf-8") as journal,
        Progress("cutting patches", finished + len(todo), start=finished) as progress,
    ):
        for number in sorted({plan.windows[at].scene for at in todo}):
            scene = scenes[number]
            here = labels_of(scene, labels)
            with rasterio.open(scene.path) as opened:
                for at in (at for at in todo if plan.windows[at].scene == number):
                    image, mask = _cut(opened, scene, plan.windows[at], here, settings)
                    done[at] = _keep([out / name for name in plan.names(at)], image, mask, settings)
                    journal.write(json.dumps({"window": at, **done[at]}) + "\n")
                    journal.flush()
                    finished += 1
                    progress.update(finished, scene.path.name)


def _cut(
    opened: Any, scene: Scene, window: Window, labels: Labels, settings: Preparation
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Image (size, size, bands) and mask (size, size, 2) of a window."""
    size = settings.size
    try:
        values = opened.read(window=Area(window.x, window.y, size, size), masked=True)
    except rasterio.errors.RasterioIOError as error:
        raise DataError(f"{scene.path}: cannot be read ({error})", hint="copy it again from its source") from error
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 can't hold is infinite, and so not observed
        image = np.ascontiguousarray(np.moveaxis(values.astype(np.float32).filled(np.nan), 0, -1))
    image[~np.isfinite(image)] = np.nan
    clean, debris, inside = labels.masks((size, size), scene.at(window.y, window.x))
    if inside is not None:
        image[inside == 0] = np.nan
    mask = np.stack([clean, debris], axis=-1)
    mask[np.isnan(image[..., _sensed(settings)]).all(axis=-1)] = 0
    return image, mask


def _keep(
    paths: Sequence[Path], image: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8], settings: Preparation
) -> dict[str, Any]:
    """Write a patch if enough glacier was observed in it; what the journal is to say of it."""
    if mask.any(axis=-1).sum() < settings.least_glacier():
        return {"kept": False}
    for path, values in ((paths[0], _npy(image)), (paths[1], _npy(mask))):
        try:
            write_bytes(path, values)
        except OSError as error:
            raise SaveError(
                f"{path} cannot be written: {error.strerror}", hint="make room; the same command goes on"
            ) from error
    found = measure(paths[0], paths[1], len(settings.bands))  # as it can be read back
    pixels = found.pixels(bits_of(_sensed(settings)), len(CLASSES))
    return {
        "kept": True, "hash": found.hash, "pixels": pixels, "count": found.count, "total": found.total,
        "scatter": found.scatter,
    }  # fmt: skip


def _npy(values: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


def _sensed(settings: Preparation) -> list[int]:
    return sensing(range(len(settings.bands)), settings.bands)


def _read_journal(path: Path) -> Done:
    """What is done; what a kill or a power failure cut off at the end is taken back."""
    if not path.is_file():
        return {}
    done: Done = {}
    data, good = path.read_bytes(), 0
    for line in data.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        done[entry.pop("window")] = entry
        good += len(line)
    if good < len(data):
        write_bytes(path, data[:good])
    return done


def _check_room(out: Path, patches: int, settings: Preparation) -> None:
    needed = patches * settings.size**2 * (4 * len(settings.bands) + 2)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise SaveError(
            f"{patches} patches need up to {needed / 1e9:.1f} GB, {out} has {free / 1e9:.1f} GB free",
            hint="raise the minimum share, give fewer scenes, or another --out",
        )


def _finish(out: Path, plan: Plan, scenes: Sequence[Scene], done: Done, settings: Preparation) -> dict[str, int]:
    """Statistics and, last of all, the index."""
    kept = sorted(at for at, entry in done.items() if entry["kept"])
    missing = [name for at in kept for name in plan.names(at) if not (out / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files that were made are gone from {out}",
            hint=f"restore them, or remove {out / JOURNAL} and prepare again",
            details=missing[:20],
        )
    splits = [plan.places[at].split for at in kept]
    counts = {name: splits.count(name) for name in SPLITS}
    empty = [name for name, share in settings.shares().items() if share > 0 and not counts[name]]
    if empty:
        raise DataError(
            f"no patch of {' and '.join(empty)} holds enough glacier that was observed",
            hint="lower the minimum share or take another seed, with another --out",
        )
    write_json(out / STATISTICS, _statistics([done[at] for at in kept if plan.places[at].split == "train"], settings))
    rows = [_row(at, plan, scenes, done[at], settings) for at in kept]
    write_text(out / INDEX, pd.DataFrame(rows).sort_values("id").to_csv(index=False, lineterminator="\n"))
    return {"patches": len(kept), **counts}


def _statistics(training: Sequence[dict[str, Any]], settings: Preparation) -> dict[str, Any]:
    """Mean and standard deviation per band of all observed values; null for a band that was never observed."""
    count, total, scatter = (np.asarray([one[name] for one in training]) for name in ("count", "total", "scatter"))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total.sum(axis=0) / count.sum(axis=0)
        between = np.where(count > 0, count * (total / count - mean) ** 2, 0)
        std = np.sqrt((scatter + between).sum(axis=0) / count.sum(axis=0))
    return {
        "bands": settings.bands, "patches": len(training), "count": count.sum(axis=0).tolist(), "mean": mean.tolist(),
        "std": std.tolist(),
    }  # fmt: skip


def _row(at: int, plan: Plan, scenes: Sequence[Scene], entry: dict[str, Any], settings: Preparation) -> dict[str, Any]:
    image, mask = plan.names(at)
    window, place = plan.windows[at], plan.places[at]
    return {
        "id": image.removesuffix(".npy"), "image": image, "mask": mask, "split": place.split, "group": place.group,
        "hash": entry["hash"], "scene": scenes[window.scene].path.name, "y": window.y, "x": window.x,
        "size": settings.size, **{f"pixels_{label}": amount for label, amount in enumerate(entry["pixels"])},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    given = vars(_parser().parse_args(arguments))
    scenes, outlines, out, border = (given.pop(name) for name in ("scenes", "outlines", "out", "border"))
    wanted: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in given.items()}
    try:
        counts = prepare(scenes, outlines, out, border=border, settings=Preparation(**wanted))
    except OutlastError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print(f"{out}: " + ", ".join(f"{amount} {name}" for name, amount in counts.items()))
    return 0


def _parser() -> argparse.ArgumentParser:
    default = Preparation()
    parser = argparse.ArgumentParser(
        prog="python -m outlast.tasks.glaciers.prepare_hkh",
        description="Cut training patches from satellite scenes and glacier outlines.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--scenes", type=Path, required=True, metavar="DIR", help="folder of GeoTIFF scenes")
    add("--outlines", type=Path, required=True, metavar="FILE", help="glacier outlines, GeoJSON or shapefile")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the patches")
    add("--border", type=Path, metavar="FILE", help="areas outside of which nothing is used")
    add("--size", type=int, default=default.size, help="side of a patch in pixels")
    add("--overlap", type=int, default=default.overlap, help="of neighbouring patches, in pixels")
    add("--bands", nargs="+", default=default.bands, metavar="NAME", help="names of the scenes' bands, in their order")
    add("--attribute", default=default.attribute, help="attribute that tells clean ice from debris")
    add("--clean", nargs="+", default=default.clean, metavar="VALUE", help="its values for clean ice")
    add("--debris", nargs="+", default=default.debris, metavar="VALUE", help="its values for debris")
    add("--left-out", nargs="*", default=default.left_out, metavar="VALUE", help="its values that are no glacier")
    add("--minimum-share", type=float, default=default.minimum_share, help="of a patch's pixels that are glacier")
    add("--split", choices=("blocks", "scenes"), default=default.split, help="what is kept whole")
    add("--block-patches", type=int, default=default.block_patches, help="side of a block in patches")
    add("--fractions", type=float, nargs=3, default=default.fractions, metavar=("TRAIN", "VAL", "TEST"), help="sizes")
    add("--seed", type=int, default=default.seed, help="of the split")
    return parser


if __name__ == "__main__":
    sys.exit(main())
