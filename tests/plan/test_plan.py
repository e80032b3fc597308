"""`outlast plan`: measured for real on the toy plan, and what it says against what the training loop does."""

import json
import time
from dataclasses import replace

import pytest

import outlast
from outlast import task as tasks
from outlast.base.clock import Deadline, Durations
from outlast.errors import UsageError
from outlast.loop.measure import THOROUGH
from outlast.plan.forecast import Allowed, forecast, reserve_seconds
from outlast.plan.measurement import Measurement, StageTimes, load
from outlast.report import gantt, planned
from outlast.report.look import Look
from toys import plan as toy

HOUR = 3600.0
MACHINE = {"kind": "plain", "device": "cuda", "device_name": "Toy GPU", "cores": 4, "threads": 4}


def times(step=1.0, epochs_of=60, **others):
    seconds = {"begin": 5.0, "step": step, "evaluate": 20.0, "best": 1.0, "save": 2.0, **others}
    longest = {name: seconds[name] for name in ("step", "evaluate", "best", "save")}
    return StageTimes("train", seconds, longest, epochs_of)


def measured(**stages):
    call = StageTimes("call", {"call": 60.0}, guessed="what a call takes is not known before it ran")
    predict = StageTimes("predict", {"begin": 5.0, "shard": 30.0}, {"shard": 30.0}, 4)
    known = {"folds": call, "combine": call, "predict_fold0": predict, "predict_fold1": predict,
             "train_fold0": times(), "train_fold1": times(), **stages}  # fmt: skip
    return Measurement(
        task="toys.plan", preset="smoke", made="2026-11-21T06:00:00+00:00", source="measured", machine=MACHINE,
        versions={}, config={}, config_hash="", data={}, synthetic=False, startup_seconds=20.0, report_seconds=None,
        stages={name.replace("_", "-"): stage for name, stage in known.items()},
    )  # fmt: skip


def planned_with(measurement, epochs=100, **allowed):
    config = toy.smoke()
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
    return forecast(toy.TASK, config, measurement, Allowed(**allowed))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A plan that was measured for real, as JSON in a file, and the folder it was made in."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTLAST_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        outlast.make_plan("toys.plan", preset="smoke", to=folder / "plan.json")
    return folder / "plan.json"


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_a_measurement_leaves_nothing_but_the_plan_and_the_cache_of_samples(saved):
    assert sorted(path.name for path in saved.parent.iterdir()) == ["cache", "plan.json"]
    assert [path.name for path in (saved.parent / "cache").iterdir()] == ["samples"]


def test_every_piece_is_measured_once_for_trainings_that_are_alike(saved):
    stages = load(saved, "toys.plan").stages
    first, second = stages["train-fold0"], stages["train-fold1"]
    assert all(first.seconds[name] > 0 for name in ("begin", "step", "evaluate", "save", "best"))
    assert second.like == "train-fold0" and second.seconds["step"] == first.seconds["step"]
    assert first.count == 4  # 30 rows in batches of 8
    assert stages["predict-fold0"].count == 1 and stages["predict-fold0"].guessed is None
    assert stages["folds"].guessed and stages["combine"].guessed


def test_the_step_that_is_measured_takes_what_a_step_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLAST_CACHE", str(tmp_path))
    monkeypatch.setattr(toy, "ACCIDENT", [lambda place: time.sleep(0.02) if place == "step" else None])
    found = outlast.make_plan("toys.plan", preset="smoke")
    steps = {stage["stage"]: stage for stage in found["stages"]}["train-fold0"]["units"]
    step = found["measurement"]["stages"]["train-fold0"]["seconds"]["step"]
    assert 0.02 <= step < 0.1 and steps == 12
    assert THOROUGH.least_steps >= 8


def test_the_times_say_where_they_come_from(saved):
    found = load(saved, "toys.plan")
    assert found.machine["device"] in ("cpu", "cuda") and found.machine["device_name"]
    assert found.versions["torch"] and found.config_hash and found.data["toy"] and found.made


def test_what_needs_a_stage_that_is_not_done_is_guessed_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLAST_CACHE", str(tmp_path))

    def model(config, inputs, rung):
        for folder in inputs.needs.values():
            (folder / "weights").read_bytes()
        return toy.Net(8, 0.2)

    learner = replace(toy.LEARNER, model=model)

    def stages(config):
        other = config.model_copy(update={"model": toy.ToyModel(dropout=0.5)})
        return [tasks.Train("teacher", learner, config), tasks.Train("student", learner, other, needs=("teacher",))]

    monkeypatch.setattr(toy, "TASK", replace(toy.TASK, stages=stages))
    found = {stage["stage"]: stage for stage in outlast.make_plan("toys.plan", preset="smoke")["stages"]}
    assert found["teacher"]["guessed"] is None
    assert "teacher is done" in found["student"]["guessed"]


# -- what is done with the times ---------------------------------------------------------------------------------------


def test_a_saved_plan_gives_the_same_plan_again(saved):
    again = outlast.make_plan("toys.plan", measurement=saved)
    assert again["sessions"] == json.loads(saved.read_text())["sessions"]
    assert not any("another machine" in sentence for sentence in again["notes"])


