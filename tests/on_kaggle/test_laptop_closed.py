"""The computer that watches a training on Kaggle dies for real; the same command goes on with it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import outlast
from outlast.plan import kaggle_sessions
from toys import bare

TESTS = Path(__file__).parents[1]
ASK = {"preset": "smoke", "overrides": ["train.epochs=1", "data.examples=24"], "on": "kaggle", "owner": "tester"}


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_the_session_running_and_goes_on(kaggle, tmp_path, monkeypatch):
    """SIGKILL while the session runs: no process of ours stays, nothing is pushed twice, it is finished in the end."""
    sessions = kaggle.sessions
    sessions.python, sessions.limit_seconds = str(bare.make(tmp_path / "bare")), 900.0
    words = ["toys.one", "--preset", "smoke", "--on", "kaggle", "--owner", "tester", "--out", str(tmp_path / "run")]
    driver = subprocess.Popen(
        [sys.executable, "-m", "outlast", "train", *words, *ASK["overrides"]],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with driver:
        state = tmp_path / "run.kaggle" / "state.json"
        while not (state.is_file() and json.loads(state.read_text())["sessions"][0:1] and sessions.kernels):
            assert driver.poll() is None, driver.stderr.read()
            time.sleep(0.1)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    monkeypatch.setattr(kaggle_sessions, "_LOOKS", (0.5, 2.0))
    result = outlast.train("toys.one", out=tmp_path / "run", **ASK)
    assert result["status"] == "finished"
    assert len(result["sessions"]) == sum(map(len, sessions.kernels.values())) == 1
