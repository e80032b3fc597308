"""Runs side by side: what belongs into one table, what is refused, and what is said in capitals."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import outlast
from outlast.errors import RunError, UsageError

MADE = Callable[..., Path]
FELL = {"train": {"name": "tiny", "wanted": "sclusterformer", "reason": "out of memory"}}
OTHER = {"train": {"name": "minimal", "wanted": "minimal", "reason": None}}


def setting(run: Path, before: str, after: str) -> Path:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(before, after))
    return run


def test_only_the_settings_that_differ_are_shown(make_run: MADE) -> None:
    runs = [
        make_run("a"),
        setting(make_run("b"), "epochs: 40", "epochs: 60"),
        setting(make_run("c"), "  size: 64\n", ""),
    ]
    found = outlast.compare(runs)
    assert found["differences"] == {"model.size": [64, 64, "(absent)"], "training.epochs": [40, 60, 40]}
    assert found["warnings"] == []
    assert "model.name" not in found["text"]


def test_a_row_says_what_a_run_reached_and_what_it_cost(make_run: MADE) -> None:
    sessions = [
        {"seconds": 3600.0, "device": "cuda", "quota_hours": 2.0, "stages": {"train": 3000.0},
         "bounds": {"processes": "2"}},
        {"seconds": 1800.0, "device": "cuda", "quota_hours": 1.0, "stages": {"train": 1000.0}},
        {"seconds": 360.0, "device": "cuda", "quota_hours": 0.0, "side_by_side": 2, "stages": {"scores": 300.0}},
        {"seconds": 9999.0, "device": "cpu", "quota_hours": 0.0, "stages": {"scores": 1.0}},
    ]  # fmt: skip
    found = outlast.compare([make_run("a", sessions=sessions), make_run("b")])
    row = found["runs"][0]
    assert (row["gpu_hours"], row["quota_hours"]) == (2.7, 3.0)
    assert row["train_seconds"] == {"train": 4000.0}
    assert row["epochs"] == {"train": 40}
    assert row["scores"]["train"]["value"] == pytest.approx(0.967, abs=1e-3)
    assert row["metrics"]["test balanced_accuracy"] == pytest.approx(0.971, abs=1e-3)
    assert row["rungs"] == {"train": {"used": "sclusterformer", "wanted": "sclusterformer"}}
    assert found["runs"][1]["gpu_hours"] == 0


@pytest.mark.parametrize("rung", [FELL, OTHER], ids=["fell back", "another model"])
def test_rungs_are_mixed_only_on_request_and_in_capitals(make_run: MADE, rung: dict[str, object]) -> None:
    runs = [make_run("a"), make_run("b", rung=rung)]
    with pytest.raises(RunError, match=r"a trained sclusterformer \[train\]; .*b trained (tiny|minimal)") as refused:
        outlast.compare(runs)
    assert "--mix-rungs" in refused.value.hint
    found = outlast.compare(runs, mix_rungs=True)
    assert "SCLUSTERFORMER" in found["text"]
    assert ("TINY (WANTED SCLUSTERFORMER)" in found["text"]) == (rung is FELL)
    assert "MIXED RUNGS [train]" in found["warnings"][0]


def test_runs_that_all_fell_back_to_the_same_rung_still_say_so(make_run: MADE) -> None:
    runs = [make_run("a", rung=FELL), make_run("b", rung=FELL)]
    with pytest.raises(RunError, match="tiny in place of sclusterformer"):
        outlast.compare(runs)


def test_folds_are_told_apart_from_one_training_by_what_they_trained(make_run: MADE) -> None:
    def folds(name: str) -> dict[str, object]:
        return {f"train-fold{number}": {"name": name, "wanted": name} for number in range(2)}

    assert outlast.compare([make_run("a"), make_run("b", rung=folds("sclusterformer"))])["warnings"] == []
    with pytest.raises(RunError, match="train-fold1"):
        outlast.compare([make_run("c"), make_run("d", rung=folds("tiny"))])


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"task": "lesions"}, r"task can't be compared: .*a \(plants\), .*b \(lesions\)"),
     ({"synthetic": True}, r"kind of data can't be compared: .*b \(SYNTHETIC data\)")],
)  # fmt: skip
def test_what_says_nothing_about_the_other_is_refused(make_run: MADE, changes: dict[str, object], named: str) -> None:
    runs = [make_run("a"), make_run("b", **changes)]
    with pytest.raises(RunError, match=named):
        outlast.compare(runs, mix_rungs=True)


def test_other_data_or_another_split_is_said_in_capitals(make_run: MADE) -> None:
    data = {"data": {"path": "/data", "fingerprint": "0000", "synthetic": False}}
    first = make_run("a")
    (warning,) = outlast.compare([first, make_run("b", data=data, split_hash="0")])["warnings"]
    assert warning.startswith("OTHER DATA (data)") and "NOT COMPARABLE" in warning
    (warning,) = outlast.compare([first, make_run("c", split_hash="0")])["warnings"]
    assert warning.startswith("OTHER SPLIT")


def test_an_unfinished_run_is_compared_as_far_as_it_is(make_run: MADE) -> None:
    whole, half = make_run("a"), make_run("b", status="stopped", reason="session limit")
    (half / "train" / "stage.json").unlink()
    lines = (half / "train" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "train" / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    for made in (half / "scores").iterdir():
        if made.is_file():
            made.unlink()
    found = outlast.compare([whole, half])
    assert found["runs"][1]["epochs"] == {"train": 5}
    assert found["runs"][1]["metrics"] == {}
    assert not found["runs"][1]["scores"]["train"]["finished"]
    assert any("b is stopped (session limit)" in warning for warning in found["warnings"])
    assert any("line 6: not a whole row" in warning for warning in found["warnings"])
    assert "so far" in found["text"]


def test_a_run_without_readable_settings_is_compared_without_them(make_run: MADE) -> None:
    broken = make_run("b")
    (broken / "config.yaml").write_text("model: [")
    found = outlast.compare([make_run("a"), broken])
    assert found["differences"] == {}
    assert "config.yaml can't be read" in found["warnings"][0]


def test_what_is_no_run_is_refused_by_name(make_run: MADE, tmp_path: Path) -> None:
    run, torn = make_run("a"), make_run("b")
    (torn / "run.json").write_text('{"task": "pla')
    for wrong, named in ((torn, "run.json' cannot be read"), (tmp_path / "no", "no folder"), (tmp_path, "no run.json")):
        with pytest.raises(RunError, match=named):
            outlast.compare([run, wrong])


def test_one_run_alone_or_twice_is_refused(make_run: MADE) -> None:
    run = make_run("a")
    with pytest.raises(UsageError, match="only one run"):
        outlast.compare([run])
    with pytest.raises(UsageError, match="given twice"):
        outlast.compare([run, run / ".." / "a"])


def test_csv_holds_a_line_per_run_with_plain_numbers(make_run: MADE, tmp_path: Path) -> None:
    runs = [make_run("a"), setting(make_run("b"), "epochs: 40", "epochs: 60")]
    target = tmp_path / "made" / "runs.csv"
    assert outlast.compare(runs, to=target)["csv"] == str(target)
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert [row["config training.epochs"] for row in rows] == ["40", "60"]
    assert float(rows[0]["test accuracy"]) == pytest.approx(134 / 138)
    with pytest.raises(UsageError, match=r"\.csv"):
        outlast.compare(runs, to=tmp_path / "runs.png")


def test_the_command_prints_json_and_fails_with_one_sentence(make_run: MADE) -> None:
    def compare(*words: object) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-m", "outlast", "compare", *words, "--json")
        return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)

    first, second = make_run("a"), make_run("b", rung=FELL)
    refused = compare(first, second)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "in place of sclusterformer" in json.loads(refused.stdout)["error"]
    shown = compare(first, second, "--mix-rungs")
    assert shown.returncode == 0
    assert [row["rungs"]["train"]["used"] for row in json.loads(shown.stdout)["runs"]] == ["sclusterformer", "tiny"]
    assert compare(first).returncode == 2
