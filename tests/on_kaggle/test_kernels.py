"""The real `kaggle` client against a Kaggle of our own: what is pushed really runs, and every fault is met."""

import json
import shutil
import signal
import time

import pytest
import requests

from outlast.env import kaggle_client, kaggle_process
from outlast.errors import CheckpointError, RunError, UsageError
from toys.kaggle_server import KEY, USER, Fault
from toys.kaggle_store import Dataset, Version

NAME = f"{USER}/my-session"


def test_nothing_outside_can_be_reached(kaggle):
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("https://api.kaggle.invalid/v1/", timeout=10)
    assert requests.get("http://www.kaggle.invalid/", timeout=10).status_code == 403
    assert kaggle.refused == ["api.kaggle.invalid:443", "http://www.kaggle.invalid/"]


def test_a_push_runs_and_its_output_comes_back_verified(kaggle, kernel, ended, tmp_path):
    kaggle.page_size = 2  # the output comes in pages
    folder = "Path('deep/er').mkdir(parents=True)"
    body = f"{folder}; Path('deep/er/a.bin').write_bytes(b'x' * 9); Path('b.txt').write_text('b')"
    pushed = kaggle_client.push(kernel(body), seconds=600, accelerator="NvidiaTeslaT4")
    assert (pushed.kernel, pushed.version) == (NAME, 1)
    asked = kaggle.sessions.kernels[NAME][0].request
    assert (asked["sessionTimeoutSeconds"], asked["machineShape"]) == (600, "NvidiaTeslaT4")
    assert asked["enableInternet"] is False and asked["isPrivate"] is True
    assert ended(NAME).state == "complete"
    assert kaggle_client.logs(NAME).text == "inputs: []\n"
    fetched = kaggle_client.output(NAME, tmp_path / "out")
    assert fetched.verified
    assert {path.relative_to(tmp_path / "out").as_posix() for path in fetched.files} == {
        "b.txt", "deep/er/a.bin", "manifest.json",
    }  # fmt: skip
    some = kaggle_client.output(NAME, tmp_path / "some", r"\.bin$")
    assert some.verified and (tmp_path / "some" / "deep" / "er" / "a.bin").read_bytes() == b"x" * 9
    assert not (tmp_path / "some" / "b.txt").exists()


@pytest.mark.parametrize("layout", ["nested", "flat"])
def test_inputs_are_mounted_as_kaggle_does_in_both_layouts(kaggle, kernel, ended, layout):
    kaggle.sessions.layout = layout
    kaggle.store.datasets[f"{USER}/photos"] = Dataset("Photos", True, [Version({"a/1.jpg": b"1"}, "", 0.0)])
    kaggle.store.datasets["competitions/leaves"] = Dataset("Leaves", True, [Version({"train.csv": b"1"}, "", 0.0)])
    kaggle_client.push(kernel("Path('o.txt').write_text('1')", slug="first-one"))
    assert ended(f"{USER}/first-one").state == "complete"
    sources = {"dataset_sources": [f"{USER}/photos"], "kernel_sources": [f"{USER}/first-one"]}
    kaggle_client.push(kernel(**sources, competition_sources=["leaves"]))
    assert ended(NAME).state == "complete"
    before = {"nested": ("competitions/", f"datasets/{USER}/", f"notebooks/{USER}/"), "flat": ("", "", "")}[layout]
    inputs = (f"{before[0]}leaves/train.csv", f"{before[1]}photos/a/1.jpg", f"{before[2]}first-one/manifest.json")
    mounted = [f"input/{name}" for name in (*inputs, f"{before[2]}first-one/o.txt")]
    assert kaggle_client.logs(NAME).text == f"inputs: {sorted(mounted)}\n"


