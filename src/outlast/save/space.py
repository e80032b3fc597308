"""How many bytes a training stage takes on the disk, known from its model before a step was trained.

`sizes` predicts what `store.save` and `store.save_best` write, to within 2 % (tests/save/test_space.py writes them and
compares). `room` says how much may still be written into a folder: what its disk has free, or less where a platform
keeps only so much of it. Metrics, predictions and figures are small and not counted.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from outlast.config.schema import Saving, Training
from outlast.save import rng
from outlast.state import RunState, training_part

_MANIFEST_BYTES = 1500  # hashes and provenance; more learners or metrics make it some hundred bytes longer


@dataclass(frozen=True)
class Sizes:
    """Bytes of one checkpoint, and of the best weights, of a training stage."""

    checkpoint: int
    best: int

    def at_most(self, saving: Saving) -> int:
        """While it trains: the checkpoints that are kept and the one being written; the best weights, old and new."""
        return (saving.keep + 1) * self.checkpoint + 2 * self.best

    def when_finished(self, saving: Saving) -> int:
        """What the stage leaves on the disk."""
        return self.best + (saving.keep * self.checkpoint if saving.keep_when_finished == "best_and_last" else 0)


def sizes(model: nn.Module, config: Training, processes: int = 1) -> Sizes:
    """Predict what the checkpoints of a stage that trains `model` take."""
    weights = model.state_dict()
    best = _safetensors_bytes(weights) + _MANIFEST_BYTES
    return Sizes(best + _training_bytes(model, weights, config, processes), best)


@dataclass(frozen=True)
class Room:
    """Bytes that may still be written; limit: what the platform allows in `folder`, None if only the disk bounds it."""

    free: int
    folder: Path
    limit: int | None = None


def free_bytes(folder: Path) -> int:
    """What the disk of a folder has free."""
    return shutil.disk_usage(folder).free


def room(folder: Path, limit: tuple[Path, int] | None = None, free: Callable[[Path], int] = free_bytes) -> Room:
    """What may still be written into `folder`, which need not exist; limit: (folder, bytes that all in it may take)."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    on_disk = free(existing)
    if limit is not None and (left := limit[1] - bytes_in(limit[0])) < on_disk:
        return Room(max(left, 0), limit[0], limit[1])
    return Room(on_disk, existing)


def bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # somebody else's file, gone since it was listed
    return found


def in_words(size: int) -> str:
    """Bytes as people say them: 12 MB, 1.5 GB (powers of ten, as disks are sold)."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _safetensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Eight bytes of length, a JSON header padded to a multiple of eight, then the data (the format's own document)."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": f"F{8 * tensor.itemsize}", "shape": list(tensor.shape), "data_offsets": [begin, end]
        }  # fmt: skip
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def _training_bytes(model: nn.Module, weights: Mapping[str, Tensor], config: Training, processes: int) -> int:
    """Size of training.pt: one is written to memory in which each tensor has one element for all of its data."""
    left_out = 0

    def stand_in(like: Tensor) -> Tensor:
        nonlocal left_out
        left_out += like.nbytes - like.itemsize
        return torch.zeros((), dtype=like.dtype).expand(like.shape)

    names = ("exp_avg", "exp_avg_sq") if config.optimizer == "adamw" else ("momentum_buffer",)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps: Iterable[dict[str, Tensor]] = (
        {"step": torch.zeros(())} if config.optimizer == "adamw" else {} for _ in trained
    )
    state = RunState(
        model={},
        optimizer={
            "state": {
                number: {**step, **{name: stand_in(parameter) for name in names}}
                for number, (parameter, step) in enumerate(zip(trained, steps, strict=True))
            },
            "param_groups": [{"params": list(range(len(trained)))}],
        },
        ranks=[{"generators": rng.capture()} for _ in range(processes)],
    )
    if config.ema_decay is not None:
        state.average = {f"module.{name}": stand_in(tensor) for name, tensor in weights.items()}
    written = io.BytesIO()
    torch.save(training_part(state), written)
    return written.tell() + left_out