def test_times_of_another_machine_or_other_settings_are_told(saved, tmp_path):
    values = json.loads(saved.read_text())["measurement"]
    values["machine"]["device_name"] = "Tesla T4"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(values))
    notes = outlast.make_plan("toys.plan", measurement=other, overrides=["train.epochs=9"])["notes"]
    assert any("another machine" in sentence and "Tesla T4" in sentence for sentence in notes)
    assert not any("other settings" in sentence for sentence in notes)
    notes = outlast.make_plan("toys.plan", measurement=saved, overrides=["train.batch_size=4"])["notes"]
    assert any("train.batch_size: 8 -> 4" in sentence for sentence in notes)


def test_the_answer_is_one_sentence():
    assert planned_with(measured(), session_seconds=9 * HOUR, quota_seconds=30 * HOUR)["answer"] == (
        "1 session of 9h, 4.6 of 30 quota hours; finished after session 1"
    )
    found = planned_with(measured(), epochs=1000, session_seconds=9 * HOUR, quota_seconds=30 * HOUR)
    assert "the quota of 30 runs out after session 4" in found["answer"] and "in week 2" in found["answer"]
    assert [session["week"] for session in found["sessions"]] == [1, 1, 1, 1, 2, 2]


def test_folds_run_at_once_on_two_gpus_and_one_gpu_is_told_of_it():
    one, two = planned_with(measured()), planned_with(measured(), gpus=2)
    assert two["at_once"][0] == ["train-fold0", "train-fold1"]
    assert two["seconds"] < 0.6 * one["seconds"] and one["at_once"] == []
    assert any("--gpus 2" in sentence for sentence in one["notes"])


def test_what_is_set_aside_is_what_the_loop_sets_aside():
    known = measured()
    longest = {"step": 1.0, "save": 2.0, "evaluate": 20.0, "best": 1.0}
    loops = Durations(30.0, longest).expected("step", "save", "report")
    assert reserve_seconds(known.stages["train-fold0"], known, 9 * HOUR, "step", "save") == loops


@pytest.mark.parametrize(("limit", "batch_size"), [(20.0, 2), (17.75, 1), (22.5, 1)])
def test_a_training_is_stopped_where_the_plan_says(tmp_path, monkeypatch, limit, batch_size):
    clock = [0.0]

    def now():
        return clock[0]

    def pass_a_second(place):
        clock[0] += place == "step"

    monkeypatch.setattr(toy, "ACCIDENT", [pass_a_second])
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
    result = outlast.train(
        "toys.plan", preset="smoke", out=tmp_path / "run", overrides=[f"train.batch_size={batch_size}"],
        deadline=Deadline(limit, now=now),
    )  # fmt: skip
    assert result["status"] == "stopped"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    done = record["sessions"][0]["trained"]["train-fold0"]["to_step"]
    begin = clock[0] - done  # finding what fits takes steps too; nothing else takes any time on this clock
    rates = StageTimes("train", dict.fromkeys(("evaluate", "best", "save"), 0.0) | {"begin": begin, "step": 1.0},
                       {"step": 1.0, "evaluate": 0.0, "best": 0.0}, 30 // batch_size)  # fmt: skip
    nothing = StageTimes("call", {"call": 0.0})
    predict = StageTimes("predict", {"begin": 0.0, "shard": 0.0}, {}, 1)
    known = replace(
        measured(train_fold0=rates, train_fold1=rates, folds=nothing, combine=nothing, predict_fold0=predict,
                 predict_fold1=predict), startup_seconds=0.0
    )  # fmt: skip
    [piece] = [
        piece
        for piece in planned_with(known, epochs=3, session_seconds=limit)["sessions"][0]["pieces"]
        if piece["stage"] == "train-fold0"
    ]
    assert piece["last"] == done > 5
    assert not piece["finished"]


# -- what people see ---------------------------------------------------------------------------------------------------


def test_the_table_begins_with_the_answer_and_marks_guesses():
    found = planned_with(measured(), session_seconds=HOUR, quota_seconds=30 * HOUR, gpus=2)
    text = planned.table(found)
    lines = text.splitlines()
    assert lines[0] == found["answer"]
    assert "Toy GPU" in lines[1]
    assert "stopped, goes on in session 2" in text and "quota hours" in text
    assert [line for line in lines if "  folds " in line and "(guessed)" in line]
    assert "at once: train-fold0 and train-fold1" in text


def test_the_picture_is_drawn_the_same_every_time(tmp_path):
    found = planned_with(measured(), session_seconds=HOUR, gpus=2)
    assert gantt.draw(found).startswith(b"\x89PNG")
    vector = gantt.draw(found, Look(form="svg"))
    assert vector == gantt.draw(found, Look(form="svg"))
    assert b"train-fold0" in vector and b"session 2" in vector and b"stops at" in vector


def test_the_files_that_were_asked_for_are_written(saved, tmp_path):
    for name in ("plan.png", "plan.svg", "new/plan.json"):
        outlast.make_plan("toys.plan", measurement=saved, to=tmp_path / name)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plan.svg").read_text()
    assert load(tmp_path / "new" / "plan.json", "toys.plan") == load(saved, "toys.plan")


@pytest.mark.parametrize(
    "allowed", [{"gpus": 0}, {"quota_seconds": 0.0}, {"quota_rate": 0.0}, {"session_seconds": 0.0}]
)
def test_limits_that_are_none_are_refused(allowed):
    with pytest.raises(UsageError, match=r"nothing can be done|is not a"):
        Allowed(**allowed).check()
