"""`--extend`: a finished or running training goes on from its last checkpoint, whatever happens meanwhile.
The toy plan has two trainings of 3 epochs of 4 steps."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from outlast import cli, task
from outlast.base import accident
from outlast.base.files import read_json
from outlast.config.identity import identity
from outlast.config.load import keys
from outlast.config.schema import TaskConfig
from outlast.errors import RunError, UsageError
from outlast.loop.optim import learning_rate
from outlast.save.store import newest
from toys import plan as toy

HERE = Path(__file__).parents[1]
LONGER = "train.epochs=5"


class Crash(BaseException):
    """An accident in the middle of a session."""


def metrics(run, stage="train-fold0"):
    return [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]


def contents(folder):
    """Every file in a folder with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Accidents:
    """Counts the places that a session comes to; the one with the number `at` is where it crashes."""

    def __init__(self, at=None, begins=""):
        self.at, self.begins, self.places = at, begins, []

    def __call__(self, place):
        if place.startswith(self.begins):
            self.places.append(place)
            if len(self.places) == self.at:
                raise Crash


@pytest.fixture
def extended(runs, monkeypatch):
    """extended(name, accidents): a finished run of 3 epochs is extended to 5; None if the session crashed."""

    def train(name, accidents=None, *settings):
        if not (runs.folder / name).exists():
            runs.train(name, *settings)
        with monkeypatch.context() as patch:
            patch.setattr(accident, "happen", accidents)
            try:
                return runs.train(name, LONGER, *settings, extend=True)
            except Crash:
                return None

    return train


def test_a_finished_training_goes_on_and_the_rest_of_the_plan_follows(runs, extended, capsys):
    run = runs.folder / "run"
    runs.train("run")
    folds, before, predicted = contents(run / "folds"), metrics(run), contents(run / "predict-fold1")
    capsys.readouterr()
    assert extended("run")["status"] == "finished"
    said = capsys.readouterr().err
    assert "goes up again" in said
    assert "resuming train-fold0 from step 12" in said and "resuming train-fold1 from step 12" in said
    after = metrics(run)
    assert after[:3] == before and [line["step"] for line in after] == [4, 8, 12, 16, 20]
    config = toy.TASK.config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    assert config.train.epochs == 5
    assert after[3]["learning_rate"] == learning_rate(15, 20, config.train, 1.0) > before[2]["learning_rate"]
    assert contents(run / "folds") == folds
    assert (newest(run / "train-fold1" / "best", []).step == 20) and contents(run / "predict-fold1") != predicted
    (change,) = read_json(run / "run.json")["changes"]
    assert change["changes"] == {"train.epochs": [3, 5]}
    assert change["at"] == {"train-fold0": 12, "train-fold1": 12} and "learning rate" in change["rule"]
    assert not list(run.glob("set-aside/train-*"))


def test_a_running_training_goes_on(runs, extended, capsys):
    assert runs.train("run", "saving.every_steps=3", crash=("step", 9)) is None
    capsys.readouterr()
    assert extended("run")["status"] == "finished"
    assert "resuming train-fold0 from step 6" in capsys.readouterr().err
    assert read_json(runs.folder / "run" / "run.json")["changes"][0]["at"] == {"train-fold0": 6}


def test_extended_before_the_first_step_is_as_planned_so(runs, extended):
    runs.train("planned", LONGER)
    assert runs.train("run", crash=("folds", 1)) is None
    assert extended("run")["status"] == "finished"
    assert runs.results("run") == runs.results("planned")


def test_extended_and_cut_anywhere_ends_as_extended_and_not_cut(runs, extended):
    settings = ("train.ema_decay=0.9", "saving.every_steps=3")
    extended("whole", None, *settings)
    for count in range(1, 60, 14):
        assert extended("cut", Accidents(count, "step"), *settings) is None or count > 16
        result = extended("cut", None, *settings)
        assert result["status"] == "finished"
        assert runs.results("cut") == runs.results("whole")
        (runs.folder / "cut").rename(runs.folder / f"cut-{count}")


