"""Whatever happens to a save, the next start finds the newest checkpoint that verifies: the new one or the one before.

Every place that a save passes is tried, with an end of the process there and with each error that a disk can give.
Nothing here depends on who calls `store.save`. Damage that comes later is in test_damaged.py, real disks are in
test_disk.py.
"""

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from outlast.base import accident, files
from outlast.errors import CheckpointError
from outlast.save import store

TESTS = Path(__file__).parents[1]
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS}
NEW, AGAIN = 3, 2  # a step that is not there yet, and one that is: its folder is replaced


class Crash(BaseException):
    """The end of the process, as far as the code in it can tell."""


def places_of(stage, step):
    """Every place that saving this step passes, each as often as it is passed, in order: [(place, occurrence)]."""
    seen, passed = Counter(), []

    def count(place):
        seen[place] += 1
        passed.append((place, seen[place]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accident, "happen", count)
        stage.save(step)
    return passed


# The places of a save as it is written today; a test below says so when they have changed.
SYNC = "write.sync"
FILES = [("folder.open", 1), ("folder.file", 1), (SYNC, 1), ("folder.file", 2), (SYNC, 2), ("folder.manifest", 1)]
MANIFEST = [("write.open", 1), ("write.data", 1), (SYNC, 3), ("write.rename", 1), (SYNC, 4), ("write.done", 1)]
NAME = [("folder.rename", 1), (SYNC, 5), ("folder.done", 1)]
LATEST = [("write.open", 2), ("write.data", 2), (SYNC, 6), ("write.rename", 2), (SYNC, 7), ("write.done", 2)]
PRUNE = [("remove.rename", 1), ("remove.files", 1)]
PLACES = {
    NEW: [*FILES, *MANIFEST, *NAME, *LATEST, *PRUNE],
    AGAIN: [*FILES, *MANIFEST, NAME[0], ("folder.replace", 1), *NAME[1:], *LATEST],
}
POINTS = [(step, *point) for step, points in PLACES.items() for point in points]
DURABLE = [*LATEST, *PRUNE]  # what goes wrong from here on takes nothing from the new checkpoint


@pytest.mark.parametrize("step", PLACES)
def test_these_are_all_the_places_that_a_save_passes(stage, step):
    assert places_of(stage, step) == PLACES[step]


def save_with(stage, step, place, occurrence, failure):
    """Save, with `failure` raised at that place."""
    seen = Counter()

    def happen(here):
        seen[here] += 1
        if (here, seen[here]) == (place, occurrence):
            raise failure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accident, "happen", happen)
        stage.save(step)


def assert_nothing_is_lost(stage, step, *, complete=False):
    """The start takes the new or the one before, whole; the next save works, and no rubbish stays."""
    start = stage.start()
    assert start.saved is not None
    assert start.saved.step in ((step,) if complete else (step, 2))
    assert start.sentence == f"resuming train-one from step {start.saved.step}, the newest verified checkpoint"
    assert torch.equal(start.state.model["weight"], torch.full((4, 3), float(start.saved.step)))
    store.clear_interrupted(stage.folder)
    assert stage.start().saved.step == start.saved.step
    assert not [name for name in stage.names() if name.startswith(".")]
    saved = stage.save(4)
    assert stage.start().saved == saved
    assert stage.names() == ["LATEST", f"step-{start.saved.step:09d}", "step-000000004"]
    assert (stage.checkpoints / "LATEST").read_text() == "step-000000004\n"


