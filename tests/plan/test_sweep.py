"""A sweep: each training once, any kill, a failed cell, wrong words."""

import csv
import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import outlast
from outlast import errors
from outlast import task as tasks
from outlast.base import accident
from outlast.base.clock import Deadline
from outlast.base.files import sha256
from outlast.config.load import keys
from outlast.errors import ConfigError, DataNotFoundError, RunError, TrainingError, UsageError
from outlast.plan.grid import make_grid
from toys import branches

WORDS = ["teacher=all", "loss=all", "seed=1,2"]
STEPS = 8 + 2  # of each training, and those with which it tries what fits into memory


class Crash(BaseException):
    """An accident that nothing in the product catches, like a kill but without a new process."""


@pytest.fixture
def train(tmp_path, monkeypatch):
    # Drawing a report for each cell takes longer than the trainings here, and has tests of its own.
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
    gc.freeze()

    def train(name="sweep", words=WORDS, **options):
        branches.STEPS.clear()
        return outlast.train("toys.branches", preset="smoke", out=tmp_path / name, sweep=words, **options)

    yield train
    gc.unfreeze()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nothing interrupted: its folder, and what training it returned."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    gc.freeze()
    branches.STEPS.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
        result = outlast.train("toys.branches", preset="smoke", out=folder, sweep=WORDS)
    gc.unfreeze()
    return folder, result, dict(branches.STEPS)


def contents(folder):
    """What every way to the end must give the same: the tables, and all weights, metrics and tests by their bytes."""
    patterns = ("sweep*.csv", "**/best/*/model.safetensors", "**/metrics.jsonl", "**/metrics.json")
    return {path.relative_to(folder).as_posix(): sha256(path) for pattern in patterns for path in folder.glob(pattern)}


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def broken(monkeypatch, *names, error=None):
    def fail(kind, config):
        if (config.teacher if kind == "teacher" else config.loss) in names:
            raise error or TrainingError(f"the {kind} is broken", hint="mend it")

    monkeypatch.setattr(branches, "FAILS", [fail])


# -- what it does ------------------------------------------------------------------------------------------------------


def test_a_training_that_several_cells_share_is_done_once(whole):
    _, result, steps = whole
    assert result["status"] == "finished" and len(result["cells"]) == 8 and result["cells_left"] == 0
    teachers = {("teacher", teacher, None, seed) for teacher in ("wide", "narrow") for seed in (1, 2)}
    students = {("student", t, loss, s) for _, t, _, s in teachers for loss in ("plain", "smooth")}
    assert steps == dict.fromkeys(teachers | students, STEPS)


def test_a_cell_is_the_run_that_it_would_be_alone(whole, train, tmp_path, monkeypatch):
    folder, _, _ = whole
    alone = tmp_path / "alone"
    words = ["teacher=narrow", "loss=smooth", "train.seed=2"]
    outlast.train("toys.branches", preset="smoke", out=alone, overrides=words)
    cell = folder / "models/narrow/smooth/seed_2"
    assert contents(alone) == contents(cell) and len(contents(alone)) == 5
    known, other = (json.loads((run / "run.json").read_text()) for run in (alone, cell))
    for name in ("rung", "parameters", "score", "config_hash", "split_hash", "inexact"):
        assert known[name] == other[name], name
    assert other["taken_from"] == {"teacher": "../../plain/seed_2"}


def test_a_cell_can_be_scored_reported_and_compared_as_any_run(whole):
    folder, _, _ = whole
    cells = [folder / f"models/wide/{loss}/seed_1" for loss in ("plain", "smooth")]
    student, teacher = (outlast.evaluate(cells[1], data=folder, stage=stage)["metrics"] for stage in (None, "teacher"))
    assert student["loss"] != teacher["loss"]
    assert set(outlast.compare(cells)["differences"]) == {"loss"}
    assert outlast.status(cells[1])["status"] == "finished"


def test_the_table_has_mean_and_standard_deviation_over_the_seeds(whole):
    folder, result, _ = whole
    cells, rows = read_csv(folder / "sweep.csv"), read_csv(folder / "sweep-table.csv")
    assert [(row["teacher"], row["loss"]) for row in rows] == [
        ("wide", "plain"), ("wide", "smooth"), ("narrow", "plain"), ("narrow", "smooth")
    ]  # fmt: skip
    values = [float(cell["test loss"]) for cell in cells if (cell["teacher"], cell["loss"]) == ("narrow", "smooth")]
    assert len(values) == 2 and values[0] != values[1]
    mean = sum(values) / 2
    assert float(rows[3]["test loss (mean)"]) == pytest.approx(mean)
    deviation = abs(values[0] - values[1]) / 2**0.5
    assert float(rows[3]["test loss (deviation)"]) == pytest.approx(deviation)
    text = outlast.status(folder)["text"]
    assert f"{mean:.3f} ± {deviation:.3f}" in text and "8 of 8 cells finished" in text
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "sweep.html").read_text()
    assert f"{mean:.3f} ± {deviation:.3f}" in page and "http" not in page.replace("http-equiv", "")
    assert result["table"][3]["measures"]["test loss"]["values"] == values


