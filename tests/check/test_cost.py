"""Each check of the cost fires at numbers that call for it and is silent at good ones; and the numbers are real."""

from dataclasses import asdict, replace

import pytest

from outlast.check import cost
from outlast.check.measure import Measured, measure
from outlast.save.store import newest
from toys import plan
from toys.subjects import only, severities, subject

HOUR = 3600.0
GOOD = Measured(
    stage="train-one", rung="wide", device="cuda", micro_batch=8, step_seconds=0.1, wait_seconds=0.005, overlapped=True,
    evaluate_seconds=10.0, save_seconds=2.0, stall_seconds=0.05, checkpoint_bytes=10**8, best_bytes=4 * 10**7,
    steps_per_epoch=1000, epochs=30, evaluate_every_epochs=1,
)  # fmt: skip  # 30 epochs of 100 s and 10 s of evaluation: 55 minutes


def costing(tmp_path, *, free=10**12, config=None, **fields):
    """A subject whose stage was measured as GOOD, but for the fields of a measurement that are given."""
    options = ("session_limit", "quota_left", "quota_rate", "side_by_side")
    of_subject = {name: fields.pop(name) for name in options if name in fields}
    made = subject(tmp_path, **of_subject)
    made.machine = replace(made.machine, free_bytes=lambda folder: free)
    made.measured = [replace(GOOD, **fields)]
    return made


ALL = [
    cost.sessions, cost.short_sessions, cost.disk, cost.loading, cost.evaluating, cost.saving, cost.unmeasured,
]  # fmt: skip


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_a_training_that_fits_is_passed_over_in_silence(tmp_path, check):
    assert severities(check, costing(tmp_path, session_limit=2 * HOUR)) == []


def test_the_time_is_noted_with_what_it_was_made_from(tmp_path):
    (finding,) = cost.time(costing(tmp_path))
    assert finding.severity == "note" and "55m" in finding.sentence
    assert "30,000 steps of 100 ms in micro-batches of 8, 30 evaluations of 10s" in finding.evidence


def test_the_number_of_sessions_is_noted(tmp_path):
    finding = only(cost.sessions, costing(tmp_path, session_limit=1260.0))
    assert finding.severity == "note" and "3 sessions of 21m00s" in finding.sentence


def test_folds_side_by_side_take_half_the_sessions_and_half_the_quota(tmp_path):
    limits = {"session_limit": 1260.0, "quota_left": 100 * HOUR, "alike": 5}
    one, two = (costing(tmp_path, side_by_side=at_once, **limits) for at_once in (1, 2))
    assert "14 sessions" in only(cost.sessions, one).sentence and "9 sessions" in only(cost.sessions, two).sentence
    needed = [float(next(iter(cost.quota(made))).sentence.split()[2]) for made in (one, two)]
    assert needed[1] == pytest.approx(needed[0] * 3 / 5, rel=0.01)


def test_a_session_too_short_for_anything_is_an_error_and_for_an_epoch_a_warning(tmp_path):
    nothing = only(cost.short_sessions, costing(tmp_path, session_limit=50.0))
    assert nothing.severity == "error" and "--session-limit" in nothing.remedy
    assert only(cost.short_sessions, costing(tmp_path, session_limit=150.0)).severity == "warning"


def test_quota_that_does_not_last_is_a_warning_that_says_how_many_epochs_fit(tmp_path):
    assert severities(cost.quota, costing(tmp_path)) == []
    assert severities(cost.quota, costing(tmp_path, quota_left=HOUR)) == ["note"]
    finding = only(cost.quota, costing(tmp_path, quota_left=HOUR, quota_rate=2.0))
    assert finding.severity == "warning" and "about 16 of 30 epochs" in finding.evidence


def test_checkpoints_that_the_disk_can_not_hold_are_an_error(tmp_path):
    # Two are kept and one is being written: 300 MB; the best weights before and after: 80 MB.
    assert severities(cost.disk, costing(tmp_path, free=457 * 10**6)) == []
    assert only(cost.disk, costing(tmp_path, free=381 * 10**6)).severity == "warning"  # it is scarce
    finding = only(cost.disk, costing(tmp_path, free=379 * 10**6))
    assert finding.severity == "error" and "saving.keep" in finding.remedy


def test_what_a_platform_keeps_is_the_limit_and_what_is_there_is_not_needed_again(tmp_path):
    made = costing(tmp_path)
    host = replace(made.machine.host, limited=tmp_path, limit_bytes=300 * 10**6)
    made.machine = replace(made.machine, host=host)
    finding = only(cost.disk, made)
    assert finding.severity == "error" and "all files together may take 300 MB" in finding.sentence
    (made.run / "train-one").mkdir(parents=True)
    (made.run / "train-one" / "stage.json").write_text("{}")
    assert severities(cost.disk, made) == []  # the stage is done
    own = made.config.saving.model_copy(update={"disk_limit_gigabytes": 9.0})
    (made.run / "train-one" / "stage.json").unlink()
    made.config_ = made.config.model_copy(update={"saving": own})
    assert severities(cost.disk, made) == []


