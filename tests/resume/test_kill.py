"""Real processes, really killed with SIGKILL, between and inside the stages of a plan."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


def session(run, kill=""):
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OUTLAST_TOY_KILL": kill}
    command = [sys.executable, "-m", "outlast", "train", "toys.plan", "--preset", "smoke", "--out", str(run), "--json",
               "saving.every_steps=3"]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_plan_killed_inside_and_between_stages_ends_as_if_nothing_had_happened(runs):
    runs.train("whole")
    run = runs.folder / "killed"
    for place in ("folds:1", "step:7", "predict:5", "step:9", "combine:1"):
        done = session(run, place)
        assert done.returncode == -signal.SIGKILL, (place, done.stderr)
    done = session(run)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    assert runs.results("killed") == runs.results("whole")
    assert not list(run.rglob(".tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_stops_with_exit_code_zero(tmp_path, number):
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "outlast", "train", "toys.plan", "--preset", "smoke", "--out", str(run), "--json",
               "train.epochs=100000"]  # fmt: skip
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.startswith("epoch 3/"):
                process.send_signal(number)
                break
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    result = json.loads(output)
    assert (result["status"], result["reason"]) == ("stopped", signal.Signals(number).name)
    assert list(run.glob("train-fold0/checkpoints/step-*"))
