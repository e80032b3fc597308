"""The quota ledger in run.json, its sums over runs, and a plan beside what happened."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

import outlast
from outlast.plan import hours, recorded
from outlast.plan.record import RunRecord
from outlast.report import planned
from toys import plan as toy


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the toy plan in the folder `runs`, and that folder's parent."""
    here = tmp_path_factory.mktemp("ledger")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTLAST_CACHE", str(here / "cache"))
        patch.setattr(toy, "ACCIDENT", [lambda place: time.sleep(0.01) if place == "step" else None])
        patch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
        for _ in range(2):
            outlast.train("toys.plan", preset="smoke", out=here / "runs" / "toy", stage=None, quota_rate=2.0)
    return here


@pytest.fixture
def record(tmp_path):
    """A record of a run with a clock that the test sets: record.clock[0]."""
    return RunRecord.open(tmp_path / "run", toy.smoke(), {"task": "toys.plan"}, writes=True, began=time.monotonic())


def test_every_session_says_what_each_stage_took(finished):
    first, second = json.loads((finished / "runs" / "toy" / "run.json").read_text())["sessions"]
    assert set(first["stages"]) == {stage.name for stage in toy.stages(toy.smoke())}
    assert first["stages"]["train-fold0"] >= 12 * 0.01
    assert sum(first["stages"].values()) <= first["seconds"] + 0.1
    assert second["stages"] == {}  # nothing was left to do
    assert first["quota_rate"] == 2.0 and first["quota_hours"] == 0  # on a CPU


def test_the_hours_of_a_gpu_cost_their_rate(record, monkeypatch):
    record.begin_session("cuda", {}, 2.0)
    began = record.began
    monkeypatch.setattr(time, "monotonic", lambda: began + 100)
    record.enter("train")
    monkeypatch.setattr(time, "monotonic", lambda: began + 1900)
    record.leave("train")
    monkeypatch.setattr(time, "monotonic", lambda: began + 3600)
    record.end_session("finished", None, None)
    [session] = json.loads((record.folder / "run.json").read_text())["sessions"]
    assert session["stages"] == {"train": 1800} and session["seconds"] == 3600
    assert session["quota_hours"] == pytest.approx(2.0)


def test_a_session_that_is_killed_has_counted_what_it_had_told(record, monkeypatch):
    record.begin_session("cuda", {})
    record.enter("train")
    monkeypatch.setattr(time, "monotonic", lambda began=record.began: began + 60)
    rung = {"rung": "wide", "wanted": "wide", "micro_batch": 8, "reason": None, "checkpointing": False, "events": (),
            "micro_batches_change": []}  # fmt: skip
    record.note("train", {"from_step": 0, "to_step": 5, "resumed_from": None, "rung": rung, "parameters": 1,
                          "stall_seconds": 0.0, "inexact": ()})  # fmt: skip
    [session] = json.loads((record.folder / "run.json").read_text())["sessions"]
    assert session["stages"]["train"] == pytest.approx(60, abs=1) and session["ended"] is None


def test_the_hours_of_a_week_are_summed_by_task_and_stage(tmp_path):
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def session(days_ago, device, seconds, **stages):
        started = (now - timedelta(days=days_ago)).isoformat()
        return {"started": started, "device": device, "seconds": seconds, "stages": stages, "quota_rate": 2.0}

    sessions = [session(1, "cuda", 7200, train=3600), session(2, "cpu", 3600, train=3600), session(8, "cuda", 9e9)]
    (tmp_path / "run.json").write_text(json.dumps({"task": "plants", "sessions": sessions}))
    found = {one.stage: (one.hours, one.quota_hours) for one in hours.spent([tmp_path], now - hours.WEEK)}
    assert found == {"train": (2.0, 2.0), "getting ready": (1.0, 2.0)}
    assert "plants: 3h00m, 4.00 quota hours" in hours.week_table(hours.spent([tmp_path], now - hours.WEEK))


