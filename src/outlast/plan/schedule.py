"""Which stage runs when: stages with measured times laid out over sessions, GPUs and a weekly quota.

Pure arithmetic on plain data. Promises: one stage at a time on a GPU; no stage before those it needs; no session longer
than its limit; the pieces of a stage add up to its work; the same answer for the same question. On one GPU the order is
the runner's: stage after stage in the order given, and a stage that does not fit ends the session.

A stage is cut where the runner would stop it: a part (a step, an evaluation, a shard, a call) is begun only while more
than what is set aside for it is left. A session costs its start before the first stage and its report at the end; every
piece costs the beginning of its stage (building, loading) and its end (the last save).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from outlast.base.clock import format_duration
from outlast.errors import UsageError

MOST_SESSIONS = 1000


@dataclass(frozen=True)
class Part:
    """`count` times `seconds` of work, each whole or not at all, begun only while more than `reserve_seconds` are left.

    counted: whether these are what the stage's progress is counted in (steps, shards), as evaluations are not.
    """

    seconds: float
    count: int = 1
    reserve_seconds: float = 0.0
    counted: bool = True


@dataclass(frozen=True)
class Work:
    """A stage: its parts in order; the seconds before the first part and after the last one of every piece of it."""

    name: str
    kind: Literal["train", "predict", "call"]
    parts: tuple[Part, ...]
    needs: tuple[str, ...] = ()
    begin_seconds: float = 0.0
    leave_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """All of its work, without what beginning and leaving cost."""
        return math.fsum(part.seconds * part.count for part in self.parts)

    @property
    def units(self) -> int:
        """All its steps or shards."""
        return sum(part.count for part in self.parts if part.counted)


@dataclass(frozen=True)
class Limits:
    """What there is: seconds of a session, GPUs in it, seconds of quota in a week and what an hour of session costs."""

    session_seconds: float = math.inf
    gpus: int = 1
    quota_seconds: float = math.inf
    quota_rate: float = 1.0
    startup_seconds: float = 0.0
    report_seconds: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A stage on a GPU, from start to end in seconds since its session began; `first` to `last` of its units."""

    stage: str
    gpu: int
    start_seconds: float
    end_seconds: float
    work_seconds: float
    first: int
    last: int
    finished: bool


@dataclass(frozen=True)
class Session:
    """One session: its number and week (both from 1), its pieces by start, its length and what that takes of the quota.

    limit_seconds: how long it could have been. by_quota: whether that was the quota's doing.
    """

    number: int
    week: int
    pieces: tuple[Piece, ...]
    seconds: float
    quota_seconds: float
    limit_seconds: float
    by_quota: bool


@dataclass(frozen=True)
class _Place:
    """How far a stage has come: the part, how many of it are done, the units done so far."""

    part: int = 0
    inside: int = 0
    units: int = 0
    finished: bool = False


def schedule(works: Sequence[Work], limits: Limits) -> list[Session]:
    """The sessions that all the work takes. `works` are in an order in which each comes after those it needs.

    A need that is not among them is done.

    Raises UsageError if a stage can't be begun in a session of its own, or if it would take more than 1000 sessions.
    """
    places = {work.name: _Place() for work in works}
    sessions: list[Session] = []
    week, left = 1, limits.quota_seconds
    while not all(place.finished for place in places.values()):
        by_quota = left / limits.quota_rate < limits.session_seconds
        length = left / limits.quota_rate if by_quota else limits.session_seconds
        pieces, after = _fill(works, places, limits, length)
        renewed = left == limits.quota_seconds
        if not pieces and renewed:
            raise _too_short(works, places, limits, length)
        overhead = limits.startup_seconds + limits.report_seconds
        if not renewed and by_quota and sum(piece.work_seconds for piece in pieces) <= overhead:
            week, left = week + 1, limits.quota_seconds  # the rest of a quota is no session's worth
            continue
        if not pieces:
            raise _too_short(works, places, limits, length)
        if len(sessions) == MOST_SESSIONS:
            raise UsageError(
                f"the plan takes more than {MOST_SESSIONS} sessions of {format_duration(limits.session_seconds)}",
                hint="allow longer sessions with --session-limit, or take a smaller preset",
            )
        seconds = max(piece.end_seconds for piece in pieces) + limits.report_seconds
        cost = seconds * limits.quota_rate
        sessions.append(Session(len(sessions) + 1, week, tuple(pieces), seconds, cost, length, by_quota))
        places = after
        left = max(left - cost, 0.0)
    return sessions


