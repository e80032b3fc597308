"""Choosing how evidence is decided: by the official oF1 of validation images, judged group by group.

Promises: the rule is chosen on all of the images, but what it is worth is told by images whose group it was not chosen
on; each model (network, classical, fusion) gets a rule of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.data.randomness import uniforms
from outlast.model.forgery_metrics import optimal_f1, pixel_f1
from outlast.tasks.forgeries.evidence import Evidence, Rule, decided, regions, together
from outlast.tasks.forgeries.instances import regions as numbered
from outlast.tasks.forgeries.judge import image_auc

WEIGHTS = {"network": (0.0,), "classical": (1.0,), "fusion": (0.2, 0.35, 0.5, 0.65, 0.8)}
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_AREAS = (1, 2, 4, 8)  # times the least area
_CLEARLY = 0.005  # of oF1: by how much several instances must be better than one


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

    def without_maps(self) -> Case:
        """What `summary` needs: the maps of thousands of images would not fit into memory."""
        nothing = Evidence(np.zeros((0, 0), np.float32), 0.0)
        return Case(nothing, nothing, self.truth[:, :0, :0], self.group)


@dataclass(frozen=True)
class _Tried:
    """A rule but for its authentic threshold, on each image: oF1 if it is called forged, and its score."""

    weight: float
    score_weight: float
    threshold: float
    area: int
    found: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """oF1 of each image (N,) by every rule that is tried, and what is known of the images; see `tabulate`."""

    tried: tuple[_Tried, ...]
    forged: npt.NDArray[np.bool_]
    groups: tuple[str, ...]


def tabulate(cases: Iterable[Case], minimum_area: int) -> Table:
    """Try every rule of every model on the images, one after the other: no more than one image is held in memory."""
    weights = sorted({weight for model in WEIGHTS.values() for weight in model})
    areas = [factor * minimum_area for factor in _AREAS]
    found: list[list[float]] = []
    scores: list[list[float]] = []
    forged, groups = [], []
    for case in cases:
        mixed = [together(case.network, case.classical, weight, weight) for weight in weights]
        found.append([
            value
            for evidence, threshold in product(mixed, _THRESHOLDS)
            for value in of1_by_area(evidence.map >= threshold, case.truth, areas)
        ])  # fmt: skip
        scores.append([evidence.score for evidence in mixed])
        forged.append(case.forged)
        groups.append(case.group)
    values, of_images = np.array(found).T, np.array(scores).T
    tried = [
        _Tried(weight, score_weight, threshold, area, column, scores_of)
        for score_weight, scores_of in zip(weights, of_images, strict=True)
        for (weight, threshold, area), column in zip(product(weights, _THRESHOLDS, areas), values, strict=True)
    ]
    return Table(tuple(tried), np.array(forged), tuple(groups))


def of1_by_area(marked: npt.NDArray[np.bool_], truth: npt.NDArray[np.generic], areas: Sequence[int]) -> list[float]:
    """oF1 of a mask (H, W) as one instance, without its regions below each of the areas."""
    labels, count = numbered(marked, 1)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    inside = [np.bincount(labels[instance > 0], minlength=count + 1)[1:] for instance in truth]
    found = []
    for area in areas:
        large = sizes >= area
        if not large.any() or not len(truth):
            found.append(float(not large.any() and not len(truth)))
            continue
        both = [int(part[large].sum()) for part in inside]
        total = int(sizes[large].sum())
        f1 = [2 * part / (total + int((one > 0).sum())) for part, one in zip(both, truth, strict=True)]
        found.append(max(f1) / len(truth))
    return found


def calibrate(table: Table, model: str, folds: int) -> tuple[Rule, float, float | None]:
    """The rule with the best mean oF1, that mean, and the oF1 of images of groups that the rule was not chosen on.

    The last one is None of a single group. An image has one instance by this rule; see `told_apart`.
    """
    known = WEIGHTS[model]
    tried = [one for one in table.tried if one.weight in known and (model == "fusion" or one.score_weight in known)]
    # Of rules that are worth the same, the one that asks both models: a few images can't tell them apart.
    tried.sort(key=lambda one: abs(one.score_weight - 0.5))
    rule, worth = _best(tried, table.forged, np.ones(len(table.forged), bool))
    return rule, worth, _held_out(tried, table.forged, table.groups, folds)


def told_apart(cases: Iterable[Case], rules: Mapping[str, tuple[Rule, float]]) -> dict[str, Rule]:
    """Each model's rule, with several instances for an image where their mean oF1 is clearly above that of one."""
    separate = {name: replace(rule, separate=True) for name, (rule, _) in rules.items()}
    found: dict[str, list[float]] = {name: [] for name in rules}
    for case in cases:
        for name, rule in separate.items():
            found[name] += scored([case], rule)["of1"]
    return {
        name: separate[name] if np.mean(found[name]) > worth + _CLEARLY else rule
        for name, (rule, worth) in rules.items()
    }


def scored(cases: Sequence[Case], rule: Rule) -> dict[str, list[float]]:
    """Of each image by a rule: "of1", "pixel_f1" (NaN where it is authentic) and "score"."""
    found: dict[str, list[float]] = {"of1": [], "pixel_f1": [], "score": []}
    for case in cases:
        evidence = together(case.network, case.classical, rule.weight, rule.score_weight)
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
            best = (
                float(means[place]),
                Rule(one.weight, one.score_weight, one.threshold, one.area, float(limits[place])),
            )
    assert best is not None
    return best[1], best[0]


def _held_out(
    tried: Sequence[_Tried], forged: npt.NDArray[np.bool_], groups: Sequence[str], folds: int
) -> float | None:
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
        wanted = (rule.weight, rule.score_weight, rule.threshold, rule.minimum_area)
        one = next(each for each in tried if (each.weight, each.score_weight, each.threshold, each.area) == wanted)
        called = one.scores >= rule.authentic
        found[held] = np.where(called, one.found, ~forged)[held]
    return float(found.mean())
