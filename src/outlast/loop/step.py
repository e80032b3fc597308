"""One optimizer step over one or more micro-batches, and the watch over its loss.

The gradient is that of (sum of losses) / (sum of weights) over all micro-batches and processes, so unequal
micro-batches weigh what they should. A loss that is not finite ends the run with the step and the files of its batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from outlast.errors import TrainingError, listed
from outlast.loop.accel import Compute, Precision
from outlast.loop.optim import set_rate

Batch = dict[str, Tensor]


@dataclass
class Stepper:
    """What a step needs; `step(model, batch)` is the learner's, with its configuration bound."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[nn.Module, Batch], dict[str, Any]]
    compute: Compute
    precision: Precision
    clip_norm: float | None
    scaler: torch.amp.GradScaler | None = None
    parameters: list[nn.Parameter] = field(init=False)
    applying: bool = field(default=False, init=False)  # from then on a step that fails can't be taken back

    def __post_init__(self) -> None:
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def run(self, micro_batches: Sequence[Batch], samples: int, rate: float) -> dict[str, Any]:
        """Do one optimizer step on `samples` samples (over all processes) with the learning rate `rate`.

        Returns this process's sums: "loss_sum" (a tensor), "weight" and the learner's extras.
        """
        set_rate(self.optimizer, rate)
        self.forget_gradients()
        nominal = samples / self.compute.processes
        sums: dict[str, Any] = {}
        for number, batch in enumerate(micro_batches):
            with self._last_syncs(number == len(micro_batches) - 1), self.compute.autocast(self.precision):
                result = self.step(self.model, self.compute.put(batch))
                loss = result["loss_sum"] / nominal
            with self._last_syncs(number == len(micro_batches) - 1):
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            for name, value in result.items():
                value = value.detach() if isinstance(value, Tensor) else value
                sums[name] = sums[name] + value if name in sums else value
        weight = self.compute.sums([float(sums["weight"])])[0]
        self._apply(self.compute.processes * nominal / weight if weight > 0 else 0.0)
        return sums

    def forget_gradients(self) -> None:
        """What optimizer.zero_grad does, without its profiling hooks."""
        for parameter in self.parameters:
            parameter.grad = None

    def _apply(self, factor: float) -> None:
        self.applying = True
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if factor != 1.0:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.applying = False

    def _last_syncs(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        if last or self.compute.processes == 1:
            return contextlib.nullcontext()
        return self.model.no_sync()  # type: ignore[operator, no-any-return]


@dataclass
class LossWatch:
    """Adds up a step's sums and ends the run at a loss that is not finite.

    On an accelerator a step's loss is read when the next step is under way, so that reading does not stall it; `flush`
    reads the last one, and is called before anything is saved or evaluated.
    """

    sums: dict[str, float]
    immediate: bool
    describe: Callable[[Tensor], Sequence[str]]
    _pending: tuple[int, dict[str, Any], list[Tensor]] | None = None

    def push(self, step: int, sums: dict[str, Any], rows: list[Tensor]) -> None:
        """Take in the sums of step number `step`, whose samples were `rows`."""
        if self._pending is not None:
            self.flush()
        self._pending = (step, sums, rows)
        if self.immediate:
            self.flush()

    def flush(self) -> None:
        """Read what was pushed. Raises TrainingError if the loss is not finite."""
        if self._pending is None:
            return
        step, sums, rows = self._pending
        self._pending = None
        values = {name: float(value) for name, value in sums.items()}
        if not math.isfinite(values["loss_sum"]):
            names = self.describe(torch.cat(rows))
            raise TrainingError(
                f"the loss is {values['loss_sum']} at step {step}; the batch was: {listed(names, 40)}",
                hint="look at these files, lower train.learning_rate, or set train.precision=fp32; "
                "the last checkpoint is intact",
            )
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
