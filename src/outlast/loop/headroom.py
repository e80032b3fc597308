"""Whether a step leaves room: its peak of memory against what this process may take, and how hard the allocator works.

On CUDA the peak is what the allocator reserved; on a CPU it is the resident memory of the process. A step that fits
only because the allocator gave its cache back and tried again does not fit: such steps are many times slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from outlast.env import memory as host_memory

SHARE = 0.9  # of what is available: the rest is for what a first step does not show
_STEPS_BETWEEN_LOOKS = 20
_RETRIES_THAT_THRASH = 5


class TooMuchMemoryError(MemoryError):
    """A step that went through, but took more memory than it may."""


class Headroom:
    """What a process may take of the memory of `device`. Make it while nothing is on the device yet.

    budget_gigabytes: the most that it may take; none: 90 % of what is available, shared by the `processes` of a CPU.
    """

    def __init__(self, device: torch.device, budget_gigabytes: float | None, processes: int = 1) -> None:
        self.device = device
        if budget_gigabytes is not None:
            self.bytes = int(budget_gigabytes * 1e9)
        elif device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            self.bytes = int(SHARE * (free + torch.cuda.memory_reserved(device)))
        else:
            available = SHARE * host_memory.available_bytes() / processes
            self.bytes = int(host_memory.resident_bytes() + available)

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        taken = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else host_memory.resident_bytes()
        return max(self.bytes - taken, 0)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Raises TooMuchMemoryError if the block, on its way, took more than there is room for."""
        cuda = self.device.type == "cuda"
        retries = allocator_retries(self.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            measured = True
        else:
            measured = host_memory.reset_peak()
        yield
        if again := allocator_retries(self.device) - retries:
            raise TooMuchMemoryError(f"the allocator had to free its cache and try again ({again} times)")
        peak = torch.cuda.max_memory_reserved(self.device) if cuda else host_memory.peak_bytes()
        if measured and peak is not None and peak > self.bytes:
            raise TooMuchMemoryError(f"it took {peak / 1e9:.2f} GB of the {self.bytes / 1e9:.2f} GB that it may take")


class Thrashing:
    """Whether the allocator keeps running out and trying again while training goes on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._looks, self._retries = 0, allocator_retries(device)

    def seen(self) -> str | None:
        """Ask before each step: a sentence if it thrashes, else None. It looks at every 20th step."""
        if self.device.type != "cuda":
            return None
        self._looks += 1
        if self._looks % _STEPS_BETWEEN_LOOKS:
            return None
        before, self._retries = self._retries, allocator_retries(self.device)
        retries = self._retries - before
        if retries < _RETRIES_THAT_THRASH:
            return None
        return f"the allocator ran out and tried again {retries} times in {_STEPS_BETWEEN_LOOKS} steps (thrashing)"


def allocator_retries(device: torch.device) -> int:
    """How often CUDA's allocator has freed its cache to try again; 0 elsewhere."""
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0)) if device.type == "cuda" else 0
