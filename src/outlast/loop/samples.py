"""From examples to batches on their way into a model: the cache of decoded samples, the loader and the batch plans.

The batches of an epoch are a function of (seed, epoch): any of them can be asked for without the ones before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from outlast.base.log import Progress, say
from outlast.config.identity import digest
from outlast.config.schema import TaskConfig
from outlast.data.cache import Cache, build
from outlast.data.loader import BatchPlan, Loader
from outlast.data.sampler import Drawn, batches_in, equal_batches, occurrence_keys
from outlast.data.table import Examples
from outlast.errors import DataError
from outlast.loop.accel import Compute
from outlast.task import Learner


@dataclass(frozen=True)
class Epoch:
    """The order of one epoch, cut into equal batches; `keys` are the indices that randomness hangs on.

    drawn: {name: batches} of what the sampler drew for each sample besides its row.
    """

    rows: list[np.ndarray]
    keys: list[np.ndarray]
    drawn: Mapping[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples the epoch has."""
        return sum(map(len, self.rows))

    def plans(self, epoch: int, first: int, micro_batch: int, rank: int, processes: int) -> Iterator[BatchPlan]:
        """This process's micro-batches of the steps from number `first` on."""
        number = 0
        for step in range(first, len(self.rows)):
            share = _share(len(self.rows[step]), rank, processes)
            rows = equal_batches(self.rows[step][share], micro_batch)
            keys = equal_batches(self.keys[step][share], micro_batch)
            drawn = {name: equal_batches(parts[step][share], micro_batch) for name, parts in self.drawn.items()}
            for place, (micro_rows, micro_keys) in enumerate(zip(rows, keys, strict=True)):
                mine = {name: parts[place] for name, parts in drawn.items()}
                yield BatchPlan(epoch, number, micro_rows, micro_keys, mine)
                number += 1

    def micro_batches(self, step: int, micro_batch: int, rank: int, processes: int) -> int:
        """How many micro-batches this process has in a step."""
        share = _share(len(self.rows[step]), rank, processes)
        return batches_in(share.stop - share.start, micro_batch)


def epoch_order(learner: Learner, config: TaskConfig, table: pd.DataFrame, fit: np.ndarray, epoch: int) -> Epoch:
    """The epoch's batches: positions into the whole table."""
    seed, batch_size = config.train.seed, config.train.batch_size
    order = learner.sampler(config, table.iloc[fit], seed, epoch)
    drawn = order if isinstance(order, Drawn) else Drawn(order)
    rows = fit[drawn.positions]
    return Epoch(
        equal_batches(rows, batch_size),
        equal_batches(occurrence_keys(rows), batch_size),
        {name: equal_batches(column, batch_size) for name, column in drawn.columns.items()},
    )


def first_samples(order: Epoch, count: int) -> BatchPlan:
    """The first `count` samples of an epoch in one batch; they begin again where it has fewer."""
    columns = {name: np.concatenate(parts) for name, parts in order.drawn.items()}
    rows, keys = np.concatenate(order.rows), np.concatenate(order.keys)
    drawn = {name: np.resize(column, count) for name, column in columns.items()}
    return BatchPlan(0, 0, np.resize(rows, count), np.resize(keys, count), drawn)


def evaluation_plans(rows: np.ndarray, batch_size: int, rank: int, processes: int) -> list[BatchPlan]:
    """Every row once, in order, shared out over the processes."""
    share = np.array_split(rows, processes)[rank]
    return [BatchPlan(0, number, part, part) for number, part in enumerate(equal_batches(share, batch_size))]


@contextlib.contextmanager
def open_loader(
    learner: Learner, config: TaskConfig, examples: Examples, scratch: Path, compute: Compute, cores: int
) -> Iterator[Loader]:
    """A loader over all rows, from a cache of decoded samples. Raises DataError that names every damaged file."""
    workers = workers_of(config, cores, compute.processes, beside_gpu=compute.device.type != "cpu")
    columns = {name: examples.table[name].to_numpy() for name in examples.batch_columns}
    with (
        open_cache(learner, config, examples, scratch, cores) as cache,
        Loader(
            get=cache.get,
            columns=columns,
            finish=partial(learner.augment, config),
            draw=_drawer(learner, config),
            workers=workers,
            prefetch_batches=config.loading.prefetch_batches,
            pin_memory=compute.device.type == "cuda",
        ) as loader,
    ):
        yield loader


def workers_of(config: TaskConfig, cores: int, processes: int, *, beside_gpu: bool) -> int:
    """How many loader workers each process has."""
    if config.loading.workers is not None:
        return config.loading.workers
    # On a CPU the training step needs the cores itself; beside a GPU they are free.
    return min(max(cores // processes - 1, 1), 8) if beside_gpu else 0


def open_cache(
    learner: Learner,
    config: TaskConfig,
    examples: Examples,
    scratch: Path,
    cores: int,
    read: Callable[[Any], dict[str, np.ndarray]] | None = None,
) -> Cache:
    """The cache of decoded samples, built if it is not there yet; read(row): the learner's own if none is given."""
    if len(examples.table) == 0:
        raise DataError(f"there are no examples in {examples.root}", hint="give the folder with --data")
    records = [{str(key): value for key, value in row.items()} for row in examples.table.to_dict("records")]
    with Progress("reading samples", len(records)) as progress:
        cache = build(
            records,
            read or partial(_read, learner, config, examples.root),
            key=cache_key(learner, config, examples),
            folder=scratch / "samples",
            budget_bytes=int(config.loading.cache_gigabytes * 1e9),
            threads=cores,
            progress=lambda done, total: progress.update(done),
        )
    if cache.note:
        say(cache.note)
    return cache


def cache_key(learner: Learner, config: TaskConfig, examples: Examples) -> str:
    """What decoded samples are known by: contents, reading settings, and the order of rows (they go by position)."""
    ids, hashes = examples.table["id"].tolist(), examples.table["hash"].tolist()
    return digest([learner.name, ids, hashes, learner.reads(config)])


def _share(count: int, rank: int, processes: int) -> slice:
    """A process's part of `count` samples, cut as np.array_split would, which is slow for something done every step."""
    size, larger = divmod(count, processes)
    start = rank * size + min(rank, larger)
    return slice(start, start + size + (rank < larger))


def _read(learner: Learner, config: TaskConfig, root: Path, row: Any) -> dict[str, np.ndarray]:
    return learner.read(config, root, row)


def _drawer(learner: Learner, config: TaskConfig) -> Callable[[int, np.ndarray], np.ndarray | None]:
    return partial(_draw, learner, config)


def _draw(learner: Learner, config: TaskConfig, epoch: int, keys: np.ndarray) -> np.ndarray | None:
    return learner.draw(config, config.train.seed, epoch, keys)
