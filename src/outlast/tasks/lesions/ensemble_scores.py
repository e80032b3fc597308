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
    """metrics.json (its "metrics" are those of the report) and importance.json."""
    rows = {
        name: {area: interval.value for area, interval in areas.items()} | {"images": len(scored)}
        for name, areas in found.parts.items()
    }
    numbers = {
        f"{name}_{area}": interval.value for name, areas in found.parts.items() for area, interval in areas.items()
    }
    numbers |= {
        f"{BOTH}_above_{name}_{area}_{end}": getattr(interval, end)
        for name, areas in found.above.items()
        for area, interval in areas.items()
        for end in ("value", "low", "high")
    }
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
