"""Does it fit? The ladder of what takes less memory, what counts as out of memory, and the trial before training.

The effective batch stays what the configuration says: a smaller micro-batch is made up for by accumulation. The ladder
is: micro-batches of half the size, down to one sample; activations computed again instead of kept; and, only if
`train.fallback` allows it, the next smaller model, from scratch. No step of it is taken in silence.
"""

from __future__ import annotations

import ctypes
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import torch
from torch import nn

from outlast.errors import TrainingError

_CERTAIN = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "defaultcpuallocator",
    "bad_alloc",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusolver_status_alloc_failed",
)
# These come when a library finds no room for its workspace, but have other causes too: they count only if memory is
# scarce at that moment.
_DOUBTFUL = (
    "cudnn_status_not_supported",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "cudnn_status_execution_failed",
    "cublas_status_not_initialized",
    "cublas_status_internal_error",
    "cublas_status_execution_failed",
    "unable to find an engine",
    "unable to find a valid cudnn algorithm",
)
_SCARCE_SHARE = 0.15  # of the device's memory: less than this free makes a doubtful error one of memory


@dataclass(frozen=True)
class Fit:
    """What fits: the model of the ladder and how it is trained, and what happened on the way there.

    reason: why it is not what was wanted (None if it is). evaluation_batch: samples of a forward pass when evaluating;
    none: twice the micro-batch. asked: train.micro_batch when this was found. events: {"when", "step", "from", "to",
    "why"} of every change, the first one before training. inexact: the operations of the trial step that do not repeat
    bit for bit on CUDA (loop.deterministic).
    """

    rung: str
    micro_batch: int
    reason: str | None = None
    checkpointing: bool = False
    evaluation_batch: int | None = None
    asked: int | None = None
    events: tuple[Mapping[str, Any], ...] = ()
    inexact: tuple[str, ...] = ()

    @property
    def evaluated(self) -> int:
        """Samples of a forward pass when evaluating."""
        return self.evaluation_batch or 2 * self.micro_batch

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """The fit that a manifest holds."""
        return cls(**{**values, "events": tuple(values.get("events", ())), "inexact": tuple(values.get("inexact", ()))})

    def after(self, step: int, why: str, **changes: Any) -> Self:
        """The fit with these fields changed at `step`, which is recorded."""
        event = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": step,
            "from": {name: getattr(self, name) for name in changes},
            "to": changes,
            "why": why,
        }
        reason = why if self.reason is None else f"{self.reason}; {why}"
        return replace(self, **changes, reason=reason, events=(*self.events, event))


