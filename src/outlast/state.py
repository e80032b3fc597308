"""RunState: everything of a training stage that must survive a session, in one dataclass.

If a number is not here, a resumed run does not have it. It holds plain values and CPU tensors only, so that it can be
saved without code (safetensors and torch's weights-only pickle) and compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]


@dataclass
class RunState:
    """The state after `step` optimizer steps; `cursor` batches of epoch number `epoch` (counted from 0) are done.

    A cursor equal to the epoch's number of steps means that the evaluation at the end of that epoch is still to come.
    The cursor counts batches of at most `batch_size` samples; if that size is changed, `step` only goes on counting,
    and the place in the schedule is that of (epoch, cursor).
    """

    model: Tensors
    optimizer: dict[str, Any]
    average: Tensors | None = None  # exponential moving average of the weights
    plateau: dict[str, Any] | None = None  # ReduceLROnPlateau; the other schedules are functions of `step`
    scaler: dict[str, Any] | None = None  # gradient scaler of fp16
    ranks: list[dict[str, Any]] = field(
        default_factory=list
    )  # each process's own: its generators, its sums of the epoch
    epoch: int = 0
    cursor: int = 0
    step: int = 0
    metrics_bytes: int = 0  # length of metrics.jsonl; what was written after it is cut off on resume
    best_score: float | None = None
    best_step: int = 0
    best_epoch: int = 0
    epochs_without_gain: int = 0
    rung: str = ""
    micro_batch: int = 0
    batch_size: int = 0
    checkpointing: bool = False  # of activations
    processes: int = 1
    train_seconds: float = 0.0
    sessions: int = 0


# Saved as safetensors; all the rest goes into training.pt.
WEIGHTS = "model"


def training_part(state: RunState) -> dict[str, Any]:
    """Everything but the weights, as a plain dict."""
    return {item.name: getattr(state, item.name) for item in fields(state) if item.name != WEIGHTS}
