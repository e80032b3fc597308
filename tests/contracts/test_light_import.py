"""`outlast --help` and `outlast tasks` answer without loading what trains: torch, timm, pandas, matplotlib."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "accelerate", "pandas", "matplotlib", "sklearn", "numpy", "PIL", "jinja2")

SCRIPT = """
import json, sys
sys.argv = ["outlast", *{arguments!r}]
from outlast.cli import main
try:
    main()
except SystemExit as end:
    code = end.code or 0
else:
    code = 0
print()
print(json.dumps({{"code": code, "modules": sorted({{name.partition(".")[0] for name in sys.modules}})}}))
"""


def run(*arguments: str) -> tuple[str, int, set[str]]:
    """What the command printed, its exit code, and the top-level modules that were imported."""
    script = SCRIPT.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    printed, _, last = done.stdout.rstrip("\n").rpartition("\n")
    end = json.loads(last)
    return printed, end["code"], set(end["modules"])


@pytest.mark.parametrize("arguments", [("--help",), ("tasks",), ("tasks", "--json"), ("train", "--help")])
def test_answers_without_heavy_imports(arguments: tuple[str, ...]) -> None:
    printed, code, modules = run(*arguments)
    assert code == 0
    assert printed.strip()
    assert sorted(modules & set(HEAVY)) == []


def test_importing_the_package_is_light() -> None:
    script = "import outlast, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert sorted(set(done.stdout.split()) & {*HEAVY, "pydantic", "typer", "rich"}) == []


def test_tasks_lists_plants_with_its_line() -> None:
    printed, _, _ = run("tasks")
    assert "plants" in printed
