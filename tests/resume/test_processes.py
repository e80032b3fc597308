"""Two processes under torchrun (gloo): they train one model, save once, and resume exactly."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "outlast"]


def train(run, kill=""):
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "OUTLAST_TOY_KILL": kill}
    command = [*TWO, "train", "toys.plan", "--preset", "smoke", "--out", str(run), "saving.every_steps=3",
               "train.ema_decay=0.9"]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_two_processes_are_killed_and_resume_exactly(runs):
    whole = train(runs.folder / "whole")
    assert whole.returncode == 0, whole.stderr
    assert train(runs.folder / "cut", kill="step:9").returncode != 0
    stretch = json.loads((runs.folder / "cut" / "run.json").read_text())["sessions"][0]["trained"]["train-fold0"]
    assert stretch == {"from_step": 0, "to_step": 6}
    done = train(runs.folder / "cut")
    assert done.returncode == 0, done.stderr
    record = json.loads((runs.folder / "cut" / "run.json").read_text())
    assert (record["status"], record["host"]["processes"]) == ("finished", 2)
    assert runs.results("cut") == runs.results("whole")
