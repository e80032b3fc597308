"""A session is over in time: on a simulated clock, with random durations of everything, and with all three limits."""

import json
import random
import threading

import pytest

import outlast
from outlast.base import accident
from outlast.base.clock import Deadline
from outlast.errors import RunError, UsageError
from outlast.plan import limits, session
from toys import plan as toy


class Simulation:
    """A clock that stands still but for what the run does: each place that it comes to takes a random time."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.seconds = 0.0
        self.lock = threading.Lock()  # the writer's work takes time as well
        # One visit of a place takes up to 1.4 times as long as another; the reserve has a margin of 1.5.
        places = ("step", "predict", "folder.file", "report")
        self.shortest = {place: 10 ** self.random.uniform(-1, 2) for place in places}

    def now(self):
        return self.seconds

    def spend(self, place):
        if place in self.shortest:
            with self.lock:
                self.seconds += self.shortest[place] * self.random.uniform(1, 1.4)


@pytest.mark.parametrize("seed", range(30))
def test_no_session_overruns_on_a_simulated_clock(runs, monkeypatch, countdown, seed):
    """Sessions of random lengths; steps, evaluations, the files of a save and the report take random times."""
    simulation = Simulation(seed)
    monkeypatch.setattr(session, "write_report", lambda run: simulation.spend("report") or run / "report.html")
    monkeypatch.setattr(accident, "happen", simulation.spend)
    # The first session has all the time there is and stops after the first epoch, when everything was measured.
    deadline = countdown(24, simulation.now)
    finished, sessions = False, 0
    metrics = runs.folder / "run" / "train-fold0" / "metrics.jsonl"
    while not finished:
        try:
            result = runs.train("run", "saving.every_minutes=5", deadline=deadline)
            finished = result["status"] == "finished"
        except RunError as error:  # too short for a single step: said so, and in time
            assert "left too little" in error.message
        assert simulation.seconds <= deadline.ends_at
        assert metrics.read_text()
        sessions += 1
        assert sessions < 60
        # A save is three files: with the margin of the reserve the shortest of these sessions are too short for a step.
        least = sum(simulation.shortest.values()) + 2 * simulation.shortest["folder.file"]
        length = least * simulation.random.uniform(1.5, 4) * (1 + sessions / 10)
        deadline = Deadline(simulation.seconds + length, now=simulation.now)
    assert sessions >= 2


def test_an_evaluation_that_would_take_too_long_is_given_up_and_done_in_the_next_session(runs, monkeypatch):
    runs.train("whole")
    clock = [0.0]

    def spend(place):
        clock[0] += {"evaluate": 100.0}.get(place, 0.0)

    monkeypatch.setattr(accident, "happen", spend)
    result = runs.train("cut", deadline=Deadline(60.0, now=lambda: clock[0]))
    assert (result["status"], result["reason"]) == ("stopped", "session limit")
    assert not (runs.folder / "cut" / "train-fold0" / "metrics.jsonl").read_text()
    assert runs.train("cut")["status"] == "finished"
    assert runs.results("cut") == runs.results("whole")


def test_the_earliest_of_the_three_limits_holds_and_the_next_command_has_the_quota_that_is_left(runs, monkeypatch):
    given = {"session_limit": "9h", "quota_left": "2h", "quota_rate": 2.0, "time_limit": "5h"}
    seen = []
    monkeypatch.setattr(toy, "ACCIDENT", [lambda place: None])
    original = limits.deadline
    monkeypatch.setattr(limits, "deadline", lambda *asked: seen.append(original(*asked)) or seen[-1])
    result = outlast.train("toys.plan", preset="smoke", out=runs.folder / "run", stage="folds", **given)
    assert seen[0].reason == "quota left"
    assert seen[0].remaining() < 3600
    words = result["next_command"].split()
    left = words[words.index("--quota-left") + 1]
    assert 0 < int(left.removesuffix("s")) < 7200
    assert words[words.index("--quota-rate") + 1] == "2"
    assert words[words.index("--time-limit") + 1] == "5h"


def test_the_time_limit_counts_all_sessions(runs):
    runs.train("run", stage="folds")
    path = runs.folder / "run" / "run.json"
    record = json.loads(path.read_text())
    record["sessions"][0]["seconds"] = 3600.0
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match="the time limit is too short, or used up"):
        runs.train("run", time_limit="1h")
    assert json.loads(path.read_text())["sessions"] == record["sessions"]
    assert runs.train("run", time_limit="2h")["status"] == "finished"


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_quota_rate_that_is_none_is_refused(runs, rate):
    with pytest.raises(UsageError, match="is not a rate"):
        runs.train("run", quota_left="3h", quota_rate=rate)
    assert not (runs.folder / "run").exists()
