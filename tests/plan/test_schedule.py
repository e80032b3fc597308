"""The arithmetic of sessions, GPUs and quota: what must hold for every plan holds for many random ones."""

import math
import random
from itertools import combinations

import pytest

from outlast.errors import UsageError
from outlast.plan.schedule import Limits, Part, Work, schedule

NEAR = 1e-6
HOUR = 3600.0


def train(name, steps=100, step=1.0, reserve=5.0, needs=(), begin=2.0, leave=1.0):
    return Work(name, "train", (Part(step, steps, reserve),), needs, begin, leave)


def call(name, seconds, needs=()):
    return Work(name, "call", (Part(seconds, 1, seconds + 1),), needs)


def random_works(chance):
    works = []
    for number in range(chance.randint(1, 7)):
        needs = tuple(work.name for work in works if chance.random() < 0.35)
        kind = chance.choice(["train", "train", "predict", "call"])
        if kind == "call":
            parts = (Part(chance.uniform(0, 60), 1, chance.uniform(0, 20)),)
        else:
            parts = tuple(
                Part(chance.uniform(0.01, 9), chance.randint(1, 400), chance.uniform(0, 60), chance.random() < 0.7)
                for _ in range(chance.randint(0, 4))
            )
        begin, leave = chance.uniform(0, 20), chance.uniform(0, 10)
        works.append(Work(f"stage-{number}", kind, parts, needs, begin, leave))
    return works


