"""Data sets as versions, through both of Kaggle's clients, with what goes wrong on the way."""

import os
import threading
import time

import pytest

from outlast.env import kaggle_datasets, kaggle_process
from outlast.env.kaggle_datasets import DatasetState
from outlast.errors import RunError, UsageError
from toys.kaggle_server import USER, Fault

REF = f"{USER}/my-files"


@pytest.fixture(params=["kaggle", "kagglehub"])
def client(request, monkeypatch):
    """Each of the two clients; the second one is what a Kaggle notebook uses."""
    if request.param == "kagglehub":
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    return request.param


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "model.pack").write_bytes(os.urandom(300_000))
    (folder / "index.json").write_text('{"one": 1}')
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_becomes_a_version_and_older_ones_stay(kaggle, client, files, tmp_path):
    assert kaggle_datasets.state_of(REF) == DatasetState("missing", 0)
    assert kaggle_datasets.publish(files, REF, "My files", "one") == 1
    first = contents(files)
    (files / "index.json").write_text('{"two": 2}')
    assert kaggle_datasets.publish(files, REF, "My files", "two") == 2
    assert kaggle_datasets.state_of(REF) == DatasetState("ready", 2)
    assert kaggle.store.datasets[REF].private
    assert kaggle_datasets.fetch_file(REF, 1, "index.json", tmp_path / "old").read_bytes() == first["index.json"]
    assert kaggle_datasets.fetch_file(REF, 2, "index.json", tmp_path / "old").read_text() == '{"two": 2}'
    kaggle_datasets.fetch_files(REF, 1, tmp_path / "whole")
    assert contents(tmp_path / "whole") == first
    with pytest.raises(UsageError, match="is not an empty folder"):
        kaggle_datasets.fetch_files(REF, 1, tmp_path / "whole")
    assert contents(tmp_path / "whole") == first


def test_a_version_waits_for_the_one_before_to_be_processed(kaggle, client, files):
    kaggle.store.processing_seconds = 1.5
    began = time.monotonic()
    other = threading.Thread(target=kaggle_datasets.publish, args=(files, REF, "My files", "one"))
    other.start()
    while REF not in kaggle.store.datasets:
        time.sleep(0.02)
    other.join()
    assert kaggle_datasets.publish(files, REF, "My files", "two") == 2
    assert time.monotonic() - began > 3.0
    assert kaggle.count("CreateDatasetVersion") == 1  # none that was refused with 403


@pytest.mark.parametrize(
    ("part", "kind", "method"),
    [
        ("/upload/", "half", "PUT"),
        ("/upload/", "503", "PUT"),
        ("/upload/", "lost", "PUT"),
        ("StartBlobUpload", "500", ""),
        ("StartBlobUpload", "429", ""),
        ("CreateDatasetVersion", "500", ""),
        ("CreateDatasetVersion", "lost", ""),
        ("CreateDatasetVersion", "done, but lost", ""),
        ("GetDatasetStatus", "500", ""),
    ],
)
def test_a_fault_while_publishing_is_survived(kaggle, files, tmp_path, part, kind, method):
    kaggle_datasets.publish(files, REF, "My files", "one")
    (files / "index.json").write_text('{"two": 2}')
    kaggle.faults = [fault := Fault(part, kind, method=method)]
    assert kaggle_datasets.publish(files, REF, "My files", "two") == 2
    assert fault.happened == 1
    assert len(kaggle.store.datasets[REF].versions) == 2
    kaggle_datasets.fetch_files(REF, 2, tmp_path / "whole")
    assert contents(tmp_path / "whole") == contents(files)


def test_a_version_is_never_made_without_a_file_that_could_not_be_uploaded(kaggle, files, monkeypatch):
    monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 0.0)
    kaggle.faults = [Fault("/upload/", "400", times=1000)]
    with pytest.raises(RunError, match="only 0 of 2 files could be uploaded"):
        kaggle_datasets.publish(files, REF, "My files", "one")
    assert REF not in kaggle.store.datasets


def test_files_that_kaggle_cannot_process_are_an_error_and_the_next_version_is_taken(kaggle, files):
    for version in (1, 3):  # also the first one
        kaggle.store.fail_processing = 1
        with pytest.raises(RunError, match="could not process"):
            kaggle_datasets.publish(files, REF, "My files", "bad")
        assert kaggle_datasets.publish(files, REF, "My files", "good") == version + 1


def test_a_download_that_breaks_off_is_whole_in_the_end(kaggle, client, files, tmp_path):
    kaggle_datasets.publish(files, REF, "My files", "one")
    kaggle.faults = [Fault("DownloadDataset", "500"), Fault("/model.pack", "503"), Fault("/model.pack", "short")]
    fetched = kaggle_datasets.fetch_file(REF, 1, "model.pack", tmp_path / "old")
    assert fetched.read_bytes() == (files / "model.pack").read_bytes()
    assert all(fault.happened for fault in kaggle.faults)
