"""One forward pass in half precision, watched layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from outlast.check.trial import Trial

_COMPUTING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


@dataclass
class Half:
    """What it showed: the mean loss, the first layer with values that are not finite ('' if none), and how many of the
    linear and convolution layers gave half precision."""

    loss: float = 0.0
    overflown: str = ""
    layers: int = 0
    half_layers: int = 0

    @classmethod
    def of(cls, trial: Trial) -> Self:
        """Raises RuntimeError if this device has no such arithmetic."""
        found = cls()
        model, batch, precision = trial.build(), trial.batches[0], trial.config.train.precision
        hooks = [
            module.register_forward_hook(partial(found._look, name, isinstance(module, _COMPUTING)))
            for name, module in model.named_modules()
            if not list(module.children())
        ]
        try:
            with trial.compute.autocast(precision):
                result = trial.step(model.train(), batch)
            found.loss = float(result["loss_sum"].detach()) / max(float(result["weight"]), 1e-12)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _look(self, name: str, computes: bool, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if computes:
            self.layers += 1
            self.half_layers += output.dtype in (torch.float16, torch.bfloat16)
        if not self.overflown and not torch.isfinite(output).all():
            self.overflown = name or type(module).__name__
