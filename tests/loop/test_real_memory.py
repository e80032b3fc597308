"""Memory that really runs out, in processes of their own: the system refuses it (RLIMIT_AS), or a budget is passed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import outlast
from outlast.base import accident
from toys import memory as toy

# argv: run folder; "refuse" or "budget"; bytes on top of what is held without a model (0: no limit); the optimizer step
# from which on they are all there is (0: from the start); settings
CHILD = """
import json, resource, sys
import torch
import outlast
from outlast.base import accident
from outlast.plan import session
from toys import memory as toy

run, kind, spare, at, settings = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
done, fed = [0], []

def held(name):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

def limit():
    resource.setrlimit(resource.RLIMIT_AS, (held("VmSize") + spare,) * 2)

def happen(place):
    done[0] += place == "stepped"
    if place == "stepped" and done[0] == at:
        limit()

def trouble(place, rows):
    if place == "step":
        fed.append((done[0], rows.tolist()))

session.write_report = lambda run: run / "report.html"  # it takes longer than the training here
# What the first training of a process sets up and keeps.
outlast.train("toys.memory", preset="smoke", out=run + "-before", overrides=["train.epochs=1"])
accident.happen, toy.TROUBLE[0] = happen, trouble
if spare and kind == "budget":
    settings.append(f"train.memory_budget_gigabytes={(held('VmRSS') + spare) / 1e9}")
elif spare and not at:
    limit()
outlast.train("toys.memory", preset="smoke", out=run, overrides=settings)
print(json.dumps(fed))
"""
SAMPLE = 12_000_000  # bytes of activations that are kept; a step needs several times as much
SETTINGS = (f"model.bytes_per_sample={SAMPLE}", "train.epochs=1", "loading.workers=0")


def train(run, kind="refuse", spare=0, at=0):
    """The rows that were fed, by step, and the run's record."""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(run), kind, str(spare), str(at), *SETTINGS],
        capture_output=True, text=True, check=False, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rung = json.loads((run / "run.json").read_text())["rung"]["train"]
    return json.loads(done.stdout), rung, done.stderr


def whole(fed):
    """The rows of each step that was not done twice or tried before training, in order."""
    return {step: [row for number, rows in fed if number == step for row in rows] for step, _ in fed}


@pytest.fixture
def undisturbed(tmp_path, monkeypatch):
    """The rows that the same run feeds while there is memory; how large its activations are does not matter."""
    done, fed = [0], []

    def happen(place):
        done[0] += place == "stepped"

    monkeypatch.setattr(accident, "happen", happen)
    monkeypatch.setattr(toy, "TROUBLE", [lambda place, rows: fed.append((done[0], rows.tolist()))])
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
    outlast.train("toys.memory", preset="smoke", out=tmp_path / "whole", overrides=["train.epochs=1"])
    return fed


def test_memory_that_is_refused_in_the_middle_is_recovered_from(undisturbed, tmp_path):
    fed, rung, said = train(tmp_path / "run", "refuse", 25 * SAMPLE, 3)
    assert rung["micro_batch"] in (1, 2, 4)
    assert {event["step"] for event in rung["events"]} == {3}
    assert "train: out of memory at step 4" in said
    sizes = [len(rows) for step, rows in fed if step > 3]
    assert max(sizes) <= rung["micro_batch"]
    expected, got = whole(undisturbed), whole(fed)
    for step in (1, 2, 4, 5, 6):
        assert got[step] == expected[step]
    assert got[3][-len(expected[3]) :] == expected[3]  # after what failed, the same samples again


def test_memory_that_is_refused_from_the_start_is_found_by_the_trial(undisturbed, tmp_path):
    fed, rung, said = train(tmp_path / "run", "refuse", 25 * SAMPLE)
    assert rung["micro_batch"] in (1, 2, 4)
    (event,) = rung["events"]
    assert (event["step"], event["from"]) == (0, {"micro_batch": 8})
    assert f"are made of micro-batches of {rung['micro_batch']}, because memory is short" in said
    expected, got = whole(undisturbed), whole(fed)
    assert all(got[step] == expected[step] for step in range(1, 7))


def test_a_budget_is_kept_without_any_refusal(tmp_path):
    from outlast.env.memory import peak_bytes, reset_peak

    if not reset_peak() or peak_bytes() is None:
        pytest.skip("this system does not let a process reset the high-water mark of its memory")
    _, rung, _ = train(tmp_path / "run", "budget", 18 * SAMPLE)
    assert rung["micro_batch"] in (1, 2, 4)
    assert "GB that it may take" in rung["reason"]
