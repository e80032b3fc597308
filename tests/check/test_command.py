"""`outlast check` and what `outlast train` runs of it, through the real command line."""

import json
import sys
import time
from dataclasses import replace

import pytest

from outlast import cli, task
from outlast.check import machine as machines
from outlast.check.finding import Finding, checks_of
from outlast.check.table import table
from outlast.errors import RunError, TaskError
from outlast.plan import preflight
from toys.machines import P100, healthy


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """command(*words) runs the command line in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTLAST_CACHE", str(tmp_path / "cache"))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["outlast", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_it_never_stops_at_the_first_and_ends_with_1_if_there_is_an_error(command, tmp_path):
    wrong = ("train.needs_gpu=true", "train.precision=fp16", "model.dropout=1e-8", "loading.workers=200")
    code, out, _ = command("check", "toys.plan", "--preset", "smoke", "--out", tmp_path / "run", *wrong)
    assert code == 1
    for identifier in ("config.half_precision_numbers", "config.workers"):
        assert identifier in out
    assert out.index("ERRORS") < out.index("WARNINGS") < out.index("NOT CHECKED HERE")
    assert max(map(len, out.splitlines())) <= 100
    assert not (tmp_path / "run").exists()


def test_as_json_it_has_every_finding_and_names_every_check(command):
    code, out, _ = command("check", "toys.plan", "--preset", "smoke", "--json", "train.epoch=3", "train.batch_size=0")
    told = json.loads(out)
    assert code == 1
    assert told["errors"] == 2 == sum(finding["severity"] == "error" for finding in told["findings"])
    assert {finding["id"] for finding in told["findings"] if finding["severity"] == "error"} == {"config.values"}
    assert told["ran"] == [identifier for family in preflight.FAMILIES for identifier in checks_of(family)]
    assert {finding["id"] for finding in told["findings"]} <= set(told["ran"])
    assert all(finding["remedy"] for finding in told["findings"] if finding["severity"] in ("error", "warning"))


def test_a_task_that_is_not_there_is_no_finding(command):
    code, out, err = command("check", "plantz")
    assert (code, out) == (1, "")
    assert "Did you mean 'plants'?" in err


def broken_import(name):
    raise RuntimeError("operator torchvision::nms does not exist")


def test_a_torchvision_that_breaks_the_task_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "find", broken_import)
    machine = healthy(tmp_path, torchvision_error=lambda: "RuntimeError: operator torchvision::nms does not exist")
    told = preflight.check(preflight.Question("plants"), machine)
    assert {"environment.torchvision_works", "environment.task_imports"} == {
        finding["id"] for finding in told["findings"] if finding["severity"] == "error"
    }
    assert told["unchecked"] > 10


def test_training_says_that_torchvision_broke_the_task(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "find", broken_import)
    monkeypatch.setattr(preflight, "look", lambda: healthy(tmp_path, torchvision_error=lambda: "nms does not exist"))
    with pytest.raises(TaskError, match="torchvision doesn't work with this torch"):
        preflight.find_task("plants")
    monkeypatch.setattr(preflight, "look", lambda: healthy(tmp_path))
    with pytest.raises(RuntimeError, match="nms"):  # a defect of the task's own keeps its traceback
        preflight.find_task("plants")


def test_training_refuses_what_can_be_told_at_once_and_writes_nothing(command, tmp_path):
    code, out, err = command(
        "train",
        "toys.plan",
        "--preset",
        "smoke",
        "--out",
        tmp_path / "run",
        "train.precision=fp16",
        "model.dropout=1e-8",
    )
    assert (code, out) == (1, "")
    assert "model.dropout=1e-08 is zero in fp16" in err and "What to do: " in err
    assert not (tmp_path / "run").exists()


def test_training_lists_all_that_stands_in_its_way(tmp_path, monkeypatch):
    machine = healthy(tmp_path, gpus=(P100,), run_kernel=lambda number: "no kernel image is available")
    monkeypatch.setattr(preflight, "look", lambda: machine)
    found = task.find("toys.plan")
    about = preflight.before_training(found, found.presets["smoke"](), tmp_path / "run")
    with pytest.raises(RunError, match="2 things stand in the way") as refusal:
        preflight.require(about)
    assert ["sm_60" in refusal.value.details[0], "no kernel image" in refusal.value.details[1]] == [True, True]
    preflight.require(replace(about, machine=healthy(tmp_path)))


def test_what_training_looks_at_takes_no_time(tmp_path):
    found = task.find("toys.plan")
    config = found.presets["smoke"]()
    preflight.require(preflight.before_training(found, config, tmp_path / "run"))  # imports
    began = time.process_time()
    preflight.require(preflight.before_training(found, config, tmp_path / "run"))
    assert time.process_time() - began < 0.3


def test_the_table_gathers_what_was_not_checked_by_its_reason():
    unchecked = [Finding("unchecked", "not checked here: there is no GPU", id=f"hardware.{name}") for name in "abc"]
    long = Finding("error", "a sentence " * 20, "evidence " * 20, "remedy " * 20, "data.found")
    text = table([long, *unchecked], ran=40, width=60)
    assert text.count("there is no GPU") == 1 and "hardware.a, hardware.b, hardware.c" in text
    assert max(map(len, text.splitlines())) <= 60
    assert text.splitlines()[-1] == "1 error, 0 warnings, 3 not checked, 0 notes; of 40 checks"


def test_the_environment_is_not_told_beyond_what_the_checks_need(monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    assert set(machines.look().environ) <= set(machines.VARIABLES)
    assert "KAGGLE_KEY" not in machines.VARIABLES
