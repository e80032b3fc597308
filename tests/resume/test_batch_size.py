"""Another effective batch size in the middle of a training: no sample is left out, the schedule keeps its place, and
it ends the same whether it is cut after that or not. The toy plan has epochs of 30 samples: 4 batches of at most 8."""

import json

import pytest

from outlast.base.files import read_json
from outlast.data.sampler import equal_batches, recut
from outlast.loop.optim import learning_rate
from outlast.save.format import read_state
from outlast.save.store import newest
from toys import plan as toy


@pytest.mark.parametrize("before", [1, 3, 8, 30, 64])
@pytest.mark.parametrize("after", [1, 4, 8, 16, 64])
def test_no_sample_is_left_out_and_at_most_a_batch_is_seen_twice(before, after):
    order = list(range(30))
    old, new = equal_batches(order, before), equal_batches(order, after)
    for done in range(len(old) + 1):
        seen = sum(map(len, old[:done]))
        first, twice = recut(30, before, after, done)
        rest = [sample for batch in new[first:] for sample in batch]
        assert rest == order[seen - twice :]
        assert 0 <= twice < max(map(len, new))
        assert before != after or (first, twice) == (done, 0)


@pytest.fixture
def half(runs):
    """half(name): a run killed in its second epoch, with a checkpoint after step 6 (epoch 1, cursor 2)."""

    def train(name):
        assert runs.train(name, "saving.every_steps=6", crash=("step", 9)) is None

    return train


def test_going_on_with_larger_batches_is_said_loudly_and_recorded(runs, half, capsys):
    half("run")
    assert runs.train("run", "train.batch_size=16")["status"] == "finished"
    said = capsys.readouterr().err
    assert "warning: effective batch size 8 -> 16 from step 6 of train-fold0 on: this is another training" in said
    record = read_json(runs.folder / "run" / "run.json")
    assert record["changes"] == [
        {"when": record["changes"][0]["when"], "changes": {"train.batch_size": [8, 16]}, "at": {"train-fold0": 6}}
    ]
    assert "changed in the middle of the run: train.batch_size: 8 -> 16" in record["warnings"]
    lines = [json.loads(line) for line in (runs.folder / "run/train-fold0/metrics.jsonl").read_text().splitlines()]
    # 4 steps of the first epoch, 2 of the second, then the batch of 15 that is left of it and two more epochs of 2
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 4), (2, 7), (3, 9)]
    config = toy.smoke().train
    assert [line["learning_rate"] for line in lines[1:]] == [learning_rate(place, 6, config, 1.0) for place in (3, 5)]
    saved = newest(runs.folder / "run" / "train-fold0" / "checkpoints", [])
    assert (saved.step, read_state(saved.folder).batch_size) == (9, 16)
    result = read_json(runs.folder / "run" / "train-fold0" / "stage.json")["result"]
    assert result["best_epoch"] in (1, 2, 3) and result["steps"] == 9


@pytest.mark.parametrize("size", [5, 16])
def test_cut_after_the_change_it_ends_as_if_not_cut(runs, half, size):
    settings = (f"train.batch_size={size}", "saving.every_steps=1", "train.ema_decay=null")
    half("whole")
    runs.train("whole", *settings)
    half("cut")
    for place in (("step", 1), ("step", 2), ("predict", 1), ("step", 3)):
        assert runs.train("cut", *settings, crash=place) is None
    assert runs.train("cut", *settings)["status"] == "finished"
    assert runs.results("cut") == runs.results("whole")
    assert len(read_json(runs.folder / "cut" / "run.json")["changes"]) == 1


def test_a_finished_training_stays_as_it_is(runs):
    runs.train("run")
    before = runs.results("run")
    assert runs.train("run", "train.batch_size=16")["status"] == "finished"
    assert runs.results("run") == before


def test_more_epochs_and_larger_batches_at_once(runs, capsys):
    runs.train("run")
    assert runs.train("run", "train.batch_size=16", "train.epochs=4", extend=True)["status"] == "finished"
    lines = (runs.folder / "run/train-fold0/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12, 14]
    assert set(read_json(runs.folder / "run" / "run.json")["changes"][0]["changes"]) == {
        "train.batch_size", "train.epochs"
    }  # fmt: skip