def test_samples_that_come_too_late_are_a_warning_with_the_share_of_time_lost(tmp_path):
    finding = only(cost.loading, costing(tmp_path, wait_seconds=0.05))
    assert finding.severity == "warning" and "50 %" in finding.sentence and "loading.workers" in finding.remedy
    here = only(cost.loading, costing(tmp_path, wait_seconds=0.02, overlapped=False))
    assert here.severity == "warning" and "GPU waits" in here.sentence
    assert severities(cost.loading, costing(tmp_path, wait_seconds=0.02, overlapped=False, device="cpu")) == []


def test_evaluations_that_take_the_time_are_noted_and_the_remedy_helps(tmp_path):
    finding = only(cost.evaluating, costing(tmp_path, evaluate_seconds=150.0))
    assert finding.severity == "note" and "60 %" in finding.sentence
    name, _, value = finding.remedy.removeprefix("set ").partition("=")
    assert name == "train.evaluate_every_epochs"
    assert severities(cost.evaluating, costing(tmp_path, evaluate_seconds=150.0, **{name[6:]: int(value)})) == []


def test_saving_that_takes_the_time_is_a_warning(tmp_path):
    finding = only(cost.saving, costing(tmp_path, stall_seconds=120.0))
    assert finding.severity == "warning" and "saving.every_minutes=100 " in finding.remedy
    assert "longer to write" in only(cost.saving, costing(tmp_path, save_seconds=4000.0)).sentence


def test_a_stage_that_could_not_be_measured_is_said_to_be_unchecked_and_why(tmp_path):
    def step(config, module, batch):
        raise ValueError("no such loss")

    made = subject(tmp_path, changes={"step": step})
    assert made.measured == []
    (finding,) = cost.unmeasured(made)
    assert finding.severity == "unchecked" and "it can't be trained" in finding.sentence


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_measured_is_what_training_does(tmp_path, workers):
    made = subject(tmp_path)
    made.config_ = made.config.model_copy(
        update={"loading": made.config.loading.model_copy(update={"workers": workers})}
    )
    trial = subject_trial(made)
    measured = measure(trial, made.machine.host.scratch, 1)
    assert measured.steps_per_epoch == 7 and measured.epochs == 3 and measured.micro_batch == 8
    assert measured.overlapped == bool(workers)
    seconds = [value for name, value in asdict(measured).items() if name.endswith("_seconds")]
    assert len(seconds) == 5 and all(0 < value < 5 for value in seconds)
    assert measured.wait_seconds < measured.step_seconds
    assert not list(made.machine.host.scratch.glob(".tmp-measure-*")) and not made.run.exists()


def test_a_process_of_several_is_measured_with_its_share_of_a_batch_and_of_an_evaluation(tmp_path):
    shown = []

    def step(config, module, batch):
        shown.append(len(batch["row"]))
        return plan.LEARNER.step(config, module, batch)

    made = subject(tmp_path, changes={"step": step}, processes=4)
    trial = subject_trial(made)
    shared = measure(trial, made.machine.host.scratch, 1, 4)
    assert shared.micro_batch == 2 and max(shown) == 2  # of a batch of 8
    assert (shared.steps_per_epoch, shared.epochs) == (7, 3)
    alone = measure(trial, made.machine.host.scratch, 1)
    assert alone.micro_batch == 8
    assert "micro-batches of 2, each of 4 processes" in next(iter(cost.time(made))).evidence


def test_trainings_that_differ_only_in_their_rows_are_all_counted(tmp_path):
    one, five = costing(tmp_path), costing(tmp_path, alike=5)
    assert cost._total(five, five.measured[0]) == 5 * cost._total(one, one.measured[0])
    assert "train-one and 4 like it take about 4h35m" in next(iter(cost.time(five))).sentence


def subject_trial(made):
    """Its one trial, with the configuration that it has now."""
    stage = replace(made.plan[0], config=made.config)
    made.plan = [stage]
    (trial,) = made.trials
    return trial


def test_the_bytes_of_a_checkpoint_are_those_that_a_run_writes(tmp_path):
    import outlast

    made = subject(tmp_path)
    (measured,) = made.measured
    outlast.train("toys.one", preset="smoke", out=tmp_path / "real")
    saved = newest(tmp_path / "real" / "train-one" / "checkpoints", [])
    real = sum(path.stat().st_size for path in saved.folder.iterdir())
    assert measured.checkpoint_bytes == pytest.approx(real, rel=0.1)


def test_far_more_loader_processes_than_cores_are_not_started_to_be_measured(tmp_path):
    made = subject(tmp_path)
    loading = made.config.loading.model_copy(update={"workers": 200})
    made.config_ = made.config.model_copy(update={"loading": loading})
    (finding,) = cost.unmeasured(made)
    assert finding.severity == "unchecked" and "200 loader processes" in finding.sentence


def test_what_is_meant_for_a_gpu_is_not_measured_on_a_cpu(tmp_path):
    (finding,) = cost.unmeasured(subject(tmp_path, train={"needs_gpu": True}))
    assert finding.severity == "unchecked" and "meant for a GPU" in finding.sentence
