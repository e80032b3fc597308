"""How a RunState and bare weights lie in a folder. Loading executes no code: safetensors, weights-only torch.load."""

from __future__ import annotations

import os
import pickle
import re
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from outlast.errors import CheckpointError
from outlast.state import RunState, training_part

WEIGHTS = "model.safetensors"
TRAINING = "training.pt"
_SYSTEM = re.compile(r"\(os error (\d+)\)")  # how safetensors tells what the disk said
# What torch's restricted unpickler has been seen to raise on bytes that nothing of ours wrote.
_UNREADABLE = (
    OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, MemoryError, struct.error,
)  # fmt: skip


def write_state(folder: Path, state: RunState) -> None:
    """Write the files of a checkpoint into an existing folder. Raises OSError or CheckpointError."""
    write_weights(folder / WEIGHTS, state.model)
    with (folder / TRAINING).open("wb") as stream:
        try:
            torch.save(training_part(state), stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None  # torch puts a sentence about positions in its place
            raise


def read_state(folder: Path) -> RunState:
    """The state in a verified checkpoint folder. A field too few or too many is an error, never a partial restore."""
    path = folder / TRAINING
    try:
        part = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # Torch's own sentence about a pickle advises to execute it.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        code = "it can't be read without executing code"
        raise CheckpointError(
            f"{path} is refused: {code if isinstance(error, pickle.UnpicklingError) else first}",
            hint="use a checkpoint that Outlast wrote; do not load this file with pickle",
        ) from error
    expected = {item.name for item in fields(RunState)} - {"model"}
    if not isinstance(part, dict) or set(part) != expected:
        given = set(part) if isinstance(part, dict) else set()
        raise CheckpointError(
            f"{path} does not hold the state of this version of Outlast",
            details=[
                f"missing: {', '.join(sorted(expected - given))}",
                f"unknown: {', '.join(sorted(map(str, given - expected)))}",
            ],
            hint="resume with the version of Outlast that wrote it (run.json names it)",
        )
    return RunState(model=read_weights(folder / WEIGHTS), **part)


def write_weights(path: Path, weights: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to one safetensors file. No two of them may share memory. Raises OSError or CheckpointError."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata)
    except SafetensorError as error:
        number = _SYSTEM.search(str(error))
        if number is not None:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise CheckpointError(f"{path} cannot be written: {error}", hint="report it: it is a defect") from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError that names the file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: {error}",
            hint="give a whole .safetensors file that was saved with the same model",
        ) from error
