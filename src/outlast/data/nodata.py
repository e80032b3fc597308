"""Untagged nodata: the negative number that stands for "not observed" in a raster whose tags don't say so.

Promises: judged by the values alone, gathered strip by strip and added up over files; unsigned numbers have none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.data.raster import Raster, equal, strips

Array = npt.NDArray[Any]

# What programs write by custom.
_CUSTOMARY = frozenset(
    {-99.0, -999.0, -9999.0, -99999.0, -32767.0, -32768.0, -2147483648.0, float(np.finfo(np.float32).min)}
)


@dataclass(frozen=True)
class Extremes:
    """The two lowest of stored numbers, how often the lowest occurs, and the highest; NaN where there is none."""

    lowest: float = math.nan
    count: int = 0
    next_lowest: float = math.nan
    highest: float = math.nan

    def __add__(self, other: Extremes) -> Extremes:
        """Those of both together."""
        if not self.count or not other.count:
            return self if self.count else other
        lowest = min(self.lowest, other.lowest)
        count = sum(one.count for one in (self, other) if one.lowest == lowest)
        candidates = [value for one in (self, other) for value in (one.lowest, one.next_lowest) if value > lowest]
        return Extremes(lowest, count, min(candidates, default=math.nan), max(self.highest, other.highest))


def extremes(raster: Raster, band: int) -> Extremes:
    """The extremes of a band's finite values besides its nodata, read strip by strip; none for unsigned numbers."""
    found = Extremes()
    if raster.header.dtype.startswith("uint"):
        return found
    for strip in strips(raster.header):
        stored = raster.raw(band, strip)
        kept = np.isfinite(stored)
        marker = raster.header.nodata[band - 1]
        if marker is not None and not math.isnan(marker):
            kept &= ~equal(stored, marker)
        found += _extremes_of(stored[kept])
    return found


def negative_fill(found: Extremes) -> float | None:
    """The value that stands for "not observed" without a tag saying so, or None.

    It is the lowest, at most -99, occurs more than once, and lies apart from all other values by a quarter of their
    range, or by a twentieth if it is one that programs write by custom (-9999, -32768). Alone it counts only if it is
    such a one.
    """
    if not found.count or found.lowest > -99:
        return None
    customary = found.lowest in _CUSTOMARY
    if math.isnan(found.next_lowest):
        return found.lowest if customary else None
    apart, span = found.next_lowest - found.lowest, found.highest - found.next_lowest
    far = apart >= max(span / (20 if customary else 4), 50.0)
    return found.lowest if far and found.count > 1 else None


def _extremes_of(values: Array) -> Extremes:
    if not values.size:
        return Extremes()
    lowest = values.min()
    others = values[values > lowest]
    following = float(others.min()) if others.size else math.nan
    return Extremes(float(lowest), int(values.size - others.size), following, float(values.max()))
