"""Opening a mirror, whatever kind its URL names."""

from __future__ import annotations

from pathlib import Path

from outlast.save.dataset_mirror import SCHEME, DatasetMirror
from outlast.save.mirror import Mirror


def open_at(url: str, run: Path) -> Mirror:
    """The mirror of `run` at a folder, an fsspec URL, or kaggle://OWNER/SLUG. Raises as their `open` does."""
    return DatasetMirror.open(url, run) if url.startswith(SCHEME) else Mirror.open(url, run)
