"""Examples: the table that everything about the data hangs on.

One row is one example, known by its `id`. The table is small (ids, labels, groups, splits, file names), the samples
themselves are read when they are needed. The fingerprint is a hash of the contents, so that a run knows its data again
on another machine under another path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Examples:
    """Every example of one learner.

    table: columns `id` (unique str), `split`, `hash` (SHA-256 of the sample's files) and the task's own; RangeIndex.
    batch_columns: numeric columns that become tensors of the batch under their own name (such as "label").
    facts: JSON-able facts that the model and the metrics need, such as {"classes": [...], "channels": 3}.
    notes: sentences to print and to record ("12 exact duplicates were put into one group").
    """

    table: pd.DataFrame
    root: Path
    facts: Mapping[str, Any]
    batch_columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over id, hash and batch columns of all rows, by id: the same data gives the same value anywhere."""
        columns = ["hash", *self.batch_columns]
        values = self.table[columns].astype(str).to_numpy().tolist()
        return fingerprint(self.table["id"].tolist(), ["\0".join(row) for row in values])


def fingerprint(ids: Sequence[str], hashes: Sequence[str]) -> str:
    """SHA-256 (hex) over the sorted pairs."""
    digest = hashlib.sha256()
    for pair in sorted(zip(ids, hashes, strict=True)):
        digest.update("\0".join(pair).encode())
        digest.update(b"\n")
    return digest.hexdigest()
