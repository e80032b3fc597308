"""Stages side by side: at the same time, the same result, and no failure or kill keeps the others from being done."""

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import outlast
from outlast.errors import TrainingError, UsageError
from outlast.plan import beside
from outlast.plan.differences import compare_runs

HERE = Path(__file__).parents[1]
STAGES = ["folds", "train-fold0", "train-fold1", "predict-fold0", "predict-fold1", "combine"]
SAVE = "saving.every_steps=3"


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def whole(tmp_path):
    """The plan done one stage after the other."""
    outlast.train("toys.plan", preset="smoke", out=tmp_path / "whole", overrides=[SAVE])
    return tmp_path / "whole"


def train(run, task="toys.plan", **options):
    return outlast.train(task, preset="smoke", out=run, overrides=[SAVE], side_by_side=2, **options)


def same(expected, found):
    comparison = compare_runs(expected, found, STAGES)
    assert comparison.tensors > 20
    return comparison.differences == []


def test_workers_that_are_killed_lose_nothing_and_the_result_is_that_of_one_after_the_other(
    whole, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    monkeypatch.setenv("OUTLAST_TOY_KILL", "step:9")  # two steps of each training try what fits into memory
    monkeypatch.setenv("OUTLAST_TOY_SLOW", "0.1")  # saves are written beside the steps
    with pytest.raises(TrainingError) as failure:
        train(run)
    assert failure.value.message == "2 stages failed: train-fold0, train-fold1"
    assert all("was killed (SIGKILL)" in line for line in failure.value.details) and "type the same" in str(
        failure.value
    )
    known = json.loads((run / "run.json").read_text())
    assert known["status"] == "failed" and "2 stages failed" in known["reason"]
    for name in ("OUTLAST_TOY_KILL", "OUTLAST_TOY_SLOW"):
        monkeypatch.delenv(name)
    result = train(run)
    assert result["status"] == "finished" and "side-by-side" not in str(result["next_command"])
    assert same(whole, run)
    last = json.loads((run / "run.json").read_text())["sessions"][-1]
    assert set(last["stages"]) == set(STAGES) - {"folds"}
    assert all(last["trained"][name]["from_step"] in (3, 6) for name in ("train-fold0", "train-fold1"))


def start(run):
    command = [sys.executable, "-m", "outlast", "train", "toys.plan", "--preset", "smoke", "--out", str(run), SAVE,
               "--side-by-side", "2"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OUTLAST_TOY_SLOW": "0.4"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_parent_killed_and_later_told_to_stop_loses_nothing(whole, tmp_path):
    run = tmp_path / "run"
    with start(run) as process:
        for line in process.stderr:
            if "epoch 1/3" in line:
                workers = psutil.Process(process.pid).children()
                process.kill()
                break
        process.stderr.read()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    with start(run) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if "epoch 2/3" in line:
                process.send_signal(signal.SIGTERM)
                break
        said = "".join(said) + process.stderr.read()
    assert process.returncode == 0, said
    assert "resuming train-fold" in said
    assert "stopped in time (SIGTERM)" in said and "--side-by-side 2" in said
    known = json.loads((run / "run.json").read_text())
    assert (known["status"], known["reason"]) == ("stopped", "SIGTERM")
    result = outlast.train("toys.plan", preset="smoke", out=run, overrides=[SAVE])  # one after the other again
    assert result["status"] == "finished"
    assert same(whole, run)


def test_stages_meet_and_when_one_fails_the_others_are_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUTLAST_TOY_MEET", str(tmp_path))
    monkeypatch.setenv("OUTLAST_TOY_FAILS", "left")
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match="the stage 'left' failed: left has bad data") as failure:
        train(run, task="toys.meet")
    assert "mend them" in failure.value.hint
    assert (run / "after-right/done.txt").read_text() == "right"
    assert not (run / "left/stage.json").exists() and not (run / "both").exists()
    assert "left: FAILED" in capsys.readouterr().err
    monkeypatch.delenv("OUTLAST_TOY_FAILS")
    assert train(run, task="toys.meet")["stages_left"] == []


@pytest.mark.parametrize(
    "options", [{"processes": 2}, {"stage": "folds"}, {"sweep": ["seed=1,2"]}, {"side_by_side": 0}]
)
def test_what_does_not_go_with_it_is_refused(tmp_path, options):
    with pytest.raises(UsageError, match="side-by-side"):
        outlast.train("toys.plan", preset="smoke", out=tmp_path / "run", **{"side_by_side": 2, **options})
    assert not (tmp_path / "run").exists()


def test_each_worker_sees_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert beside._seats(2) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,5")
    assert beside._seats(2) == [{"CUDA_VISIBLE_DEVICES": "GPU-a"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    beside.check(2, gpus=2)
    beside.check(2, gpus=0)
    with pytest.raises(UsageError, match="each stage needs a GPU of its own"):
        beside.check(3, gpus=2)


def test_cores_are_shared_out_among_the_stages():
    assert [beside.share_of(4, at_once) for at_once in (1, 2, 3, 8)] == [4, 2, 1, 1]
