"""A trace of training: which samples each step was made of, and its loss, bit for bit.

With the environment variable OUTLAST_TRACE=FILE the training loop appends a line (JSON) per step and process; without
it nothing is done. Two traces of the same run must be equal line by line: `outlast verify-resume` compares them, and
names the first step and sample that differ.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TRACE = "OUTLAST_TRACE"


@dataclass(frozen=True)
class TracedStep:
    """One step of one process: its samples as (id, hash of the finished tensors), in order, and float.hex of its loss.

    `step` is counted from 1: the number of steps that are done when this one is.
    """

    stage: str
    step: int
    rank: int
    samples: tuple[tuple[str, str], ...]
    loss: str


class Trace:
    """Appends to the file; what was appended survives a SIGKILL. `names(rows)` gives the ids of rows."""

    def __init__(self, path: Path, stage: str, rank: int, names: Callable[[Tensor], Sequence[str]]) -> None:
        self.stage, self.rank, self.names = stage, rank, names
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def append(self, step: int, micro_batches: Sequence[Mapping[str, Any]], sums: Mapping[str, Any]) -> None:
        """Write down step number `step`: its samples (those of all its micro-batches) and its sum of losses."""
        samples = [
            pair for batch in micro_batches for pair in zip(self.names(batch["row"]), sample_hashes(batch), strict=True)
        ]
        traced = TracedStep(self.stage, step, self.rank, tuple(samples), float(sums["loss_sum"]).hex())
        os.write(self.descriptor, (json.dumps(asdict(traced)) + "\n").encode())


def from_environment(stage: str, rank: int, names: Callable[[Tensor], Sequence[str]]) -> Trace | None:
    """The trace that OUTLAST_TRACE asks for, or None."""
    return Trace(Path(os.environ[TRACE]), stage, rank, names) if os.environ.get(TRACE) else None


def read(path: Path) -> list[TracedStep]:
    """The steps in a trace, in the order in which they were done; a last line that a kill cut off does not count."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [_parsed(json.loads(line)) for line in lines]


def sample_hashes(batch: Mapping[str, Any]) -> list[str]:
    """A hash for each sample of a batch over all its tensors: names, types, shapes and bytes."""
    count = len(batch["row"])
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(count)]
    for name, value in sorted(batch.items()):
        if isinstance(value, Tensor) and value.dim() == 0:
            continue  # of the step (how many epochs were trained so far), not of a sample
        for one, tensor in zip(hashes, value, strict=True):
            one.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            one.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return [one.hexdigest() for one in hashes]


def _parsed(line: dict[str, Any]) -> TracedStep:
    return TracedStep(**{**line, "samples": tuple((name, value) for name, value in line["samples"])})
