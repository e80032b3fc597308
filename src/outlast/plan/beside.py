"""Stages side by side: those that do not need one another run at the same time, each in a process of its own.

This process keeps the run's record, the mirror and the report; the workers (`plan.worker`) write the folders of their
stages and tell what they do. With GPUs each worker sees one of them. Promises: the result is that of one stage after
the other with as many CPU threads, bit for bit; a stage that fails, or a worker that is killed, does not keep the
others from being finished; a stop signal and the session's end stop all of them in time; no worker outlives this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from outlast.base.listen import Listener, pieces
from outlast.base.log import TERMINAL, redraws, say, show_line, warn
from outlast.config.schema import TaskConfig
from outlast.errors import TrainingError, UsageError
from outlast.plan import launch, ledger, runner
from outlast.plan.request import Request, beginnings
from outlast.plan.runner import Surroundings
from outlast.task import Stage, needed, topological

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOOK_SECONDS = 0.1
_MEMORY = "most often the machine's memory ran out: lower --side-by-side, train.micro_batch or loading.workers"


def share_of(cores: int, at_once: int) -> int:
    """The cores that each of so many stages has to itself."""
    return max(cores // max(at_once, 1), 1)


def check(at_once: int, gpus: int) -> None:
    """Refuse more stages at a time than GPUs: they would take each other's memory. Raises UsageError."""
    if at_once > 1 and 0 < gpus < at_once:
        raise UsageError(
            f"--side-by-side {at_once} on a machine with {gpus} GPU(s): each stage needs a GPU of its own",
            hint=f"give --side-by-side {gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to compute on the CPU",
        )


def run(around: Surroundings, asked: Request, config: TaskConfig) -> str | None:
    """As runner.run: do what is left of the plan; returns why it stopped, or None when all is done.

    Raises TrainingError that names every stage that failed, once the others have got as far as they can.
    """
    together = asked.side_by_side * around.compute.threads
    if around.compute.device.type == "cpu" and together > around.cores:
        warn(f"{asked.side_by_side} stages with {around.compute.threads} CPU threads each share {around.cores} cores")
    hall = _Hall(around, _in_common(around, asked, config), _seats(asked.side_by_side))
    with hall.closed_afterwards():
        return hall.work()


def _in_common(around: Surroundings, asked: Request, config: TaskConfig) -> dict[str, Any]:
    """What a worker must know for every stage."""
    return {
        "task": asked.task, "data": launch.roots(asked.data) if asked.data is not None else None,
        "run": str(around.run.absolute()), "preset": config.preset,
        "config": str(asked.config) if asked.config else None,
        "overrides": [*asked.overrides, *([] if asked.fallback else ["train.fallback=false"])],
        "asked_synthetic": asked.synthetic, "threads": around.compute.threads,
        "cores": share_of(around.cores, asked.side_by_side), "record": dict(around.record),
        "synthetic": around.synthetic, "ends_at": around.deadline.ends_at if around.deadline.limited else None,
        "why": around.deadline.reason, "guess_seconds": around.durations.guess_seconds,
        "start_from": {name: str(path) for name, path in beginnings(around.plan, asked).items()},
        "afterwards": list(around.afterwards),
    }  # fmt: skip


def _seats(count: int) -> list[dict[str, str]]:
    """What the environment of each worker says of GPUs: its own one, as this process sees them."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 0:
        return [{} for _ in range(count)]
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name] or [str(gpu) for gpu in range(gpus)]
    return [{VISIBLE: named[seat]} for seat in range(count)]


@dataclass
class _Worker:
    """A process and the stage that it does now."""

    seat: int
    process: subprocess.Popen[bytes]
    stage: str | None = None
    line: str = ""  # its progress
    readers: list[threading.Thread] = field(default_factory=list)

    def send(self, value: Mapping[str, Any]) -> None:
        """A line on its standard input; one that is dead is noticed by its end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            self.process.stdin.flush()


