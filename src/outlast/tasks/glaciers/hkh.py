"""The Hindu Kush Himalaya (HKH) layout: .npy patches (H, W, 15) with masks (H, W, 2 or 3), as a table and as samples.

Promises: everything wrong is named at once; each patch is read as a whole once and remembered; what was not observed is
NaN in the bands and 255 in the mask; debris wins where clean ice is set too. The layout has no lake class: the facts
say so, and losses and metrics leave it out. Which file is what: hkh_pairs.py. How patches are made: prepare_hkh.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.data.table import Examples
from outlast.errors import ConfigError, DataError, listed
from outlast.tasks.glaciers.hkh_pairs import INDEX, Pair, find_pairs, refuse, subset
from outlast.tasks.glaciers.hkh_patch import Measured, bits_of, classes_of, open_pair
from outlast.tasks.glaciers.hkh_scan import measure_all
from outlast.tasks.glaciers.layout import CLASSES, IGNORED

ABSENT_CLASSES = ("lake",)
HKH_CHANNELS = (
    "blue", "green", "red", "nir", "swir1", "thermal_low", "thermal_high", "swir2", "pan", "bqa", "ndvi", "ndsi",
    "ndwi", "elevation", "slope",
)  # fmt: skip
COMPETITION_CHANNELS = (0, 1, 2, 4, 6)  # blue, green, red, SWIR1 and the thermal band with high gain
STATISTICS = "statistics.json"

# Known also where no satellite looked (elevation), or no measurement (quality): they don't tell what was observed.
_NOT_SENSED = frozenset({"bqa", "elevation", "slope"})


def examples(
    root: Path,
    *,
    channels: Sequence[int] = COMPETITION_CHANNELS,
    fraction: float = 1.0,
    cache: Path | None = None,
    threads: int = 2,
) -> Examples:
    """Every patch with its mask, below `root`.

    channels: which of the file's channels are used, in this order. fraction: of the patches of each split that are
    used (at least one), chosen by a hash of their ids: a smaller fraction is part of a larger one, and the rest is not
    read. cache: a folder that remembers what was found in files of the same size and time; none: all are read again.
    Columns: id, hash (SHA-256), tile, y, x, height, width, split ('' where no folder says it), group (the scene),
    image, mask (paths relative to the root), pixels_0..pixels_3 (observed pixels per class), and of the observed
    values of the k-th chosen channel count_k, sum_k, squares_k, and scatter_k (squared deviations from the row's own
    mean). Facts: classes, absent_classes, channels, bands.
    Raises DataError with every file that can't be used, ConfigError for channels or a fraction that make no sense.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"a fraction of {fraction} of the patches can't be taken", hint="give more than 0, up to 1")
    names = band_names(root)
    chosen = check_channels(channels, names)
    notes = _channel_notes(chosen, names)
    pairs = subset(find_pairs(root, notes), fraction, notes)
    found = measure_all(root, pairs, len(names), cache=cache, threads=threads)
    sensed = bits_of(sensing(chosen, names))
    kept = _usable(root, pairs, found, sensed, notes)
    table = pd.DataFrame([_row(pair, one, chosen, sensed) for pair, one in kept])
    facts = {
        "classes": list(CLASSES), "ignore": IGNORED, "gaps": ["bands"], "absent_classes": list(ABSENT_CLASSES),
        "channels": len(chosen), "bands": [names[channel] for channel in chosen],
    }  # fmt: skip
    return Examples(table.sort_values("id", ignore_index=True), root, facts, (), tuple(notes))