def test_a_crash_at_every_moment_before_the_first_step_loses_nothing(runs, extended):
    """Every place at which the files that say what the run is are half written, one after the other."""
    begun, cut, whole = (runs.folder / name for name in ("begun", "cut", "whole"))
    runs.train("begun")
    shutil.copytree(begun, whole)
    seen = Accidents()
    extended("whole", seen)
    first = seen.places.index("batch") + 1
    assert first > 30
    for count in range(1, first + 1):
        shutil.copytree(begun, cut)
        assert extended("cut", Accidents(count)) is None
        assert extended("cut", Accidents(1, "batch")) is None  # it comes to training: nothing hinders it
        assert metrics(cut) == metrics(begun)
        assert newest(cut / "train-fold0" / "checkpoints", []).step == 12
        assert read_json(cut / "train-fold0" / "progress.json") == read_json(whole / "train-fold0" / "progress.json")
        assert not (cut / "train-fold0" / "stage.json").exists() and not (cut / "set-aside").exists()
        assert len(read_json(cut / "run.json")["changes"]) == 1
        if count % 10 == 0:
            assert extended("cut")["status"] == "finished"
            assert runs.results("cut") == runs.results("whole"), seen.places[count - 1]
        shutil.rmtree(cut)


def test_a_crash_between_two_trainings_loses_neither(runs, extended):
    begun, cut = runs.folder / "begun", runs.folder / "cut"
    runs.train("begun")
    shutil.copytree(begun, runs.folder / "whole")
    extended("whole")
    for place, count in (("finish", 1), ("finish", 3), ("folder.rename", 1), ("remove", 2), ("write.rename", 12)):
        shutil.copytree(begun, cut)
        assert extended("cut", Accidents(count, place)) is None
        assert extended("cut")["status"] == "finished"
        assert runs.results("cut") == runs.results("whole"), (place, count)
        shutil.rmtree(cut)