def test_a_session_at_its_limit_is_killed_and_leaves_nothing(kaggle, kernel, ended, tmp_path):
    body = "import time; Path('a.txt').write_text('1'); print('working', flush=True); time.sleep(600)"
    kaggle_client.push(kernel(body), seconds=2)
    found = ended(NAME)
    assert found.state == "cancelled" and "max allowed execution duration" in found.message
    log = kaggle_client.logs(NAME)
    assert log.text == "inputs: []\nworking\n" and 0 < log.seconds < 2
    assert kaggle_client.output(NAME, tmp_path / "out").files == ()
    assert kaggle_client.quota()["gpu"].used_hours == pytest.approx(2 / 3600, rel=0.5)


def test_a_session_that_fails_has_a_log_and_no_output(kaggle, kernel, ended, tmp_path):
    kaggle_client.push(kernel("Path('a.txt').write_text('1'); raise SystemError('broken')"))
    assert ended(NAME).state == "error"
    assert "SystemError: broken" in kaggle_client.logs(NAME).text
    assert kaggle_client.output(NAME, tmp_path / "out").files == ()


def test_what_passes_is_tried_again(kaggle):
    kaggle.faults = [Fault("GetAccelerator", kind) for kind in ("429", "500", "503", "lost", "short")]
    assert kaggle_client.quota()["gpu"].remaining_hours == 30.0
    assert kaggle.count("GetAccelerator") == 6


def test_what_does_not_pass_ends_with_a_sentence_and_a_hint(kaggle, monkeypatch):
    monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 0.0)
    kaggle.faults = [Fault("GetAccelerator", "500", times=100)]
    with pytest.raises(RunError, match="the accelerator quota can't be had: Kaggle answers 500") as raised:
        kaggle_client.quota()
    assert raised.value.hint == "try again later"


def test_a_push_whose_answer_is_lost_is_not_pushed_twice(kaggle, kernel):
    kaggle.faults = [Fault("SaveKernel", "done, but lost")]
    assert kaggle_client.push(kernel()).version == 1
    assert len(kaggle.sessions.kernels[NAME]) == 1


def test_a_push_that_never_arrived_is_repeated(kaggle, kernel):
    kaggle.faults = [Fault("SaveKernel", "lost"), Fault("SaveKernel", "500")]
    assert kaggle_client.push(kernel()).version == 1
    assert len(kaggle.sessions.kernels[NAME]) == 1


def test_a_quota_that_is_spent_is_said(kaggle, kernel):
    kaggle.sessions.quota_used_hours = 30.0
    with pytest.raises(RunError, match="Maximum weekly GPU quota") as raised:
        kaggle_client.push(kernel())
    assert "outlast kaggle quota" in raised.value.hint
    assert NAME not in kaggle.sessions.kernels


def test_a_kernel_that_would_run_without_its_input_is_an_error(kaggle, kernel):
    with pytest.raises(RunError, match=f"without {USER}/no-such-data"):
        kaggle_client.push(kernel(dataset_sources=[f"{USER}/no-such-data"]))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [({"code_file": "other.py"}, "other.py, which is not there"), ({"id": f"{USER}/x"}, "no kernel's name")],
)
def test_a_folder_that_is_no_kernel_is_refused_before_kaggle_is_asked(kaggle, kernel, metadata, words):
    with pytest.raises(UsageError, match=words):
        kaggle_client.push(kernel(**metadata))
    assert kaggle.requests == []


def test_a_file_that_is_damaged_on_the_way_is_fetched_again(kaggle, kernel, ended, tmp_path):
    kaggle_client.push(kernel("Path('a.txt').write_text('1' * 99); Path('b.txt').write_text('2' * 99)"))
    ended(NAME)
    kaggle.faults = [Fault("/a.txt", "damage"), Fault("/b.txt", "short"), Fault("/b.txt", "500")]
    fetched = kaggle_client.output(NAME, tmp_path / "out")
    assert fetched.verified and all(fault.happened for fault in kaggle.faults)
    assert (tmp_path / "out" / "a.txt").read_text() == "1" * 99
    kaggle.faults = [Fault("/a.txt", "damage", times=100)]
    with pytest.raises(CheckpointError, match=r"a\.txt did not arrive as the session wrote it"):
        kaggle_client.output(NAME, tmp_path / "again")


