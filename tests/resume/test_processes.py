"""Several processes (gloo) train one model: they end where an uninterrupted run ends, however they are started.

The toy plan has dropout, BatchNorm and augmentation; a resumed session has every process's own random numbers, and adds
up gradients in the same order as an uninterrupted one."""

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
SETTINGS = ("saving.every_steps=3", "train.ema_decay=0.9")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_cut_run_ends_bit_for_bit_as_the_whole_one(runs, ranks, count):
    whole = ranks.train(count, runs.folder / "whole")
    assert whole[0]["result"]["status"] == "finished"
    cut = ranks.train(count, runs.folder / "cut", *SETTINGS[:1], crash=("step", 8))
    assert [answer["result"] for answer in cut] == [None] * count
    again = ranks.train(count, runs.folder / "cut", *SETTINGS[:1])
    assert again[0]["result"]["stages"]["train-fold0"]["from_step"] == 3
    assert runs.results("cut") == runs.results("whole")


@pytest.mark.parametrize(("count", "part"), [(2, "generators"), (3, "warm-up")])
def test_what_makes_it_exact_is_needed(runs, ranks, count, part):
    """Without the processes' generators, or without the pass that settles the buckets, the resumed run differs."""
    for name, crash in (("whole", None), ("cut", ("step", 8)), ("cut", None)):
        ranks.train(count, runs.folder / name, *SETTINGS[:1], crash=crash, without=[part])
    whole, cut = runs.results("whole"), runs.results("cut")
    assert whole["train-fold0: step"] == cut["train-fold0: step"]
    assert whole["train-fold0: model"] != cut["train-fold0: model"]


def test_the_first_pass_that_settles_the_buckets_leaves_nothing_behind(runs, ranks):
    """With two processes the order of a sum does not matter: a run without that pass is the same to the last bit."""
    ranks.train(2, runs.folder / "with")
    ranks.train(2, runs.folder / "without", without=["warm-up"])
    assert runs.results("with") == runs.results("without")


def test_another_number_of_processes_keeps_the_samples_of_each_step_and_says_what_differs(runs, ranks):
    def together(answers):
        """The rows of each optimizer step, over all processes."""
        return [sorted(sum(step, [])) for step in zip(*(answer["steps"] for answer in answers), strict=True)]

    whole = together(ranks.train(2, runs.folder / "whole"))
    run = runs.folder / "changing"
    ranks.train(2, run, "saving.every_steps=1", crash=("step", 6))
    rest = together(ranks.train(1, run, "saving.every_steps=1", crash=("step", 3)))
    rest += together(ranks.train(2, run, "saving.every_steps=1", crash=("step", 4)))
    last = ranks.train(3, run, "saving.every_steps=1")
    rest += together(last)
    # The first step of the whole run and of each training is the trial of what fits.
    done = whole[1:13]
    before = [rows for rows in rest if rows in done]
    assert before[-8:] == done[4:]
    warnings = json.loads((run / "run.json").read_text())["warnings"]
    said = [warning.partition(" and goes on with ")[2] for warning in warnings]
    assert [sentence.partition(":")[0] for sentence in said] == ["one process", "2 processes", "3 processes"]
    assert all("BatchNorm" in warning and "dropout" in warning and "rounded" in warning for warning in warnings)
    lines = [json.loads(line) for line in (run / "train-fold0" / "metrics.jsonl").read_text().splitlines()]
    wanted = [json.loads(line) for line in (runs.folder / "whole/train-fold0/metrics.jsonl").read_text().splitlines()]
    assert [line["train_loss"] for line in lines] == pytest.approx([line["train_loss"] for line in wanted], rel=0.25)
    assert last[0]["result"]["status"] == "finished"
