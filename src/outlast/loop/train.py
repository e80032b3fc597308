"""The training loop: start where the rules say, step, evaluate, save, stop in time.

It promises that a run that was stopped or killed at any instant, and started again, ends where an uninterrupted one
ends. What it must remember for that is in RunState; what it must do after the last step (evaluation, best weights) is
done by whoever comes first, this session or the next.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from outlast.base.accident import reached
from outlast.base.log import Progress, say, warn
from outlast.errors import TaskError, TrainingError
from outlast.loop import deterministic, trace
from outlast.loop.accel import unwrapped
from outlast.loop.differences import what_cutting_changes
from outlast.loop.evaluate import evaluate
from outlast.loop.memory import Fit, Portion, release, why_out_of_memory
from outlast.loop.optim import learning_rate
from outlast.loop.recovery import BeginAgain, Recovery, remembered_fit, set_aside_another_rung
from outlast.loop.samples import Epoch, epoch_order
from outlast.loop.saving import Saver, failed
from outlast.loop.setup import Job, Setup, build, choose_fit, model_hash, rows_of, snapshot, start
from outlast.loop.step import LossWatch
from outlast.save import store
from outlast.save.resume import choose
from outlast.state import RunState


@dataclass(frozen=True)
class Outcome:
    """How a session of a training stage ended; `stopped` says why it stopped early, None if the stage is finished.

    advanced: whether anything was done that the next session need not do again.
    """

    stopped: str | None
    advanced: bool
    result: dict[str, Any]


def train(job: Job) -> Outcome:
    """Train until the end, a stop request or the deadline. Raises TrainingError and others of outlast.errors."""
    rows_of(job)
    if job.compute.main:
        store.clear_interrupted(job.folder)
    deterministic.prepare(job.config.train.deterministic)
    while True:
        began = job.deadline.now()
        fit = remembered_fit(job) or choose_fit(job, rows_of(job)[0])
        deterministic.check(job.stage.name, fit.inexact, job.compute.device.type, exact=job.config.train.deterministic)
        try:
            return _train(job, fit, began)
        except BeginAgain:
            pass  # only when it is gone is the memory free that it holds
        except (RuntimeError, MemoryError) as error:
            why = why_out_of_memory(error)
            if why is None:
                raise
            raise TrainingError(
                f"{job.stage.name} ran out of memory outside of a step ({why})",
                hint="free memory (other processes, notebooks) and type the command again; what was saved is intact",
            ) from error
        release()


def _train(job: Job, fit: Fit, began: float) -> Outcome:
    job.compute.wait()
    if job.compute.main:
        set_aside_another_rung(job, fit)
    job.compute.wait()
    setup = build(job, fit)
    # Weights to begin with are the wanted model's.
    start_from = job.start_from if fit.rung == job.learner.rungs(job.config)[0] else None
    choice = choose(job.folder, job.resume, start_from=start_from, model_hash=model_hash(setup.model))
    say(choice.sentence)
    if job.learner.couples_batch and fit.micro_batch * job.compute.processes < job.config.train.batch_size:
        warn(
            f"the loss of {job.learner.name!r} couples the samples of a batch: with micro-batches of {fit.micro_batch} "
            f"it is not what it is with a whole batch of {job.config.train.batch_size}"
        )
    state = start(setup, job, choice)
    with contextlib.ExitStack() as stack:
        saver = None
        if job.compute.main:
            _truncate(job.folder / "metrics.jsonl", state.metrics_bytes)
            store.keep_best(job.folder, state.best_step)
            saver = stack.enter_context(Saver(job.folder, state.step, job.config.saving, job.deadline, job.durations))
        session = _Session(job, setup, state, fit, saver)
        state.sessions += 1
        job.durations.record("begin", job.deadline.now() - began)
        before = (state.epoch, state.cursor)
        stopped = session.run()
        if saver is not None:
            job.saved(session.facts())  # once more: a kill may have come between the last save and its being told
        return Outcome(stopped, (state.epoch, state.cursor) != before, session.result())


class _Session:
    """The live loop of one session; its only lasting state is `state`."""

    def __init__(self, job: Job, setup: Setup, state: RunState, fit: Fit, saver: Saver | None) -> None:
        self.job, self.setup, self.state, self.saver = job, setup, state, saver
        self.recovery = Recovery(job, setup, state, fit)
        self.from_step = state.step
        device, exact = job.compute.device.type, job.config.train.deterministic
        self.inexact = deterministic.for_record(fit.inexact, device, exact=exact)
        sums = state.ranks[job.compute.rank]["sums"] if job.compute.rank < len(state.ranks) else {}
        self.watch = LossWatch(dict(sums), job.compute.device.type == "cpu", self._names)
        self.trace = trace.from_environment(job.stage.name, job.compute.rank, self._names)
        teacher = job.teacher()
        self.teacher = {} if teacher is None else {"teacher": teacher.record()}
        self.provenance = {**job.record, "model_hash": model_hash(setup.model), **self.teacher}
        self.total_steps = setup.epochs * setup.steps_per_epoch
        self.saved_position = (state.epoch, state.cursor) if state.sessions else None
        self.now = job.deadline.now
        self.resumed_at = self.now()
        self.stopped_evaluation: str | None = None  # why the last evaluation was given up

    def run(self) -> str | None:
        """All epochs that are left. Returns why it stopped, or None when training is finished."""
        job, setup, state = self.job, self.setup, self.state
        with Progress(f"{job.stage.name} ({setup.rung})", self.total_steps, start=self._position()) as self.progress:
            while state.epoch < setup.epochs and not self._out_of_patience():
                order = epoch_order(job.learner, job.config, job.examples.table, setup.fit, state.epoch)
                if len(order.rows) != setup.steps_per_epoch:
                    raise TaskError(f"the sampler of {job.learner.name!r} gives epochs of different lengths")
                reason = self._reason_to_stop() or self._steps(order) or self._end_epoch()
                if reason:
                    self._save_now()
                    return reason
            self._save_now()
        if state.epoch < setup.epochs:
            say(
                f"{job.stage.name} stopped early, after epoch {state.epoch} of {setup.epochs}: no better score for "
                f"train.patience_epochs={job.config.train.patience_epochs}; a larger one with --extend goes on"
            )
        return None

    def _steps(self, order: Epoch) -> str | None:
        job, setup, state, compute = self.job, self.setup, self.state, self.job.compute
        plans = order.plans(state.epoch, state.cursor, setup.micro_batch, compute.rank, compute.processes)
        batches = job.loader.batches(plans, augmented=True)
        for number in range(state.cursor, len(order.rows)):
            began = self.now()
            reached("batch")
            rate = self._rate(self._position())
            count = order.micro_batches(number, setup.micro_batch, compute.rank, compute.processes)
            micro_batches = list(itertools.islice(batches, count))
            for batch in micro_batches:
                batch["epochs"] = torch.tensor(state.epoch + number / len(order.rows))
            reached("step")
            sums = self.recovery.step(micro_batches, len(order.rows[number]), rate)
            if sums is None:  # out of memory: taken back, and done again with the same samples in smaller parts
                return self._steps(order)
            if setup.average is not None:
                setup.average.update_parameters(unwrapped(setup.model))
            state.step += 1
            state.cursor += 1
            if self.trace is not None:
                self.trace.append(state.step, micro_batches, sums)
            reached("stepped")
            self.watch.push(state.step, sums, [batch["row"] for batch in micro_batches])
            words = f"epoch {state.epoch + 1}/{setup.epochs} {job.words()}".rstrip()
            self.progress.update(self._position(), words, job.deadline.remaining())
            job.durations.record("step", self.now() - began)
            reason = self._reason_to_stop()
            if reason:
                return reason
            if self._save_is_due():
                self._save()
        return None

    def _end_epoch(self) -> str | None:
        """Evaluate if it is time. Returns why it stopped before the epoch was at its end, or None."""
        state = self.state
        self.watch.flush()
        if self._evaluation_is_due():
            reason = self._reason_to_stop("evaluate", "save")
            metrics = None if reason else self._evaluated()
            if metrics is None:
                return reason or self.stopped_evaluation
            self._judge(metrics)
        state.epoch += 1
        state.cursor = 0
        self.watch.sums.clear()
        return None

    def _evaluated(self) -> dict[str, Any] | None:
        """The metrics of the validation rows, or None if there is no time to finish them (`stopped_evaluation`)."""
        job, setup = self.job, self.setup
        self._same_buffers()
        began = last = self.now()

        def no_time() -> bool:
            nonlocal last
            before, last = last, self.now()
            job.durations.record("evaluation_batch", last - before)
            self.stopped_evaluation = self._reason_to_stop("evaluation_batch", "save")
            return self.stopped_evaluation is not None

        portion = Portion(self.recovery.fit.evaluated, self.recovery.evaluation_took_less)
        metrics = evaluate(
            job.learner, job.config, setup.evaluated(), job.loader, setup.validate, job.examples.facts,
            job.compute, portion, no_time,
        )  # fmt: skip
        if metrics is not None:
            job.durations.record("evaluate", self.now() - began)
        return metrics

    def _evaluation_is_due(self) -> bool:
        number = self.state.epoch + 1
        return number == self.setup.epochs or number % self.job.config.train.evaluate_every_epochs == 0

    def _same_buffers(self) -> None:
        """Several processes each gather their own buffers (BatchNorm): the main process's are what is saved."""
        if self.job.compute.processes > 1:
            for module in (unwrapped(self.setup.model), self.setup.evaluated()):
                for buffer in module.buffers():
                    self.job.compute.spread(buffer)

    def _judge(self, metrics: dict[str, Any]) -> None:
        """Write the metrics, keep the weights if they are the best so far, count epochs without a gain."""
        job, state = self.job, self.state
        sign, name = job.learner.score[0], job.learner.score[1:]
        if name not in metrics:
            raise TaskError(f"the learner {job.learner.name!r} is scored by {name!r}, which is not among its metrics")
        score = float(metrics[name])
        gain = score if sign == "+" else -score
        best = state.best_score if state.best_score is None or sign == "+" else -state.best_score
        rate = self._rate(self._position() - 1)
        if self.setup.plateau is not None and math.isfinite(gain):
            self.setup.plateau.step(gain)
        better = math.isfinite(gain) and (best is None or gain > best)
        state.epochs_without_gain = 0 if better else state.epochs_without_gain + job.config.train.evaluate_every_epochs
        # Equally good and later is kept: on a small validation split ties are frequent, and later weights saw more.
        if better or gain == best:
            state.best_score, state.best_step, state.best_epoch = score, state.step, state.epoch + 1
            if self.saver is not None:
                weights = self.setup.evaluated().state_dict()
                self.saver.best(state.step, weights, {**self._record(), "score": score, "metrics": metrics})
        self._write_metrics(metrics, rate)

    def _write_metrics(self, metrics: dict[str, Any], rate: float) -> None:
        job, state = self.job, self.state
        names = sorted(self.watch.sums)
        totals = dict(zip(names, job.compute.sums([self.watch.sums[name] for name in names]), strict=True))
        weight = totals.pop("weight", 0.0)
        means = {name: value / weight for name, value in totals.items()} if weight else {}
        line = {
            "step": state.step,
            "epoch": state.epoch + 1,
            "learning_rate": rate,
            "train_loss": means.pop("loss_sum", None),
            **{f"train_{name}": value for name, value in means.items()},
            **{f"val_{name}": value for name, value in _numbers(metrics)},
        }
        text = json.dumps({key: _finite(value) for key, value in line.items()}) + "\n"
        if self.saver is not None:
            self.saver.metrics(text, state.metrics_bytes)
        state.metrics_bytes += len(text.encode())
        name = job.learner.score[1:]
        best = " (best so far)" if state.best_step == state.step else ""
        loss = "" if line["train_loss"] is None else f"loss {line['train_loss']:.4f}, "
        say(f"epoch {state.epoch + 1}/{self.setup.epochs}: {loss}validation {name} {metrics[name]:.4f}{best}")
        alarms = job.learner.alarms
        for sentence in alarms(job.config, job.examples.facts, line) if alarms is not None else ():
            job.warned(f"{job.stage.name}: {sentence}")

    def _position(self) -> int:
        """The place in the schedule, in steps: state.step, unless the batch size was changed on the way."""
        return self.state.epoch * self.setup.steps_per_epoch + self.state.cursor

    def _rate(self, step: int) -> float:
        factor = self.setup.plateau.factor if self.setup.plateau is not None else 1.0
        return learning_rate(step, self.total_steps, self.job.config.train, factor)

    def _out_of_patience(self) -> bool:
        patience = self.job.config.train.patience_epochs
        return patience is not None and self.state.epochs_without_gain >= patience

    def _reason_to_stop(self, *before: str) -> str | None:
        """Why to stop now, the same for all processes. `before`: kinds of work that come before the next stop."""
        job = self.job
        reason = job.stop()
        if reason is None and job.deadline.expired(self._reserve(*before)):
            reason = job.deadline.reason
        if job.compute.processes > 1 and job.compute.sums([float(reason is not None)])[0]:
            reasons: list[str | None] = job.compute.gather(reason)
            return next(each for each in reasons if each is not None)
        return reason

    def _reserve(self, *before: str) -> float:
        """Seconds to set aside: the next step, what is being written, the last save, and what comes after training."""
        backlog = self.saver.backlog_seconds() if self.saver is not None else 0.0
        return backlog + self.job.durations.expected(*before, "step", "save", *self.job.afterwards)

    def _save_is_due(self) -> bool:
        due = self.saver is not None and self.saver.is_due(self.state.step, self._reserve())
        due = due or self.recovery.unsaved  # the next session need not find out again what fits
        return bool(self.job.compute.share(due)) if self.job.compute.processes > 1 else due

    def _save(self) -> None:
        """Copy the state; it is written while training goes on."""
        self.watch.flush()
        self._same_buffers()
        now = self.now()
        self.state.train_seconds += now - self.resumed_at
        self.resumed_at = now
        state = snapshot(self.setup, self.job, self.state, self.watch.sums)
        if self.saver is not None:
            facts = self.facts()
            self.saver.checkpoint(state, self._record(), lambda: self.job.saved(facts))
        self.recovery.unsaved = False
        self.saved_position = (state.epoch, state.cursor)

    def _save_now(self) -> None:
        """Save, unless just this was saved, and wait until it is on the disk. Raises SaveError."""
        if self.saved_position != (self.state.epoch, self.state.cursor) or self._problem():
            self._save()
        if self._problem():
            self._save()
        if problem := self._problem():
            raise failed(self.job.folder, problem)

    def _problem(self) -> str | None:
        problem: str | None = self.job.compute.share(self.saver.settle() if self.saver is not None else None)
        return problem

    def _record(self) -> dict[str, Any]:
        """What every checkpoint and the best weights carry."""
        return {**self.provenance, "fit": asdict(self.recovery.fit)}

    def facts(self) -> dict[str, Any]:
        """What the run's record says about this session."""
        resumed = f"step-{self.from_step:09d}" if self.from_step else None
        wanted = self.job.learner.rungs(self.job.config)[0]
        return {
            "from_step": self.from_step,
            "to_step": self.state.step,
            "inexact": self.inexact,
            "resumed_from": resumed,
            "rung": {
                **asdict(self.recovery.fit),
                "wanted": wanted,
                "micro_batches_change": what_cutting_changes(unwrapped(self.setup.model), self.job.learner),
            },
            "parameters": self.setup.parameters,
            "stall_seconds": self.saver.stall_seconds if self.saver is not None else 0.0,
            **self.teacher,
        }

    def _names(self, rows: Any) -> list[str]:
        ids = self.job.examples.table["id"]
        return [str(ids.iloc[int(row)]) for row in rows]

    def result(self) -> dict[str, Any]:
        """What the stage's record says about it."""
        state, setup = self.state, self.setup
        return {
            "score": self.job.learner.score,
            "best_score": state.best_score,
            "best_step": state.best_step,
            "best_epoch": state.best_epoch,
            "steps": state.step,
            "epochs": state.epoch,
            "steps_per_epoch": setup.steps_per_epoch,
            "planned_epochs": setup.epochs,
            "parameters": setup.parameters,
            "micro_batch": setup.micro_batch,
            "rung": setup.rung,
            "train_seconds": state.train_seconds,
            "sessions": state.sessions,
            "from_step": self.from_step,
            "couples_batch": self.job.learner.couples_batch,
            **self.teacher,
        }


def _truncate(path: Path, length: int) -> None:
    """Cut off what was written after the state that we go on from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.truncate(length)


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number; those of a class, as in {"iou": {"ice": 0.7}}, under both names: iou_ice."""
    for name, value in metrics.items():
        if isinstance(value, int | float):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}_{part}", number) for part, number in value.items() if isinstance(number, int | float))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
