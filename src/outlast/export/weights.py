"""Weights for use without Outlast: a safetensors or .pth file of plain tensors, and a JSON beside it that says how.

The tensors are the deployed module's state_dict (the average if there was one). The sidecar holds the classes, the
input size, the normalisation and the provenance: everything that a user of the bare weights must know.

In half precision what was trained takes two bytes a number. Buffers (statistics of BatchNorm and of the bands) stay as
they are, since a variance easily leaves the range of float16 and they take little; so does a tensor whose numbers
would overflow. Loading such a file into a float32 module widens it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from outlast.base import files
from outlast.base.files import plain, write_bytes
from outlast.errors import UsageError, listed
from outlast.export import sidecar as sidecars

FORMATS = (".safetensors", ".pth")


def check_target(target: Path) -> None:
    """Refuse what can't be written. Raises UsageError."""
    if target.suffix not in FORMATS:
        raise UsageError(
            f"{target.name!r}: this version exports to {listed(FORMATS)}, .onnx and .zip",
            hint="give --to a file name that ends so",
        )
    files.check_target(target)


def export(model: nn.Module, target: Path, sidecar: Mapping[str, Any], *, half: bool = False) -> list[Path]:
    """Write the weights of a deployed module and its sidecar; returns both paths.

    `half` writes parameters as float16; the sidecar then says so under "precision", and names those that overflow.
    """
    check_target(target)
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if half:
        weights, precision = _halved(weights, {name for name, _ in model.named_parameters(remove_duplicate=False)})
        sidecar = {**sidecar, "precision": precision}
    if target.suffix == ".safetensors":
        note = {"sidecar": json.dumps(plain(dict(sidecar)), ensure_ascii=False)}
        write_bytes(target, save(weights, metadata=note))
    else:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        write_bytes(target, buffer.getvalue())
    return [target, sidecars.write(target, sidecar)]


def _halved(weights: Mapping[str, Tensor], parameters: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors with their parameters as float16, and what the sidecar says about it."""
    halved: dict[str, Tensor] = {}
    overflowing = []
    for name, tensor in weights.items():
        narrow = tensor.half() if name in parameters and tensor.dtype == torch.float32 else tensor
        if torch.isfinite(tensor).all() and not torch.isfinite(narrow).all():
            narrow = tensor
            overflowing.append(name)
        halved[name] = narrow
    return halved, {"parameters": "float16", "buffers": "unchanged", "unchanged_parameters": overflowing}
