import os
import sys
import time

import pytest
from fsspec.registry import _registry

from outlast.errors import RunError, UsageError
from outlast.save.mirror import Mirror
from outlast.save.place import Place, delays, shown
from outlast.save.uploads import Uploads
from toys.run_folder import RUN_ID, make_run


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/a/folder@home?", "/a/folder@home?"),
        ("s3://bucket/runs/a@b", "s3://bucket/runs/a@b"),
        ("hf://datasets/me/runs@main/one", "hf://datasets/me/runs@main/one"),
        ("sftp://me:hunter2@host:22/runs", "sftp://host:22/runs"),
        ("sftp://me@host/runs", "sftp://host/runs"),
        ("sftp://me:hun/ter2@host/runs", "sftp://host/runs"),
        ("sftp://host:22/runs@home", "sftp://host:22/runs@home"),
        ("https://host/runs?key=hunter2&x=1", "https://host/runs"),
    ],
)
def test_what_is_shown_has_no_credentials(url, expected):
    assert shown(url) == expected


def test_no_error_and_no_file_shows_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "much-too-secret")
    place = Place("memory://me:hunter2@host/runs?token=letmein")
    error = OSError("me:hunter2@host said no to letmein,\n hunter2 and much-too-secret")
    said = place.masked(error)
    assert "said no" in said
    for secret in ("hunter2", "letmein", "much-too-secret", "\n"):
        assert secret not in said
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(place.url, run)
    with Uploads(mirror, run, RUN_ID) as uploads:
        uploads.offer()
        assert uploads.finish(20)
        assert "hunter2" not in repr(uploads.state)
    for name in [*mirror.place.sizes("index"), *mirror.place.sizes("files")]:
        assert b"hunter2" not in b"".join(mirror.place.pieces(name))


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://bucket/x", "s3fs"), ("sftp://host/x", "paramiko"), ("hf://datasets/me/x", "huggingface_hub")],
)
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(url, package, tmp_path, monkeypatch):
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match="needs a package that is not installed") as found:
        Mirror.open(url, tmp_path / "run")
    assert found.value.hint.startswith("pip install") and package in found.value.hint


@pytest.mark.parametrize("url", ["s4://bucket/x", "simplecache::s3://bucket/x"])
def test_a_url_that_nothing_opens_is_one_clear_error(url, tmp_path):
    with pytest.raises(UsageError, match=r"the mirror s"):
        Mirror.open(url, tmp_path / "run")


def test_a_mirror_on_the_runs_own_disk_is_called_what_it_is(tmp_path):
    for url in (str(tmp_path / "mirror"), f"file://{tmp_path}/mirror"):
        (warning,) = Mirror.open(url, tmp_path / "run").warnings
        assert "same file system" in warning and "not against losing the disk" in warning


def test_a_mirror_on_another_disk_or_server_needs_no_warning(s3, tmp_path):
    assert Mirror.open(s3.url, tmp_path / "run").warnings == []
    if os.stat("/dev/shm").st_dev != tmp_path.stat().st_dev:
        import tempfile

        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            assert Mirror.open(f"{folder}/mirror", tmp_path / "run").warnings == []


@pytest.mark.parametrize(
    ("mirror", "run"), [("runs/one", "runs/one"), ("runs/one/m", "runs/one"), ("runs", "runs/one")]
)
def test_a_mirror_and_a_run_inside_each_other_are_refused(tmp_path, mirror, run):
    with pytest.raises(UsageError, match="inside each other"):
        Mirror.open(str(tmp_path / mirror), tmp_path / run)


def test_a_bucket_that_is_not_there_is_found_at_the_start_and_not_made(s3, tmp_path):
    began = time.monotonic()
    with pytest.raises(RunError, match="can't be used"):
        Mirror.open("s3://no-such-bucket-here/x", tmp_path / "run")
    assert time.monotonic() - began < 5
    assert ("PUT", "/no-such-bucket-here") not in s3.requests


def test_credentials_that_are_refused_are_found_at_the_start(s3, tmp_path):
    s3.refused_key = "FIRSTKEYFORTESTS"
    with pytest.raises(RunError, match="can't be used") as found:
        Mirror.open(s3.url, tmp_path / "run")
    assert "a-secret-for-tests" not in str(found.value)


def test_a_start_waits_for_a_server_that_comes_back(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("outlast.save.place.delays", lambda: iter([0.05] * 100))
    s3.fault("503", "GET", "", times=3)
    assert Mirror.open(s3.url, tmp_path / "run").found == []


def test_a_folder_that_may_not_be_written_is_found_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be used"):
        Mirror.open(str(tmp_path / "file" / "mirror"), tmp_path / "run", 0.0)


def test_waits_grow_and_differ():
    waits = [seconds for seconds, _ in zip(delays(), range(10), strict=False)]
    assert 0.5 <= waits[0] <= 1.0
    assert all(30.0 <= seconds <= 60.0 for seconds in waits[6:])
    assert len(set(waits)) == 10
