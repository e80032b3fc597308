"""Running out of memory while training: what remains of the step that failed, and what comes after it."""

import dataclasses
import json
import random
import re
import types

import numpy as np
import pytest
import torch
from torch import nn

import outlast
from outlast.base import accident
from outlast.errors import TrainingError
from outlast.loop import recovery
from outlast.loop.memory import Fit
from outlast.loop.recovery import Before, Recovery
from outlast.save.format import read_state, read_weights
from outlast.save.store import newest
from toys import memory as toy

OUT = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)  # every other kind: test_memory.py
RANDOM = ("model.norm=true", "model.dropout=0.3")


class Crash(BaseException):
    """An accident that nothing in the product catches, like a kill."""


class Shortage:
    """Says no to more than `fits` samples (place: "step" or "predict") from optimizer step `at` on; counts steps."""

    def __init__(self, at, fits, place="step", error=None, crash_at=None):
        self.at, self.fits, self.place, self.error = at, fits, place, error or MemoryError("no more")
        self.crash_at = crash_at
        self.done, self.fed, self.evaluated, self.failed = 0, [], [], 0

    def trouble(self, place, rows):
        if place == self.place and len(rows) > self.fits and self.done >= self.at:
            self.failed += 1
            raise self.error
        if place == "step":
            self.fed.append((self.done, rows.tolist()))
        else:
            self.evaluated.append(len(rows))

    def happen(self, place):
        if place == "stepped":
            self.done += 1
            if self.done == self.crash_at:
                raise Crash


class Runs:
    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch

    def train(self, name, *overrides, shortage=None, **options):
        shortage = shortage or Shortage(0, 10**9)
        self.monkeypatch.setattr(toy, "TROUBLE", [shortage.trouble])
        self.monkeypatch.setattr(accident, "happen", shortage.happen)
        try:
            return outlast.train(
                "toys.memory", preset="smoke", out=self.folder / name, overrides=list(overrides), **options
            )
        except Crash:
            return None

    def state(self, name):
        return read_state(newest(self.folder / name / "train" / "checkpoints", []).folder)

    def fit(self, name):
        return Fit.read(newest(self.folder / name / "train" / "checkpoints", []).manifest["fit"])

    def record(self, name):
        return json.loads((self.folder / name / "run.json").read_text())

    def results(self, name):
        """Everything of the run's end that must be the same, by value."""
        state = {
            field.name: hashable(getattr(self.state(name), field.name))
            for field in dataclasses.fields(self.state(name))
            if field.name not in ("train_seconds", "sessions")
        }
        best = newest(self.folder / name / "train" / "best", [])
        metrics = (self.folder / name / "train" / "metrics.jsonl").read_text()
        return {**state, "best": hashable(read_weights(best.folder / "model.safetensors")), "metrics": metrics}


