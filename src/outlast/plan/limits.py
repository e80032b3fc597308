"""When a session must end: the earliest of the session's, the quota's and the run's own end."""

from __future__ import annotations

import time
from typing import Any

from outlast.base.clock import Deadline
from outlast.env.host import Host
from outlast.errors import NoTimeError
from outlast.plan.request import Request, seconds


def in_force(asked: Request, machine: Host) -> dict[str, Any]:
    """What was given for this session, for its record: hours (None: no such limit), what was used up, the platform.

    "limit_bytes": what the platform keeps of all files in its folder; 0 where there is no such limit.
    """
    given = {
        "session_hours": asked.session_limit,
        "run_hours": asked.time_limit,
        "quota_hours_left": asked.quota_left,
    }
    hours = {name: round(seconds(value) / 3600, 4) if value is not None else None for name, value in given.items()}
    used = max(time.time() - machine.session_started, 0.0)
    return {**hours, "hours_used": round(used / 3600, 4), "host": machine.kind, "limit_bytes": machine.limit_bytes}


def deadline(asked: Request, machine: Host, spent_seconds: float, began: float) -> Deadline:
    """The earliest of the ends that were given. Raises NoTimeError if there is no time at all.

    spent_seconds: what the sessions before took of the time limit. began: on the monotonic clock.

    Session and quota count from the session's start (the container's, on a platform); the time limit is the run's, over
    all its sessions, and counts from the command.
    """
    ends = [Deadline()]
    if asked.session_limit is not None:
        ends.append(Deadline.after(seconds(asked.session_limit), since=machine.session_started))
    if asked.quota_left is not None:
        session = seconds(asked.quota_left) / asked.quota_rate
        ends.append(Deadline.after(session, "quota left", since=machine.session_started))
    if asked.time_limit is not None:
        ends.append(Deadline(began + seconds(asked.time_limit) - spent_seconds, "time limit"))
    first = min(ends, key=lambda end: end.ends_at)
    if first.expired():
        raise NoTimeError(
            f"there is no time to train: the {first.reason} is too short, or used up",
            hint=f"give more with --{first.reason.replace(' ', '-')}; what was trained is kept",
        )
    return first