def test_status_of_all_runs_tells_the_hours(finished, monkeypatch):
    monkeypatch.chdir(finished)
    found = outlast.status()
    assert "last 7 days:" in found["text"] and "toys.plan" in found["text"]
    assert {one["stage"] for one in found["last_7_days"]} >= {"train-fold0", "combine"}


def test_a_session_of_an_older_version_has_no_stages_and_counts_all_the_same(tmp_path):
    session = {"started": datetime.now(UTC).isoformat(), "device": "cuda", "seconds": 3600.0}
    (tmp_path / "run.json").write_text(json.dumps({"task": "plants", "sessions": [session]}))
    [found] = hours.spent([tmp_path], hours.week_ago())
    assert (found.hours, found.quota_hours) == (1.0, 1.0)


# -- what a run tells about times, and the plan beside it --------------------------------------------------------------


def test_a_finished_run_tells_the_times_of_all_its_stages(finished):
    measured, config = recorded.measurement_of(finished / "runs" / "toy", toy.TASK)
    assert config == toy.smoke().model_copy(update={"preset": "smoke"})
    train = measured.stages["train-fold0"]
    assert train.count == 4 and 0.01 <= train.seconds["step"] < 0.5
    assert all(times.guessed is None for times in measured.stages.values())
    plan = outlast.make_plan("toys.plan", run=finished / "runs" / "toy", session_limit="1h")
    record = json.loads((finished / "runs" / "toy" / "run.json").read_text())
    real = record["sessions"][0]["stages"]
    for stage in plan["stages"]:
        assert stage["seconds"] == pytest.approx(real[stage["stage"]], abs=0.3), stage


def test_an_unfinished_run_tells_what_it_did_and_guesses_the_rest(finished, tmp_path):
    run = tmp_path / "toy"
    source = finished / "runs" / "toy"
    (run / "train-fold0").mkdir(parents=True)
    values = json.loads((source / "run.json").read_text())
    values["sessions"] = [{**values["sessions"][0], "stages": {"train-fold0": 8.0},
                           "trained": {"train-fold0": {"from_step": 0, "to_step": 8}}}]  # fmt: skip
    (run / "run.json").write_text(json.dumps(values))
    for name in ("config.yaml", "train-fold0/metrics.jsonl"):
        (run / name).write_text((source / name).read_text())
    measured, _ = recorded.measurement_of(run, toy.TASK)
    assert measured.stages["train-fold0"].seconds["step"] == 1.0
    assert measured.stages["train-fold1"].like == "train-fold0"
    assert measured.stages["combine"].guessed and measured.stages["predict-fold0"].guessed


def test_status_shows_the_plan_beside_what_happened(finished):
    run = finished / "runs" / "toy"
    before = outlast.status(run)["text"]
    assert "plan" not in before.replace("toys.plan", "")
    outlast.make_plan("toys.plan", run=run, session_limit="1h", to=run / hours.PLAN)
    try:
        after = outlast.status(run)["text"].splitlines()
    finally:
        (run / hours.PLAN).unlink()
    assert after[0] == before and len(after) == 3
    assert after[1].startswith("plan: 1 session,") and "used: 2 sessions" in after[1]
    assert "train-fold0 planned" in after[2] and "done" in after[2]


def test_a_stage_that_took_more_sessions_than_planned_says_so():
    stage = {"stage": "train", "seconds": 7200, "sessions": [1, 2], "guessed": None}
    plan = {"sessions": [{}, {}], "seconds": 7300, "stages": [stage]}
    sessions = [{"seconds": 3600, "stages": {"train": 3500.0}}] * 3
    assert "train planned 2h00m, so far 2h55m in 3 sessions, planned 2" in planned.against(plan, sessions, set())[1]


def test_a_plan_may_lie_in_the_run_folder_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / hours.PLAN).write_text("{}")
    assert outlast.train("toys.plan", preset="smoke", out=tmp_path / "run", stage="folds")["status"] == "stopped"
    assert (tmp_path / "run" / hours.PLAN).is_file()
