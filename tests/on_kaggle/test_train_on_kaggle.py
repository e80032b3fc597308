"""`outlast train --on kaggle` against a Kaggle that really runs what is pushed: unattended, until it is finished."""

import json
import os
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import pytest

import outlast
from outlast.base.clock import Deadline
from outlast.base.files import sha256
from outlast.env import kaggle_process
from outlast.errors import RunError, UsageError
from outlast.plan import kaggle_sessions, preflight
from outlast.plan.kaggle_kernel import Inputs, inputs
from outlast.plan.kaggle_state import KaggleState
from outlast.save.store import newest
from toys import bare
from toys.kaggle_server import KEY, Fault

ASK = {"preset": "smoke", "overrides": ["train.epochs=2", "data.examples=24"], "on": "kaggle", "owner": "tester"}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return bare.make(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def sessions(kaggle, python, monkeypatch):
    """The server's sessions, in an environment without Outlast; looks at them follow quickly."""
    monkeypatch.setattr(kaggle_sessions, "_LOOKS", (2.0, 4.0))
    monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 120.0)
    kaggle.sessions.python = str(python)
    kaggle.sessions.limit_seconds = 500.0
    return kaggle.sessions


def results(run):
    patterns = ("*/best/*/model.safetensors", "*/metrics.jsonl", "predict-*/part-*", "*/metrics.json")
    found = {path.relative_to(run).as_posix(): sha256(path) for pattern in patterns for path in run.glob(pattern)}
    for stage in run.glob("*/checkpoints"):
        found[stage.parent.name] = sha256(newest(stage, []).folder / "model.safetensors")
    return found


def test_it_goes_on_session_after_session_and_ends_as_the_run_at_home(kaggle, sessions, tmp_path, monkeypatch):
    """Each session stops after five steps; one is killed at its limit, one push is answered by a lost connection."""
    sessions.environment = {"OUTLAST_TOY_STOP": "step:6"}
    sessions.planned_failures = []
    kaggle.faults.append(Fault("SaveKernel", "done, but lost"))
    kaggle.faults.append(Fault("GetKernelSessionStatus", "500", times=2))
    run = tmp_path / "run"
    killed = []
    push = sessions.push

    def once_killed(ref, request):
        """The second session is ended by Kaggle as soon as it has begun."""
        sessions.limit_seconds = 2.0 if len(killed) == 1 else 500.0
        killed.append(ref)
        return push(ref, request)

    monkeypatch.setattr(sessions, "push", once_killed)
    result = outlast.train("toys.plan", out=run, **ASK)
    assert result["status"] == "finished" and not result["stages_left"]
    states = [(one["state"], one["trouble"]) for one in result["sessions"]]
    assert states[1] == ("failed", "time") and states.count(("fetched", None)) == len(states) - 1 >= 2
    outlast.train("toys.plan", preset="smoke", overrides=ASK["overrides"], out=tmp_path / "home")
    assert results(run) == results(tmp_path / "home")

    pushed = [version.request for versions in sessions.kernels.values() for version in versions]
    assert len(sessions.kernels) == 2 and len(pushed) == len(states), "a session was pushed twice"
    for request in pushed:
        assert request["isPrivate"] is True and request["enableInternet"] is False
        assert not request.get("enableGpu") and KEY not in json.dumps(request)
    logs = "".join(version.text() for versions in sessions.kernels.values() for version in versions)
    assert KEY not in logs
    for path in (tmp_path / "run.kaggle").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
    assert kaggle.refused == []


@pytest.mark.slow
def test_two_processes_for_one_training_end_on_kaggle_as_two_at_home(kaggle, sessions, tmp_path):
    result = outlast.train("toys.one", out=tmp_path / "run", processes=2, **ASK)
    assert result["status"] == "finished"
    settings = {"preset": "smoke", "overrides": ASK["overrides"]}
    outlast.train("toys.one", out=tmp_path / "home", processes=2, **settings)
    assert results(tmp_path / "run") == results(tmp_path / "home")
    (session,) = json.loads((tmp_path / "run/run.json").read_text())["sessions"]
    assert session["bounds"]["processes"] == "2"


