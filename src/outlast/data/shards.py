"""Arrays by id, in numbered files that each appear at once: what a Predict stage writes and other stages read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from outlast.base.files import write_bytes
from outlast.errors import DataError


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` (from 0) lies."""
    return folder / f"part-{number:05d}.safetensors"


def write_shard(folder: Path, number: int, ids: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Path:
    """Write one shard atomically; the first axis of every array follows `ids`."""
    path = shard_path(folder, number)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, save(contiguous, metadata={"ids": json.dumps(list(ids), ensure_ascii=False)}))
    return path


def holds(folder: Path, number: int, ids: Sequence[str]) -> bool:
    """Whether shard `number` is there, whole as far as its header tells, and of exactly these ids."""
    path = shard_path(folder, number)
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="numpy") as shard:
            return bool(json.loads(shard.metadata()["ids"]) == list(ids))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False  # it is made again


def drop_beyond(folder: Path, count: int) -> None:
    """Remove the shards from number `count` on: left over from a prediction that was cut in another way."""
    for path in folder.glob("part-*.safetensors"):
        if path.stem.removeprefix("part-").isdecimal() and int(path.stem.removeprefix("part-")) >= count:
            path.unlink()


def read_shards(folder: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """All ids and arrays under `folder`, in the order of the shards. Raises DataError that names a damaged shard."""
    ids: list[str] = []
    pieces: dict[str, list[np.ndarray]] = {}
    for path in sorted(folder.glob("part-*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as shard:
                ids += json.loads(shard.metadata()["ids"])
                for name in shard.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    pieces.setdefault(name, []).append(shard.get_tensor(name))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error}", hint="remove it and run the stage again") from error
    return ids, {name: np.concatenate(arrays) for name, arrays in pieces.items()}
