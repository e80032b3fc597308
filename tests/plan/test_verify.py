"""`outlast verify-resume` with real processes and real kills, on a user's own module in a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import outlast
from outlast.errors import ConfigError, TaskError, UsageError

TESTS = Path(__file__).parents[1]

# A task of the user's, after the toy plan; what makes it inexact is put in its middle.
MODULE = """
from dataclasses import replace
from toys import plan as toy

about = "mine"
{middle}
TASK = replace(toy.TASK, name="mine.birds")
"""

EXACT = ""

# Numbers from a generator of the module's own: no checkpoint knows of it.
HIDDEN_GENERATOR = """
import random
generator = random.Random(0)

def augment(config, batch, draws):
    batch = toy.augment(config, batch, draws)
    return batch if draws is None else {**batch, "image": batch["image"] + generator.random()}

toy.LEARNER = replace(toy.LEARNER, augment=augment)
"""

# A number in the model that is no parameter and no buffer: it begins again from 0 in every process.
HIDDEN_STATE = """
def step(config, model, batch):
    model.calls = getattr(model, "calls", 0) + 1
    result = toy.step(config, model, batch)
    return {**result, "loss_sum": result["loss_sum"] * (1 + model.calls / 10)}

toy.LEARNER = replace(toy.LEARNER, step=step)
"""

FAILS = """
def step(config, model, batch):
    raise ValueError("the sky fell")

toy.LEARNER = replace(toy.LEARNER, step=step)
"""


@pytest.fixture
def verify(tmp_path, monkeypatch):
    """verify(middle, *words): the command's exit status, its JSON, and what it said."""
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "TMPDIR": str(tmp_path / "temporary")}

    def run(middle, *words):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "birds.py").write_text(MODULE.format(middle=middle))
        command = [sys.executable, "-m", "outlast", "verify-resume", "mine.birds", *words, "--json"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout), done.stderr

    run.temporary = tmp_path / "temporary"
    return run


def test_a_plan_that_is_killed_four_times_is_equal_and_leaves_nothing_behind(verify):
    status, result, said = verify(EXACT, "--kills", "4", "--seed", "1", "train.epochs=2")
    assert status == 0, said
    assert (result["status"], result["kills"], result["differences"]) == ("equal", 4, 0)
    assert (result["task"], result["preset"], result["seed"]) == ("mine.birds", "smoke", 1)
    assert result["steps_done_again"] < 16
    assert result["compared"]["steps"] == 16
    assert result["compared"]["tensors"] > 40
    assert result["first"] == {"tensor": None, "step": None}
    assert result["different"] == []
    assert [kill["number"] for kill in result["killed"]] == [1, 2, 3, 4]
    fields = {"number", "kind", "where", "stage", "step", "resumed_stage", "resumed_step", "seconds"}
    assert all(set(kill) == fields for kill in result["killed"])
    assert all("kill" in line for line in said.splitlines())
    assert result["folder"] is None
    assert list(verify.temporary.glob("outlast-*")) == []


def test_numbers_that_no_checkpoint_knows_of_are_found_with_their_first_sample(verify):
    status, result, said = verify(HIDDEN_GENERATOR, "--kills", "1", "--seed", "3")
    assert (status, result["status"]) == (1, "different"), said
    (kill,) = result["killed"]
    first = result["first"]["step"]
    assert (first["stage"], first["step"]) == (kill["resumed_stage"], kill["resumed_step"] + 1)
    assert first["session"] == 2
    assert first["sample"].startswith("image-")
    tensor = result["first"]["tensor"]
    assert tensor["file"].startswith(kill["resumed_stage"])
    assert tensor["largest"] > 0
    assert 0 < tensor["elements"] <= tensor["size"]
    assert result["differences"] == len(result["different"]) > 1
    assert (Path(result["folder"]) / "killed" / "run.json").is_file()


def test_state_that_no_checkpoint_knows_of_is_found_with_its_first_step(verify):
    status, result, said = verify(HIDDEN_STATE, "--kills", "1", "--seed", "3", "--out", "kept")
    assert (status, result["status"], result["folder"]) == (1, "different", "kept"), said
    (kill,) = result["killed"]
    first = result["first"]["step"]
    assert (first["stage"], first["step"]) == (kill["resumed_stage"], kill["resumed_step"] + 1)
    assert first["sample"] is None
    assert "the samples are the same" in first["note"]


def test_a_session_that_fails_by_itself_is_an_error_with_what_it_said(verify):
    status, result, _ = verify(FAILS, "--kills", "1")
    assert (status, result["status"]) == (1, "failed")
    assert "the uninterrupted run failed (exit status 1)" in result["error"]
    assert any("the sky fell" in line for line in result["details"])
    assert len(list(verify.temporary.glob("outlast-*"))) == 1  # kept, to be looked at


@pytest.mark.parametrize("kills", [0, -3])
def test_no_kills_verify_nothing(kills):
    with pytest.raises(UsageError, match=str(kills)):
        outlast.verify_resume("toys.plan", kills=kills)


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(UsageError, match="not an empty folder"):
        outlast.verify_resume("toys.plan", out=tmp_path)
    with pytest.raises(ConfigError, match="there is no preset 'huge'"):
        outlast.verify_resume("toys.plan", preset="huge")
    with pytest.raises(ConfigError, match="epocs"):
        outlast.verify_resume("toys.plan", overrides=["train.epocs=1"])
    with pytest.raises(TaskError, match="there is no task 'plant'"):
        outlast.verify_resume("plant")
