"""The figure of what boosted trees go by: the columns whose splits gain most, and how far the models agree on them.

Reads an importance.json: {"models": N, "columns": [{"name", "gain" (share of all), "spread" (over the models)}]}.
Promises: most first; how many columns are not shown, and what they have together, is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outlast.report.formats import finite, percent, shorten
from outlast.report.look import Look, new_figure, quiet_axes, save, style
from outlast.report.parts import as_list, as_mapping, as_whole, read_json
from outlast.report.records import Collected

SHOWN = 20


@dataclass(frozen=True)
class Importance:
    """Columns with their share of the gain and its standard deviation over `models`, most first."""

    names: tuple[str, ...]
    gains: tuple[float, ...]
    spreads: tuple[float, ...]
    models: int | None


def load_importance(run: Path, source: str) -> Importance | None:
    """The columns in an importance.json under the run folder; None if it has none that gained anything."""
    record = as_mapping(read_json(run / source, []))
    known = [
        (gain, str(column.get("name")), finite(column.get("spread")) or 0.0)
        for column in map(as_mapping, as_list(record.get("columns")))
        if (gain := finite(column.get("gain"))) is not None and gain > 0
    ]
    if not known:
        return None
    ordered = sorted(known, key=lambda column: (-column[0], column[1]))
    gains, names, spreads = zip(*ordered, strict=True)
    return Importance(names, gains, spreads, as_whole(record.get("models")))


def importance_bars(
    run: Collected, known: Importance, look: Look | None = None, title: str | None = "Importance"
) -> bytes | None:
    """A bar per column, with a line over the spread between models."""
    look = look or Look()
    shown = min(len(known.names), 12 if look.narrow else SHOWN)
    size = (4.3 if look.narrow else 8.0, 0.28 * shown + 0.75)
    with style(look) as theme:
        figure = new_figure(size, look, title, importance_finding(known, shown), run.synthetic)
        axes = figure.subplots()
        quiet_axes(axes, grid="x")
        places = np.arange(shown)
        gains, spreads = np.array(known.gains[:shown]), np.array(known.spreads[:shown])
        axes.barh(places, gains, height=0.62, color=theme.train, alpha=0.55)
        axes.hlines(places, np.maximum(gains - spreads, 0), gains + spreads, color=theme.text, linewidth=1.2)
        right = float((gains + spreads).max())
        for at, (gain, spread) in enumerate(zip(gains, spreads, strict=True)):
            beside = gain + spread + 0.01 * right
            axes.text(beside, at, percent(float(gain), 1), va="center", ha="left", fontsize=8, color=theme.muted)
        names = [shorten(name, 24 if look.narrow else 40) for name in known.names[:shown]]
        axes.set_yticks(places, names, color=theme.text)
        axes.set_xlim(0, right * 1.12)
        axes.set_ylim(shown - 0.4, -0.6)
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_xlabel("share of what all splits gain" + ("" if look.narrow else "; line: spread between models"))
        return save(figure, look, run)


def importance_finding(known: Importance, shown: int = SHOWN) -> str:
    """The column that counts most, over how many models, and what is not shown."""
    most = f"{percent(known.gains[0])} of the gain comes from {known.names[0]}"
    over = f" (mean of {known.models} models)" if known.models else ""
    rest = len(known.names) - shown
    left = f"; {rest} more columns have {percent(sum(known.gains[shown:]), 1)} together" if rest > 0 else ""
    return f"{most}{over}{left}."
