"""The mirror kaggle://OWNER/SLUG: versions of a data set through the real clients, with what goes wrong on the way."""

import shutil
from pathlib import Path

import pytest

from outlast.env import kaggle_client, kaggle_process
from outlast.errors import CheckpointError, RunError, UsageError
from outlast.save.bring_back import bring_back
from outlast.save.mirrors import open_at
from outlast.save.snapshot import take
from outlast.save.uploads import Uploads
from toys.kaggle_server import KEY, TOKEN, USER, Fault
from toys.run_folder import RUN_ID, contents, go_on, make_run

URL = f"kaggle://{USER}/my-checkpoints"
REF = f"{USER}/my-checkpoints"


def store(mirror, run):
    snapshot = take(run)
    try:
        return mirror.store(snapshot, RUN_ID)
    finally:
        snapshot.drop()


def advance(run):
    """The run comes to step 200, and its older checkpoint goes."""
    go_on(run, 200)
    shutil.rmtree(run / "finetune" / "checkpoints" / "step-000000100")


def restored(folder):
    found = bring_back(open_at(URL, folder), folder, None)
    return contents(folder), found.sentence


@pytest.mark.parametrize("client", ["kaggle", "kagglehub"])
def test_a_run_goes_there_and_comes_back_bit_for_bit(kaggle, tmp_path, monkeypatch, client):
    if client == "kagglehub":  # as in a Kaggle notebook
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    run = make_run(tmp_path / "run", megabytes=0.5)
    mirror = open_at(URL, run)
    assert mirror.found == []
    with Uploads(mirror, run, RUN_ID) as uploads:
        uploads.offer()
        assert uploads.finish(120)
        first = contents(run)
        advance(run)
        uploads.offer()
        assert uploads.finish(120)
        assert uploads.state.failing is None and uploads.state.durable["finetune"]["step"] == 200
    assert [path.name for path in run.iterdir() if path.name.startswith(".tmp-")] == []
    versions = kaggle.store.datasets[REF].versions
    assert [version.notes for version in versions][1] == "finetune at 200, pretrain at 12"
    assert all(sorted(version.files) == ["index.json", "run.pack"] for version in versions)  # the older one stays
    back, sentence = restored(tmp_path / "other")
    assert back == contents(run) and "snapshot 2" in sentence
    versions[1].files["run.pack"] = versions[1].files["run.pack"][:-1] + b"?"
    back, sentence = restored(tmp_path / "damaged")
    assert back == first and "snapshot 1" in sentence and "passed over" in sentence


@pytest.mark.parametrize(
    ("part", "kind", "method"),
    [
        ("/upload/", "half", "PUT"),
        ("/upload/", "500", "PUT"),
        ("CreateDatasetVersion", "500", ""),
        ("CreateDatasetVersion", "403", ""),
        ("CreateDatasetVersion", "done, but lost", ""),
        ("/run.pack", "damage", "GET"),
        ("/index.json", "damage", "GET"),
    ],
)
def test_a_fault_is_survived(kaggle, tmp_path, part, kind, method):
    run = make_run(tmp_path / "run")
    mirror = open_at(URL, run)
    store(mirror, run)
    advance(run)
    kaggle.faults = [fault := Fault(part, kind, method=method)]
    with Uploads(mirror, run, RUN_ID, delays=lambda: iter([0.05] * 100)) as uploads:
        uploads.offer()
        uploads.finish(120)
        if uploads.state.failing is not None:  # what Kaggle refuses is tried again with the next checkpoint
            uploads.offer()
            assert uploads.finish(120)
        assert uploads.state.failing is None
    assert fault.happened == 1
    assert restored(tmp_path / "other")[0] == contents(run)


def test_half_an_upload_that_is_called_whole_is_never_durable(kaggle, tmp_path):
    run = make_run(tmp_path / "run")
    mirror = open_at(URL, run)
    store(mirror, run)
    first = contents(run)
    advance(run)
    kaggle.faults = [Fault("/upload/", "cut", times=1)]
    with pytest.raises(CheckpointError):
        store(mirror, run)
    assert len(kaggle.store.datasets[REF].versions) == 2
    back, sentence = restored(tmp_path / "other")
    assert back == first and "snapshot 1" in sentence
    assert store(mirror, run).number == 3  # and the next attempt makes a whole one
    assert restored(tmp_path / "third")[0] == contents(run)


def test_a_version_that_takes_long_to_be_processed_is_waited_for(kaggle, tmp_path):
    kaggle.store.processing_seconds = 1.0
    run = make_run(tmp_path / "run")
    mirror = open_at(URL, run)
    store(mirror, run)
    advance(run)
    assert store(mirror, run).number == 2
    assert kaggle.count("CreateDatasetVersion") == 1  # nothing was asked for while it would have been refused


def test_of_two_sessions_the_second_one_makes_no_version(kaggle, tmp_path):
    run = make_run(tmp_path / "run")
    first, second = open_at(URL, run), open_at(URL, run)
    store(first, run)
    with pytest.raises(RunError, match="another session is writing to the mirror"):
        store(second, run)
    assert len(kaggle.store.datasets[REF].versions) == 1


def test_another_runs_mirror_is_refused(kaggle, tmp_path):
    run = make_run(tmp_path / "run")
    store(open_at(URL, run), run)
    with pytest.raises(RunError, match="holds another run"):
        open_at(URL, tmp_path / "other").check_run("another")


def test_what_was_downloaded_goes_with_the_mirror(kaggle, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLAST_CACHE", str(tmp_path / "cache"))
    run = make_run(tmp_path / "run")
    store(open_at(URL, run), run)
    restored(tmp_path / "other")
    assert list((tmp_path / "cache").iterdir()) == []
    shutil.rmtree(tmp_path / "cache")


INSIDE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from outlast.env import kaggle_client, kaggle_process
from outlast.save.mirrors import open_at
from outlast.save.snapshot import take
from toys.run_folder import RUN_ID, make_run
kaggle_process.PATIENCE_SECONDS = 0.0
run = make_run(Path("run"))
open_at({url!r}, run).store(take(run), RUN_ID)
"""


def test_a_notebook_mirrors_with_its_own_credentials_through_kagglehub(kaggle, kernel, ended, tmp_path):
    body = INSIDE.format(tests=str(Path(__file__).parents[1]), url=URL)
    name = kaggle_client.push(kernel(body, manifest=False, enable_internet=True)).kernel
    assert ended(name).state == "complete", kaggle_client.logs(name).text
    output = kaggle.sessions.kernels[name][0].output
    assert restored(tmp_path / "other")[0] == contents(output / "run")
    off = kaggle_client.push(kernel(body, slug="without-internet", manifest=False)).kernel
    assert ended(off).state == "error"
    assert "connection is lost" in kaggle_client.logs(off).text
    written = [path for path in (tmp_path / "sessions").rglob("*") if path.is_file() and path.name != "token"]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("url", ["kaggle://tester", "kaggle://tester/short", "kaggle://tester/a-slug/more"])
def test_a_url_that_names_no_data_set_is_refused(url, tmp_path):
    with pytest.raises(UsageError, match="is no data set on Kaggle"):
        open_at(url, tmp_path)


def test_wrong_credentials_end_it_before_the_first_step_and_are_not_shown(kaggle, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "another-key-that-is-wrong")
    monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(RunError, match="401") as raised:
        open_at(URL, tmp_path / "run")
    assert KEY not in str(raised.value) and "another-key-that-is-wrong" not in str(raised.value)
