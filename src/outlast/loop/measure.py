"""How long the pieces of a training take on this machine: a few real steps, an evaluation, a save, on the real data.

`outlast check` and `outlast plan` both ask here. What is timed is the code that trains, with the memory ladder that
training climbs; a training itself records how long its own steps, evaluations and saves took (base.clock.Durations).
Promises: nothing of it remains on the disk but the cache of decoded samples. What is too long to be done whole (an
evaluation) is done on a part of its rows and counted up.
"""

from __future__ import annotations

import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from outlast.data.loader import BatchPlan
from outlast.data.table import Examples
from outlast.loop.accel import Compute, unwrapped
from outlast.loop.evaluate import evaluate
from outlast.loop.memory import Fit, Portion
from outlast.loop.samples import epoch_order, open_loader, workers_of
from outlast.loop.setup import Job, Setup, build, choose_fit, rows_of, snapshot
from outlast.loop.step import Batch
from outlast.loop.teaching import open_teacher
from outlast.save import store
from outlast.save.host import HostCopy
from outlast.save.space import bytes_in
from outlast.state import RunState
from outlast.task import Inputs, Train, Trained


@dataclass(frozen=True)
class Effort:
    """How much is done to know a time: steps to warm up and to time, and seconds of timed steps.

    enough_seconds: go on until then, unless `most_steps` are done; too_long_seconds: give up, with what there is.
    """

    warm_up_steps: int
    least_steps: int
    most_steps: int
    enough_seconds: float
    too_long_seconds: float
    evaluated_batches: int


THOROUGH = Effort(3, 8, 64, 2.0, 30.0, 8)
QUICK = Effort(1, 2, 12, 1.0, 2.0, 2)


@dataclass(frozen=True)
class Times:
    """Seconds and bytes of one training stage on this machine, for each of the processes that share its work.

    fit: finding what fits; begin: opening the data and building the model; step: one with its samples, of which `wait`
    is spent waiting for them; row: one that is evaluated; save, best: a checkpoint and best weights, written, synced
    and verified; stall: how long training stands still for a checkpoint. overlapped: whether samples are made while
    the step before computes.
    """

    fit: float
    begin: float
    step: float
    wait: float
    row: float
    save: float
    best: float
    stall: float
    checkpoint_bytes: int
    best_bytes: int
    overlapped: bool
    steps_timed: int
    micro_batch: int
    rung: str
    parameters: int
    steps_per_epoch: int
    epochs: int
    validation_rows: int


@dataclass(frozen=True)
class _Share:
    """The job, and of how many processes this one does the first one's part."""

    job: Job
    setup: Setup
    processes: int
    effort: Effort


def measure(
    stage: Train,
    examples: Examples,
    needs: Mapping[str, Path],
    compute: Compute,
    scratch: Path,
    cores: int,
    *,
    effort: Effort = THOROUGH,
    processes: int = 1,
    trained: Callable[[], Mapping[str, Trained]] = dict,
) -> Times:
    """Time the pieces of a training; `scratch` is where samples are cached, and a checkpoint is written and removed.

    Only for one process. processes: how many will share the work, on a device each; this one then does the share of
    one, and what they tell each other is not counted. trained(): weights that its teacher is made of. Raises what
    getting a training ready raises.
    """
    began = time.perf_counter()
    shared = replace(compute, processes=processes)  # to share out cores; nothing is exchanged
    with (
        tempfile.TemporaryDirectory(dir=scratch, prefix=".tmp-measure-") as folder,
        open_loader(stage.learner, stage.config, examples, scratch, shared, cores) as loader,
    ):
        teacher = cache(partial(open_teacher, stage, Inputs(examples.facts, needs), trained, compute.device))
        job = Job(
            stage, Path(folder) / stage.name, examples, needs, loader, compute, record={"stage": stage.name},
            teacher=teacher,
        )  # fmt: skip
        opened = time.perf_counter()
        fit = _fit(job, processes)
        _finish(job)
        fitted = time.perf_counter()
        setup = build(job, fit)
        _finish(job)
        built = time.perf_counter()
        share = _Share(job, setup, processes, effort)
        workers = workers_of(job.config, cores, processes, beside_gpu=compute.device.type != "cpu")
        step, wait, steps = _step_seconds(share, workers)
        row = _row_seconds(share)
        save, best, stall, checkpoint_bytes, best_bytes = _saving(share, Path(folder))
        return Times(
            fit=fitted - opened, begin=opened - began + built - fitted, step=step, wait=wait, row=row, save=save,
            best=best, stall=stall, checkpoint_bytes=checkpoint_bytes, best_bytes=best_bytes, overlapped=workers > 0,
            steps_timed=steps, micro_batch=setup.micro_batch, rung=setup.rung, parameters=setup.parameters,
            steps_per_epoch=setup.steps_per_epoch, epochs=setup.epochs, validation_rows=len(setup.validate),
        )  # fmt: skip


