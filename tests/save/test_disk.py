"""Saves on a disk that is really full and on one that is really read-only: a small file system in memory, mounted for a
process of its own. Skipped where the machine does not let a process mount anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOM = range(16)  # pages of 4 KiB that are free when a save begins; it needs fewer than the most of them

SESSION = """
import json, os, subprocess, sys
from pathlib import Path
from save.conftest import Stage

disk = Path(sys.argv[1])
filler = disk / "filler"


def attempt(stage, step):
    try:
        stage.save(step, values=5000)
        failed = None
    except OSError as error:
        failed = error.strerror
    start = stage.start()
    left = [name for name in stage.names() if name.startswith(".")]
    return {"failed": failed, "sentence": start.sentence, "value": float(start.state.model["bias"][0]), "left": left}


def fill(room):
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
    os.truncate(filler, max(filler.stat().st_size - 4096 * room, 0))


told = {"full": [], "after": []}
for room in json.loads(sys.argv[2]):
    stage = Stage(disk / f"run-{room}")
    stage.save(1, values=5000)
    stage.save(2, keep=1, values=5000)
    fill(room)
    told["full"].append(attempt(stage, 3))
    filler.unlink()
    told["after"].append(attempt(stage, 4))
fill(0)
told["old one given up"] = attempt(stage, 5)
filler.unlink()
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
told["read-only"] = attempt(stage, 6)
subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
told["writable again"] = attempt(stage, 6)
print(json.dumps(told))
"""


def in_own_mounts(command):
    """Runs a shell command that may mount; none where neither root nor a user namespace is allowed to."""
    for ways in (["unshare", "-rm"], ["unshare", "-m"]):
        try:
            if subprocess.run([*ways, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
                return [*ways, "sh", "-c", command]
        except FileNotFoundError:
            break
    return None


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    disk = tmp_path_factory.mktemp("disk")
    command = in_own_mounts('mount -t tmpfs -o size=2m none "$0" && exec "$@"')
    if command is None:
        pytest.skip("this machine does not let a process mount a file system of its own")
    python = [sys.executable, "-c", SESSION, str(disk), json.dumps(list(ROOM))]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*command, str(disk), *python], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_full_disk_fails_the_save_in_one_sentence_and_keeps_the_one_before(told):
    failures = [each for each in told["full"] if each["failed"]]
    assert failures[0] == told["full"][0]  # no room at all
    assert told["full"][-1]["failed"] is None  # enough room: the test has gone past the last place that can fail
    for room, each in enumerate(told["full"]):
        step = 2 if each["failed"] else 3
        assert each["sentence"].startswith(f"resuming run-{room} from step {step}, ")
        assert each["value"] == step
        assert each["left"] == []
        assert each["failed"] in (None, "No space left on device")


def test_on_a_full_disk_an_old_checkpoint_is_given_up_for_the_new_one(told):
    assert told["old one given up"]["failed"] is None
    assert told["old one given up"]["value"] == 5


def test_once_there_is_room_again_saving_goes_on(told):
    for each in [*told["after"], told["writable again"]]:
        assert (each["failed"], each["left"]) == (None, [])
    assert [each["value"] for each in told["after"]] == [4.0] * len(ROOM)
    assert told["writable again"]["value"] == 6


def test_a_read_only_disk_fails_the_save_in_one_sentence_and_still_gives_what_was_saved(told):
    assert told["read-only"]["failed"] == "Read-only file system"
    assert told["read-only"]["value"] == 5
