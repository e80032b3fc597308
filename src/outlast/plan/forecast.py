"""What `outlast plan` answers: times and limits in, sessions, quota hours and places to stop and resume out.

The times come from a measurement; the arithmetic is in `schedule`. What is set aside before a session's end is what
the training loop sets aside. The answer is plain data, and can be kept as JSON beside a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlast.base.clock import Durations, careful_guess, format_duration
from outlast.config.schema import TaskConfig
from outlast.errors import UsageError
from outlast.plan.measurement import (
    GUESSED_REPORT_SECONDS,
    Measurement,
    StageTimes,
    other_settings,
)
from outlast.plan.schedule import Limits, Part, Session, Work, schedule
from outlast.task import Predict, Stage, Task, Train, needed, topological

FORMAT = 1
_UNITS = {"train": "step", "predict": "shard", "call": "call"}
_MOST_GUESSED = 0.1  # of a session
_AFTERWARDS = ("report",)  # what follows a stop, as in the runner
_MIRRORED = ("mirror", "mirror")  # with a mirror: the upload that is under way, and the one after it


@dataclass(frozen=True)
class Allowed:
    """What the user says there is. Seconds; infinite without a limit. quota_seconds are of a week."""

    session_seconds: float = math.inf
    gpus: int = 1
    quota_seconds: float = math.inf
    quota_rate: float = 1.0

    def check(self) -> None:
        """Raises UsageError for limits that are none."""
        if self.gpus < 1:
            raise UsageError(f"--gpus {self.gpus} is not a number of GPUs", hint="give 1 or more; a CPU counts as 1")
        if not 0 < self.quota_rate < math.inf:
            raise UsageError(f"--quota-rate {self.quota_rate:g} is not a rate", hint="give a number such as 1.0")
        if not self.quota_seconds > 0:
            raise UsageError("with a quota of 0 nothing can be done", hint="give a week's hours with --quota, as 30h")
        if not self.session_seconds > 0:
            raise UsageError("in a session of 0 seconds nothing can be done", hint="give --session-limit, as 9h")


def forecast(task: Task, config: TaskConfig, measured: Measurement, allowed: Allowed) -> dict[str, Any]:
    """The plan as JSON values; "answer" is its first sentence. Raises UsageError for limits that can't be kept."""
    stages = topological(task.stages(config))
    missing = [stage.name for stage in stages if stage.name not in measured.stages]
    if missing:
        raise UsageError(
            f"the measurement has no times of {', '.join(missing)}", hint="measure again, with the same settings"
        )
    works = [_work(stage, _config(stage, stages, config), measured, allowed) for stage in stages]
    sessions = schedule(works, _limits(measured, allowed))
    guessed = {name: times.guessed for name, times in measured.stages.items() if times.guessed}
    parts = [_session(session, works, allowed, sessions) for session in sessions]
    return {
        "format": FORMAT,
        "answer": answer(sessions, allowed),
        "task": task.name,
        "preset": config.preset,
        "synthetic": measured.synthetic,
        "allowed": {name: None if value == math.inf else value for name, value in vars(allowed).items()},
        "seconds": sum(session.seconds for session in sessions),
        "quota_hours": sum(session.quota_seconds for session in sessions) / 3600,
        "weeks": sessions[-1].week if sessions else 1,
        "sessions": parts,
        "stages": [_stage(work, sessions, guessed, measured) for work in works],
        "at_once": _at_once(sessions),
        "notes": _notes(measured, config, works, allowed, sessions),
        "measurement": measured.values(),
    }


def answer(sessions: Sequence[Session], allowed: Allowed) -> str:
    """The plan in one sentence: how many sessions, how much of the quota, and when it is finished."""
    count = f"{len(sessions)} session{'' if len(sessions) == 1 else 's'}"
    limited = math.isfinite(allowed.session_seconds)
    length = f" of {_short(allowed.session_seconds)}" if limited else ""
    hours = sum(session.quota_seconds for session in sessions) / 3600
    weeks = sessions[-1].week if sessions else 1
    if math.isinf(allowed.quota_seconds):
        spent = f", {format_duration(sum(session.seconds for session in sessions))}"
        return f"{count}{length}{spent}; finished after session {len(sessions)}"
    quota = allowed.quota_seconds / 3600
    if weeks == 1:
        return (
            f"{count}{length}, {_hours(hours)} of {_hours(quota)} quota hours; finished after session {len(sessions)}"
        )
    last = [session for session in sessions if session.week == 1][-1]
    stopped = ", ".join(f"{piece.stage} at {piece.last}" for piece in last.pieces if not piece.finished)
    return (
        f"{count}{length}, {_hours(hours)} quota hours; "
        f"the quota of {_hours(quota)} runs out after session {last.number}{f' ({stopped})' if stopped else ''}, "
        f"it goes on with the next week's; finished after session {len(sessions)}, in week {weeks}"
    )


def _short(seconds: float) -> str:
    return format_duration(seconds).removesuffix("00s").removesuffix("00m")


def _hours(hours: float) -> str:
    return f"{hours:.1f}".removesuffix(".0") if hours >= 1 else f"{hours:.2g}"


def reserve_seconds(times: StageTimes, measured: Measurement, session_seconds: float, *kinds: str) -> float:
    """What the runner sets aside before work of these kinds, as it knows the times then."""
    longest = dict(times.longest)
    if measured.report_seconds is not None:
        longest["report"] = measured.report_seconds
    guess = careful_guess(session_seconds) if math.isfinite(session_seconds) else Durations().guess_seconds
    afterwards = _AFTERWARDS + (_MIRRORED if "mirror" in longest else ())
    return Durations(guess, longest).expected(*kinds, *afterwards)


