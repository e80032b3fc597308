"""What `--processes N` promises of its ranks: one error, the first one; one signal each; nobody lives on."""

import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

import outlast
from outlast import cli
from outlast.errors import DataError, RunError, TrainingError, UsageError
from outlast.plan import launch

HEADER = """
import json, os, signal, subprocess, sys, time
from outlast.errors import DataError
from outlast.plan import launch
launch.end_with_launcher()
rank = int(os.environ["RANK"])
def tell(error):
    launch.tell_failure(error)
    sys.exit(1)
"""


def ranks(code, count=2):
    """Run small programs in place of trainings."""
    return launch.run_ranks([sys.executable, "-c", HEADER + textwrap.dedent(code)], count)


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition, seconds=15):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_every_rank_knows_its_place_and_the_first_one_is_heard(capfd):
    result = ranks(
        """
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        print("voice of", rank, file=sys.stderr)
        print(json.dumps({name: os.environ[name] for name in names} | {"session": os.getsid(0) == os.getpid()}))
        """
    )
    assert result == {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                      "MASTER_ADDR": "127.0.0.1", "session": True}  # fmt: skip
    assert capfd.readouterr() == ("", "voice of 0\n")


def test_the_voice_is_heard_while_the_work_goes_on(tmp_path):
    """Not only at the end: the rank waits for a file that is made when its first line was heard."""
    code = HEADER + textwrap.dedent(f"""
        print("begun", file=sys.stderr, flush=True)
        while not os.path.exists({str(tmp_path / "go")!r}): time.sleep(0.02)
        print("{{}}")
    """)
    parent = f"import sys; from outlast.plan import launch; launch.run_ranks([sys.executable, '-c', {code!r}], 1)"
    with subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "begun\n"
        (tmp_path / "go").touch()
        assert process.wait(timeout=20) == 0


def test_the_first_error_is_raised_as_it_was_and_peers_that_hang_are_ended(capfd):
    began = time.monotonic()
    with pytest.raises(DataError, match="cannot be read") as caught:
        ranks(
            """
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that waits in a collective
            if rank == 1:
                tell(DataError("leaf.jpg cannot be read", hint="remove it", details=["line one"]))
            print("nothing to do with it", file=sys.stderr)
            time.sleep(100)
            """,
            count=3,
        )
    assert (caught.value.hint, caught.value.details) == ("remove it", ("line one",))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("cause", ["ValueError('the cause')", "DataError('the cause')"])
def test_what_a_peer_says_of_the_end_does_not_hide_its_cause(cause, capfd):
    with pytest.raises((TrainingError, DataError), match="the cause"):
        ranks(f"""
            if rank == 0:
                tell(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2"))
            time.sleep(0.3)
            try:
                raise {cause}
            except Exception as error:
                tell(error)
        """)
    assert ("Traceback" in capfd.readouterr().err) == cause.startswith("ValueError")


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 of 2 was killed (SIGKILL)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "rank 1 of 2 died of SIGSEGV"),
        ("os._exit(3)", "rank 1 of 2 ended with exit status 3 and no error of its own"),
    ],
)
def test_a_rank_that_dies_without_a_word_is_named(end, sentence, capfd):
    with pytest.raises(TrainingError) as caught:
        ranks(f"""
            if rank == 1:
                print("its last words", file=sys.stderr, flush=True)
                {end}
            time.sleep(0.2)
            tell(RuntimeError("Connection closed by peer"))
        """)
    assert caught.value.message == sentence
    assert "its last words" in capfd.readouterr().err


def test_workers_of_a_rank_are_ended_with_it(tmp_path):
    """Loader workers have process groups of their own, and ignore signals that are meant for the training."""
    with pytest.raises(DataError):
        ranks(f"""
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if rank == 0:
                worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], process_group=0)
                open({str(tmp_path / "worker.part")!r}, "w").write(str(worker.pid))
                os.rename({str(tmp_path / "worker.part")!r}, {str(tmp_path / "worker")!r})
                time.sleep(100)
            while not os.path.exists({str(tmp_path / "worker")!r}): time.sleep(0.02)
            tell(DataError("enough"))
        """)
    assert not alive(int((tmp_path / "worker").read_text()))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_reaches_every_rank_once(tmp_path, name):
    code = HEADER + textwrap.dedent(f"""
        got = []
        signal.signal(signal.{name}, lambda *_: got.append(1))
        open(os.path.join({str(tmp_path)!r}, f"ready-{{rank}}"), "w").close()
        while not got: time.sleep(0.02)
        time.sleep(0.3)
        if rank == 1:
            open({str(tmp_path / "second")!r}, "w").write(str(len(got)))
        print(json.dumps({{"got": len(got)}}))
    """)
    parent = (
        "import json, sys; from outlast.plan import launch; "
        f"print(json.dumps(launch.run_ranks([sys.executable, '-c', {code!r}], 2)))"
    )
    command = [sys.executable, "-c", parent]
    # As Ctrl-C in a terminal: the whole process group of the command gets the signal.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        wait_until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        os.killpg(process.pid, getattr(signal, name))
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(output) == {"got": 1}
    assert (tmp_path / "second").read_text() == "1"


