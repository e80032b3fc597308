"""Evaluation and prediction: no gradient, no randomness, each row once. Prediction is sharded and resumable."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outlast.base.accident import reached
from outlast.base.clock import Durations
from outlast.base.log import Progress
from outlast.config.schema import TaskConfig
from outlast.data.loader import BatchPlan, Loader
from outlast.data.sampler import batches_in
from outlast.data.shards import drop_beyond, holds, write_shard
from outlast.errors import TaskError
from outlast.loop.accel import Compute
from outlast.loop.memory import Portion, release, why_out_of_memory
from outlast.loop.samples import evaluation_plans
from outlast.task import Learner

Batch = dict[str, Tensor]

SHARD_ROWS = 1024  # of a shard at most, which is also what a stop may have to wait for
SHARD_BYTES = 64 * 2**20  # of a shard's arrays at most: they are held in memory until it is written


def evaluate(
    learner: Learner,
    config: TaskConfig,
    model: nn.Module,
    loader: Loader,
    rows: np.ndarray,
    facts: Any,
    compute: Compute,
    portion: Portion,
    stop: Callable[[], bool] = lambda: False,
    *,
    judged: bool = True,
) -> dict[str, Any] | None:
    """The learner's metrics over `rows` (positions in the table); every process gets the same numbers.

    None if stop() asked to give it up; it is asked before each batch, in all processes alike. judged: False where only
    the time counts: of a few rows, a metric may say nothing (no positives among them).
    """
    metric = learner.metric(config, facts)
    portion.agree(compute.gather(portion.size))
    plans = evaluation_plans(rows, portion.size, compute.rank, compute.processes)
    common = batches_in(len(rows) // compute.processes, portion.size)  # one process may have one more
    with contextlib.closing(_outputs(learner, config, model, loader, plans, compute, portion)) as made:
        for number, parts in enumerate(made):
            if number < common and stop():
                return None
            reached("evaluate")
            for batch, outputs in parts:
                metric.update(outputs, batch)
    others = compute.gather(metric)
    if not judged:
        return {}
    merged = others[0]
    for other in others[1:]:
        merged.merge(other)
    return dict(merged.compute())


def predict(
    learner: Learner,
    config: TaskConfig,
    model: nn.Module,
    loader: Loader,
    rows: np.ndarray,
    ids: Sequence[str],
    names: Sequence[str],
    folder: Path,
    compute: Compute,
    portion: Portion,
    durations: Durations,
    now: Callable[[], float],
    stop: Callable[[], str | None] = lambda: None,
) -> str | None:
    """Write the outputs `names` of `rows` in shards; those that are there are kept. Returns why it stopped, or None.

    A shard has at most SHARD_ROWS rows and SHARD_BYTES bytes (but one row, whatever its size).
    """
    size = _rows_of_a_shard(learner, config, model, loader, int(rows[0]), names, compute, portion)
    shards = [rows[start : start + size] for start in range(0, len(rows), size)]
    if compute.main:
        drop_beyond(folder, len(shards))
    with Progress(f"predicting {folder.name}", len(shards)) as progress:
        for number, part in enumerate(shards):
            mine = number % compute.processes == compute.rank
            began = now()
            reached("predict")
            own = [ids[row] for row in part]
            if mine and not holds(folder, number, own):
                arrays = collect(learner, config, model, loader, part, names, compute, portion)
                write_shard(folder, number, own, arrays)
                durations.record("shard", now() - began)
            reason = compute.share(stop())
            if reason and number + 1 < len(shards):
                return str(reason)
            progress.update(number + 1)
    compute.wait()
    return None


def collect(
    learner: Learner,
    config: TaskConfig,
    model: nn.Module,
    loader: Loader,
    rows: np.ndarray,
    names: Sequence[str],
    compute: Compute,
    portion: Portion,
) -> dict[str, np.ndarray]:
    """The outputs `names` of `rows` as float32 arrays (rows, ...), in this process alone."""
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in names}
    plans = evaluation_plans(rows, portion.size, 0, 1)
    for parts in _outputs(learner, config, model, loader, plans, compute, portion):
        for _, outputs in parts:
            for name in names:
                if name not in outputs:
                    raise TaskError(f"the learner {learner.name!r} predicts {', '.join(outputs)}, but not {name!r}")
                pieces[name].append(outputs[name].float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in pieces.items()}


def output_shapes(
    learner: Learner,
    config: TaskConfig,
    model: nn.Module,
    loader: Loader,
    row: int,
    compute: Compute,
    portion: Portion,
) -> dict[str, tuple[int, ...]]:
    """What the learner predicts and its shape without the first axis, told by one row."""
    plans = evaluation_plans(np.array([row], dtype=np.int64), 1, 0, 1)
    with contextlib.closing(_outputs(learner, config, model, loader, plans, compute, portion)) as made:
        return {
            name: tuple(value.shape[1:]) for parts in made for _, outputs in parts for name, value in outputs.items()
        }


def _rows_of_a_shard(
    learner: Learner,
    config: TaskConfig,
    model: nn.Module,
    loader: Loader,
    row: int,
    names: Sequence[str],
    compute: Compute,
    portion: Portion,
) -> int:
    """How many rows a shard takes, by what one row's outputs take in 32 bits."""
    shapes = output_shapes(learner, config, model, loader, row, compute, portion)
    size = 4 * sum(math.prod(shapes[name]) for name in names if name in shapes)
    return max(1, min(SHARD_ROWS, SHARD_BYTES // max(size, 1)))


def _outputs(
    learner: Learner,
    config: TaskConfig,
    model: nn.Module,
    loader: Loader,
    plans: list[BatchPlan],
    compute: Compute,
    portion: Portion,
) -> Generator[Iterator[tuple[Batch, Batch]], None, None]:
    """Batch by batch, the parts of it that fit into memory, each with its outputs."""
    training = model.training
    model.eval()
    try:
        for batch in loader.batches(plans, augmented=False):
            yield _in_parts(learner, config, model, batch, compute, portion)
    finally:
        model.train(training)


def _in_parts(
    learner: Learner, config: TaskConfig, model: nn.Module, batch: Batch, compute: Compute, portion: Portion
) -> Iterator[tuple[Batch, Batch]]:
    done, count = 0, len(batch["row"])
    while done < count:
        stop = min(done + portion.size, count)
        part = compute.put(batch if stop - done == count else {name: value[done:stop] for name, value in batch.items()})
        try:
            outputs = _forward(learner, config, model, part, compute)
        except (RuntimeError, MemoryError) as error:
            why = why_out_of_memory(error)
            if why is None:
                raise
        else:
            yield part, outputs
            done = stop
            continue
        del part
        release()
        portion.halve(stop - done, why)


@torch.inference_mode()
def _forward(learner: Learner, config: TaskConfig, model: nn.Module, batch: Batch, compute: Compute) -> Batch:
    with compute.autocast(config.train.precision):
        return learner.predict(config, model, batch)
