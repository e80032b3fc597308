"""When a session must end: the earliest of the session's, the quota's and the run's own end."""

from __future__ import annotations

from outlast.base.clock import Deadline
from outlast.env.host import Host
from outlast.errors import NoTimeError
from outlast.plan.request import Request, seconds


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