def _fill(
    works: Sequence[Work], places: Mapping[str, _Place], limits: Limits, length: float
) -> tuple[list[Piece], dict[str, _Place]]:
    """The pieces of one session of `length` seconds, and how far every stage has come after it."""
    after = dict(places)
    ends = {name: 0.0 for name, place in places.items() if place.finished}  # of finished stages, in this session
    free = dict.fromkeys(range(limits.gpus), limits.startup_seconds)
    pieces: list[Piece] = []
    taken: set[str] = set()  # in this session: what was cut waits for the next one
    while free:
        gpu = min(free, key=lambda number: (free[number], number))
        now = free[gpu]
        ready = (
            work
            for work in works
            if not places[work.name].finished
            and work.name not in taken
            and all(ends.get(need, math.inf) <= now for need in work.needs if need in places)
        )
        work = next(ready, None)
        if work is None:
            later = [end for end in ends.values() if end > now]
            if later:
                free[gpu] = min(later)  # then a stage that is waiting may begin
            else:
                del free[gpu]
            continue
        found = _piece(work, places[work.name], gpu, now, length, limits)
        if found is None:
            del free[gpu]
            continue
        piece, after[work.name] = found
        taken.add(work.name)
        pieces.append(piece)
        free[gpu] = piece.end_seconds
        if piece.finished:
            ends[work.name] = piece.end_seconds
    return pieces, after


def _piece(
    work: Work, place: _Place, gpu: int, start: float, length: float, limits: Limits
) -> tuple[Piece, _Place] | None:
    """As much of a stage as fits from `start` on, and how far it has come then; None if nothing of it fits."""
    at = start + work.begin_seconds
    spent = 0.0
    number, inside, units = place.part, place.inside, place.units
    while number < len(work.parts):
        part = work.parts[number]
        count = min(_begun(length - at - _reserve(part, work, limits), part.seconds), part.count - inside)
        at += count * part.seconds
        spent += count * part.seconds
        units += count if part.counted else 0
        inside += count
        if inside < part.count:
            break
        number, inside = number + 1, 0
    finished = number == len(work.parts)
    end = at + work.leave_seconds
    if (number, inside) == (place.part, place.inside) and not (finished and end + limits.report_seconds <= length):
        return None
    piece = Piece(work.name, gpu, start, end, spent, place.units, units, finished)
    return piece, _Place(number, inside, units, finished)


def _reserve(part: Part, work: Work, limits: Limits) -> float:
    """What must be left when the part begins; never less than what it and the end of the session take."""
    return max(part.reserve_seconds, part.seconds + work.leave_seconds + limits.report_seconds)


def _begun(left: float, seconds: float) -> int:
    """How many pieces of work of `seconds` each can begin, one after the other, while something is left."""
    if left <= 0:
        return 0
    return math.ceil(left / seconds) if math.isfinite(left) and seconds > 0 else 2**62


def _too_short(works: Sequence[Work], places: Mapping[str, _Place], limits: Limits, length: float) -> UsageError:
    """Why not even the first stage that is left can be begun in a session of its own."""
    work = next(
        work
        for work in works
        if not places[work.name].finished and all(places[need].finished for need in work.needs if need in places)
    )
    quota = limits.quota_seconds / limits.quota_rate < limits.session_seconds
    name, option = ("the quota", "--quota") if quota else ("the session limit", "--session-limit")
    ready = limits.startup_seconds + work.begin_seconds
    place = places[work.name]
    part = work.parts[place.part] if work.parts else Part(0.0)
    reserve = _reserve(part, work, limits)
    if work.kind == "call":
        why = f"the call {work.name!r} takes {format_duration(part.seconds)} and can't be cut"
    else:
        why = f"{format_duration(reserve)} must be set aside for the next part of {work.name!r} and what comes after it"
    return UsageError(
        f"{name} of {format_duration(length)} is too short: getting ready takes {format_duration(ready)}, and {why}",
        hint=f"give more than {format_duration(ready + reserve + 1)} with {option}",
    )
