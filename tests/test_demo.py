"""`outlast demo` as a newcomer runs it, in a new process, and every other command on the run that it leaves."""

import csv
import json
import os
import subprocess
import sys

import pytest
from PIL import Image


def outlast(*words, check=True):
    command = [sys.executable, "-m", "outlast", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    os.environ["OUTLAST_CACHE"] = str(folder / "cache")
    done = outlast("demo", "--out", folder / "run", "--json")
    return folder / "run", json.loads(done.stdout), done.stderr


def test_it_is_stopped_inside_an_epoch_by_the_session_limit_and_goes_on(demo):
    run, result, text = demo
    record = json.loads((run / "run.json").read_text())
    first, second = record["sessions"][-2:]
    assert (first["why_stopped"], second["why_stopped"]) == ("session limit", "finished")
    assert second["resumed_from"] == f"step-{first['to_step']:09d}"
    assert 0 < first["to_step"] < second["to_step"] == result["stages"]["train"]["steps"]
    assert f"step {first['to_step']}" in result["stopped_at"]
    assert "resuming train from step" in text
    assert result["status"] == "finished"


def test_everything_says_synthetic(demo):
    run, result, text = demo
    assert "SYNTHETIC" in text
    assert result["synthetic"] is True
    assert json.loads((run / "run.json").read_text())["synthetic"] is True
    assert json.loads((run / "scores" / "metrics.json").read_text())["synthetic"] is True
    assert "SYNTHETIC" in (run / "report.html").read_text()
    manifests = [*run.glob("train/checkpoints/*/manifest.json"), *run.glob("train/best/*/manifest.json")]
    assert len(manifests) >= 2
    assert all(json.loads(path.read_text())["synthetic"] is True for path in manifests)


def test_it_learned_something_and_the_test_split_was_scored(demo):
    run, result, _ = demo
    scores = json.loads((run / "scores" / "metrics.json").read_text())
    with (run / "split.csv").open() as file:
        split = [row["split"] for row in csv.DictReader(file)]
    assert scores["split"] == "test"
    assert scores["images"] == split.count("test")
    assert scores["metrics"]["balanced_accuracy"] > 0.5  # chance is 0.25
    assert result["metrics"]["balanced_accuracy"] == scores["metrics"]["balanced_accuracy"]


def test_the_run_folder_is_as_documented(demo):
    run, _, _ = demo
    expected = {"run.json", "config.yaml", "split.csv", "report.html", "train", "test", "scores"}
    assert {path.name for path in run.iterdir()} == expected
    assert (run / "train" / "checkpoints" / "LATEST").read_text().strip() in os.listdir(run / "train" / "checkpoints")
    assert (run / "train" / "metrics.jsonl").is_file()


def test_eval_scores_a_folder_and_prints_one_json_object(demo):
    run, _, _ = demo
    data = json.loads((run / "run.json").read_text())["data"]["classifier"]["path"]
    done = outlast("eval", run, "--data", data, "--json")
    result = json.loads(done.stdout)
    assert result["task"] == "plants"
    assert result["images"] == 400
    assert {"accuracy", "balanced_accuracy", "kappa", "macro_f1"} <= set(result["metrics"])
    assert 0.5 < result["metrics"]["accuracy"] <= 1


def test_predict_writes_file_class_and_probabilities(demo, tmp_path):
    run, _, _ = demo
    Image.new("RGB", (50, 90), (30, 120, 40)).save(tmp_path / "green leaf.png")
    Image.new("LA", (200, 20), (90, 128)).save(tmp_path / "grau-ä.png")
    done = outlast("predict", run, tmp_path, "--to", tmp_path / "out.csv")
    assert done.stdout.strip() == str(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [os.path.basename(row["file"]) for row in rows] == ["grau-ä.png", "green leaf.png"]
    for row in rows:
        probabilities = {key.removeprefix("probability_"): float(value) for key, value in row.items() if "proba" in key}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["class"] == max(probabilities, key=probabilities.get)


def test_status_report_and_export_speak_of_this_run(demo, tmp_path):
    run, result, _ = demo
    assert "finished" in outlast("status", run).stdout
    assert json.loads(outlast("status", run, "--json").stdout)["status"] == "finished"
    text = outlast("report", run, "--text").stdout
    assert "SYNTHETIC" in text
    assert f"{result['metrics']['balanced_accuracy']:.3f}" in text
    files = outlast("export", run, "--to", tmp_path / "model.safetensors").stdout.split()
    assert files == [str(tmp_path / "model.safetensors"), str(tmp_path / "model.safetensors.json")]


def test_the_same_command_again_has_nothing_to_do(demo):
    run, result, _ = demo
    before = {path: path.stat().st_mtime_ns for path in (run / "train").rglob("*") if path.is_file()}
    done = outlast("train", "plants", "--synthetic", "--preset", "smoke", "--out", run, "--json")
    again = json.loads(done.stdout)
    assert again["status"] == "finished"
    assert again["stages"] == result["stages"]
    assert before == {path: path.stat().st_mtime_ns for path in (run / "train").rglob("*") if path.is_file()}
