"""The training loop: start where the rules say, step, evaluate, save, stop in time.

It promises that a run that was stopped or killed at any instant, and started again, ends where an uninterrupted one
ends. What it must remember for that is in RunState; what it must do after the last step (evaluation, best weights) is
done by whoever comes first, this session or the next.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from outlast.base.accident import reached
from outlast.base.log import Progress, say, warn
from outlast.errors import TaskError
from outlast.loop import deterministic
from outlast.loop.accel import unwrapped
from outlast.loop.evaluate import evaluate
from outlast.loop.memory import Fit
from outlast.loop.optim import learning_rate
from outlast.loop.samples import Epoch, epoch_order
from outlast.loop.setup import Job, Setup, build, choose_fit, model_hash, rows_of, snapshot, start
from outlast.loop.step import LossWatch
from outlast.save import store
from outlast.save.resume import choose
from outlast.state import RunState

_FIRST_SAVE_SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """How a session of a training stage ended; `stopped` says why it stopped early, None if the stage is finished."""

    stopped: str | None
    result: dict[str, Any]


def train(job: Job) -> Outcome:
    """Train until the end, a stop request or the deadline. Raises TrainingError and others of outlast.errors."""
    rows_of(job)
    if job.compute.main:
        store.clear_interrupted(job.folder)
    deterministic.prepare(job.config.train.deterministic)
    fit = _remembered_fit(job) or choose_fit(job, rows_of(job)[0])
    deterministic.check(job.stage.name, fit.inexact, job.compute.device.type, exact=job.config.train.deterministic)
    setup = build(job, fit)
    choice = choose(job.folder, job.resume, start_from=job.start_from, model_hash=model_hash(setup.model))
    say(choice.sentence)
    if job.learner.couples_batch and fit.micro_batch * job.compute.processes < job.config.train.batch_size:
        warn(
            f"the loss of {job.learner.name!r} couples the samples of a batch: with micro-batches of {fit.micro_batch} "
            f"it is not what it is with a whole batch of {job.config.train.batch_size}"
        )
    state = start(setup, job, choice)
    session = _Session(job, setup, state, fit)
    if job.compute.main:
        session.truncate_metrics()
        store.keep_best(job.folder, state.best_step)
    state.sessions += 1
    stopped = session.run()
    return Outcome(stopped, session.result())


class _Session:
    """The live loop of one session; its only lasting state is `state`."""

    def __init__(self, job: Job, setup: Setup, state: RunState, fit: Fit) -> None:
        self.job, self.setup, self.state, self.fit = job, setup, state, fit
        self.from_step = state.step
        device, exact = job.compute.device.type, job.config.train.deterministic
        self.inexact = deterministic.for_record(fit.inexact, device, exact=exact)
        sums = state.ranks[job.compute.rank]["sums"] if job.compute.rank < len(state.ranks) else {}
        self.watch = LossWatch(dict(sums), job.compute.device.type == "cpu", self._names)
        self.metrics_path = job.folder / "metrics.jsonl"
        self.record = {**job.record, "model_hash": model_hash(setup.model), "fit": asdict(fit)}
        self.total_steps = setup.epochs * setup.steps_per_epoch
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.saved_position = (state.epoch, state.cursor) if state.sessions else None
        self.resumed_at = time.monotonic()

    def run(self) -> str | None:
        """All epochs that are left. Returns why it stopped, or None when training is finished."""
        job, setup, state = self.job, self.setup, self.state
        with Progress(f"{job.stage.name} ({setup.rung})", self.total_steps, start=state.step) as self.progress:
            while state.epoch < setup.epochs and not self._out_of_patience():
                order = epoch_order(job.learner, job.config, job.examples.table, setup.fit, state.epoch)
                if len(order.rows) != setup.steps_per_epoch:
                    raise TaskError(f"the sampler of {job.learner.name!r} gives epochs of different lengths")
                evaluation = job.durations.expected("evaluate") if self._evaluation_is_due() else 0.0
                reason = self._steps(order) or self._reason_to_stop(evaluation)
                if reason:
                    self._save()
                    return reason
                self._end_epoch()
            if self.saved_position != (state.epoch, state.cursor):
                self._save()
        return None

    def _steps(self, order: Epoch) -> str | None:
        job, setup, state, compute = self.job, self.setup, self.state, self.job.compute
        plans = order.plans(state.epoch, state.cursor, setup.micro_batch, compute.rank, compute.processes)
        batches = job.loader.batches(plans, augmented=True)
        for number in range(state.cursor, len(order.rows)):
            reached("batch")
            rate = self._rate(state.step)
            count = order.micro_batches(number, setup.micro_batch, compute.rank, compute.processes)
            micro_batches = list(itertools.islice(batches, count))
            for batch in micro_batches:
                batch["epochs"] = torch.tensor(state.epoch + number / len(order.rows))
            reached("step")
            sums = setup.stepper.run(micro_batches, len(order.rows[number]), rate)
            if setup.average is not None:
                setup.average.update_parameters(unwrapped(setup.model))
            state.step += 1
            state.cursor += 1
            reached("stepped")
            self.watch.push(state.step, sums, [batch["row"] for batch in micro_batches])
            self.progress.update(state.step, f"epoch {state.epoch + 1}/{setup.epochs}", job.deadline.remaining())
            reason = self._reason_to_stop()
            if reason:
                return reason
            if self._save_is_due():
                self._save()
        return None

    def _end_epoch(self) -> None:
        job, setup, state = self.job, self.setup, self.state
        self.watch.flush()
        if self._evaluation_is_due():
            self._same_buffers()
            began = time.monotonic()
            metrics = evaluate(
                job.learner, job.config, setup.evaluated(), job.loader, setup.validate, job.examples.facts,
                job.compute, setup.micro_batch,
            )  # fmt: skip
            job.durations.record("evaluate", time.monotonic() - began)
            self._judge(metrics)
        state.epoch += 1
        state.cursor = 0
        self.watch.sums.clear()

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
        rate = self._rate(state.step - 1)
        if self.setup.plateau is not None and math.isfinite(gain):
            self.setup.plateau.step(gain)
        better = math.isfinite(gain) and (best is None or gain > best)
        state.epochs_without_gain = 0 if better else state.epochs_without_gain + job.config.train.evaluate_every_epochs
        # Equally good and later is kept: on a small validation split ties are frequent, and later weights saw more.
        if better or gain == best:
            state.best_score, state.best_step = score, state.step
            if job.compute.main:
                weights = self.setup.evaluated().state_dict()
                store.save_best(job.folder, state.step, weights, {**self.record, "score": score, "metrics": metrics})
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
            **{f"val_{name}": value for name, value in metrics.items() if isinstance(value, int | float)},
        }
        text = json.dumps({key: _finite(value) for key, value in line.items()}) + "\n"
        if job.compute.main:
            with self.metrics_path.open("ab") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        state.metrics_bytes += len(text.encode())
        name = job.learner.score[1:]
        best = " (best so far)" if state.best_step == state.step else ""
        loss = "" if line["train_loss"] is None else f"loss {line['train_loss']:.4f}, "
        say(f"epoch {state.epoch + 1}/{self.setup.epochs}: {loss}validation {name} {metrics[name]:.4f}{best}")

    def truncate_metrics(self) -> None:
        """Cut off what was written after the state that we go on from."""
        self.metrics_path.parent.mkdir(parents=True, exist_ok=True)
        with self.metrics_path.open("ab") as stream:
            stream.truncate(self.state.metrics_bytes)

    def _rate(self, step: int) -> float:
        factor = self.setup.plateau.factor if self.setup.plateau is not None else 1.0
        return learning_rate(step, self.total_steps, self.job.config.train, factor)

    def _out_of_patience(self) -> bool:
        patience = self.job.config.train.patience_epochs
        return patience is not None and self.state.epochs_without_gain >= patience

    def _reason_to_stop(self, extra_seconds: float = 0.0) -> str | None:
        """Why to stop now; all processes get the same answer."""
        job = self.job
        reason = job.stop()
        if reason is None and job.deadline.limit_seconds is not None:
            reserve = job.durations.expected("save") + job.durations.expected("report") + extra_seconds
            reason = "session limit" if job.deadline.expired(reserve) else None
        if job.compute.processes > 1 and job.compute.sums([float(reason is not None)])[0]:
            reasons: list[str | None] = job.compute.gather(reason)
            return next(each for each in reasons if each is not None)
        return reason

    def _save_is_due(self) -> bool:
        saving = self.job.config.saving
        due = time.monotonic() - self.saved_at >= 60 * saving.every_minutes
        due = due or (saving.every_steps is not None and self.state.step - self.saved_step >= saving.every_steps)
        # A session with a limit saves early once: how long that takes is what must be set aside at its end.
        unknown = self.job.deadline.limit_seconds is not None and "save" not in self.job.durations.longest
        due = due or (unknown and time.monotonic() - self.resumed_at >= _FIRST_SAVE_SECONDS)
        return bool(self.job.compute.share(due)) if self.job.compute.processes > 1 else due

    def _save(self) -> None:
        self.watch.flush()
        self._same_buffers()
        began = time.monotonic()
        self.state.train_seconds += began - self.resumed_at
        self.resumed_at = began
        state = snapshot(self.setup, self.job, self.state, self.watch.sums)
        if self.job.compute.main:
            store.save(self.job.folder, state, self.record, self.job.config.saving.keep)
            store.keep_best(self.job.folder, state.best_step)
        self.job.compute.wait()
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.saved_position = (state.epoch, state.cursor)
        self.job.durations.record("save", self.saved_at - began)
        self.job.saved(self._progress_facts())

    def _progress_facts(self) -> dict[str, Any]:
        resumed = f"step-{self.from_step:09d}" if self.from_step else None
        wanted = self.job.learner.rungs(self.job.config)[0]
        return {
            "from_step": self.from_step,
            "to_step": self.state.step,
            "inexact": self.inexact,
            "resumed_from": resumed,
            "rung": {**asdict(self.fit), "wanted": wanted},
            "parameters": self.setup.parameters,
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
            "best_epoch": -(-state.best_step // setup.steps_per_epoch),
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
        }


def _remembered_fit(job: Job) -> Fit | None:
    """The rung and micro-batch of the checkpoint to resume from: they are part of the run, not found anew."""
    problems: list[str] = []
    saved = store.newest(job.folder / "checkpoints", problems) if job.resume != "never" else None
    if saved is None or "fit" not in saved.manifest:
        return None
    fit = Fit(**saved.manifest["fit"])
    declared = job.config.train.micro_batch
    return fit if declared is None else replace(fit, micro_batch=declared)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
