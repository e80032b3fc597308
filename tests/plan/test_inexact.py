"""A run's record says what would keep it from being exact on CUDA; train.deterministic=true refuses before a step."""

import json

import pytest
import torch
from torch.nn import functional as F

import outlast
from outlast.errors import TrainingError
from toys import plan as toy


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(step, *overrides): the toy plan in which `step` is called at every training step; returns run.json."""
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")

    def run(step, *overrides, stage=None):
        monkeypatch.setattr(toy, "ACCIDENT", [lambda place: step() if place == "step" else None])
        run = tmp_path / "run"
        outlast.train("toys.plan", preset="smoke", out=run, overrides=["train.epochs=1", *overrides], stage=stage)
        return json.loads((run / "run.json").read_text())

    yield run
    torch.use_deterministic_algorithms(False)


def sample():
    F.grid_sample(
        torch.ones(1, 1, 4, 4, requires_grad=True), torch.zeros(1, 2, 2, 2), align_corners=False
    ).sum().backward()


def unpool():
    F.max_unpool2d(*F.max_pool2d(torch.ones(1, 1, 4, 4), 2, return_indices=True), 2)


def test_the_record_names_what_holds_on_cuda(train, capsys):
    expected = ["on CUDA: grid_sample (sampling at given places)"]
    assert train(sample)["inexact"] == {"train-fold0": expected, "train-fold1": expected}
    assert "grid_sample" not in capsys.readouterr().err


def test_a_step_that_repeats_everywhere_has_an_empty_entry(train):
    assert train(lambda: None, "train.deterministic=true")["inexact"] == {"train-fold0": [], "train-fold1": []}


def test_deterministic_refuses_what_torch_has_no_algorithm_for_by_name(train, tmp_path):
    with pytest.raises(TrainingError, match=r"train-fold0: .*=true refuses .* max_unpool2d"):
        train(unpool, "train.deterministic=true")
    assert not list((tmp_path / "run").glob("train-*/checkpoints/step-*"))
