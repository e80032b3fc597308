import time

import pytest

from outlast.base.clock import Deadline, Durations, format_duration, parse_duration, youngs_interval
from outlast.base.log import Progress
from outlast.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"), [("9h", 32400), ("1h30m", 5400), ("90s", 90), ("2d", 172800), ("45", 45), ("0.5h", 1800)]
)
def test_durations_are_read_as_people_write_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "nine", "9x", "h9", "-5", "1h 30"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(12, "12s"), (200, "3m20s"), (7500, "2h05m"), (180000, "2d02h")])
def test_durations_are_shown_short(seconds, text):
    assert format_duration(seconds) == text


def test_a_deadline_expires_when_the_reserve_is_all_that_is_left():
    now = [1000.0]
    deadline = Deadline(1050.0, now=lambda: now[0])
    assert deadline.remaining() == 50
    assert not deadline.expired(40)
    now[0] = 1011.0
    assert deadline.expired(40)


def test_without_a_limit_nothing_expires():
    assert not Deadline().expired(1e9)
    assert not Deadline().limited


def test_a_limit_counts_from_when_the_session_began():
    assert 49 < Deadline.after(60, since=time.time() - 10).remaining() <= 50
    assert 59 < Deadline.after(60).remaining() <= 60


def test_youngs_formula():
    assert youngs_interval(cost_seconds=2, failure_seconds=3600) == 120


def test_what_was_measured_is_set_aside_with_a_margin():
    durations = Durations(guess_seconds=2)
    assert durations.expected("save") == 3
    durations.record("save", 10)
    durations.record("save", 4)
    assert durations.expected("save") == 15


def test_the_progress_line_tells_both_times_left():
    progress = Progress("train", 100)
    progress.done = 50
    line = progress.render(progress._began + 10, "epoch 1/2", session_left=90)
    assert "50/100" in line
    assert "10s left" in line
    assert "session 1m30s" in line
