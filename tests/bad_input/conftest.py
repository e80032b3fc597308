"""Bad input goes through the real command; what must hold for every refusal is checked in one place, `refused`."""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import outlast
from outlast import cli

CLASSES = {"blight": (120, 60, 30), "healthy": (40, 150, 40), "rust": (200, 110, 30)}
SETTINGS = ("--preset", "smoke", "model.name=tiny", "data.image_size=32", "train.epochs=2")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def photo(seed, colour=(90, 120, 60), size=(40, 40)):
    """A noisy picture of one colour, uint8 (H, W, 3); every seed gives another one."""
    noise = np.random.default_rng(seed).normal(0, 25, (*size, 3))
    return np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)


def write_leaves(root, per_class=10, classes=CLASSES):
    """A data set of class folders with small JPEG photos."""
    for number, (name, colour) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for leaf in range(per_class):
            Image.fromarray(photo(1000 * number + leaf, colour)).save(root / name / f"{leaf}.jpg", quality=90)
    return root


def snapshot(folder):
    """{relative path: SHA-256 of a file, None of a folder}; None if the folder is absent."""
    if not folder.exists():
        return None
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """command(*words) runs the real command line in this process, in an empty folder; returns how it ended."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["outlast", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def refused(command):
    """refused(*words, names=..., keeps=folder): the command fails as it should, and leaves `keeps` as it was.

    `names`: what the message must name. Returns the message.
    """

    def run(*words, names=(), keeps=None, code=1):
        before = snapshot(keeps) if keeps is not None else None
        ended = command(*words)
        assert ended.code == code, ended.err
        assert ended.out == ""
        message = ended.err[ended.err.index("error: ") :]
        assert "Traceback" not in ended.err
        first = message.splitlines()[0]
        assert 15 < len(first) < 400, first
        assert "What to do: " in message, message
        for name in [names] if isinstance(names, str | Path) else names:
            assert str(name) in message, message
        if keeps is not None:
            assert snapshot(keeps) == before
        return message

    return run


@pytest.fixture
def refused_training(refused, tmp_path):
    """Training on `data` is refused and no run folder appears."""

    def run(data, *settings, names=(), code=1):
        run = tmp_path / "run"
        given = () if data is None else ("--data", data)
        message = refused(
            "train", "plants", *given, "--out", run, *SETTINGS, *settings, names=names, code=code, keeps=run
        )
        assert not run.exists()
        return message

    return run


@pytest.fixture
def leaves(tmp_path):
    """A small good data set, to be spoiled."""
    return write_leaves(tmp_path / "leaves", per_class=6)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(run, data): a finished run and what it was trained on. Not to be changed: take `a_run` for that."""
    folder = tmp_path_factory.mktemp("trained")
    data, run = write_leaves(folder / "leaves"), folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTLAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        settings = [word for word in SETTINGS if "=" in word]
        result = outlast.train("plants", data=data, out=run, preset="smoke", overrides=settings)
    assert result["status"] == "finished"
    return run, data


@pytest.fixture
def a_run(trained, tmp_path):
    """(run, data): copies of a finished run and its data, to be spoiled."""
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(trained[0], run)
    shutil.copytree(trained[1], data)
    return run, data


@pytest.fixture
def half_a_run(a_run):
    """(run, data): a run that was killed after its last checkpoint, before anything was finished."""
    run, data = a_run
    for name in ("test", "scores"):
        shutil.rmtree(run / name)
    (run / "train" / "stage.json").unlink()
    return run, data
