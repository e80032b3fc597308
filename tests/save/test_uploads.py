import threading
import time

import pytest

from outlast.base import accident
from outlast.errors import RunError
from outlast.save.bring_back import bring_back
from outlast.save.mirror import Mirror
from outlast.save.uploads import Uploads
from toys.run_folder import RUN_ID, contents, go_on, make_run


def fast(mirror, run, patience=30.0):
    return Uploads(mirror, run, RUN_ID, patience_seconds=patience, delays=lambda: iter([0.05] * 1000))


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def restored(s3, folder):
    bring_back(Mirror.open(s3.url, folder), folder, None)
    return contents(folder)


@pytest.mark.parametrize(
    ("kind", "method", "part", "times"),
    [
        ("500", "PUT", "/files/", 3),
        ("503", "PUT", "/index/", 2),
        ("cut", "PUT", "model.safetensors", 2),
        ("cut", "POST", "model.safetensors", 2),  # begin or end of a large upload
        ("done, but no answer", "PUT", "/files/", 1),
        ("done, but no answer", "PUT", "/index/", 1),
        ("silence", "PUT", "/files/", 1),
        ("damage", "GET", "/files/", 2),
        ("short", "GET", "model.safetensors", 1),
        ("damage", "GET", "/index/", 1),
        ("500", "GET", "/index/", 1),
        ("500", "GET", "", 1),  # the first listing
    ],
)
def test_a_fault_is_survived_by_trying_again(s3, tmp_path, kind, method, part, times):
    run = make_run(tmp_path / "run", megabytes=17 if method == "POST" else 0)
    mirror = Mirror.open(s3.url, run)
    fault = s3.fault(kind, method, part, times)
    with fast(mirror, run) as uploads:
        uploads.offer()
        assert uploads.finish(30)
        state = uploads.state
    assert fault.happened == times
    assert state.failing is None
    assert state.durable == {"finetune": {"step": 100, "finished": False}, "pretrain": {"step": 12, "finished": True}}
    assert state.seconds > 0 and state.durable_at
    assert restored(s3, tmp_path / "other") == contents(run)
    assert [path.name for path in run.iterdir() if path.name.startswith(".tmp-")] == []


@pytest.mark.parametrize("part", ["finetune/checkpoints", "/index/"])
def test_what_does_not_read_back_is_never_durable(s3, tmp_path, part):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(s3.url, run)
    with fast(mirror, run) as uploads:
        uploads.offer()
        assert uploads.finish(20)
        first = contents(run)
        go_on(run, 200)
        s3.fault("damage", "GET", part, times=10**6)
        uploads.offer()
        assert not uploads.finish(1.0)
        state = uploads.state
    assert state.durable["finetune"]["step"] == 100
    assert "damaged" in state.failing or "not what was written" in state.failing
    s3.faults.clear()
    if part != "/index/":  # an index that only arrived damaged may well be whole
        assert restored(s3, tmp_path / "other") == first


