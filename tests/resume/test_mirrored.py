"""A run whose machine is gone goes on from its mirror: a real S3 server, which may fail."""

import json
import shutil

import pytest

from outlast.errors import RunError
from outlast.loop import saving
from toys.bucket import s3, s3_server  # noqa: F401 - fixtures


@pytest.fixture
def patient(monkeypatch):
    """A training that waits for the mirror at each save: so it is known what is there when the machine goes."""
    from outlast.plan import mirroring

    original = mirroring.Copies.offer

    def offer(self):
        original(self)
        if self.uploads is not None:
            self.uploads.finish(30)

    monkeypatch.setattr(mirroring.Copies, "offer", offer)
    monkeypatch.setattr(saving.Saver, "is_due", lambda self, step, reserve: self.settle() is None and step % 5 == 0)


def test_on_an_empty_machine_the_run_goes_on_from_the_mirror_and_ends_the_same(runs, s3, patient, capsys):  # noqa: F811
    runs.train("whole")
    assert runs.train("one", mirror=s3.url, crash=("step", 9)) is None
    shutil.rmtree(runs.folder / "one")
    assert runs.train("two", mirror=s3.url, crash=("step", 14)) is None
    told = capsys.readouterr().err
    assert "comes from the mirror" in told
    assert "resuming train-fold0 from step 5" in told
    shutil.rmtree(runs.folder / "two")
    result = runs.train("three", mirror=s3.url)
    assert result["status"] == "finished"
    assert runs.results("three") == runs.results("whole")
    mirror = json.loads((runs.folder / "three" / "run.json").read_text())["mirror"]
    assert (mirror["url"], mirror["failing"]) == (s3.url, None)
    assert mirror["durable"]["combine"] == {"step": 0, "finished": True}
    # And what lies there in the end is the whole run.
    shutil.rmtree(runs.folder / "three")
    assert runs.train("four", mirror=s3.url, resume="must")["status"] == "finished"
    assert runs.results("four") == runs.results("whole")


def test_a_run_here_that_is_further_stays_and_one_that_is_behind_is_kept_under_another_name(runs, s3, patient, capsys):  # noqa: F811
    runs.train("whole")
    runs.train("one", mirror=s3.url, crash=("step", 9))
    shutil.copytree(runs.folder / "one", runs.folder / "behind")
    runs.train("one", mirror=s3.url, crash=("step", 6))
    assert "comes from the mirror" not in capsys.readouterr().err
    assert runs.train("behind", mirror=s3.url)["status"] == "finished"
    assert f"what was in {runs.folder / 'behind'} is now {runs.folder / 'behind.before-1'}" in capsys.readouterr().err
    assert runs.results("behind") == runs.results("whole")


def test_a_mirror_that_fails_never_stops_training_and_is_said_in_the_end(runs, s3, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr("outlast.plan.mirroring._LAST_SECONDS", 1.0)
    runs.train("whole")
    fault = s3.fault("503", "PUT", "/files/", times=10**6)
    result = runs.train("run", "saving.every_steps=4", mirror=s3.url)
    assert result["status"] == "finished"
    assert fault.happened > 0
    assert runs.results("run") == runs.results("whole")
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"warning: the mirror {s3.url} is not up to date")
    assert json.loads((runs.folder / "run" / "run.json").read_text())["mirror"]["failing"]


def test_a_mirror_of_another_run_is_refused_before_anything_is_done(runs, s3):  # noqa: F811
    runs.train("one", mirror=s3.url, stage="folds")
    for resume in ("auto", "never"):
        runs.train("two", stage="folds")
        with pytest.raises(RunError, match="holds another run"):
            runs.train("two", mirror=s3.url, resume=resume)
    assert not list(runs.folder.glob("two.before-*"))


def test_the_next_command_names_the_mirror_without_its_secrets(runs, tmp_path):
    result = runs.train("run", stage="folds", mirror=f"file://{tmp_path}/mirror")
    assert f"--mirror file://{tmp_path}/mirror" in result["next_command"]
