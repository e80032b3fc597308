"""The JSON beside an exported file, which says how the file is used and where it comes from.

It is named after the whole file, ending included (`best.onnx.json`), so that exports that differ in nothing but their
ending each keep their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlast.base.files import write_json


def path_of(file: Path) -> Path:
    """Where the sidecar of a file lies."""
    return file.with_name(f"{file.name}.json")


def write(file: Path, about: Mapping[str, Any]) -> Path:
    """Write the sidecar of a file, atomically; returns its path."""
    path = path_of(file)
    write_json(path, about)
    return path
