"""How far scores of several independent labels may be off, by drawing whole groups (scenes) anew with replacement.

Promises: frames of a scene stay together, since they are no independent evidence; all models are scored on the same
draws, so that their differences can be judged too; the draws are a function of the groups and the seed. Source: Efron
and Tibshirani 1993, the percentile interval of a cluster bootstrap.
Does not: find more evidence than there is. With few groups an interval is itself uncertain; `Draws.groups` says of how
many it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from outlast.model.multilabel_metrics import sigmoid

LEVEL = 0.95
_AT_ONCE = 4_000_000  # numbers


@dataclass(frozen=True)
class Draws:
    """How often each group stands in each draw (R, G), and the group of each sample (N,)."""

    counts: np.ndarray
    of_sample: np.ndarray

    @property
    def groups(self) -> int:
        return int(self.counts.shape[1])


def draw_groups(groups: Sequence[str], *, number: int = 1000, seed: int = 0) -> Draws:
    """As many groups as there are, drawn with replacement, `number` times."""
    names, of_sample = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    shares = np.full(len(names), 1 / len(names))
    counts = np.random.default_rng(seed).multinomial(len(names), shares, size=number)
    return Draws(counts.astype(np.int64), of_sample.reshape(-1))


def drawn_scores(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str], thresholds: Sequence[float], draws: Draws
) -> dict[str, np.ndarray]:
    """The scores (R,) of logits (N, L) in every draw, as `multilabel` defines them; NaN where one is not defined.

    {"fire f1", "fire precision", "fire recall", "fire auc", ..., "macro_f1", "macro_auc", "exact_match", "hamming"}.
    """
    truth = labels > 0.5
    said = sigmoid(logits) >= np.asarray(thresholds, np.float64)
    size = _total(np.ones(len(truth)), draws)
    found: dict[str, np.ndarray] = {}
    for place, name in enumerate(names):
        yes, real = said[:, place], truth[:, place]
        right, wrong, missed = (_total(part, draws) for part in (yes & real, yes & ~real, ~yes & real))
        found[f"{name} precision"] = _share(right, right + wrong)
        found[f"{name} recall"] = _share(right, right + missed)
        found[f"{name} f1"] = _share(2 * right, 2 * right + wrong + missed)
        found[f"{name} auc"] = _auc(logits[:, place], real, draws)
    for score in ("f1", "auc"):
        found[f"macro_{score}"] = _mean([found[f"{name} {score}"] for name in names])
    found["exact_match"] = _share(_total((said == truth).all(axis=1), draws), size)
    found["hamming"] = _share(_total((said != truth).mean(axis=1), draws), size)
    return found


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of the draws; None if a score is not defined in more than one of twenty."""
    known = values[np.isfinite(values)]
    if len(known) < LEVEL * len(values):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _total(values: np.ndarray, draws: Draws) -> np.ndarray:
    """The sum over the samples of each draw (R,)."""
    per_group = np.bincount(draws.of_sample, weights=values.astype(np.float64), minlength=draws.groups)
    return np.asarray(draws.counts @ per_group)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Over the labels for which a score is defined."""
    stacked = np.stack(scores)
    known = np.isfinite(stacked)
    return _share(np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0))


def _auc(scores: np.ndarray, truth: np.ndarray, draws: Draws) -> np.ndarray:
    """The share of pairs (one with the label, one without) in the right order; a tie counts half."""
    order = np.argsort(scores, kind="stable")
    ranked, real, group = scores[order], truth[order], draws.of_sample[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] > ranked[:-1]))  # of equal scores
    found = []
    for counts in _parts(draws.counts, len(scores)):
        weight = counts[:, group].astype(np.float64)
        positive = np.add.reduceat(weight * real, starts, axis=1)
        negative = np.add.reduceat(weight * ~real, starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative
        ordered = (positive * (below + negative / 2)).sum(axis=1)
        found.append(_share(ordered, positive.sum(axis=1) * negative.sum(axis=1)))
    return np.concatenate(found)


def _parts(counts: np.ndarray, samples: int) -> Iterator[np.ndarray]:
    size = max(_AT_ONCE // max(samples, 1), 1)
    for start in range(0, len(counts), size):
        yield counts[start : start + size]
