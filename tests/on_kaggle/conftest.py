"""A Kaggle of our own for each test, and this process made to talk to it and to nothing else."""

import json
import os
import time

import pytest

from outlast.env import kaggle_client, kaggle_datasets, kaggle_process
from toys.kaggle_server import KEY, TOKEN, USER, KaggleServer


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """The server; clients that this process starts reach it, and no pause between attempts is long.

    After every test: no file that was written, run or log or kernel or export, holds a secret.
    """
    for name in [name for name in os.environ if name.startswith(("KAGGLE", "OUTLAST_KAGGLE"))]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home-of-the-client"
    home.mkdir()
    with KaggleServer(tmp_path / "sessions") as server:
        for name, value in server.environment(home).items():
            monkeypatch.setenv(name, value)
        for module in (kaggle_process, kaggle_client, kaggle_datasets):
            monkeypatch.setattr(module, "delays", lambda: iter([0.02] * 1000))
        monkeypatch.setattr(kaggle_process, "PATIENCE_SECONDS", 3.0)
        monkeypatch.setattr(kaggle_datasets, "_POLLS", (0.05, 0.2))
        with kaggle_process.kept_open():
            yield server
    told = [path for path in _written(tmp_path, home) if any(one.encode() in path.read_bytes() for one in (KEY, TOKEN))]
    assert told == []


def _written(folder, home):
    """All files that a test has left, but those that Kaggle itself gives a person or a notebook its token in."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and home not in path.parents and path.name != "token":
            yield path


WRITES = """
import os, sys
from pathlib import Path
from outlast.base.files import write_manifest
print("inputs:", sorted(p.relative_to(os.environ["OUTLAST_KAGGLE_ROOT"]).as_posix()
                        for p in Path(os.environ["OUTLAST_KAGGLE_ROOT"], "input").rglob("*") if p.is_file()))
{body}
write_manifest(Path("."), {{}})
"""


@pytest.fixture
def kernel(tmp_path):
    """kernel(body, slug=...) makes the folder of a kernel whose script runs `body` and then writes its manifest."""

    def make(body="", slug="my-session", manifest=True, **metadata):
        folder = tmp_path / "pushed" / slug
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "main.py").write_text(WRITES.format(body=body) if manifest else body)
        about = {
            "id": f"{USER}/{slug}", "title": slug.replace("-", " "), "code_file": "main.py", "language": "python",
            "kernel_type": "script", "is_private": True, "enable_gpu": True, "enable_internet": False, **metadata,
        }  # fmt: skip
        (folder / "kernel-metadata.json").write_text(json.dumps(about))
        return folder

    return make


@pytest.fixture
def ended():
    """ended(kernel) waits until its newest session is over; returns its KernelStatus."""

    def wait(name, seconds=60.0):
        end = time.monotonic() + seconds
        while not (found := kaggle_client.status(name)).ended:
            assert time.monotonic() < end, "the session does not end"
            time.sleep(0.1)
        return found

    return wait
