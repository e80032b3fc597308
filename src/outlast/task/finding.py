"""How tasks are found, by name and without importing those that are not asked for."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
from pathlib import Path

from outlast.errors import TaskError, did_you_mean
from outlast.task.contract import Task


def names() -> dict[str, str]:
    """{name: about} of every task that can be found, without importing any."""
    found: dict[str, str] = {}
    spec = importlib.util.find_spec("outlast.tasks")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).iterdir()):
            source = path / "__init__.py" if path.is_dir() else path
            if source.suffix == ".py" and source.is_file() and not path.name.startswith("_"):
                found[path.stem] = _about(source)
    for point in importlib.metadata.entry_points(group="outlast.tasks"):
        found.setdefault(point.name, f"from {point.value}")
    return found


def find(name: str) -> Task:
    """The task called `name`: one of ours, a dotted module name, or an entry point. Raises TaskError."""
    wanted = module_name(name)
    if "." in name and not all(part.isidentifier() for part in name.split(".")):
        raise TaskError(f"{name!r} is not the name of a module", hint="give a dotted name such as my_company.birds")
    try:
        module = importlib.import_module(wanted)
    except ModuleNotFoundError as error:
        if error.name and (wanted == error.name or wanted.startswith(f"{error.name}.")):
            raise TaskError(
                f"the module {wanted!r} cannot be imported: {error}",
                hint="run from the folder that holds it, or put that folder on PYTHONPATH",
            ) from error
        raise
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise TaskError(f"{wanted} has no TASK of type outlast.task.Task", hint="see docs/how-to/add-a-task.md")
    return task


def sources(name: str) -> list[Path]:
    """The source files of the task's own module or package; not of what they import from elsewhere."""
    module = importlib.import_module(module_name(name))
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))] or [Path(str(module.__file__))]


def module_name(name: str) -> str:
    """The module of the task called `name`: ours, that of an entry point, or the name itself. Raises TaskError."""
    if "." in name:
        return name
    known = names()
    if name not in known:
        raise TaskError(
            f"there is no task {name!r}.{did_you_mean(name, list(known))}",
            hint=f"choose one of {', '.join(known)}, or give a dotted module name such as my_company.birds",
        )
    points = {point.name: point.value for point in importlib.metadata.entry_points(group="outlast.tasks")}
    return points.get(name, f"outlast.tasks.{name}").partition(":")[0]


def _about(source: Path) -> str:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in tree.body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == "about" and isinstance(node, ast.Assign | ast.AnnAssign):
            value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value
    return "(no `about`)"
