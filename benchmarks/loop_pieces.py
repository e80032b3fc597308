"""Processor time of the pieces of our training loop, in milliseconds per step; a piece holds those called inside it.

    python benchmarks/loop_pieces.py --size small

It drives the same run as `loop.py` and wraps functions with timers, which cost about 1 us per call themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import tempfile
import time
from typing import Any

import torch

from loop import SIZES, Memory, Net, ours
from outlast.base import log
from outlast.data import loader
from outlast.loop import samples, step, train

WARM_UP_STEPS = 50


class Slices:
    """Stands where the loop has itertools; a list, because timing the making of a lazy slice would time nothing."""

    islice = staticmethod(lambda batches, count: list(itertools.islice(batches, count)))


PIECES = {
    "step": (step.Stepper, "run"),
    "  forward": (Net, "forward"),
    "  backward": (torch.Tensor, "backward"),
    "  clip gradients": (torch.nn.utils, "clip_grad_norm_"),
    "  optimizer": (torch.optim.AdamW, "step"),
    "next batch": (Slices, "islice"),
    "  make the batch": (loader._Maker, "make"),
    "check and sum the loss": (step.LossWatch, "push"),
    "learning rate": (train._Session, "_rate"),
    "stop or session limit?": (train._Session, "_reason_to_stop"),
    "checkpoint due?": (train._Session, "_save_is_due"),
    "progress": (log.Progress, "update"),
    "micro-batches of a step": (samples.Epoch, "micro_batches"),
    "order of an epoch": (train, "epoch_order"),
}


class Done(Exception):
    """Ends the run from inside."""


class Count:
    """Stands where loop.py has its turns: starts the timers after some steps, and ends the run."""

    def __init__(self, steps: int, spent: dict[str, float]) -> None:
        self.steps, self.spent, self.count = steps, spent, 0

    def tick(self) -> None:
        self.count += 1
        if self.count == WARM_UP_STEPS:
            self.spent.clear()
            self.began = time.process_time()
        if self.count == WARM_UP_STEPS + self.steps:
            self.spent["total"] = time.process_time() - self.began
            raise Done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spent: dict[str, float] = {}
    train.itertools = Slices()  # type: ignore[assignment]
    for label, (owner, name) in PIECES.items():
        wrap(owner, name, label, spent)
    Net.turn = Count(arguments.steps, spent)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with contextlib.suppress(Done):
            ours(SIZES[arguments.size], Memory(SIZES[arguments.size], whole_batches=True))
        os.chdir("/")
    for label in (*PIECES, "total"):
        print(f"{label:26s}{1e3 * spent[label] / arguments.steps:9.4f}")


def wrap(owner: Any, name: str, label: str, spent: dict[str, float]) -> None:
    """Add up under `label` the processor time of owner.name."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[label] = spent.get(label, 0.0) + time.process_time() - began

    setattr(owner, name, staticmethod(timed) if owner is Slices else timed)


if __name__ == "__main__":
    main()
