"""What the ensemble is worth beside its parts: the table alone, the images alone, each backbone.

Promises: every part is scored on the same rows, out of fold; intervals resample patients, and two parts are compared on
the same resamples. "images" is the mean of the backbones' probabilities, with nothing learned on top; "images by rank"
that of their ranks within each fold, which does not suffer from folds whose models are calibrated differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from outlast.base.log import say
from outlast.model.area_bootstrap import Area, Interval, bootstrap, paired_bootstrap
from outlast.tasks.lesions.layout import PATIENT, TARGET

BOTH, TABLE, IMAGES, RANKED = "both", "table", "images", "images by rank"
AREAS: tuple[Area, ...] = ("pauc", "auc")
_OF_A_MODEL = ("trees", "inner_pauc", "inner_pauc_of_start")


@dataclass(frozen=True)
class Compared:
    """{part: {area: its value and interval}}, and {part: {area: by how much the ensemble is above it}}."""

    parts: Mapping[str, Mapping[Area, Interval]]
    above: Mapping[str, Mapping[Area, Interval]]


def compare(scored: pd.DataFrame, backbones: Sequence[str]) -> Compared:
    """From a column of probabilities per part, targets and patients of the training rows."""
    labels, patients = scored[TARGET].to_numpy(), scored[PATIENT].to_numpy()
    others = (*backbones, IMAGES, RANKED, TABLE)
    parts = {
        name: {area: bootstrap(labels, scored[name].to_numpy(), patients, area=area) for area in AREAS}
        for name in (*others, BOTH)
    }
    both = scored[BOTH].to_numpy()
    above = {
        name: {area: paired_bootstrap(labels, both, scored[name].to_numpy(), patients, area=area) for area in AREAS}
        for name in others
    }
    return Compared(parts, above)


def documents(
    found: Compared, scored: pd.DataFrame, units: Sequence[Mapping[str, Any]], synthetic: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json and importance.json. "metrics" of the first are the report's: of both, and a row for each part."""
    rows = {name: _row(areas, found.above.get(name), len(scored)) for name, areas in found.parts.items()}
    numbers: dict[str, float] = {str(area): interval.value for area, interval in found.parts[BOTH].items()}
    for area, interval in found.parts[BOTH].items():
        numbers |= {f"{area}_low": interval.low, f"{area}_high": interval.high}
    trees = [
        {
            "fold": unit["fold"],
            "seed": unit["seed"],
            "model": kind,
            **{key: about[key] for key in about if key != "gain"},
        }
        for unit in units
        for kind, about in unit["models"].items()
    ]
    metrics = {
        "split": "out of fold", "images": len(scored), "positives": int(scored[TARGET].sum()),
        "patients": int(scored[PATIENT].nunique()), "synthetic": synthetic,
        "parts": _plain(found.parts), "ensemble_above": _plain(found.above), "models": trees,
        "metrics": {**numbers, "per_class": rows}, "classes": list(rows),
    }  # fmt: skip
    return metrics, {"synthetic": synthetic, **importance([unit["models"][BOTH]["gain"] for unit in units])}


def _row(areas: Mapping[Area, Interval], above: Mapping[Area, Interval] | None, images: int) -> dict[str, Any]:
    """A part in the report's table: its areas, their intervals, and how far the ensemble is above it."""
    row: dict[str, Any] = {"images": images}
    for area, interval in areas.items():
        row |= {str(area): interval.value, f"{area}_interval": f"{interval.low:.3f} to {interval.high:.3f}"}
        if above:
            gain = above[area]
            row[f"both_above_{area}"] = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    return row


def importance(gains: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Each column's share of what the splits of a model gain: mean and standard deviation over models, most first."""
    shares = pd.DataFrame(gains)
    means, spreads = shares.mean(), shares.std(ddof=0)
    ordered = sorted(shares.columns, key=lambda name: (-means[name], name))
    columns = [{"name": name, "gain": float(means[name]), "spread": float(spreads[name])} for name in ordered]
    return {"models": len(gains), "columns": columns}


def tell(found: Compared, synthetic: bool) -> None:
    """Say every part with its interval, and how far the ensemble is above it."""
    mark = " (SYNTHETIC data)" if synthetic else ""
    level = f"{next(iter(found.parts[BOTH].values())).level:.0%}"
    say(f"out of fold{mark}, with {level} intervals over patients; in brackets what the ensemble is above that")
    for name, areas in found.parts.items():
        told = []
        for area, interval in areas.items():
            gain = found.above[name][area] if name in found.above else None
            more = f" ({gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}])" if gain else ""
            told.append(f"{area} {interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]{more}")
        say(f"  {name:<24}{'; '.join(told)}")


def _plain(areas: Mapping[str, Mapping[Area, Interval]]) -> dict[str, Any]:
    return {name: {area: asdict(interval) for area, interval in own.items()} for name, own in areas.items()}
