"""How long the pieces of a training take on this machine: a few real steps, an evaluation, a save, on the real data.

Promises: what is timed is the code that trains; nothing of it remains on the disk. What is too long to be done whole
(an evaluation, a prediction) is done on a part of its rows and counted up. Only for one process.
"""

from __future__ import annotations

import itertools
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from outlast.data.loader import BatchPlan
from outlast.loop.accel import unwrapped
from outlast.loop.evaluate import evaluate
from outlast.loop.memory import Portion
from outlast.loop.samples import epoch_order
from outlast.loop.setup import Job, Setup, build, choose_fit, rows_of, snapshot
from outlast.loop.step import Batch
from outlast.save import store
from outlast.state import RunState

WARM_UP_STEPS, LEAST_STEPS, MOST_STEPS = 3, 8, 64
_ENOUGH_SECONDS, _TOO_LONG_SECONDS = 2.0, 30.0  # of timed steps: go on for the first, give up after the second
_EVALUATED_BATCHES = 8


@dataclass(frozen=True)
class Times:
    """Seconds on this machine. fit: finding what fits; begin: building it; row: one that is evaluated."""

    fit: float
    begin: float
    step: float
    row: float
    save: float
    best: float
    steps_timed: int
    micro_batch: int
    rung: str
    parameters: int


def measure(job: Job, scratch: Path) -> Times:
    """Time the pieces of the training `job`; `scratch` is where a checkpoint is written to and removed again."""
    began = time.perf_counter()
    fit = choose_fit(job, rows_of(job)[0])
    _finish(job)
    fitted = time.perf_counter()
    setup = build(job, fit)
    _finish(job)
    built = time.perf_counter()
    step, steps = _step_seconds(job, setup)
    row = _row_seconds(job, setup)
    save, best = _save_seconds(job, setup, scratch)
    return Times(
        fit=fitted - began, begin=built - fitted, step=step, row=row, save=save, best=best, steps_timed=steps,
        micro_batch=setup.micro_batch, rung=setup.rung, parameters=setup.parameters,
    )  # fmt: skip


def _step_seconds(job: Job, setup: Setup) -> tuple[float, int]:
    """The mean time of a step with its batches, as the loop does it, and how many were timed."""
    steps = _steps(job, setup)
    ahead = (job.config.loading.workers or 1) * job.config.loading.prefetch_batches
    for _ in range(max(WARM_UP_STEPS, min(ahead, LEAST_STEPS))):  # batches made ahead would flatter the first ones
        next(steps)
    _finish(job)
    began = time.perf_counter()
    for done in itertools.count(1):
        next(steps)
        seconds = time.perf_counter() - began
        enough = done >= LEAST_STEPS and (seconds >= _ENOUGH_SECONDS or done >= MOST_STEPS)
        if enough or seconds >= _TOO_LONG_SECONDS:
            break
    _finish(job)
    return (time.perf_counter() - began) / done, done


def _steps(job: Job, setup: Setup) -> Iterator[None]:
    """Steps of training without end, with a learning rate of 0."""
    compute, config = job.compute, job.config
    for epoch in itertools.count():
        order = epoch_order(job.learner, config, job.examples.table, setup.fit, epoch)
        plans: Iterator[BatchPlan] = order.plans(epoch, 0, setup.micro_batch, compute.rank, compute.processes)
        batches = job.loader.batches(plans, augmented=True)
        for number in range(len(order.rows)):
            count = order.micro_batches(number, setup.micro_batch, compute.rank, compute.processes)
            micro_batches: list[Batch] = list(itertools.islice(batches, count))
            for batch in micro_batches:
                batch["epochs"] = torch.tensor(epoch + number / len(order.rows))
            setup.stepper.run(micro_batches, len(order.rows[number]), 0.0)
            if setup.average is not None:
                setup.average.update_parameters(unwrapped(setup.model))
            yield


def _row_seconds(job: Job, setup: Setup) -> float:
    """The time that the evaluation takes per row, from rows spread over the validation split."""
    most = _EVALUATED_BATCHES * 2 * setup.micro_batch
    rows = setup.validate
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metrics on a part of the rows, where a class may be missing
        _evaluate(job, setup, rows[: 2 * setup.micro_batch])
        _finish(job)
        began = time.perf_counter()
        _evaluate(job, setup, rows)
    _finish(job)
    return (time.perf_counter() - began) / len(rows)


def _evaluate(job: Job, setup: Setup, rows: np.ndarray) -> None:
    portion = Portion(2 * setup.micro_batch)
    evaluate(job.learner, job.config, setup.evaluated(), job.loader, rows, job.examples.facts, job.compute, portion)


def _save_seconds(job: Job, setup: Setup, scratch: Path) -> tuple[float, float]:
    """The times of a checkpoint and of best weights, written, synced and verified."""
    state = RunState(model={}, optimizer={}, rung=setup.rung, micro_batch=setup.micro_batch)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        began = time.perf_counter()
        store.save(Path(folder), snapshot(setup, job, state, {}), job.record, keep=1)
        saved = time.perf_counter()
        store.save_best(Path(folder), 0, setup.evaluated().state_dict(), job.record)
        return saved - began, time.perf_counter() - saved


def _finish(job: Job) -> None:
    """Wait for what the device is still doing."""
    if job.compute.device.type == "cuda":
        torch.cuda.synchronize(job.compute.device)