def hashable(value):
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: hashable(item) for key, item in value.items()}
    return [hashable(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
    return Runs(tmp_path, monkeypatch)


@pytest.fixture
def cut_from(runs):
    """A run that has micro-batches of `size` from step `at` on because it was resumed there with that setting."""

    def make(name, at, size, *overrides):
        runs.train(name, "saving.every_steps=1", *overrides, shortage=Shortage(0, 99, crash_at=at + 1))
        runs.train(name, f"train.micro_batch={size}", *overrides)
        return runs.results(name)

    return make


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
def test_what_follows_is_what_smaller_micro_batches_from_that_step_on_give(runs, cut_from, error):
    """Bit for bit, with buffers that the failed pass changed and numbers that it drew."""
    shortage = Shortage(5, 3, error=error)
    runs.train("short", *RANDOM, shortage=shortage)
    assert shortage.failed == 2  # 8 samples, then 4
    assert runs.results("short") == cut_from("cut", 5, 2, *RANDOM)


@pytest.mark.parametrize("fails_at", [2, 3, 4])
def test_also_if_it_is_not_the_first_micro_batch_that_fails(runs, cut_from, fails_at):
    calls = [0]
    shortage = Shortage(5, 10**9)

    def trouble(place, rows):
        if place == "step" and shortage.done == 5:
            calls[0] += 1
            if calls[0] == fails_at:
                raise MemoryError
        shortage.trouble(place, rows)

    whole = types.SimpleNamespace(trouble=trouble, happen=shortage.happen)
    runs.train("short", "train.micro_batch=2", *RANDOM, shortage=whole)
    assert calls[0] >= fails_at
    assert runs.fit("short").micro_batch == 1
    runs.train("cut", "train.micro_batch=2", "saving.every_steps=1", *RANDOM, shortage=Shortage(0, 99, crash_at=6))
    runs.train("cut", "train.micro_batch=1", *RANDOM)
    assert runs.results("short") == runs.results("cut")


def test_the_same_samples_come_again_and_the_results_are_those_without_an_accident(runs):
    """Only up to rounding, and only because this model has neither BatchNorm nor dropout."""
    whole, short = Shortage(0, 99), Shortage(5, 2)
    runs.train("whole", shortage=whole)
    runs.train("short", shortage=short)
    samples = {}
    for step, rows in short.fed:
        samples.setdefault(step, []).extend(rows)
    for step, rows in whole.fed:
        if step != 0:  # step 0 is also the trial before training
            assert samples[step] == rows
    ended, expected = runs.state("short"), runs.state("whole")
    for name, value in expected.model.items():
        torch.testing.assert_close(ended.model[name], value, rtol=0, atol=1e-6)
    for name, value in expected.average.items():
        torch.testing.assert_close(ended.average[name], value, rtol=0, atol=1e-6)
    assert runs.record("short")["rung"]["train"]["micro_batches_change"] == []


def test_a_wrong_prediction_is_recorded_and_said(runs, capsys):
    runs.train("short", *RANDOM, shortage=Shortage(5, 3))
    rung = runs.record("short")["rung"]["train"]
    assert (rung["name"], rung["wanted"], rung["micro_batch"]) == ("wide", "wide", 2)
    assert [(event["step"], event["from"], event["to"], event["why"]) for event in rung["events"]] == [
        (5, {"micro_batch": 8}, {"micro_batch": 4}, "no more"),
        (5, {"micro_batch": 4}, {"micro_batch": 2}, "no more"),
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", event["when"]) for event in rung["events"])
    assert rung["micro_batches_change"] == ["batch_norm", "dropout"]
    said = capsys.readouterr().err
    assert (
        "train: out of memory at step 6 (no more): micro-batches of 4 instead of 8, the effective batch stays" in said
    )
    assert "each micro-batch is normalised by itself (BatchNorm); dropout draws other numbers" in said
    assert any("out of memory at step 6" in warning for warning in runs.record("short")["warnings"])
    assert runs.state("short").micro_batch == 2


def test_a_resume_after_a_recovery_is_exact_and_does_not_find_out_again(runs):
    whole = Shortage(5, 3)
    runs.train("whole", *RANDOM, shortage=whole)
    runs.train("cut", *RANDOM, shortage=Shortage(5, 3, crash_at=8))
    assert runs.state("cut").step == 6  # saved at once, though it was not time for that
    again = Shortage(0, 3)
    runs.train("cut", *RANDOM, shortage=again)
    assert again.failed == 0
    assert runs.results("cut") == runs.results("whole")
    assert again.evaluated == whole.evaluated[-len(again.evaluated) :]


def test_a_resumed_run_on_a_smaller_machine_takes_less_instead_of_failing(runs):
    runs.train("run", "saving.every_steps=1", shortage=Shortage(0, 99, crash_at=4))
    assert runs.fit("run").micro_batch == 8
    assert runs.train("run", shortage=Shortage(0, 1))["status"] == "finished"
    assert runs.fit("run").micro_batch == 1


def test_an_own_setting_of_the_micro_batch_does_not_undo_a_recovery(runs):
    runs.train("run", "train.micro_batch=4", shortage=Shortage(5, 3, crash_at=8))
    again = Shortage(0, 3)
    runs.train("run", "train.micro_batch=4", shortage=again)
    assert again.failed == 0
    assert runs.fit("run").micro_batch == 2


def test_an_evaluation_that_does_not_fit_takes_fewer_samples_at_a_time(runs, capsys):
    runs.train("whole", *RANDOM)
    short = Shortage(0, 3, place="predict", crash_at=9)
    runs.train("short", *RANDOM, shortage=short)
    assert short.failed > 0
    assert runs.fit("short").evaluation_batch <= 3
    assert runs.fit("short").micro_batch == 8
    again = Shortage(0, 3, place="predict")
    runs.train("short", *RANDOM, shortage=again)
    assert again.failed == 0  # remembered
    whole, short = (read_metrics(runs.folder / name) for name in ("whole", "short"))
    assert [line["val_accuracy"] for line in short] == [line["val_accuracy"] for line in whole]
    for name, value in runs.state("whole").model.items():
        assert torch.equal(runs.state("short").model[name], value)
    assert "evaluating runs out of memory (no more)" in capsys.readouterr().err


def read_metrics(run):
    return [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]


def test_one_sample_that_can_not_be_evaluated_ends_the_run(runs):
    with pytest.raises(TrainingError, match="a single sample"):
        runs.train("short", shortage=Shortage(0, 0, place="predict"))


def test_a_step_that_failed_while_weights_changed_goes_back_to_the_last_checkpoint(runs, cut_from, monkeypatch, capsys):
    seen = []
    applied = torch.optim.SGD.step

    def step(self, *args):
        seen.append(1)
        if len(seen) == 9:  # two steps of the trial, and the seventh of the training
            applied(self, *args)  # half of the weights, or all of them, may have changed
            raise torch.OutOfMemoryError("CUDA out of memory")
        return applied(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    runs.train("short", "saving.every_steps=5", *RANDOM)
    assert "out of memory at step 7 while the weights were changed" in capsys.readouterr().err
    assert runs.fit("short").micro_batch == 4
    monkeypatch.setattr(torch.optim.SGD, "step", applied)
    assert runs.results("short") == cut_from("cut", 5, 4, *RANDOM)


def test_without_a_checkpoint_it_begins_anew_with_less(runs, monkeypatch):
    applied, seen = torch.optim.SGD.step, []

    def step(self, *args):
        seen.append(1)
        if len(seen) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return applied(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    runs.train("short", *RANDOM)
    runs.train("small", "train.micro_batch=4", *RANDOM)
    assert runs.results("short") == runs.results("small")


def test_then_activations_are_computed_again(runs):
    """What one sample does not fit without, it fits with."""
    shortage = Shortage(5, 10**9)
    models = []
    plain = toy.step

    def step(config, model, batch):
        result = plain(config, model, batch)
        models.append(model.checkpointing)
        if shortage.done >= 5 and not model.checkpointing:
            raise MemoryError("too much is kept")
        return result

    runs.monkeypatch.setattr(toy, "LEARNER", dataclasses.replace(toy.LEARNER, step=step))
    runs.train("short", "model.dropout=0.3", shortage=shortage)
    fit = runs.fit("short")
    assert (fit.rung, fit.micro_batch, fit.checkpointing) == ("wide", 1, True)
    assert runs.state("short").checkpointing
    assert runs.record("short")["rung"]["train"]["checkpointing"] is True
    runs.monkeypatch.setattr(toy, "LEARNER", dataclasses.replace(toy.LEARNER, step=plain))
    runs.train("cut", "model.dropout=0.3", "saving.every_steps=1", shortage=Shortage(0, 99, crash_at=6))
    runs.train("cut", "model.dropout=0.3", "train.micro_batch=1")
    ended, expected = runs.state("short"), runs.state("cut")
    assert torch.equal(ended.ranks[0]["generators"]["torch"], expected.ranks[0]["generators"]["torch"])
    for name, value in expected.model.items():
        torch.testing.assert_close(ended.model[name], value, rtol=0, atol=1e-6)


def wide_never_fits(at, crash_at=None):
    """Trouble for the wide model from step `at` on, in which the width is seen from the model itself."""
    shortage = Shortage(at, 10**9, crash_at=crash_at)
    plain = toy.step

    def step(config, model, batch):
        result = plain(config, model, batch)
        if shortage.done >= at and model.head.in_features == 8 * 64:
            shortage.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    return shortage, step


def test_the_next_model_begins_from_scratch_and_says_so_in_capitals(runs, capsys, monkeypatch):
    shortage, step = wide_never_fits(7)
    monkeypatch.setattr(toy, "LEARNER", dataclasses.replace(toy.LEARNER, step=step))
    runs.train("short", "saving.every_steps=2", *RANDOM, shortage=shortage)
    said = capsys.readouterr().err
    assert "THE MODEL 'wide' DOES NOT FIT INTO MEMORY" in said
    assert "FALLS BACK TO 'narrow' AND BEGINS FROM SCRATCH. REASON, AT STEP 8: CUDA out of memory" in said
    record = runs.record("short")
    assert any("FALLS BACK TO 'narrow'" in warning for warning in record["warnings"])
    rung = record["rung"]["train"]
    assert (rung["name"], rung["wanted"]) == ("narrow", "wide")
    assert rung["events"][-1]["to"] == {"rung": "narrow", "micro_batch": 8, "checkpointing": False}
    assert "CUDA out of memory" in rung["reason"]
    kept = newest(runs.folder / "short" / "set-aside" / "train-1" / "checkpoints", [])
    assert (kept.step, kept.manifest["fit"]["rung"]) == (6, "wide")
    # From scratch: it is what a run that fell back before it began is.
    never, step = wide_never_fits(-1)
    monkeypatch.setattr(toy, "LEARNER", dataclasses.replace(toy.LEARNER, step=step))
    runs.train("fresh", *RANDOM, shortage=never)
    assert runs.fit("fresh").rung == "narrow"
    assert runs.results("short") == runs.results("fresh")


def test_a_kill_right_after_falling_back_does_not_bring_the_large_model_back(runs, monkeypatch):
    shortage, step = wide_never_fits(7)
    monkeypatch.setattr(toy, "LEARNER", dataclasses.replace(toy.LEARNER, step=step))

    def crash(*_):
        raise Crash

    monkeypatch.setattr("outlast.loop.train.release", crash)
    assert runs.train("short", "saving.every_steps=2", shortage=shortage) is None
    monkeypatch.setattr("outlast.loop.train.release", recovery.release)
    again, step = wide_never_fits(0)
    monkeypatch.setattr(toy, "LEARNER", dataclasses.replace(toy.LEARNER, step=step))
    assert runs.train("short", shortage=again)["status"] == "finished"
    assert again.failed == 0
    assert runs.fit("short").rung == "narrow"


def test_no_fallback_makes_it_an_error_and_keeps_what_was_trained(runs, monkeypatch):
    shortage, step = wide_never_fits(7)
    monkeypatch.setattr(toy, "LEARNER", dataclasses.replace(toy.LEARNER, step=step))
    with pytest.raises(TrainingError, match=r"wide doesn't fit .* falling back is not allowed") as caught:
        runs.train("short", "saving.every_steps=2", shortage=shortage, fallback=False)
    assert "step 8: CUDA out of memory" in caught.value.details
    assert runs.record("short")["status"] == "failed"
    assert (runs.state("short").step, runs.fit("short").rung) == (6, "wide")
    assert not (runs.folder / "short" / "set-aside").exists()


def test_exported_weights_say_which_model_it_is_and_why(runs, monkeypatch, tmp_path):
    shortage, step = wide_never_fits(3)
    monkeypatch.setattr(toy, "LEARNER", dataclasses.replace(toy.LEARNER, step=step))
    runs.train("short", shortage=shortage)
    outlast.export_weights(runs.folder / "short", tmp_path / "model.safetensors")
    rung = json.loads((tmp_path / "model.safetensors.json").read_text())["rung"]
    assert (rung["rung"], rung["wanted"]) == ("narrow", "wide")
    assert "CUDA out of memory" in rung["reason"]


def test_other_errors_are_not_swallowed(runs):
    with pytest.raises(RuntimeError, match="device-side assert"):
        runs.train("short", shortage=Shortage(5, 3, error=RuntimeError("CUDA error: device-side assert triggered")))


def test_thrashing_takes_less_before_the_next_step(runs, monkeypatch, capsys):
    asked = [0]

    def seen(self):
        asked[0] += 1
        return "the allocator ran out and tried again 9 times in 20 steps (thrashing)" if asked[0] == 4 else None

    monkeypatch.setattr("outlast.loop.headroom.Thrashing.seen", seen)
    runs.train("short")
    assert runs.fit("short").micro_batch == 4
    assert runs.fit("short").events[0]["step"] == 3
    assert "thrashing" in capsys.readouterr().err


def test_thrashing_alone_never_costs_the_model(runs, monkeypatch):
    monkeypatch.setattr("outlast.loop.headroom.Thrashing.seen", lambda self: "thrashing")
    assert runs.train("short")["status"] == "finished"
    fit = runs.fit("short")
    assert (fit.rung, fit.micro_batch, fit.checkpointing) == ("wide", 1, True)


def test_nothing_of_a_failed_pass_remains():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    model.register_buffer("bank", torch.zeros(2))
    model.register_buffer("nothing", None)
    before = Before(model, torch.device("cpu"))

    def disturb():
        model(torch.randn(4, 3))
        model.bank = torch.ones(5)  # another tensor in its place
        model.nothing = torch.ones(1)
        random.random()
        np.random.standard_normal()  # noqa: NPY002

    def found():
        others = random.getstate(), np.random.get_state()[1:]  # noqa: NPY002
        buffers = {name: buffer.tolist() for name, buffer in model.named_buffers()}
        return hashable(torch.get_rng_state()), buffers, others[0], others[1][0].tolist(), others[1][1:]

    before.remember()
    disturb()
    before.learn()  # steps draw from Python's and numpy's generators too
    for _ in range(3):
        model.bank, model.nothing = torch.full((2,), 3.0), None
        before.remember()
        kept = found()
        disturb()
        assert found() != kept
        before.put_back()
        assert found() == kept


def test_with_several_processes_the_run_ends_and_the_next_one_takes_less(runs, monkeypatch):
    """The others wait in a collective for the one that failed."""
    runs.train("run", "saving.every_steps=1", shortage=Shortage(0, 99, crash_at=5))
    folder = runs.folder / "run" / "train"
    model = toy.Net(8, toy.MemoryModel())
    job = types.SimpleNamespace(
        compute=types.SimpleNamespace(processes=2, rank=1, device=torch.device("cpu")),
        learner=toy.LEARNER, config=toy.smoke(), folder=folder, warned=print, stage=types.SimpleNamespace(name="train"),
    )  # fmt: skip

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    stepper = types.SimpleNamespace(run=fail, forget_gradients=lambda: None, applying=False)
    setup = types.SimpleNamespace(model=model, stepper=stepper, micro_batch=4)
    state = runs.state("run")
    with pytest.raises(TrainingError, match="out of memory at step 5 in process 1") as caught:
        Recovery(job, setup, state, Fit("wide", 4)).step([], 8, 0.1)
    assert "goes on from the last checkpoint, with micro-batches of 2 instead of 4" in caught.value.hint
    runs.train("run")
    assert runs.fit("run").micro_batch == 2


def test_memory_that_runs_out_elsewhere_ends_the_run_with_a_clear_error(runs, monkeypatch):
    runs.train("run", "saving.every_steps=1", shortage=Shortage(0, 99, crash_at=4))

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.SGD, "load_state_dict", refuse)
    with pytest.raises(TrainingError, match="train ran out of memory outside of a step"):
        runs.train("run")
    assert runs.state("run").step == 3
