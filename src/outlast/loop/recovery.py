"""Out of memory while training: the step is rolled back, takes less from then on, and is done again.

Promises: nothing of a failed step remains (gradients, buffers, generators; weights, average and sums are not touched
before a step is whole), and the same batch comes again with the same samples, only cut smaller. Every change is said,
recorded with its step and reason, and kept in the checkpoints.

Where rolling back is not possible the stage begins again with its newest checkpoint: when memory ran out while the
optimizer changed the weights, and, from scratch, when only a smaller model is left. What it then begins with stands in
`fit.json` of the stage's folder before anything else happens, so that a kill in between changes nothing. With several
processes the others wait in a collective for the one that failed: there the run ends with an error that says so, and
the next start takes less.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outlast.base.files import read_json, write_json
from outlast.base.log import say
from outlast.errors import TrainingError
from outlast.loop.accel import unwrapped
from outlast.loop.differences import BATCH_NORM, sentence, what_cutting_changes
from outlast.loop.headroom import Thrashing
from outlast.loop.memory import (
    Fit,
    can_checkpoint,
    does_not_fit,
    less,
    nothing_fits,
    release,
    turn_on_checkpointing,
    why_out_of_memory,
)
from outlast.loop.setup import Job, Setup
from outlast.loop.step import Batch
from outlast.save import store
from outlast.state import RunState

DECISION = "fit.json"
_STEPS_BETWEEN_LOOKS = 16


class BeginAgain(Exception):
    """The stage begins again, with what `fit.json` says."""


class Recovery:
    """Does the steps of a session, and takes them back where memory runs out. `fit` is what holds now.

    unsaved: whether `fit` has changed since the last checkpoint.
    """

    def __init__(self, job: Job, setup: Setup, state: RunState, fit: Fit) -> None:
        self.job, self.setup, self.state, self.fit = job, setup, state, fit
        self.unsaved = False
        state.rung, state.micro_batch, state.checkpointing = fit.rung, fit.micro_batch, fit.checkpointing
        self._before = Before(setup.model, job.compute.device)
        self._thrashing = Thrashing(job.compute.device)

    def step(self, micro_batches: Sequence[Batch], samples: int, rate: float) -> dict[str, Any] | None:
        """One optimizer step, as Stepper.run; None if it was rolled back and `fit` has become smaller.

        Raises BeginAgain or TrainingError where that is not possible.
        """
        if self._gives_way_to_thrashing():
            return None
        self._before.remember()
        try:
            sums = self.setup.stepper.run(micro_batches, samples, rate)
        except (RuntimeError, MemoryError) as error:
            why = why_out_of_memory(error)
            if why is None:
                raise
        else:
            self._before.learn()
            return sums
        self._roll_back()
        self._take_less(why)
        return None

    def evaluation_took_less(self, size: int, why: str) -> None:
        """Evaluations do with `size` samples at a time from now on."""
        self._tell(f"evaluating runs out of memory ({why}): {size} samples at a time from now on")
        self._change(self.fit.after(self.state.step, why, evaluation_batch=size))

    def _gives_way_to_thrashing(self) -> bool:
        """Take less before the step if the allocator thrashes, and if there is anything left but another model."""
        if self.job.compute.processes > 1:
            return False  # only one process would see it, and all must take the same
        why = self._thrashing.seen()
        if why is None or self._less() is None:
            return False
        self._take_less(why)
        return True

    def _roll_back(self) -> None:
        self.setup.stepper.forget_gradients()
        self._before.put_back()
        release()

    def _less(self) -> dict[str, Any] | None:
        return less(self.fit, lambda: can_checkpoint(unwrapped(self.setup.model)))

    def _take_less(self, why: str) -> None:
        changes = self._less()
        if changes is None:
            raise self._next_rung(why)
        fit = self.fit.after(self.state.step, why, **changes)
        if self.setup.stepper.applying or self.job.compute.processes > 1:
            raise self._begin_again(fit, changes, why)
        if fit.checkpointing and not self.fit.checkpointing:
            turn_on_checkpointing(unwrapped(self.setup.model))
        self._tell(f"out of memory at {self._place} ({why}): {self._described(changes)} from this step on")
        self._change(fit)

    def _change(self, fit: Fit) -> None:
        self.fit, self.unsaved = fit, True
        self.setup.micro_batch = fit.micro_batch
        self.state.micro_batch, self.state.checkpointing = fit.micro_batch, fit.checkpointing

    def _begin_again(self, fit: Fit, changes: dict[str, Any], why: str) -> Exception:
        """What to raise when the step can't be taken back."""
        self._decide(fit)
        if self.job.compute.processes > 1:
            return TrainingError(
                f"out of memory at {self._place} in process {self.job.compute.rank} ({why}); the other processes wait "
                "for it, so the step can't be taken back",
                hint="type the same command again: it goes on from the last checkpoint, with "
                f"{self._described(changes)}",
            )
        self._tell(
            f"out of memory at {self._place} while the weights were changed ({why}): going back to the last "
            f"checkpoint, with {self._described(changes)}"
        )
        return BeginAgain()

    def _next_rung(self, why: str) -> Exception:
        """What to raise when the model can't be trained here: the next smaller one follows, if that is allowed."""
        train, rungs = self.job.config.train, self.job.learner.rungs(self.job.config)
        smaller = rungs[rungs.index(self.fit.rung) + 1 :]
        failures = [*(str(event["why"]) for event in self.fit.events), f"{self._place}: {why}"]
        if not train.fallback:
            return does_not_fit(self.fit.rung, failures)
        if not smaller:
            return nothing_fits(failures)
        self._decide(
            replace(self.fit, evaluation_batch=None).after(
                self.state.step,
                why,
                rung=smaller[0],
                micro_batch=train.micro_batch or -(-train.batch_size // self.job.compute.processes),
                checkpointing=False,
            )
        )
        self._tell(
            f"THE MODEL {self.fit.rung!r} DOES NOT FIT INTO MEMORY, NOT EVEN ONE SAMPLE AT A TIME: TRAINING FALLS BACK "
            f"TO {smaller[0]!r} AND BEGINS FROM SCRATCH. REASON, AT {self._place.upper()}: {why}"
        )
        if self.job.compute.processes > 1:
            return TrainingError(
                f"{self.fit.rung} doesn't fit into the memory of this machine",
                hint=f"type the same command again: it begins from scratch with {smaller[0]}",
            )
        return BeginAgain()

    @property
    def _place(self) -> str:
        return f"step {self.state.step + 1}"

    def _decide(self, fit: Fit) -> None:
        write_json(self.job.folder / DECISION, asdict(fit))

    def _described(self, changes: dict[str, Any]) -> str:
        changed = what_cutting_changes(unwrapped(self.setup.model), self.job.learner)
        if "checkpointing" in changes:
            twice = "; running averages of BatchNorm may move twice a step" if BATCH_NORM in changed else ""
            return f"activations computed again instead of kept (slower{twice})"
        return (
            f"micro-batches of {changes['micro_batch']} instead of {self.fit.micro_batch}, the effective batch stays "
            f"({sentence(changed)})"
        )

    def _tell(self, text: str) -> None:
        self.job.warned(f"{self.job.stage.name}: {text}")


class Before:
    """What a step changes before it is whole, as it was before: buffers and random generators.

    Cheap enough for every step. The states of Python's and numpy's generators are not (30 microseconds): they are kept
    only once a step was seen to draw from them, which is looked at every 16 steps.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._places = [(module._buffers, name) for module in model.modules() for name in module._buffers]
        self._found: list[Tensor | None] = []  # the buffers themselves; a forward pass may put others in their place
        self._kept: list[tuple[Tensor, Tensor]] = []  # a buffer and its copy
        self._torch = torch.get_rng_state()
        self._cuda: Tensor | None = None
        self._others: tuple[Any, Any] | None = None
        self._steps, self._draws_elsewhere = 0, False

    @torch.no_grad()
    def remember(self) -> None:
        """Before the step."""
        found = [buffers[name] for buffers, name in self._places]
        if len(found) == len(self._found) and all(map(operator.is_, found, self._found)):
            if self._kept:
                torch._foreach_copy_([copy for _, copy in self._kept], [buffer for buffer, _ in self._kept])
        else:
            self._found, self._kept = found, [(buffer, buffer.clone()) for buffer in found if buffer is not None]
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        looks = self._draws_elsewhere or self._steps % _STEPS_BETWEEN_LOOKS == 0
        self._others = _other_generators() if looks else None
        self._steps += 1

    def learn(self) -> None:
        """After a step that went well: whether such steps draw from Python's or numpy's generators."""
        if self._others is not None and not self._draws_elsewhere:
            before, now = self._others, _other_generators()
            self._draws_elsewhere = before[0] != now[0] or not np.array_equal(before[1][1], now[1][1])
            self._draws_elsewhere |= before[1][2:] != now[1][2:]

    @torch.no_grad()
    def put_back(self) -> None:
        """After a step that failed."""
        for (buffers, name), buffer in zip(self._places, self._found, strict=True):
            buffers[name] = buffer
        for buffer, copy in self._kept:
            buffer.copy_(copy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        if self._others is not None:
            random.setstate(self._others[0])
            np.random.set_state(self._others[1])  # noqa: NPY002


def remembered_fit(job: Job) -> Fit | None:
    """What the newest checkpoint, or what was decided after it, says: it is part of the run, not found anew."""
    if job.resume == "never":
        return None
    saved = store.newest(job.folder / "checkpoints", [])
    known = [Fit.read(saved.manifest["fit"])] if saved is not None and "fit" in saved.manifest else []
    if (job.folder / DECISION).is_file():
        known.append(Fit.read(read_json(job.folder / DECISION)))
    if not known:
        return None
    fit = max(known, key=lambda fit: len(fit.events))  # the one that has seen more
    declared = job.config.train.micro_batch
    if declared is None or declared == fit.asked:
        return fit
    return replace(fit, micro_batch=declared, asked=declared, evaluation_batch=None)


def set_aside_another_rung(job: Job, fit: Fit) -> None:
    """Keep the checkpoints of another model than the one that is trained now out of the way of those to come."""
    saved = store.newest(job.folder / "checkpoints", [])
    if saved is None or saved.manifest.get("fit", {}).get("rung", fit.rung) == fit.rung:
        return
    number = 1
    while (aside := job.folder.parent / "set-aside" / f"{job.folder.name}-{number}").exists():
        number += 1
    aside.mkdir(parents=True)
    for name in ("metrics.jsonl", "best", "checkpoints"):  # the checkpoints last: while they are there this is not done
        if (job.folder / name).exists():
            (job.folder / name).rename(aside / name)
    say(f"what was trained with {saved.manifest['fit']['rung']!r} is kept in {aside}")


def _other_generators() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002