@pytest.mark.slow
def test_a_run_begun_at_home_goes_on_on_kaggle_from_a_pack_among_the_data(kaggle, sessions, tmp_path):
    """The pack is a private data set; Kaggle has unpacked it into a folder. It ends as the run that stayed at home."""

    class Soon(Deadline):
        asked = 0

        def remaining(self):
            self.asked += 1
            return float("inf") if self.asked < 12 else 0.0

    settings = {"preset": "smoke", "overrides": ASK["overrides"]}
    assert outlast.train("toys.one", out=tmp_path / "begun", deadline=Soon(), **settings)["status"] == "stopped"
    pack = tmp_path / "next.zip"
    outlast.pack(tmp_path / "begun", pack)
    token = kaggle.store.start_upload(pack.name, pack.stat().st_size)
    kaggle.store.receive(token, pack.read_bytes(), None)
    kaggle.store.create("tester/begun-at-home", "begun at home", True, [{"token": token}], [])
    result = outlast.train("toys.one", out=tmp_path / "run", data=["tester/begun-at-home"], **ASK)
    assert result["status"] == "finished" and len(result["sessions"]) == 1
    outlast.train("toys.one", out=tmp_path / "home", **settings)
    assert results(tmp_path / "run") == results(tmp_path / "home")
    begun, went_on = json.loads((tmp_path / "run/run.json").read_text())["sessions"]
    assert begun["to_step"] == went_on["from_step"] > 0


def test_the_computer_may_be_off_in_between(kaggle, sessions, tmp_path, monkeypatch):
    """The process dies while a session runs and amid the next push; typed again, nothing is pushed twice."""
    sessions.environment = {"OUTLAST_TOY_STOP": "step:6"}
    run = tmp_path / "run"

    class Off(BaseException):
        pass

    def off(*arguments, **options):
        raise Off

    with monkeypatch.context() as patch:
        patch.setattr(kaggle_sessions, "_wait", off)
        with pytest.raises(Off):
            outlast.train("toys.one", out=run, **ASK)
    state = KaggleState.open(tmp_path / "run.kaggle" / "state.json", {})
    assert [one.state for one in state.sessions] == ["running"]

    push = kaggle_sessions.kaggle_client.push

    def arrived_but_unknown(*arguments, **options):
        push(*arguments, **options)
        raise Off

    with monkeypatch.context() as patch:
        patch.setattr(kaggle_sessions.kaggle_client, "push", arrived_but_unknown)
        with pytest.raises(Off):
            outlast.train("toys.one", out=run, **ASK)
    result = outlast.train("toys.one", out=run, **ASK)
    assert result["status"] == "finished"
    pushed = sum(len(versions) for versions in sessions.kernels.values())
    assert pushed == len(result["sessions"]) == 2
    with pytest.raises(RunError, match="begun with other words"):
        outlast.train("toys.one", out=run, **{**ASK, "overrides": ["train.epochs=3"]})


def test_without_quota_nothing_is_begun(kaggle, sessions, tmp_path):
    sessions.quota_used_hours = 29.95
    result = outlast.train("toys.one", out=tmp_path / "run", accelerator="NvidiaTeslaT4", **ASK)
    assert result["status"] == "stopped" and "GPU quota" in result["reason"] and "2030-01-05" in result["reason"]
    assert sessions.kernels == {}


def test_what_the_quota_leaves_is_the_longest_session(kaggle, sessions, tmp_path, monkeypatch):
    sessions.quota_used_hours = 28.0
    monkeypatch.setattr(kaggle_sessions, "_wait", lambda driver, session: None)
    outlast.train("toys.one", out=tmp_path / "run", accelerator="NvidiaTeslaT4", quota_rate=2.0, **ASK)
    (versions,) = sessions.kernels.values()
    request = versions[0].request
    assert request["sessionTimeoutSeconds"] == 3600 and request["machineShape"] == "NvidiaTeslaT4"
    assert '"session_limit": "3420s"' in request["text"]


@pytest.mark.parametrize(
    ("options", "inside"),
    [({"side_by_side": 2}, {"side_by_side": "2", "processes": "None"}),
     ({"processes": 2}, {"side_by_side": "1", "processes": "2"}), ({}, {"side_by_side": "1", "processes": "None"})],
)  # fmt: skip
def test_how_two_gpus_are_used_is_said_in_the_session_and_in_the_next_command(
    kaggle, sessions, tmp_path, monkeypatch, options, inside
):
    monkeypatch.setattr(kaggle_sessions, "_wait", lambda driver, session: None)
    result = outlast.train("toys.one", out=tmp_path / "run", accelerator="NvidiaTeslaT4", **options, **ASK)
    (versions,) = sessions.kernels.values()
    for name, value in inside.items():
        assert f'    "{name}": {value},\n' in versions[0].request["text"]
    (said,) = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()] or [""]
    assert said in result["next_command"] and ("--processes" in result["next_command"]) == ("processes" in options)