@pytest.mark.parametrize(("step", "place", "occurrence"), POINTS)
def test_an_end_at_any_place_of_a_save_loses_nothing(stage, step, place, occurrence):
    with pytest.raises(Crash):
        save_with(stage, step, place, occurrence, Crash())
    # Once the name is taken it counts, whatever becomes of LATEST and of the old ones.
    assert_nothing_is_lost(stage, step, complete=(place, occurrence) in [*NAME[1:], *DURABLE])


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("step", "place", "occurrence"), POINTS)
def test_an_error_of_the_disk_at_any_place_of_a_save_loses_nothing(stage, step, place, occurrence, error, capsys):
    failure = OSError(ERRORS[error], os.strerror(ERRORS[error]))
    durable = (place, occurrence) in DURABLE
    if error == "ENOSPC" and not durable:
        save_with(stage, step, place, occurrence, failure)  # an old one was given up for room
        assert "warning: the disk is full: " in capsys.readouterr().err
        durable = True
    elif durable:
        save_with(stage, step, place, occurrence, failure)
        assert f"warning: {stage.checkpoints}" in capsys.readouterr().err
    else:
        with pytest.raises(OSError, match=os.strerror(ERRORS[error])):
            save_with(stage, step, place, occurrence, failure)
        # The process lives on: there is rubbish only where even the removal of rubbish fails.
        assert not [name for name in stage.names() if name.startswith(".")]
    assert_nothing_is_lost(stage, step, complete=durable)


KILLER = """
import json, os, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch
from outlast.base import accident, files
from save.conftest import Stage

# One process for each place, killed there for real; forked, for torch takes its time to import.
for number, (step, place, occurrence) in enumerate(json.loads(sys.argv[2])):
    stage = Stage(Path(sys.argv[1]) / str(number) / "train-one")
    stage.save(1)
    stage.save(2)
    child = os.fork()
    if child == 0:
        accident.happen = accident.kill_at(place, occurrence)
        stage.save(step)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_real_kill_at_every_place_of_a_save_loses_nothing(tmp_path, stage):
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(tmp_path), json.dumps(POINTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(POINTS)
    for number, (step, place, occurrence) in enumerate(POINTS):
        complete = (place, occurrence) in [*NAME[1:], *DURABLE]
        assert_nothing_is_lost(type(stage)(tmp_path / str(number) / "train-one"), step, complete=complete)


def test_what_is_saved_reaches_the_disk_before_it_gets_its_name(stage, monkeypatch):
    """The order that a loss of power can't undo: files, manifest, their folder; then the name, then the parent."""
    order = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def renamed(path, target):
        order.append(f"rename to {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    stage.save(NEW, keep=5)
    short = [name.rpartition("-")[0] if name.startswith(".tmp") else name for name in order]
    assert short == [
        "model.safetensors", "training.pt", ".tmp-manifest.json", "rename to manifest.json", ".tmp-step-000000003",
        "rename to step-000000003", "checkpoints", ".tmp-LATEST", "rename to LATEST", "checkpoints",
    ]  # fmt: skip


def test_a_save_that_does_not_verify_never_takes_the_place_of_a_good_one(stage, monkeypatch):
    """What lies on the disk is read back before it replaces anything, also under the same name."""
    whole = store.write_state

    def damaged(folder, state):
        whole(folder, state)
        monkeypatch.setattr(files, "write_json", lying(folder / "training.pt"))

    def lying(victim):
        def write(path, value):
            victim.write_bytes(victim.read_bytes()[:-1] + b"x")  # the disk has other bytes than those that were hashed
            files.write_text(path, json.dumps(value))

        return write

    monkeypatch.setattr(store, "write_state", damaged)
    with pytest.raises(CheckpointError, match="SHA-256"):
        stage.save(AGAIN, keep=1)
    monkeypatch.undo()
    assert stage.start().saved.step == AGAIN
    assert stage.names() == ["LATEST", "step-000000001", "step-000000002"]


def test_a_damaged_checkpoint_of_a_later_step_takes_no_good_ones_place(stage):
    stage.save(9)
    os.truncate(stage.checkpoints / "step-000000009" / "training.pt", 10)
    assert stage.start().saved.step == 2
    stage.save(3)
    stage.save(4)
    assert stage.names() == ["LATEST", "step-000000003", "step-000000004", "step-000000009"]


def test_a_file_that_the_disk_can_no_longer_read_is_passed_over(stage, monkeypatch):
    whole = files.sha256

    def fails(path):
        if path.name == "training.pt" and path.parent.name == "step-000000002":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(path)

    monkeypatch.setattr(files, "sha256", fails)
    start = stage.start()
    assert start.saved.step == 1
    assert "training.pt cannot be read: Input/output error" in start.sentence
