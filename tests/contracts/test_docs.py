import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from outlast import task

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_program_has(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    reference.main()
    for name in ("configuration.md", "checks.md"):
        page = ROOT / "docs" / "reference" / name
        assert page.read_text() == (tmp_path / name).read_text(), "run scripts/docs (or python scripts/reference.py)"


def test_every_check_named_in_the_failure_stories_exists():
    from outlast.check.finding import checks_of
    from outlast.plan.preflight import FAMILIES

    known = {identifier for family in FAMILIES for identifier in checks_of(family)}
    families = {identifier.partition(".")[0] for identifier in known}
    page = (ROOT / "docs" / "explanation" / "failure-stories.md").read_text()
    named = set(re.findall(r"`([a-z]+\.[a-z0-9_]+)`", page))
    checks = {name for name in named if name.partition(".")[0] in families}
    assert len(checks) > 10
    assert checks <= known


def test_every_test_named_in_the_failure_stories_exists():
    page = (ROOT / "docs" / "explanation" / "failure-stories.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert named
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda path: path.name)
def test_commands_in_the_documents_exist_with_their_options(page):
    from typer.main import get_command

    from outlast.cli import app

    commands = get_command(app).commands
    for line in re.findall(r"^(?:\$ )?outlast (\w[^\n]*)", page.read_text(), flags=re.MULTILINE):
        name, *words = shlex.split(line.partition("#")[0])
        if "…" in line or "," in name or (name not in commands and not words):
            continue
        assert name in commands, line
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
        if name == "train":
            tasks = [*task.names(), "birds", "my_company.birds"]
            assert words[0] in tasks, line


def test_no_document_promises_a_command_that_is_not_there():
    from typer.main import get_command

    from outlast.cli import app

    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    for name in get_command(app).commands:
        assert f"outlast {name}" in page
