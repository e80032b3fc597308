"""The order of the layers, kept by walking every import of the package (also inside functions and TYPE_CHECKING)."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "outlast"

# Each layer imports only layers before its own; the members of one layer never import each other.
LAYERS = (
    {"errors"},
    {"base"},
    {"config"},
    {"env", "data", "model"},
    {"task", "state"},
    {"save"},
    {"loop"},
    {"check", "report", "export"},
    {"plan"},
    {"api"},
    {"cli", "notebook"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SEEN_BY_TASKS = {"errors", "base", "config", "data", "model", "task"}
FRONT = {"__init__", "__main__"}  # `import outlast` reaches the API lazily, `python -m outlast` the command line
ONLY_IN = {
    "timm": "model/backbone.py",
    "segmentation_models_pytorch": "model/segmenter.py",
    "accelerate": "loop/accel.py",
}


@dataclass(frozen=True)
class Import:
    """One import: the file (relative to the package) and line it stands in, and the module that it names."""

    file: str
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def imports(package: Path) -> list[Import]:
    """Every import in the package; those of the package itself are resolved to the module that is meant."""
    return [found for path in sorted(package.rglob("*.py")) for found in _imports_of(package, path)]


def _imports_of(package: Path, path: Path) -> Iterator[Import]:
    file = path.relative_to(package).as_posix()
    parents = ["outlast", *path.relative_to(package).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield Import(file, node.lineno, inner if _is_module(package, inner) else source)


def _is_module(package: Path, name: str) -> bool:
    first, *rest = name.split(".")
    place = package.joinpath(*rest)
    return first == "outlast" and (place.is_dir() or place.with_suffix(".py").is_file())


def violations(package: Path) -> list[str]:
    """A sentence for each import that the layers forbid."""
    return [f"{found}: {why}" for found in imports(package) if (why := _forbidden(found))]


def _forbidden(found: Import) -> str | None:
    parts = Path(found.file).with_suffix("").parts
    own, target = parts[0], found.target.split(".")
    if target[0] != "outlast":
        home = ONLY_IN.get(target[0])
        return f"only {home} may" if home is not None and found.file != home else None
    if own in FRONT:
        return None if target[1:2] in (["api"], ["cli"]) else "the front imports only the api and the cli"
    if len(target) == 1:
        return "nothing inside the package imports its front"
    other = target[1]
    if own == "tasks":
        if other == "tasks":
            same = len(parts) > 1 and target[2:3] == [parts[1]]
            return None if same else "a task never imports another task"
        return None if other in SEEN_BY_TASKS else f"tasks see only {', '.join(sorted(SEEN_BY_TASKS))}"
    if other == "tasks":
        return "tasks are reached only by task.find"
    for name in (own, other):
        if name not in RANK:
            return f"{name} belongs to no layer; give it a place in LAYERS"
    if own != other and RANK[other] >= RANK[own]:
        return f"{own} stands {'beside' if RANK[other] == RANK[own] else 'below'} {other}"
    return None


def cycle(package: Path) -> list[str]:
    """The modules of an import cycle, or nothing. Imports that are deferred into functions count as well."""
    graph: dict[str, set[str]] = {}
    for found in imports(package):
        parts = list(Path(found.file).with_suffix("").parts)
        module = ".".join(["outlast", *(parts[:-1] if parts[-1] == "__init__" else parts)])
        if parts[0] not in FRONT and found.target.split(".")[0] == "outlast" and module != found.target:
            graph.setdefault(module, set()).add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def names_of_tasks(package: Path) -> list[str]:
    """Places outside task.finding and the tasks that name a task's module in a string, as importlib would need it."""
    found = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        if file == "task/finding.py" or file.startswith("tasks/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.startswith("outlast.tasks")
            ):
                found.append(f"{file}:{node.lineno} names {node.value!r}")
    return found


def test_every_import_goes_down() -> None:
    assert len(imports(PACKAGE)) > 100, "the walk found hardly any import"
    assert violations(PACKAGE) == []


def test_no_import_cycle() -> None:
    assert cycle(PACKAGE) == []


def test_only_find_reaches_tasks_by_name() -> None:
    assert names_of_tasks(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("base/files.py", "from outlast.config import schema", "base stands below config"),
        ("data/cache.py", "from outlast.env.host import detect", "data stands beside env"),
        ("task/stages.py", "import outlast.state", "task stands beside state"),
        ("loop/train.py", "def f():\n    from outlast.plan import runner", "loop stands below plan"),
        ("save/a.py", "if TYPE_CHECKING:\n    from outlast.loop import accel", "save stands below loop"),
        ("base/files.py", "from ..config import schema", "base stands below config"),
        ("plan/runner.py", "from outlast.tasks import plants", "only by task.find"),
        ("tasks/plants/__init__.py", "from outlast.loop import train", "tasks see only"),
        ("tasks/plants/__init__.py", "from outlast.tasks.glaciers import bands", "never imports another task"),
        ("tasks/plants/__init__.py", "from .. import glaciers", "never imports another task"),
        ("report/page.py", "from outlast import train", "imports its front"),
        ("__init__.py", "from outlast.loop import train", "only the api and the cli"),
        ("utils.py", "from outlast.errors import OutlastError", "belongs to no layer"),
        ("tasks/plants/models.py", "import timm", "only model/backbone.py may"),
        ("loop/step.py", "from accelerate import Accelerator", "only loop/accel.py may"),
    ],
)
def test_the_walk_sees_what_is_forbidden(tmp_path: Path, file: str, source: str, why: str) -> None:
    for name in ("tasks/glaciers/bands.py", "config/schema.py", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).write_text(source, encoding="utf-8")
    (found,) = violations(tmp_path)
    assert why in found


def test_the_walk_sees_a_cycle(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cache.py").write_text("from outlast.data import loader", encoding="utf-8")
    (tmp_path / "data" / "loader.py").write_text("def f():\n    import outlast.data.cache", encoding="utf-8")
    assert set(cycle(tmp_path)) == {"outlast.data.cache", "outlast.data.loader"}