def test_credentials_that_expire_are_read_anew(s3, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(s3.url, run)
    with fast(mirror, run) as uploads:
        s3.refused_key = "FIRSTKEYFORTESTS"
        uploads.offer()
        until(lambda: uploads.state.failing is not None)
        assert "FIRSTKEY" not in uploads.state.failing
        assert uploads.state.durable is None
        assert uploads.state.describe() == "MIRROR FAILS"
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SECONDKEYFORTESTS")
        assert uploads.finish(20)
        assert uploads.state.failing is None


def test_a_mirror_that_fails_all_the_time_neither_raises_nor_waits(s3, tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(s3.url, run)
    s3.fault("503", "PUT", "", times=10**6)
    began = time.monotonic()
    with fast(mirror, run, patience=0.2) as uploads:
        uploads.offer()
        until(lambda: any("given up" in warning for warning in uploads.state.warnings))
        assert uploads.finish(5.0) is False  # nothing waits any more: it says so at once
        s3.faults.clear()
        go_on(run, 200)
        uploads.offer()
        assert uploads.finish(20.0)
        assert uploads.state.failing is None
        s3.fault("503", "PUT", "", times=10**6)
        go_on(run, 300)
        uploads.offer()
        assert uploads.finish(0.3) is False
        assert uploads.state.durable["finetune"]["step"] == 200
    assert time.monotonic() - began < 15
    assert [path.name for path in run.iterdir() if path.name.startswith(".tmp-")] == []


def test_a_newer_snapshot_takes_the_place_of_one_that_waits(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(str(tmp_path / "mirror"), run)
    go, begun = threading.Event(), threading.Event()

    def wait(place):
        if place == "mirror.object":
            begun.set()
            assert go.wait(20)

    monkeypatch.setattr(accident, "happen", wait)
    with fast(mirror, run) as uploads:
        uploads.offer()
        assert begun.wait(20)
        for step in (200, 300, 400):
            go_on(run, step)
            uploads.offer()
            assert len(list(run.glob(".tmp-mirror-*"))) == 2, "one on its way, one that waits"
        assert not uploads.finish(0.1)
        go.set()
        assert uploads.finish(20)
        assert uploads.state.durable["finetune"]["step"] == 400
    assert {path.name[:9] for path in (tmp_path / "mirror" / "index").iterdir()} == {"000000001", "000000002"}
    assert list(run.glob(".tmp-*")) == []


def test_a_newer_snapshot_ends_the_wait_after_a_failure(s3, tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(s3.url, run)
    s3.fault("500", "PUT", "", times=1)
    with Uploads(mirror, run, RUN_ID, delays=lambda: iter([600.0] * 9)) as uploads:
        uploads.offer()
        until(lambda: uploads.state.failing)
        go_on(run, 200)
        uploads.offer()
        until(lambda: uploads.state.durable is not None)
        assert uploads.state.durable["finetune"]["step"] == 200


def test_finish_does_not_sit_out_a_long_wait(s3, tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(s3.url, run)
    s3.fault("500", "PUT", "", times=1)
    with Uploads(mirror, run, RUN_ID, delays=lambda: iter([600.0] * 9)) as uploads:
        uploads.offer()
        until(lambda: uploads.state.failing)
        assert uploads.finish(20)


def test_a_server_that_never_answers_does_not_keep_the_session_from_ending(s3, tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(s3.url, run)
    s3.fault("silence", "PUT", "", times=10**6)
    began = time.monotonic()
    with fast(mirror, run) as uploads:
        uploads.offer()
        assert not uploads.finish(0.2)
    assert time.monotonic() - began < 8


def test_what_cannot_be_pruned_is_a_warning_and_goes_the_next_time(s3, tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(s3.url, run)
    with fast(mirror, run) as uploads:
        for step in (200, 300):
            go_on(run, step)
            uploads.offer()
            assert uploads.finish(20)
        s3.fault("500", "DELETE", "", times=1)
        go_on(run, 400)
        uploads.offer()
        assert uploads.finish(20)
        assert uploads.state.failing is None
        (warning,) = uploads.state.warnings
        assert "could not be removed" in warning
        assert len(mirror.place.sizes("index")) == 3
        go_on(run, 500)
        uploads.offer()
        assert uploads.finish(20)
    assert len(mirror.place.sizes("index")) == 2


def test_another_session_on_the_mirror_is_a_state_and_no_exception(tmp_path):
    url = str(tmp_path / "mirror")
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    with fast(Mirror.open(url, one), one) as first, fast(Mirror.open(url, two), two) as second:
        first.offer()
        assert first.finish(20)
        second.offer()
        assert second.finish(20) is False
        assert "another session is writing" in second.state.failing
        assert first.state.failing is None


def test_another_run_is_refused_before_anything_is_done(tmp_path):
    run = make_run(tmp_path / "run")
    with fast(Mirror.open(str(tmp_path / "mirror"), run), run) as uploads:
        uploads.offer()
        assert uploads.finish(20)
    with pytest.raises(RunError, match="holds another run"):
        Uploads(Mirror.open(str(tmp_path / "mirror"), run), run, "another")


def test_a_full_disk_here_is_a_state_and_no_exception(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    with fast(Mirror.open(str(tmp_path / "mirror"), run), run) as uploads:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("outlast.save.snapshot.shutil.copyfile", full)
        monkeypatch.setattr("outlast.save.snapshot.os.link", full)
        uploads.offer()
        assert uploads.finish(1) is False
        assert "No space left" in uploads.state.failing