def _fit(job: Job, processes: int) -> Fit:
    """What fits into memory, of one process's share of the batch."""
    train = job.config.train
    smaller = train.model_copy(update={"batch_size": -(-train.batch_size // processes)})
    stage = replace(job.stage, config=job.config.model_copy(update={"train": smaller}))
    return choose_fit(replace(job, stage=stage), rows_of(job)[0])


def _step_seconds(share: _Share, workers: int) -> tuple[float, float, int]:
    """The mean time of a step with its samples, as the loop does it, that of waiting for them, and how many there were.

    A GPU still computes while its process goes on: there the wait is seen in a few more steps that are waited for.
    """
    effort, steps = share.effort, _steps(share)
    ahead = workers * share.job.config.loading.prefetch_batches
    for _ in range(max(effort.warm_up_steps, min(ahead, 8))):  # batches made ahead would flatter the first ones
        next(steps)
    step, wait, done = _timed(share, steps)
    if share.job.compute.device.type == "cuda":
        _, wait, _ = _timed(share, (_settled(share, seconds) for seconds in steps))
    return step, min(wait, step), done


def _timed(share: _Share, steps: Iterator[float]) -> tuple[float, float, int]:
    """(seconds of a step, seconds of them that were waited for samples, number of steps)."""
    effort, waited = share.effort, 0.0
    _finish(share.job)
    began = time.perf_counter()
    for done in itertools.count(1):
        waited += next(steps)
        seconds = time.perf_counter() - began
        enough = done >= effort.least_steps and (seconds >= effort.enough_seconds or done >= effort.most_steps)
        if enough or seconds >= effort.too_long_seconds:
            break
    _finish(share.job)
    return (time.perf_counter() - began) / done, waited / done, done


def _steps(share: _Share) -> Iterator[float]:
    """Steps of training without end, with a learning rate of 0; yields the seconds waited for the samples of each."""
    job, setup, processes = share.job, share.setup, share.processes
    for epoch in itertools.count():
        order = epoch_order(job.learner, job.config, job.examples.table, setup.fit, epoch)
        plans: Iterator[BatchPlan] = order.plans(epoch, 0, setup.micro_batch, 0, processes)
        batches = job.loader.batches(plans, augmented=True)
        for number in range(len(order.rows)):
            began = time.perf_counter()
            count = order.micro_batches(number, setup.micro_batch, 0, processes)
            micro_batches: list[Batch] = list(itertools.islice(batches, count))
            waited = time.perf_counter() - began
            for batch in micro_batches:
                batch["epochs"] = torch.tensor(epoch + number / len(order.rows))
            setup.stepper.run(micro_batches, sum(len(batch["row"]) for batch in micro_batches), 0.0)
            if setup.average is not None:
                setup.average.update_parameters(unwrapped(setup.model))
            yield waited


def _settled(share: _Share, waited: float) -> float:
    _finish(share.job)
    return waited


def _row_seconds(share: _Share) -> float:
    """The time that the evaluation takes per row, from rows spread over the validation split."""
    job, setup = share.job, share.setup
    size = 2 * setup.micro_batch
    rows, most = setup.validate, share.effort.evaluated_batches * size
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metrics on a part of the rows, where a class may be missing
        _evaluate(job, setup, rows[:size])
        _finish(job)
        began = time.perf_counter()
        _evaluate(job, setup, rows)
    _finish(job)
    return (time.perf_counter() - began) / len(rows)


def _evaluate(job: Job, setup: Setup, rows: np.ndarray) -> None:
    portion = Portion(2 * setup.micro_batch)
    learner, facts = job.learner, job.examples.facts
    evaluate(learner, job.config, setup.evaluated(), job.loader, rows, facts, job.compute, portion, judged=False)


def _saving(share: _Share, folder: Path) -> tuple[float, float, float, int, int]:
    """Seconds of a checkpoint, of best weights, that training stands still; bytes of a checkpoint, of best weights."""
    job, setup = share.job, share.setup
    state = snapshot(setup, job, RunState(model={}, optimizer={}, rung=setup.rung, micro_batch=setup.micro_batch), {})
    whole = {name: getattr(state, name) for name in state.__dataclass_fields__}
    copy = HostCopy()
    copy.take(whole)  # the memory is allocated once in a run
    copy.release()
    began = time.perf_counter()
    copy.take(whole)
    copied = time.perf_counter()
    saved = store.save(folder, state, job.record, keep=1)
    written = time.perf_counter()
    best = store.save_best(folder, 0, setup.evaluated().state_dict(), job.record)
    ended = time.perf_counter()
    return written - copied, ended - written, copied - began, bytes_in(saved.folder), bytes_in(best.folder)


def _finish(job: Job) -> None:
    """Wait for what the device is still doing."""
    if job.compute.device.type == "cuda":
        torch.cuda.synchronize(job.compute.device)
