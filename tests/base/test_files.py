import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys

import pytest

from outlast.base.files import (
    locked,
    put_back,
    read_json,
    remove_folder,
    sha256,
    sweep,
    verify_folder,
    write_folder,
    write_json,
    write_text,
)
from outlast.errors import CheckpointError, RunError


def sealed(manifest):
    """A manifest with the checksum that an attacker would give it too."""
    text = json.dumps(manifest, sort_keys=True)
    return {**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def two_files(folder):
    (folder / "a.bin").write_bytes(b"alpha")
    (folder / "inner").mkdir()
    (folder / "inner" / "b.bin").write_bytes(b"beta" * 1000)


def test_a_written_folder_verifies_and_keeps_its_record(tmp_path):
    folder = write_folder(tmp_path / "one", two_files, {"step": 7})
    manifest = verify_folder(folder)
    assert manifest["step"] == 7
    assert set(manifest["files"]) == {"a.bin", "inner/b.bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_any_damage_is_found_and_named(tmp_path, damage):
    folder = write_folder(tmp_path / "one", two_files, {})
    victim = folder / "inner" / "b.bin"
    if damage == "flip":
        data = bytearray(victim.read_bytes())
        data[100] ^= 1
        victim.write_bytes(bytes(data))
    elif damage == "truncate":
        os.truncate(victim, 10)
    elif damage == "remove":
        victim.unlink()
    else:
        victim = folder / "manifest.json"
        victim.write_text(victim.read_text()[:-30])
    with pytest.raises(CheckpointError, match=victim.name):
        verify_folder(folder)


def test_a_manifest_that_points_outside_is_refused(tmp_path):
    folder = write_folder(tmp_path / "one", two_files, {})
    secret = tmp_path / "secret"
    secret.write_text("x")
    write_json(folder / "manifest.json", sealed({"files": {"../secret": {"bytes": 1, "sha256": sha256(secret)}}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        verify_folder(folder)


def test_a_failing_write_leaves_what_was_there(tmp_path):
    write_folder(tmp_path / "one", two_files, {"step": 1})

    def fails(folder):
        two_files(folder)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "one", fails, {"step": 2})
    assert verify_folder(tmp_path / "one")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_kill_while_files_are_written_leaves_no_folder_that_counts(tmp_path):
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from outlast.base.files import write_folder\n"
        "def fill(folder):\n"
        "    (folder / 'a.bin').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_folder(Path({str(tmp_path / 'one')!r}), fill, {{}})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "one").exists()
    assert len(list(tmp_path.iterdir())) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_a_folder_is_replaced_brings_back_the_old_one(tmp_path):
    write_folder(tmp_path / "one", two_files, {"step": 1})
    code = (
        "import os, signal, pathlib\n"
        "from outlast.base import files\n"
        "replace = pathlib.Path.replace\n"
        "def killed(path, target):\n"
        "    replace(path, target)\n"
        "    if path.name == 'one':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.replace = killed\n"
        f"files.write_folder(pathlib.Path({str(tmp_path / 'one')!r}), lambda folder: None, {{'step': 2}})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "one").exists()
    put_back(tmp_path)
    sweep(tmp_path)
    assert verify_folder(tmp_path / "one")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_writing_text_replaces_it_as_a_whole_with_the_usual_permissions(tmp_path):
    path = tmp_path / "deep" / "note.txt"
    write_text(path, "one")
    write_text(path, "zwei ä")
    assert path.read_text(encoding="utf-8") == "zwei ä"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


def test_json_is_strict_whatever_the_numbers(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.5], "c": (1, 2)})
    assert read_json(tmp_path / "x.json") == {"a": None, "b": [None, 1.5], "c": [1, 2]}


def test_unreadable_json_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RunError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_a_lock_is_refused_to_a_second_holder(tmp_path):
    with locked(tmp_path / "lock", "busy"), pytest.raises(RunError, match="busy"), locked(tmp_path / "lock", "busy"):
        pass
    with locked(tmp_path / "lock", "busy"):
        pass


def test_a_lock_ends_with_the_process_that_took_it_though_its_workers_live_on(tmp_path):
    script = """
import os, signal, sys, time
from pathlib import Path
from outlast.base.files import locked
with locked(Path(sys.argv[1]), "busy"):
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        worker = int(holder.stdout.readline())
        assert holder.wait() == -signal.SIGKILL
        try:
            with locked(path, "busy"):
                os.kill(worker, 0)  # it is still there
        finally:
            os.kill(worker, signal.SIGKILL)


def test_removing_a_folder_leaves_nothing(tmp_path):
    folder = write_folder(tmp_path / "one", two_files, {})
    remove_folder(folder)
    remove_folder(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_accepted_and_one_whose_disk_fails_is_not(tmp_path, monkeypatch):
    sync = os.fsync
    answer = []

    def answers(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(answer[0], os.strerror(answer[0]))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", answers)
    answer[:] = [errno.EINVAL]
    write_folder(tmp_path / "one", two_files, {})
    answer[:] = [errno.EIO]
    with pytest.raises(OSError, match="Input/output error"):
        write_folder(tmp_path / "two", two_files, {})
