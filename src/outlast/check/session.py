"""The session: will it end in time, is what it writes kept, and can it get what it needs from outside?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from outlast.base.clock import format_duration
from outlast.base.scratch import KAGGLE
from outlast.check.finding import CannotCheck, Finding, error, warning
from outlast.check.machine import nearest
from outlast.check.subject import Subject, groups
from outlast.env import host
from outlast.errors import ModelError, OutlastError, listed

_DAY = 86_400.0
_KEPT = {"kaggle": KAGGLE / "working", "colab": Path("/content/drive")}


def limit(subject: Subject) -> Iterator[Finding]:
    """No session limit where the platform ends sessions: it would kill the run, and Kaggle may keep nothing of it."""
    kind = subject.machine.host.kind
    if kind in _KEPT and subject.session_limit is None:
        yield warning(
            f"no session limit is given, and {kind.capitalize()} ends sessions without notice",
            evidence="what a killed run wrote may be lost with it; one that stops in time is kept",
            remedy="give --session-limit 9h (or what the platform says that yours is)",
        )


def time_left(subject: Subject) -> Iterator[Finding]:
    """The session limit has passed already, or leaves hardly a minute."""
    machine, length = subject.machine, subject.session_limit
    if length is not None:
        left = length - (machine.now - machine.host.session_started)
        if left < 60:
            begun = "the session's start" if machine.host.kind in _KEPT else "the command"
            yield (error if left <= 0 else warning)(
                "the session limit is over already" if left <= 0 else "hardly any time is left in this session",
                evidence=f"{format_duration(length)} from {begun}, of which {format_duration(left)} are left",
                remedy="start a new session, or give a longer --session-limit",
            )


def clock(subject: Subject) -> Iterator[Finding]:
    """The session seems to have begun in the future or days ago: a deadline that is counted from there is wrong."""
    machine = subject.machine
    if machine.host.kind not in _KEPT:
        return
    age = machine.now - machine.host.session_started
    if not -5 < age < _DAY:
        when = f"{format_duration(-age)} in the future" if age < 0 else f"{format_duration(age)} ago"
        yield warning(
            "the start of this session is not plausible; a session limit would be counted from it",
            evidence=f"the container says that it started {when}",
            remedy="give what is left of the session with --time-limit instead of --session-limit",
        )


def kept_folder(subject: Subject) -> Iterator[Finding]:
    """The run folder lies where the platform throws it away at the end of the session."""
    kept = _KEPT.get(subject.machine.host.kind)
    run = subject.run.absolute()
    if kept is not None and not run.is_relative_to(kept) and subject.mirror is None:
        yield warning(
            f"the run folder {run} is lost when the session ends",
            evidence=f"only {kept} is kept",
            remedy=f"give --out {kept / 'runs' / run.name}",
        )


def run_folder(subject: Subject) -> Iterator[Finding]:
    """The run folder can't be made or written."""
    run = subject.run.absolute()
    existing = nearest(run)
    if existing == run and run.is_file():
        yield error(f"{run} is a file, not a run folder", remedy="give another --out")
    elif existing.is_file():
        yield error(f"{existing} is a file, so that there can't be a run folder {run}", remedy="give another --out")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield error(
            f"{existing} may not be written",
            remedy="give another folder with --out, or change its permissions",
        )


def scratch(subject: Subject) -> Iterator[Finding]:
    """The folder for decoded samples can't be written."""
    try:
        host.make_scratch(subject.machine.host)
    except OutlastError as problem:
        yield error(problem.message, remedy=problem.hint or "")


def pretrained_weights(subject: Subject) -> Iterator[Finding]:
    """Published weights are wanted, are not on this disk, and the internet is off."""
    wanted = [name for _, group in groups(subject.config) for name in group.downloads()]
    try:
        missing = [name for name in wanted if not subject.machine.cached_weights(name)]
    except ModelError as unknown:
        raise CannotCheck(unknown.message) from unknown
    if not missing:
        return
    problem = subject.machine.fetching_weights()
    if problem is not None:
        yield error(
            f"the pretrained weights of {listed([repr(name) for name in missing])} can't be fetched from here",
            evidence=f"{problem}, and they are not in the cache on this disk",
            remedy="turn the internet on; or attach the file and name it with model.weights=FILE; or set "
            "model.pretrained=false",
        )
