"""How long a step, an evaluation and a save take here, measured by doing them a few times, and what follows from that.

The measurement is plain numbers (JSON), so that a plan can be made from one that was kept.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from outlast.check.trial import Trial
from outlast.loop.evaluate import collect
from outlast.loop.memory import Portion
from outlast.loop.samples import epoch_order, evaluation_plans, open_loader, workers_of
from outlast.loop.setup import Job, Setup, build, choose_fit, rows_of, snapshot
from outlast.save import store
from outlast.save.host import HostCopy
from outlast.state import RunState

_MOST_STEPS = 12
_MOST_SECONDS = 2.0  # for the measured steps of a stage, and again for its loading and its evaluation


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes of one training stage, as it is configured, on this machine.

    step_seconds: of one optimizer step, its batch already there. load_seconds: of one step's samples, nothing else
    going on. overlapped: whether samples are made while the step before computes. evaluate_seconds: of one whole
    evaluation. save_seconds: of one checkpoint, off the training path. stall_seconds: how long training stands still
    for it.
    """

    stage: str
    rung: str
    device: str
    micro_batch: int
    step_seconds: float
    load_seconds: float
    overlapped: bool
    evaluate_seconds: float
    save_seconds: float
    stall_seconds: float
    checkpoint_bytes: int
    best_bytes: int
    steps_per_epoch: int
    epochs: int
    evaluate_every_epochs: int

    @property
    def seconds_per_step(self) -> float:
        """With the wait for its samples."""
        if self.overlapped:
            return max(self.step_seconds, self.load_seconds)
        return self.step_seconds + self.load_seconds

    @property
    def evaluations(self) -> int:
        """How often it is evaluated: every so many epochs, and after the last one."""
        return -(-self.epochs // self.evaluate_every_epochs)

    @property
    def training_seconds(self) -> float:
        return self.epochs * self.steps_per_epoch * self.seconds_per_step

    @property
    def evaluation_seconds(self) -> float:
        return self.evaluations * self.evaluate_seconds

    def total_seconds(self, every_minutes: float) -> float:
        """Training, evaluating, and standing still for checkpoints every so many minutes."""
        seconds = self.training_seconds + self.evaluation_seconds
        return seconds + seconds / (60 * every_minutes) * self.stall_seconds

    def most_bytes(self, keep: int) -> int:
        """While it trains: the checkpoints kept and the one being written; the best weights, old and new."""
        return (keep + 1) * self.checkpoint_bytes + 2 * self.best_bytes


def measure(trial: Trial, scratch: Path, cores: int, now: Callable[[], float] = time.perf_counter) -> Measured:
    """Do a few steps, a part of an evaluation and one save of the stage. Nothing of it remains."""
    stage, examples, compute = trial.stage, trial.reading.examples, trial.compute
    with (
        tempfile.TemporaryDirectory(dir=scratch, prefix=".tmp-measure-") as folder,
        open_loader(stage.learner, stage.config, examples, scratch, compute, cores) as loader,
    ):
        job = Job(stage, Path(folder) / stage.name, examples, {name: trial.run / name for name in stage.needs}, loader,
                  compute, record={})  # fmt: skip
        fit = choose_fit(job, rows_of(job)[0])
        setup = build(job, fit)
        overlapped = _overlapped(job, cores)
        step_seconds, load_seconds = _steps(job, setup, overlapped, now)
        evaluate_seconds = _evaluation(job, setup, now)
        save_seconds, stall_seconds, checkpoint_bytes, best_bytes = _save(job, setup, now)
        return Measured(
            stage=stage.name,
            rung=fit.rung,
            device=compute.device.type,
            micro_batch=fit.micro_batch,
            step_seconds=step_seconds,
            load_seconds=load_seconds,
            overlapped=overlapped,
            evaluate_seconds=evaluate_seconds,
            save_seconds=save_seconds,
            stall_seconds=stall_seconds,
            checkpoint_bytes=checkpoint_bytes,
            best_bytes=best_bytes,
            steps_per_epoch=setup.steps_per_epoch,
            epochs=setup.epochs,
            evaluate_every_epochs=stage.config.train.evaluate_every_epochs,
        )


def _overlapped(job: Job, cores: int) -> bool:
    """Whether samples are made by other processes while a step computes."""
    return workers_of(job.config, cores, job.compute.processes, beside_gpu=job.compute.device.type != "cpu") > 0


def _steps(job: Job, setup: Setup, overlapped: bool, now: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step with its samples there, and of making its samples; both without the first, which warms up."""
    order = epoch_order(job.learner, job.config, job.examples.table, setup.fit, 0)
    wanted = min(len(order.rows), _MOST_STEPS)
    count = [order.micro_batches(number, setup.micro_batch, 0, 1) for number in range(wanted)]
    batches = job.loader.batches(order.plans(0, 0, setup.micro_batch, 0, 1), augmented=True)
    loads, steps = [], []
    began = now()
    for number in range(wanted):
        before = now()
        micro_batches = list(itertools.islice(batches, count[number]))
        loaded = now()
        for batch in micro_batches:
            batch["epochs"] = torch.tensor(0.0)
        setup.stepper.run(micro_batches, len(order.rows[number]), job.config.train.learning_rate / 100)
        _settle(job)
        loads.append(loaded - before)
        steps.append(now() - loaded)
        if now() - began > _MOST_SECONDS and number > 0:
            break
    if not overlapped:
        return _usual(steps), _usual(loads)
    # Workers were ahead of these steps: how fast they are alone shows when nobody else takes time.
    began, made = now(), 0
    for number, _ in enumerate(job.loader.batches(order.plans(0, 0, setup.micro_batch, 0, 1), augmented=True)):
        if number == 0:
            began = now()
        made = number
        if now() - began > _MOST_SECONDS:
            break
    return _usual(steps), (now() - began) / made * (sum(count) / len(count)) if made else _usual(loads)


def _evaluation(job: Job, setup: Setup, now: Callable[[], float]) -> float:
    """Seconds of one whole evaluation, from a part of it."""
    rows, taken, passed = setup.validate, 0, 0.0
    size = 2 * setup.micro_batch
    model = setup.evaluated()
    for number, plan in enumerate(evaluation_plans(rows, size, 0, 1)):
        began = now()
        collect(job.learner, job.config, model, job.loader, np.asarray(plan.rows), (), job.compute, Portion(size))
        _settle(job)
        if number == 0 and len(rows) > size:
            continue  # warms up
        taken, passed = taken + len(plan.rows), passed + now() - began
        if passed > _MOST_SECONDS:
            break
    return passed * len(rows) / taken


def _save(job: Job, setup: Setup, now: Callable[[], float]) -> tuple[float, float, int, int]:
    """(seconds of a save, seconds that training stands still for it, bytes of a checkpoint, bytes of best weights)."""
    state = snapshot(setup, job, RunState(model={}, optimizer={}, rung=setup.rung, micro_batch=setup.micro_batch), {})
    copy = HostCopy()
    whole = {name: getattr(state, name) for name in state.__dataclass_fields__}
    copy.take(whole)  # the memory is allocated once in a run
    copy.release()
    began = now()
    copy.take(whole)
    stall = now() - began
    began = now()
    saved = store.save(job.folder, state, {}, keep=1)
    seconds = now() - began
    best = store.save_best(job.folder, 0, setup.evaluated().state_dict(), {})
    return seconds, stall, _bytes(saved.folder), _bytes(best.folder)


def _settle(job: Job) -> None:
    if job.compute.device.type == "cuda":
        torch.cuda.synchronize()


def _usual(seconds: list[float]) -> float:
    """The median without the first, which also loads libraries and chooses kernels."""
    return float(median(seconds[1:] or seconds))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
