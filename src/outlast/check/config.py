"""The configuration: is it right, does every setting act, and does it suit the number of examples and the session?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from outlast.base.clock import format_duration
from outlast.check.finding import Finding, error, warning
from outlast.check.subject import Subject, groups
from outlast.config.schema import TaskConfig
from outlast.data.sampler import batches_in

# float16: beyond the first a number is infinite, below the second it is zero, below the third it loses digits.
_FP16_LARGEST, _FP16_LEAST, _FP16_LEAST_NORMAL = 65504.0, 5.96e-8, 6.104e-5
_FEW_STEPS, _MANY_STEPS = 100, 5_000_000
_RATES = {"adamw": (1e-6, 1e-2), "sgd": (1e-4, 1.0)}


def values(subject: Subject) -> Iterator[Finding]:
    """A wrong type, a value out of range, an unknown key, an image size that the model can't cut: each by itself."""
    problem = subject.problems.get("config")
    if problem is not None:
        for sentence in problem.details or (problem.message,):
            yield error(sentence, remedy=problem.hint or "")


def no_effect(subject: Subject) -> Iterator[Finding]:
    """A setting that was made and changes nothing as things stand."""
    for sentence in subject.no_effect:
        yield warning(sentence, remedy="leave it out, or set what it depends on")


def half_precision_numbers(subject: Subject) -> Iterator[Finding]:
    """With fp16: a number of the model or the loss that becomes infinite or zero (an epsilon of 1e-8 does)."""
    if subject.config.train.precision != "fp16":
        return
    for key, value in _numbers(subject.config):
        size = abs(value)
        if size > _FP16_LARGEST:
            yield _overflow(f"{key}={value:g} is infinite in fp16", "the largest number there is 65504")
        elif 0 < size < _FP16_LEAST:
            yield _overflow(f"{key}={value:g} is zero in fp16", "the smallest number there is 6e-8")
        elif 0 < size < _FP16_LEAST_NORMAL:
            yield warning(
                f"{key}={value:g} loses digits in fp16",
                evidence="below 6e-5 its numbers are 6e-8 apart",
                remedy=f"set {key} to 6e-5 or more, or train.precision=fp32",
            )


def batch_size(subject: Subject) -> Iterator[Finding]:
    """A batch larger than what an epoch shows."""
    for training in subject.trainings:
        wanted, count = training.stage.config.train.batch_size, training.shown
        if wanted > count:
            yield warning(
                f"train.batch_size={wanted} is more than the {count} samples of an epoch of {training.stage.name!r}",
                evidence=f"every epoch is one step with {count} samples",
                remedy=f"set train.batch_size to {max(count // 4, 1)} or less",
            )


def epoch(subject: Subject) -> Iterator[Finding]:
    """A sampler that shows a small part of the examples in an epoch: most of them may never be seen."""
    for training in subject.trainings:
        if training.shown * training.epochs < training.examples:
            yield warning(
                f"the stage {training.stage.name!r} never sees most of its examples",
                evidence=f"{training.epochs} epochs of {training.shown} samples, {training.examples} examples",
                remedy="set more train.epochs, or a sampling that shows more of them",
            )


