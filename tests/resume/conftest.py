import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import outlast
from outlast.base.clock import Deadline
from outlast.base.files import sha256
from outlast.save.format import read_state
from outlast.save.store import newest
from outlast.state import RunState
from toys import plan as toy


class Crash(BaseException):
    """An accident that nothing in the product catches, like a kill but without a new process."""


class Runs:
    """Trains the toy plan, with accidents, and tells what a run's results are."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch

    def train(self, name, *overrides, crash=None, deadline=None, task="toys.plan", **options):
        """One session in the run `name`; crash=(place, n) ends it at the n-th time that the place is reached."""
        seen = {"count": 0}

        def accident(place):
            if crash is not None and place == crash[0]:
                seen["count"] += 1
                if seen["count"] == crash[1]:
                    raise Crash

        self.monkeypatch.setattr(toy, "ACCIDENT", [accident])
        try:
            return outlast.train(
                task,
                preset="smoke",
                out=self.folder / name,
                overrides=list(overrides),
                deadline=deadline,
                **options,
            )
        except Crash:
            return None

    def results(self, name, trainings="train-*"):
        """Everything in a run that an uninterrupted run must have the same: files by SHA-256, states by value."""
        run = self.folder / name
        patterns = ("*/best/*/model.safetensors", "*/metrics.jsonl", "predict-*/part-*", "*/metrics.json")
        found = {path.relative_to(run).as_posix(): sha256(path) for pattern in patterns for path in run.glob(pattern)}
        for stage in (folder for folder in run.glob(trainings) if (folder / "checkpoints").is_dir()):
            state = read_state(newest(stage / "checkpoints", []).folder)
            for field in dataclasses.fields(state):
                if field.name not in ("train_seconds", "sessions"):
                    found[f"{stage.name}: {field.name}"] = hashable(getattr(state, field.name))
        return found


def hashable(value):
    """A value in which tensors are their bytes, so that == compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest())
    if isinstance(value, dict):
        return {key: hashable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hashable(item) for item in value]
    return value


@pytest.fixture
def runs(tmp_path, monkeypatch):
    # Drawing the report takes longer than the trainings here, and has tests of its own.
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
    # Every training collects garbage once; without all modules to walk through it takes half as long.
    gc.freeze()
    yield Runs(tmp_path, monkeypatch)
    gc.unfreeze()


@dataclasses.dataclass(frozen=True)
class Countdown(Deadline):
    """A deadline that is over after it was asked `asks` times: a session limit at an exact place."""

    asks: list[int] = dataclasses.field(default_factory=lambda: [0])

    def remaining(self):
        self.asks[0] -= 1
        return float("inf") if self.asks[0] >= 0 else 0.0


class Ranks:
    """Processes that train together (tests/resume/ranks.py); a session is done by the first `count` of them."""

    def __init__(self, folder):
        self.errors = (folder / "errors.txt").open("w+")
        here = Path(__file__)
        path = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(here.parent / "ranks.py")],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OUTLAST_CACHE": str(folder)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            )
            for _ in range(4)
        ]  # fmt: skip

    def train(self, count, run, *overrides, crash=None, stop=None, without=(), task="toys.plan"):
        """One session of the run;

        crash=(place, n) ends it on every rank when it comes there for the n-th time, stop=(place, n) asks it to stop.
        Returns what each rank answers.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(count):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            own = run[rank] if isinstance(run, list) else run
            job = {"task": task, "run": str(own), "overrides": overrides, "crash": crash, "stop": stop,
                   "without": without,
                   "environment": {name: str(value) for name, value in environment.items()}}  # fmt: skip
            self.processes[rank].stdin.write(json.dumps(job) + "\n")
            self.processes[rank].stdin.flush()
        lines = [process.stdout.readline() for process in self.processes[:count]]
        if not all(lines):
            self.errors.seek(0)
            raise AssertionError(self.errors.read())
        return [json.loads(line) for line in lines]

    def close(self):
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()
        self.errors.close()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    pool = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@pytest.fixture
def countdown():
    return lambda asks, now=time.monotonic: Countdown(now=now, asks=[asks])


@pytest.fixture
def small_state():
    """Makes a state of a few tensors at a step."""

    def make(step):
        return RunState(
            model={"weight": torch.full((3, 2), float(step)), "bias": torch.arange(2)},
            optimizer={"state": {0: {"exp_avg": torch.ones(3, 2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
            ranks=[{"generators": {"torch": torch.get_rng_state()}, "sums": {"weight": 1.0}}],
            step=step,
        )

    return make
