"""Time: durations as people write them, the deadline of a session, and how long things took.

A session's clock begins where the platform's begins (the caller says when). `Deadline.expired(reserve)` is true as soon
as the time that is left is no longer enough for what must still be done after the last step.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from outlast.errors import UsageError

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str) -> float:
    """Seconds of '9h', '1h30m', '90s', '2d' or a plain number of seconds. Raises UsageError."""
    cleaned = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", cleaned):
        return float(cleaned)
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", cleaned)
    if not parts or "".join(number + unit for number, unit in parts) != cleaned:
        raise UsageError(f"{text!r} is not a duration", hint="write it like 9h, 1h30m, 45m, 90s")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """'2h05m', '3m20s', '12s': short, for people."""
    whole = round(max(seconds, 0))
    if whole >= 86_400:
        return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"


@dataclass(frozen=True)
class Deadline:
    """The end of a session: `started` (seconds since the epoch) plus `limit_seconds`; without a limit it never ends."""

    limit_seconds: float | None = None
    started: float = field(default_factory=time.time)
    now: Callable[[], float] = time.time

    def remaining(self) -> float:
        """Seconds until the platform ends the session; infinite without a limit."""
        if self.limit_seconds is None:
            return float("inf")
        return self.started + self.limit_seconds - self.now()

    def expired(self, reserve_seconds: float = 0.0) -> bool:
        """Whether no more than `reserve_seconds` are left."""
        return self.remaining() <= reserve_seconds


@dataclass
class Durations:
    """The longest time that each kind of work took so far, with a first guess for what was never measured."""

    guess_seconds: float = 2.0
    longest: dict[str, float] = field(default_factory=dict)

    def record(self, kind: str, seconds: float) -> None:
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))

    def expected(self, kind: str) -> float:
        """What to set aside: half as much again as the longest so far."""
        return 1.5 * self.longest.get(kind, self.guess_seconds)
