"""Weights for use without Outlast: a safetensors or .pth file of plain tensors, and a JSON beside it that says how.

The tensors are the deployed module's state_dict (the average if there was one). The sidecar holds the classes, the
input size, the normalisation and the provenance: everything that a user of the bare weights must know.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from outlast.base import files
from outlast.base.files import plain, write_bytes, write_json
from outlast.errors import UsageError, listed

FORMATS = (".safetensors", ".pth")


def check_target(target: Path) -> None:
    """Refuse what can't be written. Raises UsageError."""
    if target.suffix not in FORMATS:
        raise UsageError(
            f"{target.name!r}: this version exports to {listed(FORMATS)}", hint="give --to a file name that ends so"
        )
    files.check_target(target)


def export(model: nn.Module, target: Path, sidecar: Mapping[str, Any]) -> list[Path]:
    """Write the weights of a deployed module and its sidecar; returns both paths."""
    check_target(target)
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if target.suffix == ".safetensors":
        note = {"sidecar": json.dumps(plain(dict(sidecar)), ensure_ascii=False)}
        write_bytes(target, save(weights, metadata=note))
    else:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        write_bytes(target, buffer.getvalue())
    beside = target.with_suffix(".json")
    write_json(beside, sidecar)
    return [target, beside]