def test_killed_for_real_while_it_is_extended(runs, extended):
    """SIGKILL, and then the command that run.json gives, word for word."""
    extended("whole")
    runs.train("killed")
    run = runs.folder / "killed"
    words = ["outlast", "train", "toys.plan", "--preset", "smoke", "--out", str(run), LONGER, "--extend"]
    for place in ("write.rename:2", "write.rename:6", "step:3", ""):
        environment = {**os.environ, "PYTHONPATH": str(HERE), "OUTLAST_ACCIDENT": place}
        done = subprocess.run(
            [sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False
        )
        killed = place != ""
        assert done.returncode == (-signal.SIGKILL if killed else 0), (place, done.stderr)
        if killed:
            words = shlex.split(read_json(run / "run.json")["next_command"])
            assert "--extend" in words and LONGER in words
    assert runs.results("killed") == runs.results("whole")
    assert len(read_json(run / "run.json")["changes"]) == 1


def test_extended_twice_and_typed_again_is_the_longest_training_once(runs, extended, capsys):
    extended("run")
    runs.train("run", "train.epochs=6", extend=True, crash=("step", 2))
    assert runs.train("run", "train.epochs=6")["status"] == "finished"  # it is a run of 6 epochs now
    before = runs.results("run")
    capsys.readouterr()
    assert runs.train("run", "train.epochs=6", extend=True)["status"] == "finished"
    assert "is extended" not in capsys.readouterr().err
    assert runs.results("run") == before and len(metrics(runs.folder / "run")) == 6
    record = read_json(runs.folder / "run" / "run.json")
    assert [change["changes"] for change in record["changes"]] == [{"train.epochs": [3, 5]}, {"train.epochs": [5, 6]}]


def test_a_run_whose_first_extension_never_reached_the_second_training_extends_both_again(runs, extended):
    """The second training still lies under the identity of two configurations ago."""
    runs.train("run")
    assert runs.train("run", LONGER, extend=True, crash=("step", 4)) is None
    assert runs.train("run", "train.epochs=6", extend=True)["status"] == "finished"
    assert [len(metrics(runs.folder / "run", f"train-fold{fold}")) for fold in (0, 1)] == [6, 6]
    assert not list((runs.folder / "run").glob("set-aside/train-*"))


def test_what_an_unfinished_change_said_is_taken_back_where_it_is_not_made(runs, extended):
    runs.train("run")
    assert extended("run", Accidents(2, "write.open")) is None  # run.json tells of the change, config.yaml does not
    assert len(read_json(runs.folder / "run" / "run.json")["changes"]) == 1
    assert runs.train("run")["status"] == "finished"
    assert read_json(runs.folder / "run" / "run.json")["changes"] == []
    assert len(metrics(runs.folder / "run")) == 3


@pytest.mark.parametrize(
    ("settings", "extend", "said"),
    [
        (["train.epochs=5"], False, ["train.epochs: 3 -> 5", "--extend"]),
        (["train.epochs=2"], True, ["longer, not shorter", "train.epochs: 3 -> 2"]),
        (["train.epochs=2"], False, ["train.epochs: 3 -> 2"]),
        (
            ["train.epochs=5", "train.patience_epochs=1"],
            True,
            ["longer, not shorter", "train.patience_epochs: None -> 1"],
        ),
        (["train.epochs=5", "train.seed=4"], True, ["train.epochs: 3 -> 5", "train.seed: 3 -> 4"]),
    ],
)
def test_what_is_no_declared_extension_is_refused_and_nothing_changes(runs, settings, extend, said):
    runs.train("run", crash=("step", 6))
    before = contents(runs.folder / "run")
    with pytest.raises(RunError) as refused:
        runs.train("run", *settings, extend=extend)
    assert all(words in str(refused.value) for words in said)
    assert contents(runs.folder / "run") == before


def test_the_hint_holds_a_command_that_extends_as_it_is_typed(runs, monkeypatch):
    runs.train("run")
    with pytest.raises(RunError) as refused:
        runs.train("run", LONGER)
    monkeypatch.setattr(sys, "argv", shlex.split(refused.value.hint.partition("--extend: ")[2]))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert len(metrics(runs.folder / "run")) == 5


def test_a_finished_training_without_checkpoints_is_refused_with_what_to_do(runs, extended):
    runs.train("run", "saving.keep_when_finished=best")
    before = contents(runs.folder / "run")
    with pytest.raises(RunError, match="train-fold0 is finished and has no checkpoint") as refused:
        extended("run")
    assert f"--start-from {runs.folder / 'run' / 'train-fold0' / 'best'}" in refused.value.hint
    assert contents(runs.folder / "run") == before


def test_there_must_be_a_run_to_extend(runs):
    with pytest.raises(RunError, match="there is no run"):
        runs.train("run", LONGER, extend=True)
    with pytest.raises(UsageError, match="--resume never"):
        runs.train("run", LONGER, extend=True, resume="never")
    assert not (runs.folder / "run").exists()


def test_a_training_that_stopped_early_says_what_to_raise_and_goes_on_then(runs, capsys):
    runs.train("run", "train.patience_epochs=1", "train.epochs=9")
    trained = len(metrics(runs.folder / "run"))
    assert trained < 9
    capsys.readouterr()
    runs.train("run", "train.patience_epochs=1", "train.epochs=10", extend=True)
    assert f"train-fold0 stopped early, after epoch {trained} of 10" in (said := capsys.readouterr().err)
    assert "train.patience_epochs=1" in said
    assert len(metrics(runs.folder / "run")) == trained
    runs.train("run", "train.patience_epochs=null", "train.epochs=10", extend=True)
    assert len(metrics(runs.folder / "run")) == 10


def test_stages_with_configurations_of_their_own_are_extended_too(runs, extended, monkeypatch):
    """The second training here is always one epoch longer than the first one."""
    planned = toy.TASK.stages

    def stages(config):
        longer = config.model_copy(
            update={"train": config.train.model_copy(update={"epochs": config.train.epochs + 1})}
        )
        return [replace(each, config=longer) if each.name == "train-fold1" else each for each in planned(config)]

    monkeypatch.setattr(toy, "TASK", replace(toy.TASK, stages=stages))
    extended("run")
    assert [len(metrics(runs.folder / "run", f"train-fold{fold}")) for fold in (0, 1)] == [5, 6]
    assert len(read_json(runs.folder / "run" / "run.json")["changes"]) == 1
    assert not list(runs.folder.glob("run/set-aside/train-*"))


def test_what_may_only_grow_is_how_long_a_training_takes():
    def grown(schema):
        found = [(key, field.json_schema_extra) for key, field in keys(schema)]
        return [key for key, extra in found if extra and extra["identity"] == "extendable"]

    names = ["train.epochs", "train.minimum_steps", "train.patience_epochs"]
    assert grown(TaskConfig) == names
    assert list(identity(TaskConfig(), ("extendable",))["train"]) == [name.partition(".")[2] for name in names]
    assert all(set(names) <= set(grown(task.find(name).config)) for name in task.names())