def _limits(measured: Measurement, allowed: Allowed) -> Limits:
    report = measured.report_seconds
    return Limits(
        session_seconds=allowed.session_seconds, gpus=allowed.gpus, quota_seconds=allowed.quota_seconds,
        quota_rate=allowed.quota_rate, startup_seconds=measured.startup_seconds,
        report_seconds=GUESSED_REPORT_SECONDS if report is None else report,
    )  # fmt: skip


def _config(stage: Stage, stages: Sequence[Stage], config: TaskConfig) -> TaskConfig:
    return stage.config if isinstance(stage, Train) else config


def _work(stage: Stage, config: TaskConfig, measured: Measurement, allowed: Allowed) -> Work:
    times = measured.stages[stage.name]
    length = min(allowed.session_seconds, allowed.quota_seconds / allowed.quota_rate)

    def reserve(*kinds: str) -> float:
        return reserve_seconds(times, measured, length, *kinds)

    if isinstance(stage, Train):
        return Work(
            stage.name, "train", _training(config, times, reserve("step", "save"),
            reserve("evaluate", "best", "step", "save")), needed(stage), times.seconds["begin"], times.seconds["save"],
        )  # fmt: skip
    if isinstance(stage, Predict):
        shards = (Part(times.seconds["shard"], times.count, reserve("shard")),) if times.count else ()
        return Work(stage.name, "predict", shards, needed(stage), times.seconds["begin"])
    # The runner begins a call whatever is left: the plan keeps what is set aside at the end free for it.
    seconds = times.seconds["call"]
    if times.guessed:  # a guess must not decide that a plan is impossible
        seconds = min(seconds, _MOST_GUESSED * length)
    return Work(stage.name, "call", (Part(seconds, 1, seconds + reserve()),), needed(stage))


def _training(
    config: TaskConfig, times: StageTimes, step_reserve: float, evaluation_reserve: float
) -> tuple[Part, ...]:
    """Steps and evaluations in the order of the loop: an evaluation after every so many epochs and after the last."""
    train, parts = config.train, []
    epochs = max(train.epochs, -(-train.minimum_steps // times.count))
    evaluation = Part(times.seconds["evaluate"] + times.seconds["best"], 1, evaluation_reserve, counted=False)
    for first in range(0, epochs, train.evaluate_every_epochs):
        count = min(train.evaluate_every_epochs, epochs - first)
        parts += [Part(times.seconds["step"], count * times.count, step_reserve), evaluation]
    return tuple(parts)


def _session(session: Session, works: Sequence[Work], allowed: Allowed, sessions: Sequence[Session]) -> dict[str, Any]:
    kinds = {work.name: work.kind for work in works}
    used = sum(one.quota_seconds for one in sessions[: session.number] if one.week == session.week)
    left = allowed.quota_seconds - used
    busy = sum(piece.end_seconds - piece.start_seconds for piece in session.pieces)
    return {
        "session": session.number,
        "week": session.week,
        "seconds": session.seconds,
        "quota_hours": session.quota_seconds / 3600,
        "quota_hours_left": None if math.isinf(left) else left / 3600,
        "ended_by": _ending(session, sessions),
        "idle_gpu_seconds": max(allowed.gpus * session.seconds - busy, 0.0),
        "pieces": [{**vars(piece), "unit": _UNITS[kinds[piece.stage]]} for piece in session.pieces],
    }


def _ending(session: Session, sessions: Sequence[Session]) -> str:
    if session.number == len(sessions):
        return "finished"
    return "quota" if session.by_quota else "session limit"


def _stage(
    work: Work, sessions: Sequence[Session], guessed: Mapping[str, str | None], measured: Measurement
) -> dict[str, Any]:
    pieces = [(session.number, piece) for session in sessions for piece in session.pieces if piece.stage == work.name]
    return {
        "stage": work.name,
        "kind": work.kind,
        "seconds": sum(piece.end_seconds - piece.start_seconds for _, piece in pieces),
        "units": work.units,
        "unit": _UNITS[work.kind],
        "needs": list(work.needs),
        "sessions": [number for number, _ in pieces],
        "resumed_at": [piece.first for _, piece in pieces[1:]],
        "guessed": guessed.get(work.name),
        "like": measured.stages[work.name].like,
    }


def _at_once(sessions: Sequence[Session]) -> list[list[str]]:
    """The pairs of stages that run at the same time."""
    pairs = []
    for session in sessions:
        for number, one in enumerate(session.pieces):
            for other in session.pieces[number + 1 :]:
                pair = sorted([one.stage, other.stage])
                if one.start_seconds < other.end_seconds and other.start_seconds < one.end_seconds:
                    pairs += [pair] if pair not in pairs else []
    return pairs


def _notes(
    measured: Measurement, config: TaskConfig, works: Sequence[Work], allowed: Allowed, sessions: Sequence[Session]
) -> list[str]:
    """What a reader must know to judge the plan."""
    notes = [f"{name}: guessed; {times.guessed}" for name, times in measured.stages.items() if times.guessed]
    if changed := other_settings(measured, config):
        notes.append(f"measured with other settings, the times may not hold: {'; '.join(changed)}")
    if config.train.patience_epochs is not None:
        notes.append("early stopping is on (train.patience_epochs): it may be finished sooner")
    seconds = sum(session.seconds for session in sessions)
    if allowed.gpus == 1:
        two = schedule(works, _limits(measured, Allowed(**{**vars(allowed), "gpus": 2})))
        beside = sum(session.seconds for session in two)
        if beside < 0.95 * seconds:
            notes.append(
                f"two GPUs could do it in {format_duration(beside)} instead of {format_duration(seconds)}: --gpus 2"
            )
    elif not _at_once(sessions):
        notes.append(f"nothing in this plan can run at once: of {allowed.gpus} GPUs one is used, the others are idle")
    return notes
