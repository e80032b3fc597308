"""What of a model and its loss depends on how a batch is cut: into micro-batches, or over processes.

Where nothing does, the same effective batch gives the same gradient up to the rounding of sums. Found by looking at
the modules: what a step does by hand (a dropout function in the learner's own code) can't be seen here.
"""

from __future__ import annotations

from torch import nn

from outlast.task import Learner

BATCH_NORM, DROPOUT, DROP_PATH, COUPLED_LOSS = "batch_norm", "dropout", "drop_path", "coupled_loss"
SENTENCES = {
    BATCH_NORM: "each micro-batch is normalised by itself (BatchNorm)",
    DROPOUT: "dropout draws other numbers",
    DROP_PATH: "drop path draws other numbers",
    COUPLED_LOSS: "the loss couples the samples of a micro-batch",
}


def what_cutting_changes(model: nn.Module, learner: Learner) -> list[str]:
    """Which of BATCH_NORM, DROPOUT, DROP_PATH and COUPLED_LOSS are present in training."""
    modules = list(model.modules())
    present = {
        BATCH_NORM: any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules),
        DROPOUT: any(_drops_out(module) for module in modules),
        DROP_PATH: any(_drops_paths(module) for module in modules),
        COUPLED_LOSS: learner.couples_batch,
    }
    return [name for name, is_present in present.items() if is_present]


def sentence(found: list[str]) -> str:
    """What is found, in words; where nothing is, that only rounding differs."""
    return "; ".join(SENTENCES[name] for name in found) or "the results are equal up to the rounding of sums"


def _drops_out(module: nn.Module) -> bool:
    """Dropout of any kind, and attention or recurrence with dropout in it."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return any(_is_share(getattr(module, name, None)) for name in ("dropout", "dropout_p", "attn_drop"))


def _drops_paths(module: nn.Module) -> bool:
    """Stochastic depth under its usual names: timm's DropPath, torchvision's StochasticDepth, our own."""
    shares = (getattr(module, name, None) for name in ("drop_prob", "probability", "p"))
    return type(module).__name__ in ("DropPath", "StochasticDepth") and any(map(_is_share, shares))


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