def micro_batch(subject: Subject) -> Iterator[Finding]:
    """A micro-batch that doesn't divide a process's share of the batch: the passes are of unequal size."""
    train = subject.config.train
    share = -(-train.batch_size // subject.processes)
    if train.micro_batch is not None and share > train.micro_batch and share % train.micro_batch:
        passes = batches_in(share, train.micro_batch)
        yield warning(
            f"train.micro_batch={train.micro_batch} doesn't divide the {share} samples of a step",
            evidence=f"{passes} passes of unequal size; batch normalisation sees them as they are",
            remedy=f"set train.micro_batch={-(-share // passes)}, or a divisor of {share}",
        )


def steps(subject: Subject) -> Iterator[Finding]:
    """Very few steps to learn from, or more than any session plan will ever do."""
    for training in subject.trainings:
        stage, total = training.stage, training.steps
        evidence = f"{training.epochs} epochs x {training.steps_per_epoch} steps"
        if total < _FEW_STEPS:
            yield warning(
                f"the stage {stage.name!r} trains for {total} steps only",
                evidence=evidence,
                remedy="set more train.epochs, a train.minimum_steps, or a smaller train.batch_size",
            )
        if total > _MANY_STEPS:
            yield warning(
                f"the stage {stage.name!r} would train for {total:,} steps",
                evidence=evidence,
                remedy="set fewer train.epochs or a larger train.batch_size",
            )


def warmup(subject: Subject) -> Iterator[Finding]:
    """A warm-up that takes most of the training, or rounds to nothing."""
    train = subject.config.train
    if train.warmup_fraction > 0.5:
        yield warning(
            "the warm-up takes more than half of the training",
            evidence=f"train.warmup_fraction={train.warmup_fraction:g}",
            remedy="set train.warmup_fraction=0.05",
        )
    if train.warmup_fraction > 0:
        for training in subject.trainings:
            stage, total = training.stage, training.steps
            if round(train.warmup_fraction * total) < 1:
                yield warning(
                    f"the warm-up of the stage {stage.name!r} rounds to no step at all",
                    evidence=f"train.warmup_fraction={train.warmup_fraction:g} of {total} steps",
                    remedy="set a larger train.warmup_fraction, or 0",
                )


def patience(subject: Subject) -> Iterator[Finding]:
    """A patience that can never act, or that is over before the score was measured a second time."""
    train = subject.config.train
    every = train.evaluate_every_epochs
    if train.patience_epochs is not None and train.patience_epochs < every:
        yield warning(
            "early stopping ends the training at the first evaluation that isn't better",
            evidence=f"train.patience_epochs={train.patience_epochs}, train.evaluate_every_epochs={every}",
            remedy=f"set train.patience_epochs to {3 * every} or more",
        )
    for training in subject.trainings if train.schedule == "plateau" or train.patience_epochs else ():
        stage, epochs = training.stage, training.epochs
        if train.schedule == "plateau" and train.plateau_patience_epochs + every >= epochs:
            yield warning(
                f"the learning rate of the stage {stage.name!r} can never be lowered",
                evidence=f"train.plateau_patience_epochs={train.plateau_patience_epochs}, {epochs} epochs",
                remedy="set a smaller train.plateau_patience_epochs, or train.schedule=cosine",
            )
        if train.patience_epochs is not None and train.patience_epochs >= epochs:
            yield warning(
                f"early stopping can never end the stage {stage.name!r}",
                evidence=f"train.patience_epochs={train.patience_epochs}, {epochs} epochs",
                remedy="set a smaller train.patience_epochs, or leave it out",
            )


def learning_rate(subject: Subject) -> Iterator[Finding]:
    """A learning rate far from what the optimizer is used with."""
    train = subject.config.train
    low, high = _RATES[train.optimizer]
    if not low <= train.learning_rate <= high:
        yield warning(
            f"train.learning_rate={train.learning_rate:g} is unusually {'low' if train.learning_rate < low else 'high'}"
            f" for {train.optimizer}",
            evidence=f"it is mostly used between {low:g} and {high:g}",
            remedy="look at the first epochs' loss before the session is spent",
        )


def average(subject: Subject) -> Iterator[Finding]:
    """A weight average that still remembers the untrained model at the end."""
    decay = subject.config.train.ema_decay
    if decay is None:
        return
    for training in subject.trainings:
        stage, total = training.stage, training.steps
        memory = 1 / (1 - decay)
        if 3 * memory > total:
            yield warning(
                f"the weight average of the stage {stage.name!r} is slower than its training",
                evidence=f"train.ema_decay={decay:g} averages over about {memory:.0f} steps; there are {total}",
                remedy=f"set train.ema_decay={max(1 - 10 / max(total, 11), 0.1):.3g}, or leave it out",
            )


def evaluation(subject: Subject) -> Iterator[Finding]:
    """The validation score is measured once only, after the last epoch: "best" is then the last."""
    for training in subject.trainings:
        stage, epochs = training.stage, training.epochs
        every = stage.config.train.evaluate_every_epochs
        if every >= epochs > 1:
            yield warning(
                f"the stage {stage.name!r} is evaluated once, at its end: its best weights are its last",
                evidence=f"train.evaluate_every_epochs={every}, {epochs} epochs",
                remedy=f"set train.evaluate_every_epochs={max(epochs // 10, 1)}",
            )


def saving(subject: Subject) -> Iterator[Finding]:
    """Saves so rare that a kill costs much of the session, or a single copy that a damage would leave nothing of."""
    limit, minutes = subject.session_limit, subject.config.saving.every_minutes
    if limit is not None and subject.config.saving.every_steps is None and minutes * 60 > limit / 2:
        yield warning(
            "a kill would cost most of the session: checkpoints are too rare",
            evidence=f"saving.every_minutes={minutes:g}, session limit {format_duration(limit)}",
            remedy=f"set saving.every_minutes={max(round(limit / 60 / 20), 1)}",
        )
    if subject.config.saving.keep == 1:
        yield warning(
            "a damaged checkpoint would leave nothing to go on from",
            evidence="saving.keep=1",
            remedy="set saving.keep=2",
        )


def workers(subject: Subject) -> Iterator[Finding]:
    """More loader workers than cores."""
    wanted, cores = subject.config.loading.workers, subject.machine.host.cores
    if wanted is not None and wanted * subject.at_once > cores:
        yield warning(
            f"{wanted * subject.at_once} loader workers for {cores} cores slow each other down",
            evidence=f"loading.workers={wanted}, {subject.at_once} process{'es' * (subject.at_once > 1)}",
            remedy="leave loading.workers out: it is chosen from the cores",
        )


def _overflow(sentence: str, evidence: str) -> Finding:
    return error(sentence, evidence=evidence, remedy="choose a number within 6e-8 .. 65504, or train.precision=fp32")


def _numbers(config: TaskConfig) -> Iterator[tuple[str, float]]:
    """The fractional numbers of the groups that a task adds for model and loss. Data and training stay in fp32."""
    outside = {"data", *TaskConfig.model_fields}
    for prefix, group in groups(config):
        if prefix.partition(".")[0] in outside or not prefix:
            continue
        for name in type(group).model_fields:
            for value in _flat(getattr(group, name)):
                yield f"{prefix}{name}", value


def _flat(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