def test_the_first_seed_is_a_whole_table_before_the_second_begins(whole):
    _, result, _ = whole
    assert [cell["values"]["seed"] for cell in result["cells"]] == ["1"] * 4 + ["2"] * 4


def test_finished_cells_are_left_alone_and_a_grid_may_grow(train, tmp_path):
    train(words=["loss=plain", "seed=1"])
    before = contents(tmp_path / "sweep")
    assert train(words=["loss=plain", "seed=1"])["status"] == "finished" and not branches.STEPS
    result = train(words=["loss=plain,smooth", "seed=1"])
    assert result["status"] == "finished" and dict(branches.STEPS) == {("student", "wide", "smooth", 1): STEPS}
    same = {name for name in before if not name.startswith("sweep")}
    assert {name: contents(tmp_path / "sweep")[name] for name in same} == {name: before[name] for name in same}


def test_a_file_that_was_damaged_is_taken_over_again(train, tmp_path):
    train(words=["loss=all"])
    before = contents(tmp_path / "sweep")
    taken = next((tmp_path / "sweep/models/smooth/teacher").glob("best/*/model.safetensors"))
    data = taken.read_bytes()
    taken.unlink()  # it is a link: the other cell's stays as it is
    taken.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    train(words=["loss=all"])
    assert not branches.STEPS and contents(tmp_path / "sweep") == before


def test_a_damaged_stage_is_not_taken_over(train, tmp_path):
    train(words=["loss=plain"])
    teacher = tmp_path / "sweep/models/plain/teacher"
    weights = next(teacher.glob("best/*/model.safetensors"))
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    result = train(words=["loss=plain,smooth"])
    assert [cell["status"] for cell in result["cells"]] == ["failed", "failed"]
    assert "best weights" in result["cells"][0]["reason"] and "shares the stage" in result["cells"][1]["reason"]
    shutil.rmtree(teacher)
    assert train(words=["loss=plain,smooth"])["status"] == "finished"
    taken = [*(tmp_path / "sweep").glob("models/*/teacher/best/*/model.safetensors")]
    assert [path.read_bytes() for path in taken] == [good, good]


def test_settings_that_a_run_may_change_still_part_trainings(train):
    """The batch size is no part of a stage's identity, since a run may change it; but cells that differ in it do."""
    train(words=["train.batch_size=16,32"])
    assert branches.STEPS["teacher", "wide", None, 0] == (8 + 2) + (4 + 2)


