"""A Kaggle of our own for each test, and this process made to talk to it and to nothing else."""

import os

import pytest

from outlast.env import kaggle_datasets, kaggle_process
from toys.kaggle_server import KaggleServer


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """The server; clients that this process starts reach it, and no pause between attempts is long."""
    for name in [name for name in os.environ if name.startswith(("KAGGLE", "OUTLAST_KAGGLE"))]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    with KaggleServer(tmp_path / "sessions") as server:
        for name, value in server.environment(home).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(kaggle_process, "delays", lambda: iter([0.02] * 1000))
        monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 3.0)
        monkeypatch.setattr(kaggle_datasets, "_POLLS", (0.05, 0.2))
        yield server
