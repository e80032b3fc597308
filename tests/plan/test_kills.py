import os
import signal

import pytest

from outlast.base import accident
from outlast.plan.kills import ANY_MOMENT, SAVE, Standing, draw, script

# Two stages: a training of six steps with two evaluations, then a call.
STEP = ["batch", "step", "stepped"]
SAVED = ["folder.open", "write.open", "write.done", "folder.done"]
TRAINING = [*STEP * 3, "evaluate", "evaluate", *SAVED] * 2
PLACES = ["write.open", "write.done", *TRAINING, "finish", "write.open", "call", *SAVED, "finish", "write.done"]


def test_the_same_seed_draws_the_same_kills_and_another_seed_others():
    assert draw(PLACES, 12, seed=5) == draw(PLACES, 12, seed=5)
    assert draw(PLACES, 12, seed=5) != draw(PLACES, 12, seed=6)


def test_kills_are_of_every_kind_that_the_run_has_and_come_in_its_order():
    drawn = draw(PLACES, 21, seed=0)
    assert len(drawn) == 21
    counts = {kind: sum(target.kind == kind for target in drawn) for kind in {target.kind for target in drawn}}
    assert counts == dict.fromkeys(("data loading", "step", "evaluation", "call", "finishing", SAVE, ANY_MOMENT), 3)
    positions = [(target.stage, target.step) for target in drawn]
    assert positions == sorted(positions)
    assert len({step for stage, step in positions if stage == 0}) > 3


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("standing", [Standing(0, 0), Standing(0, 4), Standing(0, 6), Standing(1, 0), Standing(2, 0)])
def test_a_session_is_killed_wherever_it_starts(monkeypatch, seed, standing):
    """Also where the drawn place lies behind it: nothing that a session still has to do gets past its script."""
    todo = {
        0: [*TRAINING[_at_step(standing.step) :], *PLACES[PLACES.index("finish") :]],
        1: PLACES[PLACES.index("call") - 1 :],
        2: [],
    }[standing.stages]
    every_session_begins_and_ends_with = ["write.open", "write.rename", "write.done"] * 3
    for target in draw(PLACES, 10, seed):
        happen = accident.kill_along(script(target, standing, stages=2))
        with pytest.raises(Killed):
            for place in [*todo, *every_session_begins_and_ends_with]:
                with monkeypatch.context() as patch:
                    patch.setattr(os, "kill", killed)
                    happen(place)


def test_a_route_counts_from_one_stop_to_the_next_and_the_first_route_to_end_counts(monkeypatch):
    assert died_at("step:2", ["step", "stepped", "step"], monkeypatch) == 2
    assert died_at("finish:1>step:2", ["step", "step", "finish", "step", "step"], monkeypatch) == 4
    assert died_at("stepped:1>write.:2", ["write.open", "stepped", "write.open", "write.data"], monkeypatch) == 3
    assert died_at("call:9,finish:1", ["call", "finish", "call"], monkeypatch) == 1
    assert died_at("evaluate:2", ["evaluate"], monkeypatch) is None


class Killed(Exception):
    pass


def killed(process, number):
    assert (process, number) == (os.getpid(), signal.SIGKILL)
    raise Killed


def died_at(words, places, monkeypatch):
    happen = accident.kill_along(words)
    monkeypatch.setattr(os, "kill", killed)
    for number, place in enumerate(places):
        try:
            happen(place)
        except Killed:
            return number
    return None


def _at_step(step):
    ends = [0, *(number + 1 for number, place in enumerate(TRAINING) if place == "stepped")]
    return ends[step]
