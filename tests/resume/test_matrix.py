"""The promise of exact resume over its whole matrix: a run that was cut there and started again ends where one that was
never cut ends, bit for bit: weights, optimizer, average, scaler, generators, position, metric history, best score, and
for every step the samples with their augmentation and the logits with their dropout.

`toys.one` has 12 steps in 3 epochs of 4. A cut is a BaseException that nothing catches; real kills are in test_kill.py
and in `outlast verify-resume`. Every cell compares with the uninterrupted run of its variant, which is trained once.
"""

import hashlib
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import outlast
from outlast.base import accident
from outlast.loop.accel import Compute
from outlast.save.format import read_state
from outlast.save.store import newest
from toys import plan as toy

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VARIANTS = list(itertools.product(PRECISIONS, (0, 2), (1, 4), (False, True)))


def name(variant):
    precision, workers, accumulation, average = variant
    return f"{precision}-workers{workers}-accumulation{accumulation}{'-average' if average else ''}"


@dataclass(frozen=True)
class Cut:
    """The session ends when `place` is reached for the n-th time after that many steps; with a save at every
    `saves`-th step, the next session goes on from step `resumes`."""

    after: int
    place: str
    time: int
    saves: int
    resumes: int


CUTS = {
    "before anything is saved": Cut(1, "stepped", 1, saves=2, resumes=0),
    "first step": Cut(1, "batch", 1, saves=1, resumes=1),
    "mid-epoch": Cut(7, "stepped", 1, saves=2, resumes=6),
    "epoch end": Cut(8, "batch", 1, saves=2, resumes=8),  # what the evaluation left behind has to be undone
    "during evaluation": Cut(8, "evaluate", 1, saves=4, resumes=8),
    "last step": Cut(12, "stepped", 1, saves=5, resumes=10),
    "before the final evaluation": Cut(12, "toy.predict", 1, saves=4, resumes=12),
    "after the final evaluation": Cut(12, "finish", 1, saves=4, resumes=12),
}


class Crash(BaseException):
    """An accident that nothing in the product catches, like a kill but without a new process."""


class Watch:
    """Stands at every place of a session: notes what each step computed, and ends the session at the cut."""

    def __init__(self, stage, cut=None):
        self.stage, self.cut = stage, cut
        self.steps = []  # for each step its forward passes
        self.dtypes = set()
        self.now = None
        self.seen = Counter()

    def at(self, place):
        if place == "step":
            self.now = []
        elif place == "stepped":
            self.steps.append(self.now)
            self.now = None
        if self.cut is not None and (place, len(self.steps)) == (self.cut.place, self.cut.after):
            self.seen[place] += 1
            if self.seen[place] == self.cut.time:
                self._wait_for_the_last_save()
                raise Crash

    def forward(self, place, batch, logits):
        self.dtypes.add(logits.dtype)
        if self.now is not None:  # the trial of what fits into memory is no step
            rows = batch["row"].tolist()
            drawn = (random.random(), np.random.random())  # noqa: NPY002 - a task's code may draw from all of them
            self.now.append((rows, bits(batch["image"]), float(batch["epochs"]), bits(logits.detach()), drawn))

    def _wait_for_the_last_save(self):
        """Saving takes its time beside the training; here the cut is to come after it."""
        folder = self.stage / "checkpoints" / f"step-{self.cut.resumes:09d}"
        for _ in range(2000 if self.cut.resumes else 0):
            if folder.is_dir():
                return
            time.sleep(0.005)


def bits(tensor):
    return hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def session(runs, name, settings, cut=None):
    """One session of the run `name`; returns its result (None if it was cut) and what its steps computed."""
    watch = Watch(runs.folder / name / "train-one", cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accident, "happen", watch.at)
        patch.setattr(toy, "ACCIDENT", [lambda place: watch.at(f"toy.{place}")])
        patch.setattr(toy, "WITNESS", [watch.forward])
        saves = [f"saving.every_steps={cut.saves}"] if cut else []
        try:
            result = outlast.train("toys.one", preset="smoke", out=runs.folder / name, overrides=[*settings, *saves])
        except Crash:
            result = None
    return result, watch


def settings_of(precision, workers, accumulation, average):
    return (
        f"train.precision={precision}",
        f"loading.workers={workers}",
        f"train.micro_batch={8 // accumulation}",
        *(["train.ema_decay=0.9"] if average else []),
    )


@pytest.fixture(scope="module")
def memory():
    """What the uninterrupted runs gave, by variant."""
    return {}


