"""What may differ between two sessions of a run, what must not, and what is only said."""

import importlib
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from outlast import task
from outlast.base.files import read_json
from outlast.data.table import Examples
from outlast.env import bounds, host
from outlast.errors import DataError, RunError
from toys import plan as toy


@pytest.fixture
def half(runs):
    """A run that was killed in its second epoch."""
    assert runs.train("run", "saving.every_steps=3", crash=("step", 8)) is None
    return runs.folder / "run"


def record(run):
    return read_json(run / "run.json")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_what_cannot_change_a_number_may_differ_in_every_session(runs, half):
    runs.train("whole")
    result = runs.train(
        "run", "loading.workers=2", "loading.prefetch_batches=1", "loading.cache_gigabytes=1", "saving.every_steps=2",
        "saving.every_minutes=1", "saving.keep=1", session_limit="9h", resume="must",
    )  # fmt: skip
    assert result["status"] == "finished"
    assert runs.results("run") == runs.results("whole")
    assert record(half)["changes"] == []


def test_every_setting_that_must_match_is_named_with_both_values(runs, half):
    with pytest.raises(RunError, match="begun with another configuration") as refused:
        runs.train("run", "train.learning_rate=0.1", "model.dropout=0.5", "train.ema_decay=0.9", "loading.workers=2")
    assert refused.value.details == (
        "model.dropout: 0.2 -> 0.5",
        "train.ema_decay: None -> 0.9",
        "train.learning_rate: 0.01 -> 0.1",
    )
    assert "--extend" not in refused.value.hint and "--out" in refused.value.hint


def test_a_declared_change_is_recorded_once(runs, half):
    runs.train("run", "train.micro_batch=4", crash=("step", 2))
    runs.train("run", "train.micro_batch=4")
    assert [change["changes"] for change in record(half)["changes"]] == [{"train.micro_batch": [None, 4]}]
    assert record(half)["warnings"].count("changed in the middle of the run: train.micro_batch: None -> 4") == 1


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_data(monkeypatch):
    """other_data(change): from now on the toy's table is what change(table) makes of it."""

    def put(change, columns=("label",)):
        def examples(config, roots):
            found = toy.examples(config, roots)
            return Examples(change(found.table.copy()), found.root, found.facts, columns)

        monkeypatch.setattr(toy, "LEARNER", replace(toy.LEARNER, examples=examples))

    return put


def set_cell(row, column, value):
    def change(table):
        table.loc[row, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "counts", "said"),
    [
        (lambda table: table.drop(index=7).reset_index(drop=True), "0 files added, 1 gone", "gone: image-007"),
        (set_cell(7, "id", "new"), "1 files added, 1 gone, 0 changed", "added: new"),
        (set_cell(7, "hash", "f" * 64), "1 changed", "changed contents: image-007"),
        (set_cell(7, "label", 2), "1 changed", "changed label: image-007"),
        (set_cell(7, "group", "image-008"), "1 changed", "changed group: image-007"),
    ],
)
def test_data_that_changed_is_refused_by_name(runs, half, other_data, change, counts, said):
    other_data(change)
    before = record(half)
    with pytest.raises(DataError, match=counts) as refused:
        runs.train("run")
    assert said in refused.value.details and "--out" in refused.value.hint
    assert record(half) == before


def test_a_changed_number_that_samples_carry_into_the_batch_is_refused_by_name(runs, other_data):
    columns = ("label", "weight")
    other_data(lambda table: table.assign(weight=0.1), columns)
    assert runs.train("run", crash=("step", 3)) is None
    other_data(lambda table: set_cell(7, "weight", 0.5)(table.assign(weight=0.1)), columns)
    with pytest.raises(DataError) as refused:
        runs.train("run")
    assert refused.value.details == ("changed weight: image-007",)


def test_of_many_changed_files_ten_are_named_and_the_rest_counted(runs, half, other_data):
    other_data(lambda table: table.assign(hash="f" * 64))
    with pytest.raises(DataError, match="60 changed") as refused:
        runs.train("run")
    assert refused.value.details[9] == "changed contents: image-009"
    assert refused.value.details[10:] == ("and 50 more",)


