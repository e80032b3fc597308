"""The official score of lesions on 400,000 rows, beside the same from scikit-learn.

    python benchmarks/partial_auc.py [--rounds 9]

393 of the rows are positive, as in ISIC 2024, and scores have the ties that 32 bits bring. The peer is scikit-learn's
roc_auc_score(max_fpr=0.2) on flipped labels and negated scores, put back on the challenge's scale. Both in turn in one
process, medians. Fails if they differ by more than 1e-12, or ours takes more than 0.2 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from outlast.model.partial_auc import SHARE, partial_auc

ROWS, POSITIVES = 400_000, 393
LIMIT_SECONDS, LIMIT_DIFFERENCE = 0.2, 1e-12


def main() -> None:
    """Time both, compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    generator = np.random.default_rng(0)
    labels = np.zeros(ROWS, dtype=np.int64)
    labels[generator.choice(ROWS, POSITIVES, replace=False)] = 1
    scores = (1 / (1 + np.exp(-(generator.normal(-7, 2, ROWS) + 2.5 * labels)))).astype(np.float32)
    ours, theirs, differences = [], [], []
    for _ in range(asked.rounds):
        began = time.perf_counter()
        own = partial_auc(labels, scores)
        between = time.perf_counter()
        other = from_scikit_learn(labels, scores)
        theirs.append(time.perf_counter() - between)
        ours.append(between - began)
        differences.append(abs(own - other))
    fast, slow = statistics.median(ours), statistics.median(theirs)
    print(f"load {os.getloadavg()[0]:.1f}; pAUC {own:.6f}, largest difference {max(differences):.1e}")
    print(f"ours {fast * 1e3:.1f} ms, scikit-learn {slow * 1e3:.1f} ms: {slow / fast:.1f} times as long")
    if max(differences) > LIMIT_DIFFERENCE or fast > LIMIT_SECONDS:
        raise SystemExit(f"missed: at most {LIMIT_DIFFERENCE} apart, and {LIMIT_SECONDS} s")


def from_scikit_learn(labels: np.ndarray, scores: np.ndarray) -> float:
    """The challenge's score; scikit-learn gives the partial area standardised (McClish), between chance and 1."""
    standard = roc_auc_score(1 - labels, -scores, max_fpr=SHARE)
    chance = SHARE**2 / 2
    return float(chance + (SHARE - chance) / 0.5 * (standard - 0.5))


if __name__ == "__main__":
    main()
