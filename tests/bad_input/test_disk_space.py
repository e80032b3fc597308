"""A disk that is too small for a run is found before the run begins; what is in the run already counts as used."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from bad_input.conftest import SETTINGS
from outlast.env import host

KILO = 1000


@pytest.fixture
def free(monkeypatch):
    """free(size): every disk has that many bytes free."""
    total = shutil.disk_usage("/").total

    def make(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(total, total - size, size))

    return make


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """The folder that stands for /kaggle/working on what looks like a Kaggle machine."""
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(host, "KAGGLE_WORKING", working)
    return working


def test_a_disk_without_room_is_refused_before_the_run_begins(leaves, refused_training, free):
    free(300 * KILO)
    names = ["will need 4", "300 kB free", "train: 1", "saving.keep=1", "--out"]
    refused_training(leaves, names=names)


def test_the_remedy_that_is_named_helps(leaves, command, free, tmp_path):
    free(400 * KILO)
    ended = command("train", "plants", "--data", leaves, "--out", tmp_path / "run", *SETTINGS, "saving.keep=1")
    assert ended.code == 0, ended.err


def test_a_settings_limit_below_the_need_is_refused(leaves, refused_training, tmp_path):
    names = ["all files together may take 200 kB", tmp_path / "run"]
    refused_training(leaves, "saving.disk_limit_gigabytes=0.0002", names=names)


def test_a_full_kaggle_folder_is_refused_though_the_disk_has_room(leaves, refused, kaggle):
    with (kaggle / "earlier-output.bin").open("wb") as stream:
        stream.truncate(host.KAGGLE_BYTES - 200 * KILO)
    message = refused(
        "train", "plants", "--data", leaves, "--out", kaggle / "run", *SETTINGS,
        names=[kaggle, "200 kB are free", "all files together may take 20 GB"],
    )  # fmt: skip
    assert "will need 4" in message
    assert not (kaggle / "run").exists()


def test_a_run_outside_the_kaggle_folder_has_no_limit(leaves, command, kaggle, tmp_path):
    with (kaggle / "earlier-output.bin").open("wb") as stream:
        stream.truncate(host.KAGGLE_BYTES)
    ended = command("train", "plants", "--data", leaves, "--out", tmp_path / "run", *SETTINGS)
    assert ended.code == 0, ended.err
    disk = json.loads((tmp_path / "run" / "run.json").read_text())["disk"]
    assert disk["limit_bytes"] is None and disk["needed_bytes"] == disk["most_bytes"] > 400 * KILO


def test_scarce_space_is_a_warning_that_the_run_keeps(leaves, command, free, tmp_path):
    free(530 * KILO)
    ended = command("train", "plants", "--data", leaves, "--out", tmp_path / "run", *SETTINGS)
    assert ended.code == 0, ended.err
    assert "warning: disk space is scarce" in ended.err
    assert re.search(r"checkpoints of 1\d\d kB, at most 4\d\d kB in .*/run, 530 kB free", ended.err), ended.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert any("scarce" in warning for warning in record["warnings"])


def test_what_a_run_has_written_counts_as_used(half_a_run, command, free):
    run, data = half_a_run
    written = sum(path.stat().st_size for path in (run / "train").rglob("*") if path.is_file())
    free(470 * KILO - written)
    ended = command("train", "plants", "--data", data, "--out", run, *SETTINGS)
    assert ended.code == 0, ended.err
    assert json.loads((run / "run.json").read_text())["disk"]["needed_bytes"] < 470 * KILO - written


def test_a_finished_run_needs_no_room(a_run, command, free):
    run, data = a_run
    free(0)
    ended = command("train", "plants", "--data", data, "--out", run, *SETTINGS)
    assert ended.code == 0, ended.err
