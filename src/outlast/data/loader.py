"""Batches in order, made in this process or by workers: cache -> draw -> finish -> tensors.

Promises: the same bits for any number of workers and any prefetching (a batch is a function of its plan; samples are
made with one thread); an error in a worker arrives here as the OutlastError it was; leaving an iteration midway is
clean, and the same workers serve the next one. Does not do: decide the order (sampler.py), or move batches to a device.
"""

from __future__ import annotations

import atexit
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from outlast.errors import OutlastError

Int64 = npt.NDArray[np.int64]
Batch = dict[str, Any]  # name -> tensor with the samples first; a list of tensors where shapes differ
Get = Callable[[Int64], Mapping[str, Any]]
Finish = Callable[[Batch, npt.NDArray[Any] | None], Batch]
Draw = Callable[[int, Int64], npt.NDArray[Any] | None]

_GRACE_SECONDS = 60  # a worker that is told to end leaves the main process this time to save


@dataclass(frozen=True)
class BatchPlan:
    """What a batch holds: rows (B,) of the table, and keys (B,), the indices under which their randomness is drawn.

    drawn: {name: (B,)}, what the sampler drew for each sample besides its row.
    """

    epoch: int
    number: int
    rows: Int64
    keys: Int64
    drawn: Mapping[str, Int64] = field(default_factory=dict)


@dataclass(frozen=True)
class _Maker(Dataset[Any]):
    """Makes a batch from its plan; the same code in the main process and in workers."""

    get: Get
    columns: Mapping[str, npt.NDArray[Any]]
    finish: Finish | None
    draw: Draw | None

    def make(self, plan: BatchPlan, augmented: bool) -> Batch:
        batch: Batch = {name: _tensors(value) for name, value in self.get(plan.rows).items()}
        for name, column in self.columns.items():
            batch[name] = torch.from_numpy(column[plan.rows])
        for name, column in plan.drawn.items():
            batch[name] = torch.from_numpy(column)
        batch["row"] = torch.from_numpy(np.array(plan.rows, dtype=np.int64))
        if self.finish is None:
            return batch
        draws = self.draw(plan.epoch, plan.keys) if augmented and self.draw is not None else None
        return self.finish(batch, draws)

    def __getitem__(self, item: tuple[BatchPlan, bool]) -> Batch | _Failure:
        try:
            return self.make(*item)
        except OutlastError as error:
            return _Failure(error)  # raised by the main process as it is; torch would wrap it in a traceback


@dataclass(frozen=True)
class _Failure:
    error: OutlastError


class _Feed:
    """The plans of the iteration in progress; a DataLoader keeps its sampler, ours changes what it gives."""

    def __init__(self) -> None:
        self.items: Iterable[tuple[BatchPlan, bool]] = ()

    def __iter__(self) -> Iterator[tuple[BatchPlan, bool]]:
        return iter(self.items)


class Loader:
    """A held resource: worker processes that live until `close`, across epochs and evaluations.

    get(rows): uint8 arrays of these rows (Cache.get). columns: {name: array over all rows}, indexed by rows into the
    batch. draw(epoch, keys): the random numbers of a batch. finish(batch, draws): the whole batch on its way to the
    model; draws is None when not augmented; none: the batch as it is. workers: processes; 0: made here, when asked
    for. prefetch_batches: how many each worker prepares ahead.
    """

    def __init__(
        self,
        get: Get,
        columns: Mapping[str, npt.NDArray[Any]],
        finish: Finish | None,
        draw: Draw | None,
        *,
        workers: int,
        prefetch_batches: int = 4,
        pin_memory: bool = False,
        start_method: str = "fork",
    ) -> None:
        self._maker = _Maker(get, dict(columns), finish, draw)
        self._workers, self._pin = workers, pin_memory
        self._prefetch, self._start_method = prefetch_batches, start_method
        self._feed = _Feed()
        self._pool: DataLoader[Any] | None = None
        self._running = 0  # number of the iteration in progress; a new one ends the one before

    def batches(self, plans: Iterable[BatchPlan], *, augmented: bool = True) -> Iterator[Batch]:
        """The batches of these plans, in order; each also holds "row" (B,) int64.

        One iteration at a time: starting another one ends this one. Raises what `get` and `finish` raise.
        """
        self._running += 1
        make = self._made_here if self._workers == 0 else self._from_workers
        return make(plans, augmented, self._running)

    def close(self) -> None:
        """End the workers; a worker that hangs is killed."""
        self._running += 1
        pool, self._pool = self._pool, None
        atexit.unregister(self.close)
        iterator = getattr(pool, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            for process in iterator._workers:
                if process.is_alive():
                    process.kill()
                    process.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _made_here(self, plans: Iterable[BatchPlan], augmented: bool, mine: int) -> Iterator[Batch]:
        for plan in plans:
            self._check(mine)
            with one_thread():
                batch = self._maker.make(plan, augmented)
            yield _pinned(batch) if self._pin else batch

    def _from_workers(self, plans: Iterable[BatchPlan], augmented: bool, mine: int) -> Iterator[Batch]:
        self._check(mine)
        self._feed.items = ((plan, augmented) for plan in plans)
        if self._pool is None:
            self._pool = self._new_pool()
            atexit.register(self.close)  # before multiprocessing's own exit handler, which would wait for the workers
        with warnings.catch_warnings():
            # Python 3.12+ warns of any fork beside threads; our workers use none of the locks in question.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            made = iter(self._pool)
        while (batch := next(made, None)) is not None:
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch
            self._check(mine)  # torch's iterator is one and the same for all iterations

    def _new_pool(self) -> DataLoader[Any]:
        return DataLoader(
            self._maker,
            batch_size=None,
            sampler=self._feed,
            num_workers=self._workers,
            prefetch_factor=self._prefetch,
            persistent_workers=True,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else starting an iteration would take a number from the global generator
            pin_memory=self._pin,
            worker_init_fn=_settle,
            multiprocessing_context=self._start_method,
        )

    def _check(self, mine: int) -> None:
        if mine != self._running:
            raise RuntimeError("this iteration was ended by another call of Loader.batches, or by Loader.close")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside the block: float kernels give other bits on one thread than on two."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _settle(_: int) -> None:
    """Set up a worker: one thread, and signals that are meant for the main process don't end it at once."""
    torch.set_num_threads(1)
    os.setpgid(0, 0)  # Ctrl-C and signals to the process group are the main process's to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A batch system may signal every process of a job: the main one saves first. A worker without its main process
    # ends by itself (torch looks every five seconds).
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _as_it_is(item: Any) -> Any:
    return item


def _tensors(value: Any) -> Any:
    if isinstance(value, list):
        return [torch.from_numpy(array) for array in value]
    return torch.from_numpy(value)


def _pinned(batch: Batch) -> Batch:
    return {
        name: [one.pin_memory() for one in value] if isinstance(value, list) else value.pin_memory()
        for name, value in batch.items()
    }
