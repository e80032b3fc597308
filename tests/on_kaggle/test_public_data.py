"""Public data sets: through the real kagglehub, and from plain addresses over connections that break."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace

import pytest

import outlast
from outlast.env import download
from outlast.errors import DataError, RunError, UsageError
from outlast.plan import public_data
from outlast.task import DataSet
from toys.kaggle_server import Fault
from toys.kaggle_store import Dataset, Version, zipped

FILES = {"inner/a.txt": b"a" * 300_000, "inner/deep/b.txt": b"b", "other/c.txt": b"c"}
PAGE = "https://example.invalid/page"


@pytest.fixture
def offered(kaggle, monkeypatch):
    """offered(where, ...) makes a data set of that place the only one there is."""
    monkeypatch.setattr(download, "delays", lambda: iter([0.02] * 1000))
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 3.0)

    def offer(where, **more):
        one = DataSet("ours", "a few files", where, PAGE, "CC0", "plants --data {}", "a test", **more)
        monkeypatch.setattr(public_data, "catalogue", lambda task=None: [("plants", one)])
        return one

    return offer


def tar(entries):
    """A .tar.gz of {name: bytes}, or of TarInfo where that is more."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for entry, data in entries.items():
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def hosted(kaggle, data, name="set.tar.gz"):
    return kaggle.address + kaggle.store.host(data, name)


def contents(folder):
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(public_data.RECORD)
    return found


# -- through Kaggle ----------------------------------------------------------------------------------------------------


def test_a_data_set_comes_whole_over_connections_that_break(kaggle, offered, tmp_path, capsys):
    offered("kaggle:somebody/leaves", bytes=1000)
    kaggle.store.datasets["somebody/leaves"] = Dataset("Leaves", False, [Version(FILES, "", 0.0)])
    kaggle.faults = [Fault("DownloadDataset", "500"), Fault("/storage/", "short", times=2)]
    told = outlast.get_data("ours", to=tmp_path / "to")
    assert contents(tmp_path / "to") == FILES and all(fault.happened for fault in kaggle.faults)
    assert told["command"] == f"outlast train plants --data {tmp_path / 'to'}"
    said = capsys.readouterr().err
    assert "terms: CC0" in said and PAGE in said and "1.0 kB" in said
    assert json.loads((tmp_path / "to" / public_data.RECORD).read_text())["where"] == "kaggle:somebody/leaves"
    assert [path.name for path in tmp_path.iterdir() if "to" in path.name] == ["to"]
    before = len(kaggle.requests)
    assert outlast.get_data("ours", to=tmp_path / "to")["bytes"] == told["bytes"]
    assert len(kaggle.requests) == before


def test_a_competition_whose_rules_were_not_accepted_says_where_that_is_done(kaggle, offered, tmp_path):
    offered("competition:leaves")
    kaggle.store.datasets["competitions/leaves"] = Dataset("Leaves", True, [Version(FILES, "", 0.0)])
    kaggle.faults = [Fault("DownloadDataFiles", "403")]
    with pytest.raises(RunError, match="rules have to be accepted first") as caught:
        outlast.get_data("ours", to=tmp_path / "to")
    assert f"{PAGE}/rules" in caught.value.hint and not (tmp_path / "to").exists()
    outlast.get_data("ours", to=tmp_path / "to")
    assert contents(tmp_path / "to") == FILES


def test_a_public_data_set_needs_no_credentials_and_a_competition_says_that_it_does(
    kaggle, offered, tmp_path, monkeypatch
):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(kaggle.RequestHandlerClass, "_check_credentials", lambda _: None)
    kaggle.store.datasets["somebody/leaves"] = Dataset("Leaves", False, [Version(FILES, "", 0.0)])
    offered("kaggle:somebody/leaves")
    outlast.get_data("ours", to=tmp_path / "to")
    assert contents(tmp_path / "to") == FILES
    offered("competition:leaves")
    with pytest.raises(RunError, match="no credentials for Kaggle") as caught:
        outlast.get_data("ours", to=tmp_path / "other")
    assert "kaggle auth login" in caught.value.hint


# -- from plain addresses ----------------------------------------------------------------------------------------------


def test_a_plain_file_is_gone_on_with_where_it_broke_off(kaggle, offered, tmp_path):
    data = tar({name: os.urandom(200_000) + body for name, body in FILES.items()})
    address = hosted(kaggle, data)
    offered(address, bytes=len(data), part="inner")
    kaggle.tells_md5 = True
    kaggle.faults = [Fault("/storage/", "short", times=3), Fault("/storage/", "503"), Fault("/storage/", "lost")]
    told = outlast.get_data("ours", to=tmp_path / "to")
    assert sorted(contents(tmp_path / "to")) == ["inner/a.txt", "inner/deep/b.txt"]
    assert (told["bytes"], told["compared"]) == (len(data), "md5")


def test_what_has_arrived_outlives_a_kill_and_only_the_rest_is_asked_for(kaggle, tmp_path):
    data = os.urandom(3_000_000)
    address = hosted(kaggle, data, "set.bin")
    to = tmp_path / "set.bin"
    kaggle.faults = [Fault("/storage/", "short")]
    script = (
        "import os, sys, pathlib\nfrom outlast.env import download\n"
        "def arrived(here, total):\n    if here > 1_200_000: os.kill(os.getpid(), 9)\n"
        "download.fetch(sys.argv[1], pathlib.Path(sys.argv[2]), arrived=arrived)"
    )
    killed = subprocess.run([sys.executable, "-c", script, address, str(to)], check=False)
    assert killed.returncode == -9 and not to.exists()
    there = (tmp_path / "set.bin.part").stat().st_size
    assert 0 < there < len(data)
    seen = []
    found = download.fetch(address, to, arrived=lambda here, total: seen.append(here))
    assert seen[0] > there and to.read_bytes() == data and found.compared == "size"
    assert [path.name for path in tmp_path.glob("set.bin*")] == ["set.bin"]


