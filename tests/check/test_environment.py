"""The checks of the software: each fires on what is broken and stays silent on a machine that is right."""

from dataclasses import replace
from pathlib import Path

import pytest

from outlast.check import environment
from outlast.check.finding import checks_of
from outlast.check.machine import look
from outlast.errors import TaskError
from toys.machines import found, healthy, subject

BROKEN = {
    "an old Python": ("python_version", {"python": "3.10.14"}, ("3.10.14", ">=3.11")),
    "an old numpy": (
        "packages",
        {"packages": {"torch": "2.10.0", "torchvision": "0.25.0", "numpy": "1.26.4"}},
        ("numpy 1.26.4", "numpy>=2.0", "pip install"),
    ),
    "an old torch": (
        "packages",
        {"packages": {"torch": "2.4.1", "torchvision": "0.25.0", "numpy": "2.0.2"}},
        ("torch 2.4.1", "choose a newer image"),
    ),
    "no numpy": ("packages", {"packages": {"torch": "2.10.0", "torchvision": "0.25.0"}}, ("numpy is not installed",)),
    "torch replaced": (
        "torch_and_torchvision",
        {"packages": {"torch": "2.11.0", "torchvision": "0.25.0", "numpy": "2.0.2"}},
        ("torchvision 0.25.0", "torch 2.11.0", "torch==2.10.0"),
    ),
    "operators missing": (
        "torchvision_works",
        {"torchvision_error": lambda: "RuntimeError: operator torchvision::nms does not exist"},
        ("operators", "torchvision::nms"),
    ),
    "a clone in a clone": (
        "copies",
        {"copies": (Path("/clone/src"), Path("/clone/outlast/src"))},
        ("/clone/outlast/src", "in use: /clone/src"),
    ),
    "a git pull": ("changed_modules", {"changed": (Path("/clone/src/outlast/task.py"),)}, ("task.py", "restart")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_it_is_found(case, tmp_path):
    name, changes, words = BROKEN[case]
    (finding,) = found(environment, name, subject(healthy(tmp_path, **changes)))
    assert finding.severity == ("warning" if name in ("copies", "changed_modules") else "error")
    for word in words:
        assert word in f"{finding.sentence} {finding.evidence} {finding.remedy}"


def test_a_task_that_can_not_be_imported_is_found_and_the_rest_says_why_it_is_unchecked(tmp_path):
    about = replace(subject(healthy(tmp_path)), task_=None, config_=None)
    about.problems["task"] = TaskError("it fails", details=["because"], hint="mend it")
    (finding,) = found(environment, "task_imports", about)
    assert (finding.severity, finding.evidence, finding.remedy) == ("error", "because", "mend it")


@pytest.mark.parametrize("name", [name.partition(".")[2] for name in checks_of(environment)])
def test_a_healthy_machine_is_silent(name, tmp_path):
    assert found(environment, name, subject(healthy(tmp_path))) == []


def test_every_check_has_a_case():
    tried = {name for name, *_ in BROKEN.values()} | {"task_imports"}
    assert {f"environment.{name}" for name in tried} == set(checks_of(environment))


def test_a_missing_torch_is_said_and_its_pair_is_unchecked(tmp_path):
    about = subject(healthy(tmp_path, packages={"torchvision": "0.25.0", "numpy": "2.0.2"}))
    assert [finding.severity for finding in found(environment, "packages", about)] == ["error"]
    assert [finding.severity for finding in found(environment, "torch_and_torchvision", about)] == ["unchecked"]


def test_a_build_for_another_cuda_is_the_same_version(tmp_path):
    same = {"torch": "2.10.0+cu128", "torchvision": "0.25.0+cu128", "numpy": "2.0.2"}
    assert found(environment, "torch_and_torchvision", subject(healthy(tmp_path, packages=same))) == []


def test_the_machine_that_runs_the_tests_has_what_the_package_asks_for():
    machine = look()
    about = subject(machine)
    for name in ("python_version", "packages", "torch_and_torchvision", "torchvision_works"):
        assert found(environment, name, about) == []
    assert machine.copies[0] == machine.package.parent
    assert machine.free_bytes(Path("no/such/folder/yet")) > 0


def test_a_second_copy_on_the_path_is_seen(tmp_path, monkeypatch):
    (tmp_path / "outlast").mkdir()
    (tmp_path / "outlast" / "errors.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert tmp_path in look().copies


def test_a_module_that_changed_after_it_was_imported_is_seen(monkeypatch):
    from outlast import errors
    from outlast.check import machine

    assert Path(errors.__file__) not in look().changed
    monkeypatch.setattr(machine, "IMPORTED", Path(errors.__file__).stat().st_mtime - 1)
    assert Path(errors.__file__) in look().changed