class Portion:
    """How many samples at once an evaluation takes; half of them once memory runs out. `told(size, why)` is told."""

    def __init__(self, size: int, told: Callable[[int, str], None] = lambda size, why: None) -> None:
        self.size, self._told = size, told

    def halve(self, tried: int, why: str) -> None:
        """`tried` samples were too many. Raises TrainingError if that was one."""
        if tried == 1:
            raise TrainingError(
                f"evaluating a single sample does not fit into the memory of this machine: {why}",
                hint="free memory (other processes, notebooks), or use a smaller image size",
            )
        self.size = tried // 2
        self._told(self.size, why)

    def agree(self, sizes: Sequence[int]) -> None:
        """Take the smallest of what the processes can do: they ask each other once per batch, so all have as many."""
        if min(sizes) < self.size:
            self.size = min(sizes)
            self._told(self.size, "another process ran out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, also where a library says so in other words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(phrase in text for phrase in _CERTAIN) or (any(phrase in text for phrase in _DOUBTFUL) and _is_scarce())


def why_out_of_memory(error: BaseException) -> str | None:
    """What an error says about memory, in a line; None if it is about something else.

    The frames it came through are cleared: they hold what filled the memory.
    """
    if not is_out_of_memory(error):
        return None
    traceback.clear_frames(error.__traceback__)
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def find_fit(
    attempt: Callable[[str, int, bool], None],
    rungs: tuple[str, ...],
    micro_batch: int,
    *,
    fallback: bool,
    can_checkpoint: Callable[[str], bool] = lambda rung: False,
) -> Fit:
    """Try real steps (`attempt(rung, micro_batch, checkpointing)`) down the ladder until they fit.

    Raises TrainingError if nothing fits, or if the wanted rung doesn't and `fallback` is off.
    """
    failures: list[str] = []
    wanted = Fit(rungs[0], micro_batch)
    for rung in rungs:
        for size, checkpointing in _ladder(micro_batch, lambda rung=rung: can_checkpoint(rung)):  # type: ignore[misc]
            why = _tried(attempt, rung, size, checkpointing)
            release()
            if why is None:
                changes = _changes(wanted, Fit(rung, size, checkpointing=checkpointing))
                return wanted.after(0, "; ".join(failures), **changes) if failures else wanted
            failures.append(f"{rung} with micro-batch {size}{' and checkpointing' if checkpointing else ''}: {why}")
        if not fallback:
            raise does_not_fit(rung, failures)
    raise nothing_fits(failures)


def nothing_fits(failures: list[str]) -> TrainingError:
    """The error that ends a run for which even the smallest model is too large."""
    return TrainingError(
        "no model of the ladder fits into the memory of this machine",
        details=failures,
        hint="free memory (other processes, notebooks), or use a smaller image size; what was saved is intact",
    )


def does_not_fit(rung: str, failures: list[str]) -> TrainingError:
    """The error that ends a run which may not fall back."""
    return TrainingError(
        f"{rung} doesn't fit into the memory of this machine, and falling back is not allowed",
        details=failures,
        hint="use a smaller image size or model, or allow it with train.fallback=true (without --no-fallback)",
    )


def less(fit: Fit, can_checkpoint: Callable[[], bool]) -> dict[str, Any] | None:
    """What to change so that the same model takes less memory; None: nothing is left to change."""
    if fit.micro_batch > 1:
        return {"micro_batch": fit.micro_batch // 2}
    return {"checkpointing": True} if not fit.checkpointing and can_checkpoint() else None


def can_checkpoint(model: nn.Module) -> bool:
    """Whether the model can compute its activations again instead of keeping them."""
    return bool(_set_checkpointing(model, True) and _set_checkpointing(model, False))


def turn_on_checkpointing(model: nn.Module) -> None:
    """From now on activations are computed again instead of kept."""
    if not _set_checkpointing(model, True):
        raise TrainingError(f"{type(model).__name__} has no activation checkpointing", hint="use a smaller micro-batch")


def release() -> None:
    """Give memory that is no longer used back to the device and the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # What was freed may stay with the allocator of the C library, and would be counted as still taken.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set_checkpointing(model: nn.Module, enable: bool) -> bool:
    """Set it on the outermost modules that know how (timm's method of that name); whether there were any."""
    setter = getattr(model, "set_grad_checkpointing", None)
    if callable(setter):
        try:
            setter(enable)
        except (AssertionError, NotImplementedError):
            return False  # timm models that have the method and can't do it say so in this way
        return True
    done = [_set_checkpointing(child, enable) for child in model.children()]  # all of them, not only up to the first
    return any(done)


def _ladder(micro_batch: int, can_checkpoint: Callable[[], bool]) -> Iterator[tuple[int, bool]]:
    sizes = [micro_batch >> halvings for halvings in range(micro_batch.bit_length())]
    yield from ((size, False) for size in sizes)
    if can_checkpoint():
        yield from ((size, True) for size in sizes)


def _tried(attempt: Callable[[str, int, bool], None], rung: str, size: int, checkpointing: bool) -> str | None:
    """Why the attempt did not fit, or None."""
    try:
        attempt(rung, size, checkpointing)
    except (RuntimeError, MemoryError) as error:
        why = why_out_of_memory(error)
        if why is None:
            raise
        return why
    return None


def _changes(before: Fit, after: Fit) -> dict[str, Any]:
    names = ("rung", "micro_batch", "checkpointing")
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}


def _is_scarce() -> bool:
    if not torch.cuda.is_available():
        return False
    free, total = torch.cuda.mem_get_info()
    return free < _SCARCE_SHARE * total
