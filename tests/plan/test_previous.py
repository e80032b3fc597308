"""A run goes on from the attached output of an earlier session: the right one, whole, and never a worse one."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import outlast
from outlast.base.clock import Deadline
from outlast.base.files import sha256
from outlast.errors import CheckpointError, RunError, UsageError
from outlast.plan import arrivals
from outlast.save import archive, snapshot
from toys import one
from toys.plan import smoke

LAYOUTS = ("first-try", "notebooks/me/first-try", "notebooks/me/first-try/runs")


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that stopped after 3 of 12 steps."""
    folder = tmp_path_factory.mktemp("stopped") / "one-smoke"

    asked = [0]

    class Soon(Deadline):
        def remaining(self):
            asked[0] += 1
            return float("inf") if asked[0] < 12 else 0.0

    result = outlast.train("toys.one", preset="smoke", out=folder, deadline=Soon())
    assert result["status"] == "stopped"
    return folder


def config(**train):
    made = smoke()
    return made.model_copy(update={"preset": "smoke", "train": made.train.model_copy(update=train)})


def bring(run, inputs, wish="auto", **train):
    return arrivals.bring(wish, run, one.TASK, config(**train), inputs=inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_found_in_every_layout_and_copied_whole(layout, stopped, tmp_path):
    attached = tmp_path / "input" / layout / "one-smoke"
    shutil.copytree(stopped, attached)
    for path in [*attached.rglob("*"), attached]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "input" / "leaves" / "class").mkdir(parents=True)
    run = tmp_path / "working" / "mine"
    assert bring(run, tmp_path / "input") == [attached]
    copied = {path.relative_to(run): sha256(path) for path in run.rglob("*") if path.is_file()}
    there = {path.relative_to(attached): sha256(path) for path in attached.rglob("*") if path.is_file()}
    assert {**copied, Path("report.html"): there[Path("report.html")]} == there  # the session writes one of its own
    assert all(path.stat().st_mode & 0o200 for path in run.rglob("*"))
    assert outlast.train("toys.one", preset="smoke", out=run)["status"] == "finished"


def test_the_furthest_one_is_taken_and_what_is_here_gives_way_only_to_more(stopped, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copytree(stopped, tmp_path / "input" / name / "run")
    outlast.train("toys.one", preset="smoke", out=tmp_path / "input" / "b" / "run")
    run = tmp_path / "mine"
    shutil.copytree(stopped, run)
    assert bring(run, tmp_path / "input") == [tmp_path / "input" / "b" / "run"]
    assert snapshot.progress(run)["train-one"]["finished"]
    assert snapshot.progress(tmp_path / "mine.before-1", verify=True) == snapshot.progress(stopped)
    assert bring(run, tmp_path / "input") == []


def test_another_configuration_or_a_damaged_run_is_passed_over_with_a_sentence(stopped, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path / "input" / "a" / "run")
    assert bring(tmp_path / "mine", tmp_path / "input", seed=99) == []
    assert "another configuration; train.seed: 3 -> 99" in capsys.readouterr().err
    for path in (tmp_path / "input" / "a" / "run").glob("*/checkpoints/*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert bring(tmp_path / "mine", tmp_path / "input") == []
    assert "no checkpoint verifies" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_folder_that_was_named_must_hold_it(stopped, tmp_path):
    assert bring(tmp_path / "mine", tmp_path, wish=str(stopped.parent)) == [stopped]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="was begun with another configuration"):
        bring(tmp_path / "other", tmp_path, wish=str(stopped.parent), seed=99)
    with pytest.raises(UsageError, match="holds no pack and no run"):
        bring(tmp_path / "other", tmp_path, wish=str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="--previous goes on with a run"):
        outlast.train("toys.one", preset="smoke", out=tmp_path / "x", previous="auto", resume="never")


def test_a_copy_that_is_not_what_lies_there_gets_no_name(stopped, tmp_path, monkeypatch):
    pieces = archive._pieces

    def careless(found, name):
        damaged = [b"\0" if name.endswith("model.safetensors") else b""]
        yield from (damaged.pop() + piece[1:] if damaged and damaged[0] else piece for piece in pieces(found, name))

    monkeypatch.setattr(archive, "_pieces", careless)
    with pytest.raises(CheckpointError, match="does not have the contents that were packed"):
        bring(tmp_path / "mine", tmp_path, wish=str(stopped))
    assert not (tmp_path / "mine").exists() and not list(tmp_path.glob(".tmp-*"))


def test_another_task_is_no_candidate(stopped, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path / "input" / "a")
    other = replace(one.TASK, name="toys.other")
    assert arrivals.bring("auto", tmp_path / "mine", other, config(), inputs=tmp_path / "input") == []
    assert capsys.readouterr().err == ""
