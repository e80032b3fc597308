"""Mean and standard deviation per band of any rows of a table, without reading a pixel again.

Every row carries, per band, how many values were observed, their sum, and the squared deviations from the row's own
mean. Unlike sums of squares these add up without cancellation (Chan, Golub, LeVeque 1983), so the result is that of
all pixels at once, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.errors import DataError, listed

Float64 = npt.NDArray[np.float64]

_COUNT, _SUM, _SCATTER = "count_", "sum_", "scatter_"


def row_moments(values: npt.NDArray[np.float32], band_names: Sequence[str]) -> dict[str, float]:
    """The columns of one row: count_<band>, sum_<band> and scatter_<band> of values (C, h, w), NaN left out."""
    row: dict[str, float] = {}
    for name, band in zip(band_names, values, strict=True):
        observed = band[~np.isnan(band)].astype(np.float64)
        total = float(observed.sum())
        mean = total / observed.size if observed.size else 0.0
        row[_COUNT + name] = observed.size
        row[_SUM + name] = total
        row[_SCATTER + name] = float(np.square(observed - mean).sum())
    return row


def statistics(table: pd.DataFrame, rows: npt.ArrayLike | None = None) -> tuple[Float64, Float64]:
    """(mean, std), float64 (C,), over the observed values of these rows (positions; none: all), std as of a population.

    Raises DataError that names the bands in which nothing was observed, or which are constant there.
    """
    chosen = table if rows is None else table.iloc[np.asarray(rows, dtype=np.int64)]
    names = [column.removeprefix(_COUNT) for column in table.columns if column.startswith(_COUNT)]
    count, total, scatter = (
        chosen[[kind + name for name in names]].to_numpy(dtype=np.float64) for kind in (_COUNT, _SUM, _SCATTER)
    )
    everything = count.sum(axis=0)
    empty = [name for name, number in zip(names, everything, strict=True) if not number]
    if empty:
        raise DataError(
            f"in {len(chosen)} tiles nothing was observed in {listed(empty)}",
            hint="leave the band out, or correct the nodata tag of its files",
        )
    mean = total.sum(axis=0) / everything
    row_means = np.divide(total, count, out=np.broadcast_to(mean, total.shape).copy(), where=count > 0)
    std = np.sqrt((scatter + count * np.square(row_means - mean)).sum(axis=0) / everything)
    # The mean of equal values may be off by its last bit.
    constant = std <= 1e-12 * np.abs(mean)
    if constant.any():
        raise DataError(
            f"constant over all {len(chosen)} tiles: "
            + listed([f"{names[at]} (always {mean[at]:g})" for at in np.flatnonzero(constant)]),
            hint="a constant band teaches nothing: leave it out, or replace its files",
        )
    return mean, std