@pytest.fixture
def whole(runs, memory):
    """The results of a variant's uninterrupted run, its steps and its dtypes."""

    def give(variant):
        if variant not in memory:
            folder = f"whole-{name(variant)}"
            result, watch = session(runs, folder, settings_of(*variant))
            assert result["status"] == "finished"
            memory[variant] = (runs.results(folder), watch.steps, watch.dtypes)
        return memory[variant]

    return give


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("variant", VARIANTS, ids=name)
def test_cut_there_and_started_again_ends_bit_for_bit_the_same(runs, whole, variant, cut):
    results, steps, _ = whole(variant)
    cut = CUTS[cut]
    ended, before = session(runs, "cut", settings_of(*variant), cut)
    assert ended is None
    finished, after = session(runs, "cut", settings_of(*variant))
    assert finished["status"] == "finished"
    assert finished["stages"]["train-one"]["from_step"] == cut.resumes
    assert before.steps == steps[: cut.after]
    assert after.steps == steps[cut.resumes :]
    assert runs.results("cut") == results


@pytest.mark.parametrize("variant", VARIANTS, ids=name)
def test_the_matrix_compares_what_it_says(whole, variant):
    """Twelve steps, each on other samples, with random numbers, in the precision that was asked for."""
    precision, _, accumulation, average = variant
    results, steps, dtypes = whole(variant)
    assert len(steps) == 12
    assert {len(step) for step in steps} == {accumulation}
    assert len({bits_of for step in steps for _, bits_of, *_ in step}) == 12 * accumulation
    assert dtypes == {PRECISIONS[precision]}
    assert (results["train-one: average"] is not None) == average
    assert (results["train-one: scaler"] is not None) == (precision == "fp16")
    assert results["train-one: step"] == 12


@pytest.mark.parametrize("variant", [each for each in VARIANTS if each[1] == 0], ids=name)
def test_the_number_of_workers_changes_nothing(whole, variant):
    precision, _, accumulation, average = variant
    assert whole(variant) == whole((precision, 2, accumulation, average))


def test_sessions_may_differ_in_workers_and_prefetching(runs, whole):
    variant = ("fp32", 0, 4, True)
    results, steps, _ = whole(variant)
    _, before = session(
        runs, "cut", [*settings_of("fp32", 2, 4, True), "loading.prefetch_batches=1"], CUTS["mid-epoch"]
    )
    finished, after = session(runs, "cut", settings_of(*variant))
    assert finished["status"] == "finished"
    assert (before.steps, after.steps) == (steps[:7], steps[6:])
    assert runs.results("cut") == results


def test_the_scale_of_fp16_is_saved_and_restored_while_it_moves(runs, monkeypatch):
    """It begins far too high, so that the first steps overflow and are left out, and moves on after the cut."""

    def scaler(compute, precision):
        return torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=3, backoff_factor=2.0**-8)

    monkeypatch.setattr(Compute, "scaler", scaler)
    settings = settings_of("fp16", 0, 1, True)
    session(runs, "whole", settings)
    cut = Cut(7, "stepped", 1, saves=2, resumes=6)
    session(runs, "cut", settings, cut)
    saved = read_state(newest(runs.folder / "cut" / "train-one" / "checkpoints", []).folder)
    assert saved.scaler["scale"] < 2.0**40
    assert saved.optimizer["state"][0]["step"] < saved.step == 6
    finished, _ = session(runs, "cut", settings)
    assert finished["stages"]["train-one"]["from_step"] == 6
    last = read_state(newest(runs.folder / "cut" / "train-one" / "checkpoints", []).folder)
    assert last.scaler["scale"] != saved.scaler["scale"]
    assert runs.results("cut") == runs.results("whole")


@pytest.mark.parametrize("cut", ["before the final evaluation", "before the report"])
def test_a_run_that_died_after_its_last_step_still_gets_its_final_evaluation_and_report(tmp_path, cut):
    """With the real report; what is left to do trains no step."""
    runs = SimpleNamespace(folder=tmp_path)
    if cut == "before the report":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("outlast.plan.session.write_report", crash)
            session(runs, "cut", settings_of("fp32", 0, 1, False))
    else:
        session(runs, "cut", settings_of("fp32", 0, 1, False), CUTS[cut])
    lines = (tmp_path / "cut" / "train-one" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == (3 if cut == "before the report" else 2)
    assert not (tmp_path / "cut" / "report.html").exists()
    result, after = session(runs, "cut", settings_of("fp32", 0, 1, False))
    assert (result["status"], after.steps) == ("finished", [])
    lines = (tmp_path / "cut" / "train-one" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8, 12]
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "finished"
    page = (tmp_path / "cut" / "report.html").read_text()
    assert "toys.one" in page and "finished" in page


def crash(*_):
    raise Crash