def read_window(root: Path, row: Mapping[str, Any], channels: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
    """One row of `examples`: {"bands": float32 (C, H, W), NaN where not observed, "mask": uint8 (H, W)}.

    The mask is 255 where none of the chosen channels was observed. Files are memory-mapped. Raises DataError.
    """
    names = band_names(root)
    chosen = check_channels(channels, names)
    image, mask = open_pair(root / row["image"], root / row["mask"], len(names))
    y, x = int(row["y"]), int(row["x"])
    window = np.s_[y : y + int(row["height"]), x : x + int(row["width"])]
    bands = np.ascontiguousarray(np.moveaxis(image[window][..., chosen], -1, 0), dtype=np.float32)
    bands[~np.isfinite(bands)] = np.nan
    labels = classes_of(mask[window])
    sensed = [chosen.index(channel) for channel in sensing(chosen, names)]
    labels[np.isnan(bands[sensed]).all(axis=0)] = IGNORED
    return {"bands": bands, "mask": labels}


def band_names(root: Path) -> tuple[str, ...]:
    """The names of the channels of the files below `root`: as the preparation wrote them, else HKH_CHANNELS."""
    path = root / STATISTICS
    if not path.is_file():
        return HKH_CHANNELS
    try:
        return tuple(str(name) for name in json.loads(path.read_text(encoding="utf-8"))["bands"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not readable statistics ({error})", hint="prepare the patches again") from error


def check_channels(channels: Sequence[int], names: Sequence[str]) -> list[int]:
    """The channels, if they exist and none is named twice. Raises ConfigError."""
    chosen = [int(channel) for channel in channels]
    known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    if not chosen or min(chosen) < 0 or max(chosen) >= len(names):
        raise ConfigError(f"the channels {list(channels)} don't all exist", hint=f"choose from: {known}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"the channels {list(channels)} name one twice", hint=f"choose from: {known}")
    return chosen


def sensing(chosen: Sequence[int], names: Sequence[str]) -> list[int]:
    """Those of the chosen channels that tell whether a pixel was observed."""
    return [channel for channel in chosen if names[channel] not in _NOT_SENSED] or list(chosen)


def _channel_notes(chosen: Sequence[int], names: Sequence[str]) -> list[str]:
    bands = {names[channel] for channel in chosen}
    if {"thermal_low", "thermal_high"} <= bands and not {"swir1", "swir2"} & bands:
        return [
            f"the channels {list(chosen)} take two thermal bands and no SWIR, which tells ice from cloud; the bands of "
            f"the competition are {list(COMPETITION_CHANNELS)}"
        ]
    return []


def _usable(
    root: Path, pairs: Sequence[Pair], found: Sequence[Measured], sensed: int, notes: list[str]
) -> list[tuple[Pair, Measured]]:
    """The patches in which something was observed. Raises DataError for those that contradict what is known of them."""
    problems, blank, infinite = [], [], 0
    kept = []
    for pair, one in zip(pairs, found, strict=True):
        if pair.hash and pair.hash != one.hash:
            problems.append(
                f"{pair.image} or {pair.mask}: changed since {INDEX} was written; prepare the patches again"
            )
        elif any(bits & sensed for _, bits, _ in one.seen):
            kept.append((pair, one))
            infinite += one.infinite
        elif any(label for label, _, _ in one.seen):
            problems.append(f"{pair.image}: the chosen channels are all NaN, but the mask holds glacier; make it again")
        else:
            blank.append(pair.image)
    refuse(root, problems, len(pairs))
    if not kept:
        raise DataError(
            f"no patch in {root} holds a value: all are NaN", hint="make them again from scenes that cover the outlines"
        )
    if blank:
        notes.append(f"{len(blank)} patches hold no value and no glacier and are left out: {listed(blank)}")
    if infinite:
        notes.append(f"{infinite} infinite values are read as not observed (NaN)")
    return kept


def _row(pair: Pair, one: Measured, chosen: Sequence[int], sensed: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": pair.id, "hash": one.hash, "tile": pair.id, "y": 0, "x": 0, "height": one.shape[0],
        "width": one.shape[1], "split": pair.split, "group": pair.group, "image": pair.image, "mask": pair.mask,
    }  # fmt: skip
    for label, amount in enumerate(one.pixels(sensed, len(CLASSES))):
        row[f"pixels_{label}"] = amount
    for number, channel in enumerate(chosen):
        row[f"count_{number}"] = one.count[channel]
        row[f"sum_{number}"] = one.total[channel]
        row[f"squares_{number}"] = one.scatter[channel] + one.total[channel] ** 2 / max(one.count[channel], 1)
        row[f"scatter_{number}"] = one.scatter[channel]
    return row
