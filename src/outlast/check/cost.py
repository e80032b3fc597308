"""What training will take: time, sessions, quota, disk; from steps, evaluations and saves that were done here."""

from __future__ import annotations

import math
from collections.abc import Iterator

from outlast.base.clock import format_duration
from outlast.check.finding import Finding, error, note, unchecked, warning
from outlast.check.measure import Measured
from outlast.check.subject import Subject
from outlast.save.need import need
from outlast.save.space import Sizes, in_words

_LARGE_EVALUATION = 0.30  # share of the time
_LARGE_SAVING = 0.02
_LONG_WAIT = 0.13  # share of a step
_RESERVE_SECONDS = 60.0  # of a session: reading the data, building the model, the last save, the report


def time(subject: Subject) -> Iterator[Finding]:
    """How long each training stage takes on this machine."""
    for one in subject.measured:
        steps = one.epochs * one.steps_per_epoch
        stages = one.stage if one.alike == 1 else f"{one.stage} and {one.alike - 1} like it"
        several = subject.processes > 1
        shared = f", each of {subject.processes} processes with its share of a batch" if several else ""
        yield note(
            f"{stages} take{'s' * (one.alike == 1)} about {_short(_total(subject, one))} on this machine "
            f"({one.device})",
            evidence=f"{steps:,} steps of {_short(one.step_seconds)} in micro-batches of {one.micro_batch}{shared}, "
            f"{one.evaluations} evaluations of {_short(one.evaluate_seconds)}, a checkpoint of "
            f"{one.checkpoint_bytes / 1e6:.1f} MB in {_short(one.save_seconds)}"
            f"{'; what the processes tell each other is not counted' if several else ''}",
        )


def sessions(subject: Subject) -> Iterator[Finding]:
    """How many sessions it takes, if more than one."""
    limit = subject.session_limit
    if limit is None:
        return
    useful = limit - _RESERVE_SECONDS
    seconds = sum(_elapsed(subject, one) for one in subject.measured)
    if useful > 0 and seconds > useful:
        yield note(
            f"training takes {-(-seconds // useful):.0f} sessions of {_short(limit)}",
            evidence=f"{_short(seconds)} in all; a session gives {_short(useful)}",
            remedy="type the command that each session prints at its end; or choose fewer epochs, or a smaller model",
        )


def short_sessions(subject: Subject) -> Iterator[Finding]:
    """A session too short to get anywhere, or for a whole epoch."""
    limit = subject.session_limit
    if limit is None:
        return
    for one in subject.measured:
        least = _RESERVE_SECONDS + 10 * one.step_seconds + 2 * one.save_seconds
        epoch = one.steps_per_epoch * one.step_seconds + one.evaluate_seconds
        if limit <= least:
            yield error(
                f"a session of {_short(limit)} leaves no time to train {one.stage}",
                evidence=f"getting ready, ten steps and two saves take {_short(least)}",
                remedy=f"give --session-limit at least {_short(2 * least)}",
            )
        elif limit <= epoch + _RESERVE_SECONDS:
            yield warning(
                f"an epoch of {one.stage} does not fit into a session: it is evaluated only every few sessions",
                evidence=f"an epoch takes {_short(epoch)}, a session {_short(limit)}",
                remedy="longer sessions, a smaller model or image size; nothing is lost, but progress shows late",
            )


def quota(subject: Subject) -> Iterator[Finding]:
    """A quota that doesn't last; else what is needed of it."""
    if subject.quota_left is None:
        return
    seconds = sum(_elapsed(subject, one) for one in subject.measured)
    needed = seconds * subject.quota_rate
    if needed <= subject.quota_left:
        yield note(f"training needs {_hours(needed)} of the {_hours(subject.quota_left)} of quota that are left")
        return
    share = subject.quota_left / needed
    epochs = "; ".join(
        f"{one.stage}: about {int(share * one.epochs)} of {one.epochs} epochs" for one in subject.measured
    )
    yield warning(
        f"training needs {_hours(needed)} of quota, and {_hours(subject.quota_left)} are left",
        evidence=f"what fits: {epochs}",
        remedy="choose fewer epochs (train.epochs) or a smaller model; or go on when the quota is renewed",
    )