def test_what_is_left_is_forecast_for_as_many_stages_at_a_time(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    outlast.train("toys.plan", preset="smoke", out=run, overrides=ASK["overrides"])
    asked = []
    plan = kaggle_sessions.planning.plan
    monkeypatch.setattr(kaggle_sessions.planning, "plan", lambda question: asked.append(plan(question)) or asked[-1])
    for at_once in (1, 2):
        wish = kaggle_sessions.Wish("toys.plan", "tester", quota_rate=1.0, side_by_side=at_once)
        kaggle_sessions._say_forecast(SimpleNamespace(task=preflight.find_task("toys.plan"), run=run, wish=wish))
    assert [["train-fold0", "train-fold1"] in found["at_once"] for found in asked] == [False, True]
    assert asked[1]["quota_hours"] < asked[0]["quota_hours"]
    assert "the whole plan: 1 session" in capsys.readouterr().err


def test_a_failure_that_would_come_again_ends_it_with_a_diagnosis(kaggle, sessions, tmp_path):
    log = "starting\nerror: no data found for plants\n  What to do: name the folder with --data DIR\n"
    sessions.planned_failures = [("", log)]
    with pytest.raises(RunError, match="did not find its data") as caught:
        outlast.train("toys.one", out=tmp_path / "run", **ASK)
    assert "error: no data found for plants" in caught.value.details and "--data" in caught.value.hint


def test_a_signal_ends_the_watching_alone(kaggle, sessions, tmp_path, monkeypatch):
    monkeypatch.setattr(kaggle_sessions, "_LOOKS", (30.0, 30.0))
    sessions.queue_seconds = 600.0

    def when_pushed():
        while not sessions.kernels:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_pushed, daemon=True).start()
    result = outlast.train("toys.one", out=tmp_path / "run", **ASK)
    assert result["status"] == "stopped" and "goes on on Kaggle" in result["reason"]
    shutil.rmtree(tmp_path / "run.kaggle")


def test_a_run_that_is_here_already_is_not_touched(kaggle, sessions, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(RunError, match="was not made on Kaggle"):
        outlast.train("toys.one", out=tmp_path / "run", **ASK)
    assert sessions.kernels == {} and (tmp_path / "run" / "run.json").read_text() == "{}"


def test_data_is_named_as_kaggle_names_it():
    assert inputs(["me/leaves", "rsna-2023"], ["data"]) == Inputs(("me/leaves",), ("rsna-2023",))
    assert inputs(["pretrain=me/a"], ["data", "pretrain"]).roots == {"pretrain": "me/a"}
    for wrong in ("/data/leaves", "me/leaves/3"):
        with pytest.raises(UsageError, match="nothing that Kaggle could attach"):
            inputs([wrong], ["data"])


def test_what_does_not_go_with_kaggle_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--mirror, --sweep") as refused:
        outlast.train("toys.one", out=tmp_path / "run", mirror="/elsewhere", sweep=["seed=1,2"], **ASK)
    assert "each combination of a sweep is a training of its own" in refused.value.hint
    with pytest.raises(UsageError, match="--side-by-side does not go with --processes"):
        outlast.train("toys.one", out=tmp_path / "run", side_by_side=2, processes=2, **ASK)
    for option in ("side_by_side", "processes"):
        with pytest.raises(UsageError, match="3: NvidiaTeslaT4 has 2 GPUs"):
            outlast.train("toys.one", out=tmp_path / "run", accelerator="NvidiaTeslaT4", **{option: 3}, **ASK)
    with pytest.raises(UsageError, match="needs --owner"):
        outlast.train("toys.one", out=tmp_path / "run", **{**ASK, "owner": None})
    with pytest.raises(UsageError, match="are for trainings on Kaggle"):
        outlast.train("toys.one", out=tmp_path / "run", preset="smoke", owner="tester")
