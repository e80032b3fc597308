"""Which files a bundle holds: the package, the task with what it imports, and packages that Kaggle's image lacks.

Promises: of a task from elsewhere exactly the modules go along that it imports, found by reading the sources (imports
inside functions too; those made at run time are not seen); a package that is not pure Python is refused; no file goes
along that holds a credential of this machine or looks like a token.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from outlast import task as tasks
from outlast.base.secret import known_secrets
from outlast.errors import TaskError, UsageError

PACKAGE = Path(__file__).parents[1]
# What outlast.task needs and Kaggle's image of 2026 does not have (docs/how-to/kaggle.md): {module: distribution}.
LACKING = {"segmentation_models_pytorch": "segmentation-models-pytorch"}

_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|KGAT_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_INSTALLER_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")  # of this machine, not of the package
_LIBRARIES = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Wheel:
    """A package of somebody else's that goes along: its distribution, version, licence, module and files."""

    name: str
    version: str
    licence: str
    module: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Contents:
    """What a bundle holds: files by their path below a folder on the module path, and other people's packages."""

    files: Mapping[str, bytes]
    wheels: tuple[Wheel, ...] = ()


@dataclass
class Closure:
    """Modules with their files, and the top-level names that they import from elsewhere."""

    files: dict[str, Path] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)


def collect(name: str) -> Contents:
    """What a bundle of the task called `name` holds.

    Raises TaskError for a task whose sources can't be found, UsageError for a secret in them or a package that can't
    go along.
    """
    module = tasks.module_name(name)
    used = closure(module)
    ours = [path for path in _files(PACKAGE) if not path.is_relative_to(PACKAGE / "tasks")]
    if _is_ours(module):
        own = PACKAGE / "tasks" / module.split(".")[2]
        ours += _files(own) if own.is_dir() else [own.with_suffix(".py")]
    ours.append(PACKAGE / "tasks" / "__init__.py")
    files = {path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes() for path in ours}
    for path in used.files.values():
        if not path.is_relative_to(PACKAGE):
            files[path.relative_to(_root(module)).as_posix()] = path.read_bytes()
    wheels = tuple(wheel(LACKING[outside], outside) for outside in sorted(used.outside & set(LACKING)))
    files |= _metadata(name, module, [one.name for one in wheels])
    check_secrets(files)
    return Contents(dict(sorted(files.items())), wheels)


def closure(module: str) -> Closure:
    """All modules that a module imports, directly or not, of this package and of the folder in which its own lies."""
    roots = {PACKAGE.name: PACKAGE.parent, module.partition(".")[0]: _root(module)}
    found, waiting = Closure(), [module]
    while waiting:
        name = waiting.pop()
        for parent in _with_parents(name):
            path = _file_of(parent, roots, _root(module))
            if path is None:
                if "." not in parent:
                    found.outside.add(parent)
            elif parent not in found.files:
                found.files[parent] = path
                waiting += _imported(parent, path)
    if module not in found.files:
        raise TaskError(f"the source of {module} can't be found", hint="a bundle is made of tasks in .py files")
    return found


def wheel(name: str, module: str) -> Wheel:
    """An installed distribution as it would be in a wheel. Raises UsageError if it isn't there or not pure Python."""
    try:
        known = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise UsageError(f"{name} is not installed, and the task needs it", hint=f"pip install {name}") from None
    if "Root-Is-Purelib: true" not in (known.read_text("WHEEL") or ""):
        raise UsageError(f"{name} is not pure Python", hint="attach it to the notebook as an input of its own")
    files = {}
    for file in known.files or ():
        if ".." in file.parts or "__pycache__" in file.parts or file.name in _INSTALLER_FILES:
            continue
        files[file.as_posix()] = Path(str(file.locate())).read_bytes()
    about = known.metadata
    said = [about[key] for key in ("License-Expression", "License") if key in about]
    return Wheel(
        name,
        known.version,
        said[0].splitlines()[0] if said else "see its licence file",
        module,
        dict(sorted(files.items())),
    )


def check_secrets(files: Mapping[str, bytes]) -> None:
    """Refuse (UsageError) files that hold a credential of this machine, or what looks like a token or a key."""
    secrets, found = known_secrets(), []
    for path, data in files.items():
        text = data.decode("utf-8", "replace")
        if any(secret in text for secret in secrets):
            found.append(f"{path}: a credential of this machine")
        if _TOKENS.search(text):
            found.append(f"{path}: what looks like a token or a private key")
    if found:
        raise UsageError(
            "there is a secret in what would be exported, and whoever gets the file could read it",
            details=found,
            hint="take it out of the source and read it from the environment where it is used",
        )


def _is_ours(module: str) -> bool:
    return module.split(".")[:2] == [PACKAGE.name, "tasks"]


def _root(module: str) -> Path:
    """The folder on the module path from which a module is imported."""
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve().parent
    if spec is None or not spec.has_location or spec.origin is None:
        raise TaskError(f"the source of {top} can't be found", hint="a bundle is made of tasks in .py files")
    return Path(spec.origin).resolve().parent


def _file_of(name: str, roots: Mapping[str, Path], beside: Path) -> Path | None:
    """The source of a module: of the package, of the task's own, or of what lies beside that; None for all others."""
    top = name.partition(".")[0]
    if top not in roots and any(part in _LIBRARIES for part in beside.parts):
        return None  # its neighbours there are installed packages
    place = roots.get(top, beside).joinpath(*name.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _imported(module: str, path: Path) -> Iterator[str]:
    """The names that a source file imports; of `from a import b` also a.b, which may be a module."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names if alias.name != "*")


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def _metadata(name: str, module: str, wheels: Iterable[str]) -> dict[str, bytes]:
    """What importlib.metadata must find of this package: its version, and what it needs for this task."""
    about = metadata.metadata(PACKAGE.name)
    lines = []
    not_there = set(LACKING.values()) - set(wheels)
    for key in dict.fromkeys(about):
        for value in about.get_all(key) or ():
            left_out = key == "Requires-Dist" and Requirement(value).name in not_there
            if key not in ("Description", "Description-Content-Type") and not left_out:
                lines.append(f"{key}: {value}")
    folder = f"{PACKAGE.name}-{about['Version']}.dist-info"
    files = {f"{folder}/METADATA": "\n".join([*lines, ""])}
    if not _is_ours(module) and "." not in name:
        files[f"{folder}/entry_points.txt"] = f"[outlast.tasks]\n{name} = {module}\n"
    return {path: text.encode() for path, text in files.items()}