class _Hall:
    """The workers, what they have told, and what became of the stages."""

    def __init__(self, around: Surroundings, common: Mapping[str, Any], seats: list[dict[str, str]]) -> None:
        self.around, self.common, self.seats = around, common, seats
        self.waiting = topological(around.plan)
        self.ready: list[Stage] = []  # their needs are done, and they are not
        self.done: set[str] = set()
        self.workers: list[_Worker] = []
        self.told: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self.failed: dict[str, Mapping[str, Any]] = {}
        self.reason: str | None = None  # why it stops
        self.signalled: str | None = None  # what was passed on to the workers

    def work(self) -> str | None:
        """Begin what can be begun, listen, until nothing is under way and nothing can be begun."""
        while True:
            self._pass_on()
            self._begin()
            if not any(worker.stage for worker in self.workers):
                break
            with contextlib.suppress(queue.Empty):
                self._hear(*self.told.get(timeout=_LOOK_SECONDS))
        if self.failed:
            raise _failure(self.failed)
        return self.reason

    @contextlib.contextmanager
    def closed_afterwards(self) -> Iterator[None]:
        """However the block is left, no worker lives on."""
        try:
            yield
            for worker in self.workers:
                assert worker.process.stdin is not None
                worker.process.stdin.close()  # it ends by itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(timeout=10)
        finally:
            for worker in self.workers:
                self._close(worker)

    def _begin(self) -> None:
        """Give free seats to stages whose needs are done."""
        for stage in list(self.waiting):
            if set(needed(stage)) <= self.done:
                self.waiting.remove(stage)
                *_, identity = runner.identify(stage, self.around)
                if ledger.done(self.around.run / stage.name, identity):
                    self.done.add(stage.name)
                else:
                    self.ready.append(stage)
        while self.ready and self.reason is None and (seat := self._free_seat()) is not None:
            self.reason = runner.reason_to_begin_nothing(self.ready[0], self.around)
            if self.reason is None:
                self._give(self.ready.pop(0), seat)

    def _free_seat(self) -> int | None:
        taken = {worker.seat for worker in self.workers if worker.stage is not None}
        return next((seat for seat in range(len(self.seats)) if seat not in taken), None)

    def _give(self, stage: Stage, seat: int) -> None:
        worker = next((each for each in self.workers if each.seat == seat), None) or self._hire(seat)
        worker.stage = stage.name
        gpu = f" on GPU {self.seats[seat][VISIBLE]}" if VISIBLE in self.seats[seat] else ""
        say(f"{stage.name}: begun{gpu}")
        self.around.entered(stage.name)
        worker.send({"stage": stage.name, "longest": dict(self.around.durations.longest)})

    def _hire(self, seat: int) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "outlast.plan.worker"],
            env={**os.environ, **launch.inherited(), **({TERMINAL: "1"} if redraws() else {}), **self.seats[seat]},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal reaches us alone; we pass it on, once
        )  # fmt: skip
        worker = _Worker(seat, process)
        for read in (self._read, self._read_errors):
            thread = threading.Thread(target=read, args=(worker,), daemon=True)
            thread.start()
            worker.readers.append(thread)
        self.workers.append(worker)
        worker.send(self.common)
        return worker

    def _read(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            with contextlib.suppress(ValueError):  # a task's module that prints while it is imported
                self.told.put((worker, json.loads(line)))
        self.told.put((worker, None))

    def _read_errors(self, worker: _Worker) -> None:
        assert worker.process.stderr is not None
        listener = Listener()
        for data in pieces(worker.process.stderr):
            for sentence in listener.feed(data):
                say(f"{worker.stage or 'worker'}: {sentence}")
            worker.line = listener.line
            lines = [each.line for each in self.workers if each.line]
            if lines and redraws():
                show_line(" | ".join(lines))

    def _hear(self, worker: _Worker, told: dict[str, Any] | None) -> None:
        """What a worker tells; None: it is gone."""
        around = self.around
        if told is None:
            self._gone(worker)
            return
        stage, event, value = told["stage"], told["event"], told["value"]
        if event == "noted":
            around.noted(str(stage), value)
        elif event == "warned":
            around.warned(str(value))
        elif event == "finished":
            around.finished()
        elif event == "longest":
            for kind, seconds in value.items():
                around.durations.record(kind, seconds)
        elif event == "failed":
            self._fail(worker, value)
        elif event == "ended":
            around.progressed |= bool(value["progressed"]) or value["reason"] is None
            self.reason = self.reason or value["reason"]
            if value["reason"] is None:
                self.done.add(str(stage))
                say(f"{stage}: done")
            self._leave(worker)

    def _gone(self, worker: _Worker) -> None:
        """A worker has ended without a word of its own."""
        if worker not in self.workers:
            return
        code = worker.process.wait()
        name = signal.Signals(-code).name if code < 0 else None
        if worker.stage is None or (name == "SIGTERM" and self.signalled is not None):
            self._leave(worker)  # a signal that came before it listened: nothing was begun
            self._dismiss(worker)
            return
        how = f"was killed ({name})" if name else f"ended with exit status {code} and no error of its own"
        self._fail(worker, {"message": f"its process {how}", "hint": _MEMORY if name == "SIGKILL" else None})

    def _fail(self, worker: _Worker, said: Mapping[str, Any]) -> None:
        """Its stage has failed; another worker takes its seat, because nobody knows what is left in this one."""
        if said.get("traceback"):
            say(str(said["traceback"]))
        self.failed[str(worker.stage)] = said
        self.around.progressed = True
        say(f"{worker.stage}: FAILED: {said['message']}; the others go on")
        self._leave(worker)
        self._dismiss(worker)

    def _leave(self, worker: _Worker) -> None:
        if worker.stage is not None:
            self.around.left(worker.stage)
            worker.stage = None

    def _dismiss(self, worker: _Worker) -> None:
        self._close(worker)
        self.workers.remove(worker)

    def _pass_on(self) -> None:
        """Tell the workers once that a signal asked to stop."""
        reason = self.around.stop()
        if reason is None or self.signalled is not None:
            return
        self.signalled = self.reason = reason
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.terminate()  # whatever came here: one that does not listen yet ends without a word

    def _close(self, worker: _Worker) -> None:
        launch.kill(worker.process)
        for reader in worker.readers:
            if reader is not threading.current_thread():
                reader.join(timeout=1.0)  # a grandchild may hold the pipe open; it is not waited for
        for pipe in (worker.process.stdin, worker.process.stdout, worker.process.stderr):
            if pipe is not None and not any(reader.is_alive() for reader in worker.readers):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _failure(failed: Mapping[str, Mapping[str, Any]]) -> TrainingError:
    """One error that names all stages that failed."""
    again = "what was saved is intact; type the same again to go on with it"
    hints = list(dict.fromkeys(str(said["hint"]) for said in failed.values() if said.get("hint")))
    if len(failed) == 1:
        ((name, said),) = failed.items()
        return TrainingError(
            f"the stage {name!r} failed: {said['message']}",
            hint="; ".join([*hints, again]), details=[str(line) for line in said.get("details", ())],
        )  # fmt: skip
    return TrainingError(
        f"{len(failed)} stages failed: {', '.join(failed)}",
        hint="; ".join([*hints, again]),
        details=[f"{name}: {said['message']}" for name, said in failed.items()],
    )