def disk(subject: Subject) -> Iterator[Finding]:
    """Checkpoints for which there is no room on the disk, or in what the platform keeps; as training predicts it."""
    if not subject.measured:
        return  # `unmeasured` says why
    run = subject.run
    found = need(
        subject.plan,
        {one.stage: Sizes(one.checkpoint_bytes, one.best_bytes) for one in subject.measured},
        run,
        subject.machine.host,
        subject.config.saving.disk_limit_gigabytes,
        finished={stage.name for stage in subject.plan if (run / stage.name / "stage.json").is_file()},
        begun=(run / "run.json").is_file(),
        at_once=subject.side_by_side,
        free=subject.machine.free_bytes,
    )
    if not found.fits or found.scarce:
        yield (warning if found.fits else error)(
            f"the checkpoints of this run will need {in_words(found.left)} more in {run}, and {found.has_room}",
            evidence="; ".join(found.details),
            remedy=found.remedy,
        )


def loading(subject: Subject) -> Iterator[Finding]:
    """Samples that come slower than they are learned from."""
    for one in subject.measured:
        idle = one.wait_seconds / max(one.step_seconds, 1e-12)
        evidence = (
            f"a step takes {_short(one.step_seconds)}, of which it waits {_short(one.wait_seconds)} for its samples"
        )
        if one.overlapped and idle > _LONG_WAIT:
            yield warning(
                f"{one.stage} waits for samples {100 * idle:.0f} % of the time",
                evidence=evidence,
                remedy=f"more loader processes (loading.workers; this machine has {subject.machine.host.cores} cores), "
                "less augmentation, or a larger loading.cache_gigabytes",
            )
        elif not one.overlapped and one.device == "cuda" and idle > 0.1:
            yield warning(
                f"{one.stage} makes its samples while the GPU waits",
                evidence=evidence,
                remedy="set loading.workers=2 or more",
            )


def evaluating(subject: Subject) -> Iterator[Finding]:
    """Evaluations that take more than 30 % of the time."""
    for one in subject.measured:
        share = one.evaluation_seconds / max(one.evaluation_seconds + one.training_seconds, 1e-12)
        if share > _LARGE_EVALUATION and one.evaluations > 1:
            epoch = one.steps_per_epoch * one.step_seconds
            every = -(-one.evaluate_seconds * (1 - _LARGE_EVALUATION) // (_LARGE_EVALUATION * max(epoch, 1e-9)))
            yield note(
                f"evaluations take {100 * share:.0f} % of the time of {one.stage}",
                evidence=f"{_short(one.evaluate_seconds)} after every {one.evaluate_every_epochs} x {_short(epoch)}",
                remedy=f"set train.evaluate_every_epochs={max(int(every), one.evaluate_every_epochs + 1)}",
            )


def saving(subject: Subject) -> Iterator[Finding]:
    """Saving that takes more than 2 % of the time, or longer than the time between two saves."""
    minutes = subject.config.saving.every_minutes
    for one in subject.measured:
        if one.stall_seconds > _LARGE_SAVING * 60 * minutes:
            least = one.stall_seconds / _LARGE_SAVING / 60
            yield warning(
                f"saving {one.stage} takes {100 * one.stall_seconds / (60 * minutes):.1f} % of its time",
                evidence=f"training stands still for {_short(one.stall_seconds)} every {minutes:g} minutes",
                remedy=f"set saving.every_minutes={_minutes(least)} or more",
            )
        elif one.save_seconds > 60 * minutes:
            yield warning(
                f"a checkpoint of {one.stage} takes longer to write than the time between two",
                evidence=f"{_short(one.save_seconds)} every {minutes:g} minutes",
                remedy=f"set saving.every_minutes={_minutes(2 * one.save_seconds / 60)} or more, or use a faster disk",
            )


def unmeasured(subject: Subject) -> Iterator[Finding]:
    """Stages whose time can't be measured."""
    for trial in subject.trials:
        if trial.stage.name not in {one.stage for one in subject.measured}:
            yield unchecked(f"the time of {trial.stage.name}: {subject.not_measured[trial.stage.name]}")


def _elapsed(subject: Subject, one: Measured) -> float:
    """Seconds until this stage and those like it are done: side by side only they are counted on, so it is at most."""
    return _total(subject, one) / one.alike * -(-one.alike // subject.side_by_side)


def _total(subject: Subject, one: Measured) -> float:
    return one.total_seconds(subject.config.saving.every_minutes)


def _short(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2g} s" if seconds < 10 else format_duration(seconds)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h"


def _minutes(minutes: float) -> str:
    """Rounded up, to be set as it stands."""
    return f"{math.ceil(minutes)}" if minutes > 5 else f"{math.ceil(10 * minutes) / 10:g}"
