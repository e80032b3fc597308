"""A plan that was cut anywhere, or stopped by its session limit, ends bit for bit where the uninterrupted one ends.

The toy plan has two trainings of 12 steps in 3 epochs. Where a single training may be cut, and how it may be set, is
the matrix in test_matrix.py.
"""

import json

import pytest

from outlast.save.format import read_state
from outlast.save.store import newest

VARIANTS = {
    "plateau": ("train.schedule=plateau", "train.plateau_patience_epochs=0"),
    "sgd": ("train.optimizer=sgd", "train.patience_epochs=1"),
}
CUTS = {
    "second training": ("step", 20),  # the probe of each training takes one step before it
    "between stages": ("combine", 1),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_in_the_middle_of_an_epoch_ends_the_same_in_variants_beside_the_matrix(runs, variant):
    settings = VARIANTS[variant]
    runs.train("whole", *settings)
    assert runs.train("cut", *settings, "saving.every_steps=1", crash=("step", 8)) is None
    result = runs.train("cut", *settings, "saving.every_steps=1")
    assert result["status"] == "finished"
    assert runs.results("cut") == runs.results("whole")


@pytest.mark.parametrize("cut", CUTS)
def test_cut_between_and_in_later_stages_ends_the_same(runs, cut):
    runs.train("whole")
    assert runs.train("cut", "saving.every_steps=3", crash=CUTS[cut]) is None
    assert runs.train("cut", "saving.every_steps=3")["status"] == "finished"
    assert runs.results("cut") == runs.results("whole")


def test_many_cuts_in_a_row_end_the_same(runs):
    runs.train("whole", "train.ema_decay=0.9")
    sessions = 0
    while runs.train("cut", "train.ema_decay=0.9", "saving.every_steps=1", crash=("step", 4)) is None:
        sessions += 1
        assert sessions < 40
    assert sessions > 5
    assert runs.results("cut") == runs.results("whole")


@pytest.mark.parametrize("asks", [1, 4, 9, 14])
def test_stopped_by_the_session_limit_ends_the_same_and_saves_first(runs, countdown, asks):
    runs.train("whole")
    result = runs.train("cut", deadline=countdown(asks))
    assert (result["status"], result["reason"]) == ("stopped", "session limit")
    assert result["next_command"].startswith("outlast train toys.plan")
    record = json.loads((runs.folder / "cut" / "run.json").read_text())
    assert record["status"] == "stopped"
    sessions = 1
    while result["status"] == "stopped":
        result = runs.train("cut", deadline=countdown(asks + sessions))
        sessions += 1
        assert sessions < 60
    assert runs.results("cut") == runs.results("whole")


def test_the_state_that_is_saved_is_whole(runs):
    runs.train("one", "train.ema_decay=0.9", "train.precision=fp16", "saving.every_steps=5", crash=("step", 9))
    saved = newest(runs.folder / "one" / "train-fold0" / "checkpoints", [])
    state = read_state(saved.folder)
    assert (state.step, state.epoch, state.cursor) == (5, 1, 1)
    assert state.average is not None
    assert state.scaler["scale"] > 0
    assert set(state.ranks[0]["generators"]) == {"python", "numpy", "torch", "cuda"}
    assert state.ranks[0]["sums"]["weight"] == 8 or state.ranks[0]["sums"]["weight"] == 7
    assert state.metrics_bytes > 0


def test_resuming_does_not_replay(runs, monkeypatch):
    """The samples that a resumed session reads are those of the steps that are left, and no others."""
    from toys import plan as toy

    runs.train("cut", "saving.every_steps=1", crash=("step", 13))
    steps = []
    monkeypatch.setattr(toy, "ACCIDENT", [steps.append])
    import outlast

    outlast.train("toys.plan", preset="smoke", out=runs.folder / "cut", overrides=["saving.every_steps=1"])
    # 12 steps of the second training and the two of its trial, and the 2 that the first one still had to do
    assert steps.count("step") == 12 + 2 + 2
