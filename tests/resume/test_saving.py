"""Saving beside the training, on a disk that is slow, full, failing for a while, or for good."""

import errno
import threading

import pytest

from outlast.base import accident
from outlast.config.schema import Saving
from outlast.errors import SaveError
from outlast.loop import saving
from outlast.save import store
from outlast.save.store import newest


class Disk:
    """Refuses writes at one place, the first `times` times that `wanted(number)` says so."""

    def __init__(self, place, code, wanted):
        self.place, self.code, self.wanted = place, code, wanted
        self.visits = self.refused = 0

    def __call__(self, place):
        if place == self.place and threading.current_thread().name == "outlast-writer":
            self.visits += 1
            if self.wanted(self.visits):
                self.refused += 1
                raise OSError(self.code, "the disk refuses")


@pytest.mark.parametrize("place", ["write.open", "write.sync", "folder.manifest", "folder.rename", "write.append"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_once_changes_nothing(runs, monkeypatch, capsys, place, code):
    runs.train("whole")
    disk = Disk(place, code, lambda number: number == 2)
    monkeypatch.setattr(accident, "happen", disk)
    assert runs.train("run", "saving.every_steps=3")["status"] == "finished"
    assert disk.refused == 1
    assert runs.results("run") == runs.results("whole")


def test_a_disk_that_refuses_for_good_ends_the_run_and_what_was_saved_is_there(runs, monkeypatch, capsys):
    runs.train("whole")
    disk = Disk("folder.manifest", errno.ENOSPC, lambda number: number > 3)
    monkeypatch.setattr(accident, "happen", disk)
    with pytest.raises(SaveError, match=r"can't be written .* the newest checkpoint that verifies is of step \d+"):
        runs.train("run", "saving.every_steps=2")
    assert "warning: saving failed" in capsys.readouterr().err
    assert newest(runs.folder / "run" / "train-fold0" / "checkpoints", []).step >= 2
    monkeypatch.setattr(accident, "happen", None)
    assert runs.train("run")["status"] == "finished"
    assert runs.results("run") == runs.results("whole")


def test_training_goes_on_while_a_checkpoint_is_written(runs, monkeypatch):
    """The first save does not end before five more steps were done."""
    steps, enough = [], threading.Event()

    def happen(place):
        if place == "stepped":
            steps.append(place)
            if len(steps) >= 8:
                enough.set()
        elif place == "folder.open" and threading.current_thread().name == "outlast-writer":
            assert enough.wait(30)

    monkeypatch.setattr(accident, "happen", happen)
    monkeypatch.setattr(saving.Saver, "is_due", lambda self, step, reserve: step == 3)
    runs.train("run", stage="folds")
    assert runs.train("run", stage="train-fold0")["stages"]["train-fold0"]["steps"] == 12
    assert enough.is_set()


def test_the_best_weights_are_on_the_disk_before_a_checkpoint_that_speaks_of_them(runs, monkeypatch):
    """A best that is refused is tried again before the next checkpoint, and no checkpoint comes before it."""
    original, tries = store.save_best, []

    def save_best(stage, step, weights, record):
        tries.append(step)
        if len(tries) == 1:
            raise OSError(errno.EIO, "the disk refuses")
        return original(stage, step, weights, record)

    def save(stage, state, record, keep, original=store.save):
        if state.best_step:
            assert [path.name for path in (stage / "best").iterdir()] != []
        return original(stage, state, record, keep)

    monkeypatch.setattr(store, "save_best", save_best)
    monkeypatch.setattr(store, "save", save)
    runs.train("whole")
    assert runs.train("run", "saving.every_steps=1")["status"] == "finished"
    assert tries[:2] == [4, 4] or tries[:2] == [4, 8]  # the second is the same again, or a better one that replaced it
    assert runs.results("run") == runs.results("whole")


def test_a_full_disk_gives_up_older_checkpoints_but_never_the_newest(tmp_path, monkeypatch, small_state):
    for step in (1, 2, 3):
        store.save(tmp_path, small_state(step), {}, keep=3)
    disk = Disk("folder.manifest", errno.ENOSPC, lambda number: number == 1)
    monkeypatch.setattr(threading.current_thread(), "name", "outlast-writer")
    monkeypatch.setattr(accident, "happen", disk)
    store.save(tmp_path, small_state(4), {}, keep=3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == [
        "step-000000003",
        "step-000000004",
    ]
    disk.wanted = lambda number: True
    with pytest.raises(OSError, match="the disk refuses"):
        store.save(tmp_path, small_state(5), {}, keep=3)
    assert newest(tmp_path / "checkpoints", []).step == 4


def test_the_cadence_follows_youngs_formula_once_a_save_was_measured(tmp_path, small_state):
    clock = [0.0]
    deadline = saving.Deadline(now=lambda: clock[0])
    durations = saving.Durations()
    settings = Saving(every_minutes=10, hours_between_failures=2)
    with saving.Saver(tmp_path, 0, settings, deadline, durations) as saver:
        assert saver.interval_seconds() == 600
        saver.checkpoint(small_state(1), {}, lambda: clock.__setitem__(0, 4.0))
        assert saver.settle() is None
        durations.longest["save"] = 4.0
        assert saver.interval_seconds() == (2 * 4 * 7200) ** 0.5
        assert not saver.is_due(2, 0)
        clock[0] += 240
        assert saver.is_due(2, 0)


def test_no_save_is_begun_that_could_not_end_before_the_last_one(tmp_path, small_state):
    clock = [0.0]
    deadline = saving.Deadline(1000.0, now=lambda: clock[0])
    durations = saving.Durations(longest={"save": 40.0})
    with saving.Saver(tmp_path, 0, Saving(every_minutes=1), deadline, durations) as saver:
        clock[0] = 880.0
        assert saver.is_due(1, reserve_seconds=59)
        assert not saver.is_due(1, reserve_seconds=61)
