"""A call that works in units is cut only between them: by a kill at any place, by a signal, by the session's end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outlast.base.clock import Deadline
from outlast.base.files import sha256
from outlast.plan import mirroring
from toys import units
from toys.bucket import s3, s3_server  # noqa: F401 - fixtures

TESTS = Path(__file__).parents[1]

# Each session is a process, forked, for torch takes its time to import. One is killed for real at each place that the
# call comes to, and another goes on; both note which units they began.
KILLER = """
import json, os, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
import outlast
from outlast.base import accident
from outlast.plan import session
from toys import units

session.write_report = lambda run: run / "report.html"
here = Path(sys.argv[1])


def train(name, happen):
    begun = here / f"{name}.begun"
    begun.write_text("")
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        log = os.open(begun, os.O_WRONLY | os.O_APPEND)
        units.BEGUN[0] = lambda unit: os.write(log, f"{unit} ".encode())
        accident.happen = happen
        outlast.train("toys.units", preset="smoke", out=here / name, overrides=["units=2"])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), begun.read_text().split()


train("whole", accident.write_to(here / "places"))
places = (here / "places").read_text().split()
first, last = [number for number, place in enumerate(places) if place in ("call", "finish")][-2:]
for number in range(first, last + 12):
    count = places[: number + 1].count(places[number])
    kill = train(f"kill-{number}", accident.kill_at(places[number], count))
    print(json.dumps([number, places[number], *kill, *train(f"kill-{number}", None)]), flush=True)
"""


def made(run):
    """What an uninterrupted run must have the same: all of the stage's files but its record, which holds a duration."""
    stage = run / "build"
    files = [path for path in stage.rglob("*") if path.is_file() and path.name != "stage.json"]
    record = json.loads((stage / "stage.json").read_text())
    return {path.relative_to(stage).as_posix(): sha256(path) for path in files}, {**record, "seconds": None}


def test_a_kill_at_any_place_of_a_call_costs_one_unit_at_most_and_changes_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    places = set()
    for line in done.stdout.splitlines():
        number, place, killed, before, ended, after = json.loads(line)
        assert (killed, ended) == (-signal.SIGKILL, 0), line
        run = tmp_path / f"kill-{number}"
        assert made(run) == made(tmp_path / "whole"), line
        assert set(before) | set(after) == {"unit-0", "unit-1"}, line
        assert len(before) + len(after) <= 2 + 1, line
        assert not list(run.rglob(".tmp-*")) and not (run / "build" / "kept").exists(), line
        places.add(place)
    assert {"call", "unit", "write.open", "write.rename", "finish", "folder.rename", "folder.replace"} <= places


@pytest.fixture
def begun(monkeypatch):
    """The units that were begun, in order."""
    names = []
    monkeypatch.setattr(units, "BEGUN", [names.append])
    return names


def test_at_the_end_of_the_session_a_call_stops_after_its_unit_and_goes_on_there(runs, monkeypatch):
    """On a clock on which a unit takes 10 seconds: 15 are set aside for the next, and 2 for a report never measured."""
    runs.train("whole", task="toys.units")
    clock, begun = [0.0], []

    def unit(name):
        begun.append(name)
        clock[0] += 10

    monkeypatch.setattr(units, "BEGUN", [unit])
    result = runs.train("cut", task="toys.units", deadline=Deadline(46.9, now=lambda: clock[0]))
    assert (result["status"], result["reason"]) == ("stopped", "session limit")
    assert begun == ["unit-0", "unit-1", "unit-2"]
    run = runs.folder / "cut"
    assert sorted(path.stem for path in (run / "build" / "kept").iterdir()) == begun
    assert runs.train("cut", task="toys.units")["status"] == "finished"
    assert begun == ["unit-0", "unit-1", "unit-2", "unit-3"]
    assert made(run) == made(runs.folder / "whole")
    # What has to be set aside for a call is only what can't be cut of it.
    assert json.loads((run / "run.json").read_text())["longest_seconds"]["call"] == 10.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_lets_the_unit_be_finished(runs, begun, monkeypatch, number):
    monkeypatch.setattr(units, "BEGUN", [lambda name: begun.append(name) or os.kill(os.getpid(), number)])
    result = runs.train("run", task="toys.units")
    assert (result["status"], result["reason"]) == ("stopped", signal.Signals(number).name)
    assert begun == ["unit-0"]
    monkeypatch.setattr(units, "BEGUN", [begun.append])
    assert runs.train("run", task="toys.units")["status"] == "finished"
    assert begun == ["unit-0", "unit-1", "unit-2", "unit-3"]


def test_units_of_other_inputs_are_set_aside(runs, begun, monkeypatch, countdown):
    run = runs.folder / "run"
    runs.train("run", task="toys.units", deadline=countdown(4))
    assert 0 < len(begun) < 4
    before = list(begun)
    (run / "folds" / "folds.json").write_text("damaged")
    monkeypatch.setattr(units, "FOLDS", [[1, 0]])
    runs.train("run", task="toys.units")
    assert begun == [*before, "unit-0", "unit-1", "unit-2", "unit-3"]
    assert sorted(path.stem for path in (run / "set-aside").glob("build-1/kept/*")) == before
    runs.train("new", task="toys.units")
    assert made(run)[0]["units.json"] == made(runs.folder / "new")[0]["units.json"]


def test_when_the_machine_is_gone_the_units_come_from_the_mirror(runs, monkeypatch, s3):  # noqa: F811
    """Without a last moment to save in: what is mirrored is what was done by then."""
    offer = mirroring.Copies.offer
    monkeypatch.setattr(mirroring.Copies, "offer", lambda self: offer(self) or self.uploads.finish(30))
    begun = []

    def unit(name):
        begun.append(name)
        if begun == ["unit-0", "unit-1", "unit-2"]:
            shutil.rmtree(runs.folder / "one")
            raise SystemExit

    monkeypatch.setattr(units, "BEGUN", [unit])
    with pytest.raises((SystemExit, OSError)):
        runs.train("one", task="toys.units", mirror=s3.url)
    shutil.rmtree(runs.folder / "one", ignore_errors=True)
    assert runs.train("two", task="toys.units", mirror=s3.url)["status"] == "finished"
    assert begun == ["unit-0", "unit-1", "unit-2", "unit-2", "unit-3"]
