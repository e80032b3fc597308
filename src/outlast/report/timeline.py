"""A run's sessions on the wall clock, as places on a strip: what the page draws as its timeline.

Promises: sessions are to scale among themselves; pauses are to scale unless they are so long that they would hide the
sessions, then they are shortened and marked as such. Works without times, in the order of the sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from outlast.report.formats import count, duration, moment
from outlast.report.records import Session

LEAST = 0.006  # of the strip: what a bar needs to be seen


@dataclass(frozen=True)
class Bar:
    """A session or a pause: its place in percent of the strip's width, and what to say about it."""

    start: float
    width: float
    pause: bool
    cut: bool
    label: str
    told: str
    ending: str  # finished, stopped or failed; empty for a pause


def strip(sessions: Sequence[Session], now: datetime | None = None) -> list[Bar]:
    """Bars and pauses from left to right. `now` ends a session that has no end yet."""
    if not sessions:
        return []
    lengths = [length(session, now) or 0.0 for session in sessions]
    active = sum(lengths) or float(len(sessions))
    if not sum(lengths):
        lengths = [1.0] * len(sessions)
    gaps = pauses(sessions)
    longest = active * min(0.18, 0.5 / max(1, len(sessions) - 1))
    shown = [min(gap or 0.0, longest) for gap in gaps]
    widths = [max(part, LEAST * active) for part in lengths]
    total = sum(widths) + sum(shown)
    bars: list[Bar] = []
    place = 0.0
    for index, (session, width) in enumerate(zip(sessions, widths, strict=True)):
        share = 100 * width / total
        bars.append(Bar(place, share, False, False, str(index + 1), tell(index, session, now), ending(session)))
        place += share
        if index < len(gaps):
            share, gap = 100 * shown[index] / total, gaps[index]
            bars.append(Bar(place, share, True, (gap or 0.0) > longest, duration(gap), f"pause of {duration(gap)}", ""))
            place += share
    return bars


def length(session: Session, now: datetime | None = None) -> float | None:
    """Seconds from start to end on the wall clock; what the run counted where the times are not known."""
    ended = session.ended or (now if session.seconds is None else None)
    if session.started and ended:
        return max(0.0, (ended - session.started).total_seconds())
    return session.seconds


def pauses(sessions: Sequence[Session]) -> list[float | None]:
    """Seconds between each session and the next; None where a time is missing."""
    return [
        max(0.0, (after.started - before.ended).total_seconds()) if before.ended and after.started else None
        for before, after in pairwise(sessions)
    ]


def repeated(sessions: Sequence[Session], index: int) -> int:
    """Steps that this session did again because the one before was killed after its last save."""
    before, here = sessions[index - 1] if index else None, sessions[index]
    if before is None or before.to_step is None or here.from_step is None or before.stage != here.stage:
        return 0
    return max(0, before.to_step - here.from_step)


def ending(session: Session) -> str:
    """How a session ended, coarsely, for its colour."""
    why = (session.why_stopped or "").lower()
    if "finish" in why:
        return "finished"
    return "failed" if any(word in why for word in ("fail", "error", "non-finite")) else "stopped"


def tell(index: int, session: Session, now: datetime | None = None) -> str:
    """One session in a sentence."""
    steps = f"steps {count(session.from_step)} to {count(session.to_step)}"
    why = session.why_stopped or "not ended"
    return f"session {index + 1}: {moment(session.started)}, {duration(length(session, now))}, {steps}, {why}"
