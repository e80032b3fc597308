"""Copies of tensors in the host's memory, taken while training stands still and written while it goes on.

The memory is allocated once and used again for every copy, because fresh memory costs several times as much to fill.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """The memory of one copy of a tree of dicts, lists and tensors. A new copy overwrites the one before."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self.in_use = False

    def take(self, tree: Any) -> Any:
        """The tree with every tensor copied to host memory; no other copy is taken until `release`."""
        if self.in_use:
            raise RuntimeError("the copy before is still being written")
        self.in_use = True
        copy = self._copied(tree, ())
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            torch.cuda.current_stream().synchronize()
        return copy

    def release(self) -> None:
        """The copy is no longer needed."""
        self.in_use = False

    def _copied(self, value: Any, place: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            buffer = self._buffers.get(place)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                pinned = value.device.type == "cuda"
                buffer = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=pinned)
                self._buffers[place] = buffer
            return buffer.copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {key: self._copied(item, (*place, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(item, (*place, number)) for number, item in enumerate(value))
        return value
