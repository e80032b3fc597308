"""Optimizer, learning rate and weight average. The rate is a function of the step: there is nothing to lose."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from outlast.config.schema import Training


def build_optimizer(
    model: nn.Module, config: Training, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum; vectors and scalars (biases, norms) get no weight decay.

    rates: {beginning of parameters' names: their learning rate as a part of the others'}; of several that fit, the
    longest counts. Each group of parameters has its own as "rate" (`set_rate`).
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for decay, vectors in ((config.weight_decay, False), (0.0, True)):
        for name, parameter in trained.items():
            if (parameter.ndim <= 1) == vectors:
                grouped.setdefault((_rate_of(name, rates or {}), decay), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "rate": rate} for (rate, decay), parameters in grouped.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=_fused(list(trained.values())))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, as the part of `rate` that it has."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def learning_rate(step: int, total_steps: int, config: Training, plateau_factor: float) -> float:
    """The rate for step number `step` (from 0): linear warm-up, then the schedule."""
    warmup = round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "plateau":
        return config.learning_rate * plateau_factor
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(total_steps - warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def build_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Exponential moving average of weights and buffers, with a decay that ramps up: min(decay, (1+n)/(10+n))."""
    if decay is None:
        return None

    def average(averages: Iterable[Tensor], values: Iterable[Tensor], count: Tensor | int) -> None:
        averages, values = list(averages), list(values)
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, values, 1 - now)
        else:
            torch._foreach_copy_(averages, values)

    with torch.no_grad():
        return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


class Plateau:
    """Lowers the rate when the score stops improving; a torch ReduceLROnPlateau on a dummy, whose state is saved."""

    def __init__(self, config: Training) -> None:
        self._dummy = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        # The patience is in evaluations there; the threshold must be absolute, for scores may be negative.
        patience = config.plateau_patience_epochs // config.evaluate_every_epochs
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._dummy, mode="max", factor=config.plateau_factor, patience=patience, threshold=0, threshold_mode="abs"
        )

    @property
    def factor(self) -> float:
        """What the base learning rate is multiplied with now."""
        return float(self._dummy.param_groups[0]["lr"])

    def step(self, gain: float) -> None:
        """Take in one evaluation; `gain` is the score with its sign turned so that more is better."""
        self._scheduler.step(gain)

    def state(self) -> dict[str, float | int]:
        """Plain values that bring it back."""
        kept = {
            name: getattr(self._scheduler, name)
            for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        }
        return {**kept, "factor": self.factor}

    def load(self, state: dict[str, float | int]) -> None:
        """Put back what `state` gave."""
        for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
            setattr(self._scheduler, name, state[name])
        self._dummy.param_groups[0]["lr"] = state["factor"]


def _rate_of(name: str, rates: Mapping[str, float]) -> float:
    fitting = [beginning for beginning in rates if name.startswith(beginning)]
    return rates[max(fitting, key=len)] if fitting else 1.0


def _fused(parameters: list[nn.Parameter]) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") and parameter.is_floating_point() for parameter in parameters)