def test_without_links_files_are_copied(train, tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    train(words=["loss=all"])
    plain, smooth = (next((tmp_path / f"sweep/models/{loss}/teacher").glob("best/*/model.safetensors"))
                     for loss in ("plain", "smooth"))  # fmt: skip
    assert plain.stat().st_nlink == 1 and sha256(plain) == sha256(smooth)
    assert branches.STEPS["teacher", "wide", None, 0] == STEPS


# -- kills and stops ---------------------------------------------------------------------------------------------------


def start(folder, words=WORDS, **environment):
    """The sweep in a process of its own, as a user would type it."""
    here = Path(__file__).parents[1]
    command = [sys.executable, "-m", "outlast", "train", "toys.branches", "--preset", "smoke", "--out", str(folder),
               "--sweep", *words]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OUTLAST_CACHE": str(folder.parent / "cache"), **environment}
    return subprocess.Popen(command, cwd=here, env=env, stderr=subprocess.PIPE, text=True)


def test_killed_at_several_places_it_ends_with_the_same_table_bit_for_bit(whole, train, tmp_path):
    folder = tmp_path / "sweep"
    for script in ("step:5", "take.file:2", "stepped:11>folder.manifest:1"):
        with start(folder, OUTLAST_ACCIDENT=script) as process:
            process.communicate()
        assert process.returncode == -signal.SIGKILL, script
    assert train()["status"] == "finished"
    assert contents(folder) == contents(whole[0])


def test_interrupted_again_and_again_it_ends_with_the_same_table(whole, train, tmp_path, monkeypatch):
    """Each session comes some places further than the one before: places of every kind are hit."""
    seen, crashes = 0, 0

    def happen(place):
        nonlocal seen
        seen += 1
        if seen == limit:
            raise Crash

    monkeypatch.setattr(accident, "happen", happen)
    for session in range(1, 60):
        seen, limit = 0, 41 * session
        try:
            result = train(overrides=["saving.every_steps=3"])
            break
        except Crash:
            crashes += 1
    assert result["status"] == "finished" and crashes >= 5
    assert contents(tmp_path / "sweep") == contents(whole[0])


def test_a_signal_stops_the_whole_sweep_in_time(tmp_path):
    with start(tmp_path / "sweep") as process:
        for line in process.stderr:
            if "epoch 1/2" in line:
                process.send_signal(signal.SIGTERM)
                break
        said = process.stderr.read()
    assert process.returncode == 0
    assert "the sweep stopped in time (SIGTERM)" in said and said.count("cell 2 of 8") == 0
    assert "outlast train toys.branches" in said and "--sweep teacher=wide,narrow --sweep loss=plain,smooth" in said
    record = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert record["status"] == "stopped" and record["cells"][0]["status"] == "stopped"


@dataclasses.dataclass(frozen=True)
class Clock(Deadline):
    """A deadline that is over when so many steps were done."""

    steps: int = 0

    def remaining(self):
        return float("inf") if sum(branches.STEPS.values()) < self.steps else 0.0


def test_the_session_limit_stops_it_with_the_command_that_goes_on(whole, train, tmp_path):
    result = train(deadline=Clock(steps=20))
    assert result["status"] == "stopped" and result["reason"] == "session limit"
    assert result["cells_left"] >= 6 and "--sweep seed=1,2" in result["next_command"]
    assert (tmp_path / "sweep/sweep.csv").is_file()
    assert train()["status"] == "finished" and contents(tmp_path / "sweep") == contents(whole[0])


def test_a_session_too_short_for_anything_says_so(train):
    with pytest.raises(errors.NoTimeError, match="too little"):
        train(deadline=Deadline(time.monotonic() + 0.5))


def test_a_wiped_disk_goes_on_from_the_mirror(train, tmp_path):
    words, mirror = ["loss=all"], str(tmp_path / "mirror")
    train(words=words, mirror=mirror)
    before = contents(tmp_path / "sweep")
    (tmp_path / "sweep").rename(tmp_path / "gone")
    assert train(words=words, mirror=mirror)["status"] == "finished"
    assert not branches.STEPS and contents(tmp_path / "sweep") == before


# -- what fails --------------------------------------------------------------------------------------------------------


def test_a_failed_cell_is_reported_and_the_others_finish(train, tmp_path, monkeypatch):
    broken(monkeypatch, "smooth", error=ZeroDivisionError("division by nothing"))
    result = train(words=["teacher=all", "loss=all"])
    assert result["status"] == "failed" and result["next_command"]
    states = {cell["cell"]: (cell["status"], cell["reason"]) for cell in result["cells"]}
    assert states["models/wide/smooth"] == ("failed", "ZeroDivisionError: division by nothing")
    assert states["models/wide/plain"][0] == states["models/narrow/plain"][0] == "finished"
    for text in (outlast.status(tmp_path / "sweep")["text"], (tmp_path / "sweep/sweep.html").read_text()):
        assert "FAILED" in text and "division by nothing" in text
    rows = {row["loss"]: row for row in read_csv(tmp_path / "sweep/sweep-table.csv")}
    assert rows["smooth"]["test loss (mean)"] == "" and rows["smooth"]["failed"] == "1"
    monkeypatch.setattr(branches, "FAILS", [lambda kind, config: None])
    assert train(words=["teacher=all", "loss=all"])["status"] == "finished"
    assert set(branches.STEPS) == {("student", teacher, "smooth", 0) for teacher in ("wide", "narrow")}


def test_a_training_that_failed_is_not_tried_again_by_each_cell_that_shares_it(train, monkeypatch):
    broken(monkeypatch, "narrow")
    result = train(words=["teacher=all", "loss=all"])
    states = {cell["cell"]: cell for cell in result["cells"]}
    assert branches.STEPS["teacher", "narrow", None, 0] == 1
    assert states["models/narrow/plain"]["reason"] == "the teacher is broken"
    assert "shares the stage 'teacher' with teacher=narrow loss=plain" in states["models/narrow/smooth"]["reason"]
    assert states["models/wide/smooth"]["status"] == "finished"
    train(words=["teacher=all", "loss=all"])
    assert branches.STEPS["teacher", "narrow", None, 0] == 1  # tried again, once


def test_the_exit_status_says_that_a_cell_failed(tmp_path):
    with start(tmp_path / "sweep", ["loss=all"], OUTLAST_TOY_BROKEN="smooth") as process:
        said = process.communicate()[1]
    assert process.returncode == 1
    assert "FAILED: loss=smooth: the student is broken" in said and "1 of 2 cells finished" in said


# -- wrong words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (["techer=all"], UsageError, "there is nothing called 'techer' to sweep over. Did you mean 'teacher'?"),
        (["teacher"], UsageError, "'teacher' is not of the form"),
        (["teacher="], UsageError, "'teacher=' has an empty value"),
        (["seed=1,,2"], UsageError, "'seed=1,,2' has an empty value"),
        (["seed=1,1"], UsageError, "two cells of the sweep are the same: seed=1 and seed=1"),
        (["share=1,1.0"], UsageError, "two cells of the sweep are the same: share=1 and share=1.0"),
        (["seed=all"], UsageError, "has no list of all values of 'seed'"),
        (["seed=1,2", "train.seed=3,4"], UsageError, "'seed' and 'train.seed' vary the same setting"),
        (["seed=1,2", "seed=3"], UsageError, "'seed' is given twice"),
        (["loss=plain,bumpy"], ConfigError, "loss='bumpy'"),
        (["seed=[1"], ConfigError, "not valid YAML"),
    ],
)
def test_wrong_words_are_one_sentence_and_nothing_is_begun(train, tmp_path, words, error, sentence):
    with pytest.raises(error) as failure:
        train(words=words)
    assert sentence in str(failure.value) and not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("name", tasks.names())
