"""A training with a frozen teacher: it sees the student's own samples, stays as it is, and resuming stays exact.

Several processes are in test_processes.py.
"""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

import outlast
from outlast.base.files import read_json
from outlast.errors import CheckpointError
from outlast.plan import preflight
from outlast.save.format import read_state
from outlast.save.store import newest
from toys import plan as toy
from toys import taught

SAVING = "saving.every_steps=1"


@pytest.fixture
def teaching(runs, monkeypatch):
    """Runs of the plan of three trainings of 9 steps: a teacher, a student, one that is alone."""

    class Teaching:
        folder = runs.folder

        def train(self, name, *overrides, **options):
            return runs.train(name, *overrides, task="toys.taught", **options)

        def results(self, name):
            return runs.results(name, trainings="*")

        def watch(self, look):
            monkeypatch.setattr(taught, "TAUGHT", [look])

    return Teaching()


@pytest.mark.parametrize("cut", [26, 28, 32])
def test_a_student_that_was_cut_ends_as_the_whole_one(teaching, cut):
    """Teacher and lone student take 9 steps and 2 of their trial each; the student's own begin with number 25."""
    teaching.train("whole")
    assert teaching.train("cut", SAVING, crash=("step", cut)) is None
    result = teaching.train("cut", SAVING)
    assert result["status"] == "finished"
    assert result["stages"]["student"]["from_step"] == cut - 25
    assert teaching.results("cut") == teaching.results("whole")


def test_teacher_and_student_see_the_same_images_once_and_the_teacher_is_frozen(teaching, monkeypatch):
    seen = {"teacher": [], "student": []}
    kept = []

    def look(teacher, batch, told):
        assert not teacher.training
        assert not told.requires_grad
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        seen["teacher"].append(hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest())
        kept.append(teacher)

    def witness(place, batch, logits):
        if place == "step" and "taught" in batch:
            seen["student"].append(hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest())

    monkeypatch.setattr(toy, "WITNESS", [witness])
    teaching.watch(look)
    teaching.train("run")
    assert len(seen["teacher"]) == 11  # a trial of two steps, and 9 steps of the training
    assert seen["teacher"] == seen["student"]
    assert len({id(teacher) for teacher in kept}) == 1  # built once in the session
    (best,) = (teaching.folder / "run" / "teacher" / "best").glob("*/model.safetensors")
    weights = load_file(best)
    assert all(torch.equal(value, weights[name]) for name, value in kept[0].state_dict().items())


def test_the_teacher_is_in_no_checkpoint_and_its_hash_in_every_record(teaching):
    teaching.train("run")
    run = teaching.folder / "run"
    saved = newest(run / "student" / "checkpoints", [])
    assert set(read_state(saved.folder).model) == set(toy.Net(2, 0.0).state_dict())
    told = read_json(run / "student" / "stage.json")["result"]["teacher"]
    assert saved.manifest["teacher"] == told
    assert json.loads((run / "run.json").read_text())["teacher"] == {"student": told}
    assert told["parameters"] == sum(parameter.numel() for parameter in toy.Net(8, 0.0).parameters())
    for name in ("teacher", "alone"):
        assert "teacher" not in read_json(run / name / "stage.json")["result"]
    # Another teacher has another hash, and the student is another one.
    teaching.train("other", "train.seed=4")
    assert read_json(teaching.folder / "other" / "student" / "stage.json")["result"]["teacher"] != told


def test_a_teacher_makes_a_difference_to_the_student_and_its_place_in_the_random_numbers_none(teaching):
    """The student begins with the weights of the one that is alone: the teacher takes no random number from it."""
    teaching.train("run", "train.learning_rate=1e-10", "train.weight_decay=0", "model.dropout=0")
    first = [
        [json.loads(line)["val_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (teaching.folder / "run" / "student", teaching.folder / "run" / "alone")
    ]
    assert first[0] == pytest.approx(first[1], abs=1e-5)
    teaching.train("taught")
    results = teaching.results("taught")
    assert results["student: model"] != results["alone: model"]


def test_a_student_without_its_teacher_stage_is_refused_in_one_sentence(teaching, monkeypatch):
    stages = taught.stages

    def without(config):
        return [
            stage if stage.name != "student" else type(stage)(stage.name, stage.learner, stage.config)
            for stage in stages(config)
        ]

    monkeypatch.setattr(taught, "TASK", type(taught.TASK)(**{**vars(taught.TASK), "stages": without}))
    with pytest.raises(CheckpointError, match="student learns from the stage 'teacher', whose best weights are not"):
        teaching.train("run")


def test_the_trial_before_training_and_the_checks_have_the_teacher(teaching, tmp_path):
    calls = []
    teaching.watch(lambda teacher, batch, told: calls.append(len(batch["row"])))
    found = preflight.check(preflight.Question("toys.taught", preset="smoke", out=tmp_path / "none", synthetic=True))
    assert found["errors"] == 0, found["text"]
    assert calls, "the student was tried without its teacher"
    calls.clear()
    planned = outlast.make_plan("toys.taught", preset="smoke", synthetic=True, session_limit="1h")
    assert calls
    assert planned


def test_early_stopping_stops_a_training_that_no_longer_gains(teaching):
    """Nothing can be learned with such a learning rate: five epochs after the first it is over."""
    teaching.train("run", "train.learning_rate=1e-10", "train.epochs=30", "train.patience_epochs=5")
    for name in ("teacher", "student", "alone"):
        result = read_json(teaching.folder / "run" / name / "stage.json")["result"]
        assert (result["planned_epochs"], result["epochs"]) == (30, 6)


def test_stopped_by_the_session_limit_in_the_student_it_goes_on(teaching, countdown):
    teaching.train("whole")
    result = teaching.train("cut", deadline=countdown(28))
    sessions = 1
    while result["status"] == "stopped":
        result = teaching.train("cut", deadline=countdown(28))
        sessions += 1
        assert sessions < 20
    assert sessions > 1
    assert teaching.results("cut") == teaching.results("whole")
