"""What a run does when what it made is damaged, when a setting changes, and when a session is too short."""

import json

import pytest

import outlast
from outlast.base.clock import Deadline
from outlast.errors import CheckpointError, RunError, UsageError


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")

    def train(*overrides, **options):
        return outlast.train("toys.plan", preset="smoke", out=tmp_path / "run", overrides=list(overrides), **options)

    train.folder = tmp_path / "run"
    return train


def snapshot(run):
    return {path: path.read_bytes() for path in run.glob("*/**/*") if path.is_file()}


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def test_a_declared_change_on_a_finished_run_does_nothing_again(runs):
    runs()
    before = snapshot(runs.folder)
    result = runs("train.micro_batch=4", fallback=False)
    assert result["status"] == "finished"
    assert snapshot(runs.folder) == before
    warnings = json.loads((runs.folder / "run.json").read_text())["warnings"]
    assert any("train.micro_batch: None -> 4" in warning for warning in warnings)


def test_a_damaged_shard_is_made_again_and_never_attested(runs):
    runs()
    shard = runs.folder / "predict-fold0" / "part-00000.safetensors"
    whole = shard.read_bytes()
    flip_a_bit(shard)
    assert runs()["status"] == "finished"
    assert shard.read_bytes() == whole


def test_damaged_best_weights_are_an_error_that_names_them(runs):
    runs()
    weights = next(runs.folder.glob("train-fold0/best/*/model.safetensors"))
    flip_a_bit(weights)
    with pytest.raises(CheckpointError, match="train-fold0 holds no best weights"):
        runs()
    assert not (runs.folder / "train-fold0" / "stage.json").exists()


def test_a_finished_training_keeps_only_its_best_weights_if_asked(runs):
    result = runs("saving.keep_when_finished=best")
    assert result["status"] == "finished"
    assert not list(runs.folder.glob("train-*/checkpoints"))
    assert len(list(runs.folder.glob("train-*/best/*/model.safetensors"))) == 2
    assert runs("saving.keep_when_finished=best")["stages"] == result["stages"]


def test_a_kill_before_a_training_is_recorded_costs_no_step(runs, monkeypatch):
    class Kill(BaseException):
        pass

    def killed(*arguments):
        raise Kill

    runs("saving.keep_when_finished=best", stage="folds")
    with monkeypatch.context() as patch:
        patch.setattr("outlast.plan.ledger.finish", killed)
        with pytest.raises(Kill):
            runs("saving.keep_when_finished=best", stage="train-fold0")
    result = runs("saving.keep_when_finished=best", stage="train-fold0")
    assert result["stages"]["train-fold0"]["from_step"] == 12


def test_a_session_that_is_too_short_for_anything_is_an_error(runs):
    with pytest.raises(RunError, match="there is no time to train: the session limit is too short, or used up"):
        runs(session_limit="1s")
    assert not runs.folder.exists()
    with pytest.raises(RunError, match="ended before anything could be done: the session limit left too little"):
        runs(deadline=Deadline.after(2))
    assert json.loads((runs.folder / "run.json").read_text())["status"] == "stopped"
    assert runs()["status"] == "finished"


def test_weights_to_begin_with_are_for_one_stage_and_are_named_in_the_next_command(runs, tmp_path):
    runs(stage="folds")
    result = runs(stage="train-fold0")
    assert "--stage train-fold0" in result["next_command"]
    weights = next(runs.folder.glob("train-fold0/best/*/model.safetensors"))
    with pytest.raises(UsageError, match="this plan has 2"):
        runs(start_from=weights)
    result = runs(start_from=weights, stage="train-fold1")
    assert f"--start-from {weights}" in result["next_command"]
    first = json.loads((runs.folder / "train-fold1" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["train_loss"] < 0.5  # fresh it is 0.83