def test_every_short_name_of_a_task_is_a_setting_with_values_that_it_takes(name):
    found = tasks.find(name)
    for axis, known in found.axes.items():
        assert known.key in dict(keys(found.config)), axis
        if known.all:
            grid, _ = make_grid(found, next(iter(found.presets)), [f"{axis}=all"], [], None)
            assert len(grid.cells) == len(known.all)


def test_a_setting_can_not_be_fixed_and_varied(train):
    with pytest.raises(UsageError, match=r"train\.seed is set for all cells and varied by 'seed'"):
        train(words=["seed=1,2"], overrides=["train.seed=5"])


def test_overrides_with_several_values_or_short_names_are_axes_too(train, tmp_path):
    result = train(words=["loss=plain"], overrides=["seed=1", "train.learning_rate=0.01,0.02", "train.epochs=1"])
    assert [cell["cell"] for cell in result["cells"]] == [
        "models/plain/learning_rate_0.01/seed_1", "models/plain/learning_rate_0.02/seed_1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "option", [{"stage": "teacher"}, {"extend": True}, {"resume": "never"}, {"processes": 2}, {"start_from": "a.pth"}]
)
def test_what_is_for_one_run_only_is_refused(train, option):
    with pytest.raises(UsageError, match="--sweep does not go with"):
        train(**option)


def test_another_sweep_in_the_folder_is_refused(train, tmp_path):
    train(words=["loss=plain", "seed=1"])
    for words, options, sentence in (
        (["loss=plain"], {}, "is a sweep over loss, train.seed, not over loss"),
        (["loss=smooth", "seed=1"], {}, "has 1 cells that are not among these: loss=plain seed=1"),
        (["loss=plain", "seed=1"], {"overrides": ["train.epochs=3"]}, "was begun with other settings"),
    ):
        with pytest.raises(RunError, match=sentence):
            train(words=words, **options)
    with pytest.raises(RunError, match="is a run, not a sweep"):
        train(name="sweep/models/plain/seed_1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(RunError, match="is not a sweep of Outlast"):
        train(name="mine")
    with pytest.raises(RunError, match="there is no sweep"):
        train(name="other", resume="must")


def test_missing_data_is_the_commands_failure_and_leaves_nothing(train, tmp_path, monkeypatch):
    def missing(config, roots):
        raise DataNotFoundError("there are no images")

    for learner in (branches.TEACHER, branches.STUDENT):
        monkeypatch.setitem(learner.__dict__, "examples", missing)
    monkeypatch.setattr("outlast.plan.sources.roots", lambda *arguments, **options: {})
    with pytest.raises(DataNotFoundError, match="there are no images"):
        train(words=["loss=all"])
    assert not (tmp_path / "sweep").exists()