def random_limits(chance):
    quota = chance.choice([math.inf, chance.uniform(400, 9000)])
    return Limits(
        session_seconds=chance.choice([math.inf, chance.uniform(200, 4000)]), gpus=chance.randint(1, 4),
        quota_seconds=quota, quota_rate=chance.uniform(0.5, 2), startup_seconds=chance.uniform(0, 30),
        report_seconds=chance.uniform(0, 10),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_what_must_hold_of_every_plan_holds_of_random_ones(seed):
    chance = random.Random(seed)
    for _ in range(5):
        works, limits = random_works(chance), random_limits(chance)
        sessions = schedule(works, limits)
        check_sessions(sessions, limits)
        check_stages(sessions, works)
        assert schedule(works, limits) == sessions


def check_sessions(sessions, limits):
    used = {}
    for number, session in enumerate(sessions, 1):
        assert session.number == number
        assert session.pieces, "a session in which nothing is done"
        assert session.seconds <= limits.session_seconds + NEAR
        used[session.week] = used.get(session.week, 0.0) + session.quota_seconds
        assert session.quota_seconds == pytest.approx(session.seconds * limits.quota_rate)
        for piece in session.pieces:
            assert limits.startup_seconds <= piece.start_seconds <= piece.end_seconds
            assert piece.end_seconds + limits.report_seconds <= session.seconds + NEAR
            assert 0 <= piece.gpu < limits.gpus
        for one, other in combinations(session.pieces, 2):
            if one.gpu == other.gpu:
                assert one.end_seconds <= other.start_seconds or other.end_seconds <= one.start_seconds
            assert one.stage != other.stage, "a stage in two places of a session"
    assert sorted(used) == list(range(1, len(used) + 1))
    assert all(seconds <= limits.quota_seconds + NEAR for seconds in used.values())


def check_stages(sessions, works):
    ends = {}
    for work in works:
        pieces = [
            (session.number, piece) for session in sessions for piece in session.pieces if piece.stage == work.name
        ]
        assert [piece.finished for _, piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert math.fsum(piece.work_seconds for _, piece in pieces) == pytest.approx(work.seconds, abs=NEAR)
        assert [piece.first for _, piece in pieces] == [0, *(piece.last for _, piece in pieces[:-1])]
        assert pieces[-1][1].last == work.units
        assert not (work.kind == "call" and len(pieces) > 1), "a call was cut"
        for need in work.needs:
            assert ends[need] <= (pieces[0][0], pieces[0][1].start_seconds), "a stage before what it needs"
        ends[work.name] = (pieces[-1][0], pieces[-1][1].end_seconds)


def test_one_gpu_does_the_stages_in_their_order_without_a_gap():
    works = [train("a"), train("b"), call("c", 10, needs=("a", "b"))]
    [session] = schedule(works, Limits(startup_seconds=7, report_seconds=3))
    assert [(piece.stage, piece.start_seconds) for piece in session.pieces] == [("a", 7), ("b", 110), ("c", 213)]
    assert session.seconds == 7 + 103 + 103 + 10 + 3


def test_a_training_is_cut_at_the_reserve_and_pays_for_stop_and_resume():
    sessions = schedule([train("a", steps=100, reserve=5)], Limits(session_seconds=60, startup_seconds=10))
    # A step begins while more than 5 s are left: at 12, 13, ..., 54.
    assert [(piece.first, piece.last) for session in sessions for piece in session.pieces] == [
        (0, 43),
        (43, 86),
        (86, 100),
    ]
    assert sessions[0].pieces[0].end_seconds == 12 + 43 + 1
    assert sessions[2].seconds == 12 + 14 + 1


def test_an_evaluation_that_does_not_fit_is_left_to_the_next_session():
    epoch = (Part(1.0, 40, 5.0), Part(10.0, 1, 16.0, counted=False))
    sessions = schedule([Work("a", "train", epoch)], Limits(session_seconds=50))
    assert [(piece.first, piece.last, piece.finished) for session in sessions for piece in session.pieces] == [
        (0, 40, False),
        (40, 40, True),
    ]


def test_a_call_that_does_not_fit_into_what_is_left_goes_into_the_next_session():
    sessions = schedule([train("a", steps=40), call("c", 30, needs=("a",))], Limits(session_seconds=60))
    assert [[piece.stage for piece in session.pieces] for session in sessions] == [["a"], ["c"]]


def test_folds_run_at_once_on_two_gpus_and_what_needs_them_waits():
    works = [train("fold-0"), train("fold-1"), call("ensemble", 5, needs=("fold-0", "fold-1"))]
    [session] = schedule(works, Limits(gpus=2))
    folds = [piece for piece in session.pieces if piece.stage != "ensemble"]
    assert {piece.gpu for piece in folds} == {0, 1}
    assert {piece.start_seconds for piece in folds} == {0}
    assert session.seconds == 103 + 5


def test_a_quota_that_runs_out_goes_on_in_the_next_week():
    limits = Limits(session_seconds=9 * HOUR, quota_seconds=12 * HOUR, quota_rate=1.0)
    sessions = schedule([train("a", steps=20 * 3600)], limits)
    assert [(session.week, session.by_quota) for session in sessions] == [(1, False), (1, True), (2, False)]
    assert sessions[1].seconds <= 3 * HOUR


def test_a_rate_of_two_makes_a_session_cost_twice_its_hours():
    [session] = schedule([train("a")], Limits(quota_seconds=1000, quota_rate=2.0))
    assert session.quota_seconds == 2 * session.seconds


@pytest.mark.parametrize(
    ("works", "limits", "named"),
    [
        ([call("long", 100)], Limits(session_seconds=60), ["'long'", "1m40s", "--session-limit"]),
        ([train("a", reserve=50)], Limits(session_seconds=60, startup_seconds=20), ["'a'", "22s", "50s"]),
        ([train("a")], Limits(quota_seconds=6, session_seconds=60), ["quota", "--quota"]),
        ([train("a"), call("long", 100, needs=("a",))], Limits(session_seconds=60), ["'long'"]),
        ([train("a", steps=10**6)], Limits(session_seconds=20), ["1000 sessions"]),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_refused_by_name(works, limits, named):
    with pytest.raises(UsageError) as refused:
        schedule(works, limits)
    assert all(word in str(refused.value) for word in named), str(refused.value)


def test_the_hint_of_a_session_that_is_too_short_is_enough():
    works = [train("a", reserve=50)]
    with pytest.raises(UsageError, match="too short"):
        schedule(works, Limits(session_seconds=72, startup_seconds=20))
    assert schedule(works, Limits(session_seconds=74, startup_seconds=20))
