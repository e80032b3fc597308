"""Which columns of a table give the label away: each is tried alone, fitted on one half and judged on the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

# What the machinery itself puts there, or what is the label under another name.
_OURS = frozenset({"id", "path", "hash", "label", "class", "split", "fold", "group", "weight"})
_MOST_ROWS = 20_000
_SURE = 0.99  # of the other half told right, all classes weighing the same


def telling(table: pd.DataFrame) -> Iterator[tuple[str, float]]:
    """(column, share told right) of each column that predicts the label nearly always; chance must be far below."""
    if "label" not in table.columns or len(table) < 20 or table["label"].nunique() < 2:
        return
    order = np.random.default_rng(0).permutation(len(table))[:_MOST_ROWS]
    rows = table.iloc[order]
    labels = pd.factorize(rows["label"])[0]
    for column in table.columns:
        if column in _OURS:
            continue
        right = _told(_numbers(rows[column]), labels)
        if right >= _SURE:
            yield column, right


def _numbers(values: pd.Series[Any]) -> np.ndarray:
    """(N, 1) float: numbers as they are, anything else numbered in the order in which its values occur."""
    if pd.api.types.is_numeric_dtype(values):
        return np.asarray(np.nan_to_num(values.to_numpy(dtype=float), nan=-1e30)).reshape(-1, 1)
    return pd.factorize(values, sort=False, use_na_sentinel=False)[0].astype(float)[:, None]


def _told(feature: np.ndarray, labels: np.ndarray) -> float:
    """Balanced accuracy on the second half of a small tree that was grown on the first half."""
    from sklearn.metrics import recall_score
    from sklearn.tree import DecisionTreeClassifier

    half = len(labels) // 2
    tree = DecisionTreeClassifier(min_samples_leaf=3, class_weight="balanced", random_state=0)
    tree.fit(feature[:half], labels[:half])
    occurs = np.unique(labels[half:])
    recall = recall_score(labels[half:], tree.predict(feature[half:]), labels=occurs, average="macro", zero_division=0)
    return float(recall)