def test_a_signal_before_any_rank_listens_is_said_to_be_that():
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    with pytest.raises(RunError, match="SIGUSR1 came before the training had begun"):
        launch.run_ranks([sys.executable, "-c", "import time; time.sleep(100)"], 2)
    timer.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_no_rank_outlives_the_one_that_started_it(tmp_path, number):
    code = HEADER + f"open(os.path.join({str(tmp_path)!r}, str(os.getpid())), 'w').close(); time.sleep(100)"
    parent = f"import sys; from outlast.plan import launch; launch.run_ranks([sys.executable, '-c', {code!r}], 2)"
    with subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        process.send_signal(number)
    wait_until(lambda: not any(alive(int(path.name)) for path in tmp_path.iterdir()))


def test_every_argument_of_train_has_a_word_that_the_command_line_knows(monkeypatch):
    """Also those that are added later: an argument that is not passed on to the ranks would be lost silently."""
    handed = {}
    monkeypatch.setattr(launch, "run_ranks", lambda command, processes: handed.update(command=command) or {})
    values = {"data": {"data": "leaves", "other": "more"}, "overrides": ["train.epochs=3"], "resume": "must",
              "session_limit": 5400.0, "synthetic": True, "fallback": False, "deadline": None}  # fmt: skip
    stand_ins = {bool: lambda name: True, float: lambda name: 2.5}
    asked = {
        name: values.get(name, stand_ins.get(type(item.default), lambda name: f"value-of-{name}")(name))
        for name, item in inspect.signature(outlast.train).parameters.items()
        # Several processes are refused with a sweep, side by side and on Kaggle.
        if name not in ("task", "processes", "sweep", "side_by_side", "on", "owner", "accelerator")
    }
    outlast.train("toys.plan", processes=2, **asked)
    _, module, name, *words = handed["command"]
    assert (module, name, words[0]) == ("-m", "outlast", "train")

    seen = {}
    monkeypatch.setattr("outlast.api.train", lambda task, **given: {"status": seen.update(given, task=task)})
    cli.app(words, standalone_mode=False)
    assert (seen.pop("processes"), seen.pop("sweep")) == (1, ())
    assert (seen.pop("task"), seen.pop("data")) == ("toys.plan", ["data=leaves", "other=more"])
    del asked["data"], asked["deadline"]
    assert [seen.pop(name) for name in ("side_by_side", "on", "owner", "accelerator")] == [1, "local", None, None]
    assert {name: str(value) for name, value in seen.items()} == {name: str(value) for name, value in asked.items()}


@pytest.mark.parametrize(
    ("given", "environment", "sentence"),
    [
        ({"processes": 0}, {}, "--processes 0 is not a number of processes"),
        ({"processes": 2, "deadline": object()}, {}, "a deadline object cannot be handed to other processes"),
        ({"processes": 2}, {"RANK": "0", "WORLD_SIZE": "4"}, "has started 4 processes already"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(monkeypatch, given, environment, sentence):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=sentence):
        outlast.train("toys.plan", **given)


def test_the_parent_stays_light():
    script = (
        "import sys; from outlast.plan import launch; launch.run_ranks([sys.executable, '-c', 'print({})'], 2); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "pandas", "accelerate"} & set(done.stdout.split()) == set()


@pytest.mark.parametrize(
    ("environment", "words", "processes"),
    [
        ({}, ["outlast"], 1),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, ["outlast"], 2),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
            ["torchrun", "--nnodes=2", "--nproc-per-node=2", "--node-rank=0", "--master-addr=10.0.0.1",
             "--master-port=29500", "-m", "outlast"],
            1,
        ),
    ],
)  # fmt: skip
def test_the_next_command_starts_as_many_processes(environment, words, processes):
    assert launch.how_started(environment) == (words, processes)
