"""Does it fit? One real step before training decides the micro-batch, and, if it is allowed, the rung of the ladder.

The effective batch stays what the configuration says: a smaller micro-batch is made up for by accumulation. A rung is
changed only for want of memory, only if `train.fallback` allows it, and never in silence.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from outlast.errors import TrainingError

_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "defaultcpuallocator",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_not_supported",
)


@dataclass(frozen=True)
class Fit:
    """What fits: the rung, the micro-batch, and why it is not what was wanted (None if it is).

    inexact: the operations of the trial step that do not repeat bit for bit on CUDA (loop.deterministic).
    """

    rung: str
    micro_batch: int
    reason: str | None = None
    inexact: tuple[str, ...] = ()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, also where a library says so in other words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)


def find_fit(attempt: Callable[[str, int], None], rungs: tuple[str, ...], micro_batch: int, *, fallback: bool) -> Fit:
    """Try a real step (`attempt(rung, micro_batch)`) with ever smaller micro-batches, then with the next rungs.

    Raises TrainingError if nothing fits, or if the wanted rung doesn't and `fallback` is off.
    """
    failures: list[str] = []
    for rung in rungs:
        size = micro_batch
        while True:
            try:
                attempt(rung, size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failures.append(f"{rung} with micro-batch {size}: {_first_line(error)}")
                del error
                release()
                if size == 1:
                    break
                size //= 2
            else:
                release()
                return Fit(rung, size, "; ".join(failures) if failures else None)
        if not fallback:
            raise TrainingError(
                f"{rung} doesn't fit into the memory of this machine, and falling back is not allowed",
                details=failures,
                hint="use a smaller image size or model, or allow it with train.fallback=true",
            )
    raise TrainingError(
        "no model of the ladder fits into the memory of this machine",
        details=failures,
        hint="free memory (other processes, notebooks), or use a smaller image size",
    )


def release() -> None:
    """Give cached memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
