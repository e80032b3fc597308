"""Time: durations as people write them, the deadline of a session, and how long things took.

A session's clock begins where the platform's begins (the caller says when). `Deadline.expired(reserve)` is true as soon
as the time that is left is no longer enough for what must still be done after the last step. Everything that is
measured against a deadline is measured on the deadline's own clock, which no one can set.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from outlast.errors import UsageError

IMPORTED = time.time()  # when this process began to use the package: a source file changed later is not what runs
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
    """The moment `ends_at`, on the clock `now` (seconds), at which a session must be over; `reason` says by what."""

    ends_at: float = float("inf")
    reason: str = "session limit"
    now: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, reason: str = "session limit", *, since: float | None = None) -> Deadline:
        """`seconds` from now on, or from the moment `since` (seconds since the epoch) on."""
        passed = 0.0 if since is None else time.time() - since
        return cls(time.monotonic() + seconds - passed, reason)

    def remaining(self) -> float:
        """Seconds that are left; infinite without a limit."""
        return self.ends_at - self.now()

    def expired(self, reserve_seconds: float = 0.0) -> bool:
        """Whether no more than `reserve_seconds` are left."""
        return self.remaining() <= reserve_seconds

    @property
    def limited(self) -> bool:
        """Whether there is an end at all."""
        return self.ends_at != float("inf")


@dataclass
class Durations:
    """The longest time that each kind of work took so far, with a first guess for what was never measured."""

    guess_seconds: float = 2.0
    longest: dict[str, float] = field(default_factory=dict)

    def record(self, kind: str, seconds: float) -> None:
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))

    def expected(self, *kinds: str) -> float:
        """What to set aside for these kinds of work together: half as much again as the longest of each so far."""
        return sum(1.5 * self.longest.get(kind, self.guess_seconds) for kind in kinds)


def youngs_interval(cost_seconds: float, failure_seconds: float) -> float:
    """Seconds between saves that cost `cost_seconds` each, where failures come every `failure_seconds` on average.

    J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974: sqrt(2 C M).
    """
    return math.sqrt(2 * cost_seconds * failure_seconds)
