"""Choosing how evidence is decided: by the official oF1 of validation images, judged group by group.

Promises: the rule is chosen on all of the images, but what it is worth is told by images whose group it was not chosen
on; each model (network, classical, fusion) gets a rule of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.data.randomness import uniforms
from outlast.model.forgery_metrics import optimal_f1, pixel_f1
from outlast.tasks.forgeries.evidence import Evidence, Rule, decided, regions, together
from outlast.tasks.forgeries.judge import image_auc

WEIGHTS = {"network": (0.0,), "classical": (1.0,), "fusion": (0.2, 0.35, 0.5, 0.65, 0.8)}
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_AREAS = (1, 2, 4, 8)  # times the least area
_CLEARLY = 0.005  # of oF1: by how much several instances must be better than one
_MOST = 200  # images that a rule is chosen on; of more, some spread over all


@dataclass(frozen=True)
class Case:
    """An image to be decided: what both models say, the true instances (N, H, W), and its group."""

    network: Evidence
    classical: Evidence
    truth: npt.NDArray[np.generic]
    group: str

    @property
    def forged(self) -> bool:
        """Whether anything was copied."""
        return len(self.truth) > 0


@dataclass(frozen=True)
class _Tried:
    """A rule but for its authentic threshold, on each image: oF1 if it is called forged, and its score."""

    weight: float
    threshold: float
    area: int
    found: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]


def calibrate(cases: Sequence[Case], model: str, minimum_area: int, folds: int) -> tuple[Rule, float | None]:
    """The rule with the best mean oF1, and the oF1 of images of groups that it was not chosen on; None of one group.

    Only the best rule is tried with several instances for an image, and only on all images.
    """
    chosen = [cases[place] for place in _spread(len(cases))]
    forged = np.array([case.forged for case in chosen])
    tried = [
        _try(chosen, weight, threshold, factor * minimum_area)
        for weight, threshold, factor in product(WEIGHTS[model], _THRESHOLDS, _AREAS)
    ]
    rule, worth = _best(tried, forged, np.ones(len(chosen), bool))
    separate = replace(rule, separate=True)
    if np.mean(scored(chosen, separate)["of1"]) > worth + _CLEARLY:
        rule = separate
    return rule, _held_out(tried, forged, [case.group for case in chosen], folds)


def scored(cases: Sequence[Case], rule: Rule) -> dict[str, list[float]]:
    """Of each image by a rule: "of1", "pixel_f1" (NaN where it is authentic) and "score"."""
    found: dict[str, list[float]] = {"of1": [], "pixel_f1": [], "score": []}
    for case in cases:
        evidence = together(case.network, case.classical, rule.weight)
        mask = regions(evidence, rule.threshold, rule.minimum_area)
        found["of1"].append(optimal_f1(decided(evidence, rule), case.truth))
        found["pixel_f1"].append(pixel_f1(mask, np.asarray(case.truth.any(axis=0))) if case.forged else float("nan"))
        found["score"].append(evidence.score)
    return found


def summary(cases: Sequence[Case], found: dict[str, list[float]]) -> dict[str, Any]:
    """{"pixel_f1", "image_auc", "of1", "images", "forged"}; None where one is not defined."""
    forged = np.array([case.forged for case in cases])
    auc = image_auc(np.array(found["score"]), forged)
    return {
        "pixel_f1": float(np.nanmean(found["pixel_f1"])) if forged.any() else None,
        "image_auc": None if np.isnan(auc) else auc,
        "of1": float(np.mean(found["of1"])),
        "images": len(cases),
        "forged": int(forged.sum()),
    }


def _spread(count: int) -> list[int]:
    return [int(place) for place in np.unique(np.linspace(0, count - 1, min(count, _MOST)).round())]


def _try(cases: Sequence[Case], weight: float, threshold: float, area: int) -> _Tried:
    found, scores = [], []
    for case in cases:
        evidence = together(case.network, case.classical, weight)
        mask = regions(evidence, threshold, area)
        instances = mask[None] if mask.any() else np.zeros((0, *mask.shape), bool)
        found.append(optimal_f1(instances, case.truth))
        scores.append(evidence.score)
    return _Tried(weight, threshold, area, np.array(found), np.array(scores))


def _best(tried: Sequence[_Tried], forged: npt.NDArray[np.bool_], chosen: npt.NDArray[np.bool_]) -> tuple[Rule, float]:
    """The rule with the best mean over the images that are `chosen`; of equal ones, the first."""
    best: tuple[float, Rule] | None = None
    for one in tried:
        scores, found, authentic = one.scores[chosen], one.found[chosen], ~forged[chosen]
        order = np.argsort(scores, kind="stable")
        # Threshold number k calls the first k of them authentic.
        below = np.concatenate([[0], np.cumsum(authentic[order])])
        above = np.concatenate([np.cumsum(found[order][::-1])[::-1], [0]])
        steps = np.concatenate([[True], scores[order][1:] > scores[order][:-1], [True]])
        means = np.where(steps, (below + above) / max(len(scores), 1), -1)
        place = int(means.argmax())
        if best is None or means[place] > best[0] + 1e-12:
            limits = np.concatenate([[0.0], (scores[order][1:] + scores[order][:-1]) / 2, [1.01]])
            best = float(means[place]), Rule(one.weight, one.threshold, one.area, float(limits[place]))
    assert best is not None
    return best[1], best[0]


def _held_out(tried: Sequence[_Tried], forged: npt.NDArray[np.bool_], groups: list[str], folds: int) -> float | None:
    """The mean oF1 of images by rules that were chosen on other groups."""
    names, of_image = np.unique(np.array(groups), return_inverse=True)
    if len(names) < 2:
        return None
    order = np.argsort(uniforms(0, 0, np.arange(len(names)), 1)[:, 0], kind="stable")
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % min(folds, len(names))
    found = np.empty(len(forged))
    for number in range(fold.max() + 1):
        held = fold[of_image] == number
        rule, _ = _best(tried, forged, ~held)
        one = next(
            t for t in tried if (t.weight, t.threshold, t.area) == (rule.weight, rule.threshold, rule.minimum_area)
        )
        called = one.scores >= rule.authentic
        found[held] = np.where(called, one.found, ~forged)[held]
    return float(found.mean())