def test_an_output_whose_names_lead_elsewhere_is_refused(kaggle, kernel, ended, tmp_path):
    kaggle_client.push(kernel())
    ended(NAME)
    kaggle.other_output = ["../../evil.txt"]
    with pytest.raises(RunError, match="names a file outside its folder"):
        kaggle_client.output(NAME, tmp_path / "out")
    assert list(tmp_path.rglob("evil.txt")) == []


def test_an_output_without_a_manifest_says_that_it_is_not_verified(kaggle, kernel, ended, tmp_path):
    kaggle_client.push(kernel("open('a.txt', 'w').write('1')", manifest=False))
    ended(NAME)
    fetched = kaggle_client.output(NAME, tmp_path / "out")
    assert [path.name for path in fetched.files] == ["a.txt"] and not fetched.verified


def test_credentials_are_asked_for_and_never_shown(kaggle, kernel, ended, monkeypatch, tmp_path):
    kaggle_client.push(kernel(f"print('my key is {KEY}')"))
    ended(NAME)
    assert "my key is ***" in kaggle_client.logs(NAME).text
    for folder in ("pushed", "sessions"):  # with the key that was written there on purpose
        shutil.rmtree(tmp_path / folder)
    monkeypatch.setenv("KAGGLE_KEY", "another-key-that-is-wrong")
    with pytest.raises(RunError, match="Kaggle answers 401") as raised:
        kaggle_client.quota()
    assert "another-key-that-is-wrong" not in str(raised.value)
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(RunError, match="no credentials for Kaggle were found") as raised:
        kaggle_client.quota()
    assert "kaggle auth login" in raised.value.hint


def test_a_client_that_dies_is_an_error_and_leaves_no_process(kaggle, monkeypatch):
    monkeypatch.setattr(kaggle_process, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 0.0)
    kaggle.faults = [Fault("GetAccelerator", "slow", seconds=20.0)]
    with pytest.raises(RunError, match="no answer for 0 seconds"):
        kaggle_client.quota()


def test_a_call_that_breaks_after_a_long_time_is_tried_again(kaggle, monkeypatch):
    monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 0.2)
    answers = []

    def once(call, arguments, **_):
        answers.append(call)
        if len(answers) == 1:
            time.sleep(0.4)
            raise kaggle_process.CallError("the connection is lost", passing=True)
        return "there"

    monkeypatch.setattr(kaggle_process, "once", once)
    assert kaggle_process.patiently("output", {"kernel": NAME}) == "there"


def test_no_connection_is_said_in_a_few_words():
    told = (
        "HTTPSConnectionPool(host='api.kaggle.com', port=443): Max retries exceeded with url: /v1 (Caused by "
        "NameResolutionError(\"Failed to resolve 'api.kaggle.com' ([Errno -2] Name or service not known)\"))"
    )
    error = kaggle_process._error({"kind": "lost", "message": told})
    assert error.message == "api.kaggle.com can't be reached (Name or service not known)" and error.passing
    assert kaggle_process._error({"kind": "lost", "message": "half"}).message == "the connection is lost (half)"


def test_notebooks_run_too(kaggle, kernel, ended):
    folder = kernel(kernel_type="notebook", code_file="main.ipynb")
    cells = [{"cell_type": "code", "source": "print(6 * 7)", "metadata": {}, "outputs": [], "execution_count": None}]
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    (folder / "main.ipynb").write_text(json.dumps(book))
    kaggle_client.push(folder)
    assert ended(NAME).state == "complete", kaggle_client.logs(NAME).text
    assert "42" in kaggle_client.logs(NAME).text


def test_memory_that_runs_out_looks_as_on_kaggle(kaggle, kernel, ended):
    kaggle_client.push(kernel(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"))
    found = ended(NAME)
    assert found.state == "error" and "more memory than is available" in found.message
