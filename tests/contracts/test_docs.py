import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from outlast import task

ROOT = Path(__file__).parents[2]


def test_the_reference_of_the_configuration_is_what_the_program_has(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    written = tmp_path / "docs" / "reference" / "configuration.md"
    monkeypatch.setattr(reference, "PAGE", written)
    reference.main()
    page = ROOT / "docs" / "reference" / "configuration.md"
    assert page.read_text() == written.read_text(), "run scripts/docs (or python scripts/reference.py)"


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