# -- versions, code, machine -------------------------------------------------------------------------------------------


def test_every_session_says_what_it_ran_on(runs, half):
    runs.train("run")
    first, second = (session["bounds"] for session in record(half)["sessions"])
    assert first == second and not [line for line in record(half)["warnings"] if "last session" in line]
    assert {"python", "torch", "code of outlast", "code of the task", "device", "CPU capability"} <= set(first)
    assert first["BLAS kernels"]
    assert (first["threads"], first["processes"]) == ("1", "1")


def test_another_version_is_said_once_and_recorded(runs, half, monkeypatch, capsys):
    real = host.versions()
    monkeypatch.setattr(host, "versions", lambda: {**real, "torch": "9.9.9", "python": "3.99.0"})
    why = "bit-for-bit equality is promised only within one version"
    line = f"torch {real['torch']} -> 9.9.9 since the last session: {why}"
    capsys.readouterr()
    assert runs.train("run", crash=("step", 2)) is None
    said = capsys.readouterr().err
    assert f"warning: {line}\n" in said and f"python {real['python']} -> 3.99.0" in said
    assert line in record(half)["warnings"]
    runs.train("run")
    assert "since the last session" not in capsys.readouterr().err
    assert [session["bounds"]["torch"] == "9.9.9" for session in record(half)["sessions"]] == [False, True, True]


def test_what_bounds_equality_is_told_one_line_each():
    before = {"torch": "2.9", "device": "T4", "threads": "1", "processes": "2", "CPU capability": "AVX2", "gone": "1"}
    now = {"torch": "2.9", "device": "P100", "threads": "2", "processes": "1", "CPU capability": "AVX512", "new": "1"}
    told = bounds.changed(before, now)
    assert [line.partition(" since")[0] for line in told] == [
        "device T4 -> P100", "threads 1 -> 2", "processes 2 -> 1", "CPU capability AVX2 -> AVX512"
    ]  # fmt: skip
    assert bounds.changed({}, now) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names kernels of x86-64")
def test_other_kernels_of_the_same_library_are_told_apart():
    command = [sys.executable, "-c", "from outlast.env import bounds; print(bounds.blas_kernels())"]
    told = [
        subprocess.run(
            command, env={**os.environ, "OPENBLAS_CORETYPE": name}, capture_output=True, text=True, check=True
        )
        for name in ("Nehalem", "Sandybridge")
    ]
    assert told[0].stdout != told[1].stdout


def test_a_task_whose_source_was_edited_is_said(runs, tmp_path, monkeypatch, capsys):
    module = tmp_path / "edited_toy" / "plan.py"
    module.parent.mkdir()
    source = Path(toy.__file__).read_text().replace('name="toys.plan"', 'name="edited_toy.plan"')
    module.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import outlast

    def train():
        for name in ("edited_toy", "edited_toy.plan"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return outlast.train("edited_toy.plan", preset="smoke", out=runs.folder / "run")

    train()
    module.write_text(source + "\n# another thought\n")
    train()
    (line,) = [line for line in record(runs.folder / "run")["warnings"] if "last session" in line]
    assert line.startswith("code of the task ") and "only with the same code" in line
    assert line in capsys.readouterr().err


def test_the_code_of_a_package_is_all_of_its_modules(tmp_path):
    assert {"config.py", "learner.py", "__init__.py"} <= {path.name for path in task.sources("plants")}
    (tmp_path / "a.py").write_text("one = 1\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.py").write_text("one = 1\n")
    assert bounds.code_hash([tmp_path / "a.py"]) == bounds.code_hash([tmp_path / "elsewhere" / "a.py"])
    (tmp_path / "a.py").write_text("one = 2\n")
    assert bounds.code_hash([tmp_path / "a.py"]) != bounds.code_hash([tmp_path / "elsewhere" / "a.py"])
