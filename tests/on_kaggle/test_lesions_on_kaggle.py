"""The whole plan of lesions over several sessions of a Kaggle of our own, one of them killed at its limit."""

import json
import re

import pytest

import outlast
from outlast.base.files import sha256
from outlast.env import kaggle_process
from outlast.plan import kaggle_sessions
from outlast.save.store import newest
from toys import bare
from toys.kaggle_server import KEY

SETTINGS = {"preset": "smoke", "overrides": ["train.threads=1"]}
RESULTS = ("*/best/*/model.safetensors", "*/metrics.jsonl", "*/*/part-*.safetensors", "*/*.csv", "*/models/*.txt")


def results(run):
    """Hashes of all that counts; of the checkpoints the newest: sessions that stop leave others beside it."""
    found = {path.relative_to(run).as_posix(): sha256(path) for pattern in RESULTS for path in run.glob(pattern)}
    for stage in run.glob("*/checkpoints"):
        found[stage.parent.name] = sha256(newest(stage, []).folder / "model.safetensors")
    assert len(found) > 25
    return found


@pytest.mark.slow
def test_lesions_in_five_sessions_end_as_the_run_at_home(kaggle, tmp_path, monkeypatch):
    """A kill at the limit, sessions that must stop in the middle of a training, both layouts of inputs, unattended."""
    monkeypatch.setattr(kaggle_sessions, "_LOOKS", (0.5, 2.0))
    monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 120.0)
    sessions = kaggle.sessions
    sessions.python, sessions.limit_seconds = str(bare.make(tmp_path / "bare")), 900.0
    sessions.planned_ends = [
        ("stop", "stepped", 5), ("limit", "stepped", 6), ("stop", "stepped", 6), ("stop", "stepped", 5),
    ]  # fmt: skip
    result = outlast.train("lesions", out=tmp_path / "run", on="kaggle", owner="tester", **SETTINGS)
    assert result["status"] == "finished" and not result["stages_left"]
    states = [(one["state"], one["trouble"]) for one in result["sessions"]]
    assert len(states) >= 5 and states[1] == ("failed", "time")
    assert [state for state, _ in states].count("failed") == 1

    outlast.train("lesions", out=tmp_path / "home", **SETTINGS)
    assert results(tmp_path / "run") == results(tmp_path / "home")
    at_home = json.loads((tmp_path / "home" / "run.json").read_text())
    on_kaggle = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(at_home["sessions"]) == 1 and len(on_kaggle["sessions"]) >= 4
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in written if "bare" not in path.parts and KEY.encode() in path.read_bytes()] == []
    assert kaggle.refused == []


@pytest.mark.slow
def test_two_folds_at_a_time_on_kaggle_end_as_one_after_the_other_at_home(kaggle, tmp_path, monkeypatch):
    """Each session trains two folds at once; one is stopped in the middle, one is killed at Kaggle's limit."""
    monkeypatch.setattr(kaggle_sessions, "_LOOKS", (0.5, 2.0))
    monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 120.0)
    sessions = kaggle.sessions
    sessions.python, sessions.limit_seconds = str(bare.make(tmp_path / "bare")), 900.0
    sessions.planned_ends = [("stop", "stepped", 12), ("limit", "stepped", 12)]
    result = outlast.train("lesions", out=tmp_path / "run", on="kaggle", owner="tester", side_by_side=2, **SETTINGS)
    assert result["status"] == "finished" and not result["stages_left"]
    states = [(one["state"], one["trouble"]) for one in result["sessions"]]
    assert states == [("fetched", None), ("failed", "time"), ("fetched", None)]

    outlast.train("lesions", out=tmp_path / "home", **SETTINGS)
    assert results(tmp_path / "run") == results(tmp_path / "home")
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]) == 2
    for version in [version for versions in sessions.kernels.values() for version in versions]:
        told = re.findall(r"(train-\S+): (begun|done)", "".join(piece["data"] for piece in version.log))
        assert [event for _, event in told[:2]] == ["begun", "begun"], "one after the other"