def test_a_file_that_has_changed_on_the_server_is_fetched_anew(kaggle, tmp_path):
    address = hosted(kaggle, b"1" * 1_000_000, "set.bin")
    kaggle.faults = [Fault("/storage/", "short"), Fault("/storage/", "404", times=100)]
    with pytest.raises(RunError, match="the server answers 404") as caught:
        download.fetch(address, tmp_path / "set.bin")
    assert "its address may have changed" in caught.value.hint
    assert (tmp_path / "set.bin.part").stat().st_size == 500_000
    kaggle.faults = []
    kaggle.store.hosted[address.removeprefix(kaggle.address)] = b"2" * 900_000
    download.fetch(address, tmp_path / "set.bin")
    assert (tmp_path / "set.bin").read_bytes() == b"2" * 900_000


@pytest.mark.parametrize("known", ["md5", "sha256"])
def test_what_arrives_damaged_is_refused_and_does_not_stay(kaggle, tmp_path, known):
    data = b"1" * 1000
    address = hosted(kaggle, data, "set.bin")
    kaggle.tells_md5 = known == "md5"
    kaggle.faults = [Fault("/storage/", "damage")]
    wanted = "0" * 64 if known == "sha256" else None
    with pytest.raises(RunError, match=f"did not arrive as it was published .{known.upper().replace('SHA', 'SHA-')}"):
        download.fetch(address, tmp_path / "set.bin", sha256=wanted)
    assert list(tmp_path.glob("set.bin*")) == []


def test_a_server_that_never_answers_ends_with_a_sentence_and_keeps_what_there_is(
    kaggle, offered, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 0.2)
    offered(hosted(kaggle, tar(FILES)))
    kaggle.faults = [Fault("/storage/", "short"), Fault("/storage/", "500", times=1000)]
    began = time.monotonic()
    with pytest.raises(RunError, match="the server answers 500") as caught:
        outlast.get_data("ours", to=tmp_path / "to")
    assert "it goes on after the" in caught.value.hint and time.monotonic() - began < 20
    kaggle.faults = []
    outlast.get_data("ours", to=tmp_path / "to")
    assert contents(tmp_path / "to") == FILES


def link(name):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("archive", "told"),
    [
        (lambda: tar({"../evil.txt": b"1"}), "no name of a file inside"),
        (lambda: tar({"/etc/evil.txt": b"1"}), "no name of a file inside"),
        (lambda: tar({"a.txt": b"1", link("b.txt"): b""}), "is a link"),
        (lambda: tar({"a": b"1", "a/b": b"2"}), "two of its files have one name"),
        (lambda: tar(FILES)[:-200], "can't be read"),
        (lambda: tar({"elsewhere/a.txt": b"1"}), "no files below inner"),
        (lambda: zipped({"inner/../../evil.txt": b"1"}), "no name of a file inside"),
        (lambda: b"this is no archive", "can't be read"),
    ],
)
def test_an_archive_that_is_not_sound_is_refused_and_leaves_nothing(kaggle, offered, tmp_path, archive, told):
    place = tmp_path / "place"
    offered(hosted(kaggle, archive()), part="inner" if "below" in told else "")
    with pytest.raises(DataError, match=told):
        outlast.get_data("ours", to=place / "to")
    assert not (place / "to").exists()
    assert list(tmp_path.rglob("*evil*")) == []


def test_no_more_is_unpacked_than_there_is_room_for(kaggle, offered, tmp_path, monkeypatch):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.bin", b"0" * 30_000_000)
    one = offered(hosted(kaggle, stream.getvalue(), "set.zip"))
    free = public_data.room(tmp_path)
    monkeypatch.setattr(public_data, "room", lambda folder: replace(free, free=20_000_000))
    with pytest.raises(DataError, match="more than there is room for"):
        outlast.get_data("ours", to=tmp_path / "to")
    offered(one.where, bytes=15_000_000)
    requests = len(kaggle.requests)
    with pytest.raises(RunError, match="needs 30 MB while it is unpacked, and there are 20 MB free"):
        outlast.get_data("ours", to=tmp_path / "other")
    assert len(kaggle.requests) == requests


# -- what is said ------------------------------------------------------------------------------------------------------


def test_every_task_names_data_that_can_be_told_apart():
    listed = outlast.list_data()
    names = [each["name"] for each in listed["data_sets"]]
    assert len(set(names)) == len(names)
    assert {each["task"] for each in listed["data_sets"]} >= {"plants", "glaciers", "lesions", "forgeries", "wildfires"}
    for each in listed["data_sets"]:
        assert each["name"] in listed["text"] and each["page"] in listed["text"] and each["terms"] in listed["text"]
        assert each["page"].startswith("https://") and each["source"] and not each["train"].startswith("outlast")
        assert each["where"].startswith(("kaggle:", "competition:", "https://")) or each["where"] == ""


def test_what_a_person_has_to_do_and_names_that_nobody_has(tmp_path):
    with pytest.raises(RunError, match="somebody to sign in") as caught:
        outlast.get_data("flame2", to=tmp_path / "flame")
    assert "ieee-dataport.org" in caught.value.hint and "outlast train wildfires" in caught.value.hint
    with pytest.raises(UsageError, match="Did you mean 'plantvillage'") as missing:
        outlast.get_data("plantvilage")
    assert "outlast data list" in missing.value.hint
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("1")
    with pytest.raises(UsageError, match="exists and is not flame2"):
        outlast.get_data("flame2", to=tmp_path / "full")
