"""`outlast kaggle ...` through the real command line."""

import json
import sys

import pytest

from outlast import cli
from outlast.base import secret
from toys.kaggle_server import KEY, USER, Fault

NAME = f"{USER}/my-session"


@pytest.fixture
def command(capsys, monkeypatch):
    """command(*words): (exit status, standard output, standard error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["outlast", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_the_commands_do_what_they_say(kaggle, kernel, ended, command, tmp_path):
    code, out, _ = command(
        "kaggle", "push", kernel("Path('a.txt').write_text('1')"), "--session-limit", "10m", "--json"
    )
    assert code == 0 and json.loads(out)["version"] == 1
    assert kaggle.sessions.kernels[NAME][0].request["sessionTimeoutSeconds"] == 600
    ended(NAME)
    assert command("kaggle", "status", NAME) == (0, "complete\n", "")
    assert command("kaggle", "logs", NAME) == (0, "inputs: []\n", "")
    code, out, _ = command("kaggle", "pull", NAME, "--to", tmp_path / "out", "--json")
    assert code == 0 and json.loads(out)["verified"]
    assert (tmp_path / "out" / "a.txt").read_text() == "1"
    code, out, _ = command("kaggle", "quota", "--json")
    assert code == 0 and json.loads(out)["gpu"]["total_hours"] == 30.0
    assert command("kaggle", "quota")[1].splitlines()[1].startswith("TPU: 20.00 h of 20.00 h left, renewed 2030-01-05")


def test_a_mistake_is_one_sentence_with_a_hint_and_no_key_in_it(kaggle, kernel, command, tmp_path):
    for words, part in {
        ("status", f"{USER}/no-such-kernel"): "check OWNER and SLUG",
        ("push", str(tmp_path)): "kernel-metadata.json can't be read",
        ("push", str(kernel()), "--session-limit", "soon"): "is not a duration",
        ("pull", NAME, "--to", str(tmp_path / "out"), "--pattern", "("): "no regular expression",
    }.items():
        code, out, err = command("kaggle", *words)
        assert code in (1, 2) and out == "" and part in err and "Traceback" not in err, err
        assert KEY not in err


def test_secrets_of_the_environment_and_of_kaggles_files_are_known(tmp_path, monkeypatch):
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text('{"username": "somebody-nice", "key": "in-the-file-123"}')
    (tmp_path / ".kaggle" / "access_token").write_text("KGAT_in-another-file\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_in-the-environment")
    text = "somebody-nice in-the-file-123 KGAT_in-another-file KGAT_in-the-environment"
    assert secret.without_secrets(text) == "somebody-nice *** *** ***"


def test_the_key_stands_nowhere_in_what_is_written(kaggle, kernel, ended, command, tmp_path):
    folder = kernel("Path('a.txt').write_text('1')")
    kaggle.faults = [Fault("SaveKernel", "500"), Fault("ListKernelSessionOutput", "500")]
    command("kaggle", "push", folder)
    ended(NAME)
    command("kaggle", "pull", NAME, "--to", tmp_path / "out")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 6
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
