"""Plans that can't be made: limits that can't be kept, times that are not there or of something else."""

from __future__ import annotations

import json

import pytest

SMOKE = ("--preset", "smoke")


@pytest.fixture(scope="module")
def a_plan(tmp_path_factory):
    """A measured plan of the toy task, as JSON."""
    import outlast

    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTLAST_CACHE", str(folder / "cache"))
        outlast.make_plan("toys.plan", preset="smoke", to=folder / "plan.json")
    return folder / "plan.json"


@pytest.fixture
def planned(refused, a_plan):
    """A plan with the measured times is refused."""

    def run(*words, names=(), code=2):
        return refused(
            "plan", "toys.plan", "--measurement", a_plan, *words, names=names, keeps=a_plan.parent, code=code
        )

    return run


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--gpus", "0"), ["--gpus 0"]),
        (("--quota", "0"), ["quota of 0", "--quota"]),
        (("--quota-rate", "0"), ["--quota-rate 0"]),
        (("--session-limit", "0s"), ["--session-limit"]),
        (("--session-limit", "soon"), ["'soon'", "9h"]),
        (("--session-limit", "3s"), ["3s", "too short", "getting ready", "--session-limit"]),
        (("--quota", "3s"), ["the quota of 3s", "--quota"]),
        (("--to", "plan.pdf"), ["plan.pdf", ".png"]),
        (("--data", "."), ["--measurement and --data"]),
        (("--run", "."), ["--measurement and --run"]),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(planned, words, names):
    planned(*words, names=names)


def test_a_measurement_that_is_not_there_is_named(refused):
    refused("plan", "toys.plan", "--measurement", "none.json", names=["none.json", "--to"], code=2)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"measurement": 3}', '{"format": 99}', '"plan"', "\x00"])
def test_a_file_that_is_no_measurement_is_refused(refused, tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    refused("plan", "toys.plan", "--measurement", tmp_path / "odd.json", names=["odd.json"], code=2)


@pytest.mark.parametrize("value", [None, -1.0, "fast", [1]])
def test_a_time_that_is_no_number_of_seconds_is_refused(refused, a_plan, tmp_path, value):
    values = json.loads(a_plan.read_text())
    values["measurement"]["stages"]["train-fold0"]["seconds"]["step"] = value
    (tmp_path / "odd.json").write_text(json.dumps(values))
    refused("plan", "toys.plan", "--measurement", tmp_path / "odd.json", names=["odd.json"], code=2)


def test_a_call_that_is_longer_than_a_session_is_named(refused, a_plan, tmp_path):
    values = json.loads(a_plan.read_text())
    values["measurement"]["stages"]["combine"] |= {"seconds": {"call": 7200.0}, "guessed": None}
    (tmp_path / "long.json").write_text(json.dumps(values))
    words = ("plan", "toys.plan", "--measurement", tmp_path / "long.json", "--session-limit", "1h")
    refused(*words, names=["the call 'combine' takes 2h00m", "--session-limit"], code=2)


def test_a_guess_does_not_make_a_plan_impossible(command, a_plan, tmp_path):
    made = json.loads(a_plan.read_text())
    measured = made["measurement"]
    measured["startup_seconds"] = 3.0  # however busy this machine was
    for stage in measured["stages"].values():
        if not stage["guessed"]:
            stage["seconds"] = {name: min(value, 0.5) for name, value in stage["seconds"].items()}
            stage["longest"] = {name: min(value, 0.5) for name, value in stage["longest"].items()}
    (tmp_path / "calm.json").write_text(json.dumps(made))
    ended = command("plan", "toys.plan", "--measurement", tmp_path / "calm.json", "--session-limit", "50s")
    assert ended.code == 0, ended.err
    assert "5s (guessed)" in ended.out


def test_a_measurement_of_another_task_is_refused(refused, a_plan):
    refused("plan", "plants", "--measurement", a_plan, names=["'toys.plan'", "'plants'"], code=2)


def test_a_measurement_without_a_stage_is_refused(planned):
    planned("data.folds=3", names=["train-fold2", "predict-fold2"])


def test_a_run_that_is_none_is_refused(refused, tmp_path):
    refused("plan", "toys.plan", "--run", tmp_path / "none", names=["none"])


def test_a_run_of_another_task_gives_no_times(refused, trained):
    refused("plan", "toys.plan", "--run", trained[0], names=["'plants'", "'toys.plan'"], keeps=trained[0], code=2)


def test_a_run_that_has_not_trained_yet_gives_no_times(refused, half_a_run):
    run, _ = half_a_run
    (run / "train" / "metrics.jsonl").unlink()
    refused("plan", "plants", "--run", run, names=["'train'", "without --run"], keeps=run)


def test_an_unknown_task_or_preset_is_refused(refused):
    refused("plan", "plant", names=["'plants'"])
    refused("plan", "plants", "--preset", "huge", names=["'huge'", "smoke"])
