"""Writes docs/reference/configuration.md and checks.md from the program itself: every key, every check."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from outlast import task
from outlast.check.finding import checks_of
from outlast.config.load import keys
from outlast.config.schema import Settings, TaskConfig
from outlast.plan.preflight import BEFORE_TRAINING, FAMILIES

FOLDER = Path(__file__).parents[1] / "docs" / "reference"

CHECKS = """\
<!-- Written by scripts/reference.py from the checks. Change their docstrings, not this page. -->
# Checks

`outlast check TASK` runs all of them and never stops at the first finding. An **error** means that training would fail
or be worthless (exit status 1); a **warning**, that it would be slower, dearer or worse than it could be; a **note** is
something to know. A check that can't look, because there is no GPU, no internet or no data, says *not checked here* and
why. `outlast train` begins with those marked in the last column, and refuses to begin if one of them finds an error.
What each failure that people met is covered by stands in [failure stories](../explanation/failure-stories.md).
"""

OPENING = """\
<!-- Written by scripts/reference.py from the configuration models. Change those, not this page. -->
# Configuration

A configuration is resolved in three steps: a preset, then a file (`--config FILE`, YAML), then `key=value` on the
command line. The result stands in the run's `config.yaml`. Unknown keys, wrong types and values out of range are
errors, all shown together; a key that is set but has no effect gives a warning. `1e-4` is a number, as in YAML 1.2.

The column *on resume* says what a run that goes on may do with the key:

- **must match**: the value decides the result; a run can't go on with another one.
- **declared**: it may be changed on purpose; the change is recorded.
- **free**: it can't change a number of the result; it may differ from session to session.
"""

HEAD = "| key | type | default | range | on resume | what it is |\n|---|---|---|---|---|---|"
KINDS = {"must": "must match", "declared": "declared", "free": "free"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of", "min_length": "length ≥"}


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in {"configuration.md": configuration(), "checks.md": checks()}.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"wrote docs/reference/{name}")


def checks() -> str:
    """The page of the checks."""
    parts = [CHECKS]
    for family in FAMILIES:
        name, train = family.__name__.rpartition(".")[2], "yes" if family in BEFORE_TRAINING else ""
        parts.append(f"## {name}\n\n{str(family.__doc__).splitlines()[0]}\n")
        parts.append("| id | what it finds | severity | before training |\n|---|---|---|---|")
        for identifier, check in checks_of(family).items():
            about = " ".join(str(check.__doc__).partition("\n\n")[0].split()).replace("|", "\\|")
            severities = _severities(check)
            parts.append(f"| `{identifier}` | {about} | {', '.join(severities)} | {train * ('error' in severities)} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _severities(check: Callable[..., Any]) -> list[str]:
    """The kinds of findings that a check, or a private function of its module that it uses, makes."""
    names: set[str] = set()
    waiting = [check.__code__]
    while waiting:
        code = waiting.pop()
        new = set(code.co_names) - names
        names |= new
        waiting += [part for part in code.co_consts if isinstance(part, types.CodeType)]
        found = (check.__globals__.get(name) for name in new if name.startswith("_"))
        waiting += [function.__code__ for function in found if isinstance(function, types.FunctionType)]
    return [severity for severity in ("error", "warning", "note") if severity in names]


def configuration() -> str:
    """The page of the configuration."""
    shared = dict(keys(TaskConfig))
    parts = [OPENING, "## Shared by every task\n"]
    for name, group in _groups(TaskConfig):
        parts += [f"### {name}\n", _sentence(group) + "\n", _table(keys(group, f"{name}."))]
    parts.append("### without a group\n")
    parts.append(_table((key, field) for key, field in shared.items() if "." not in key))
    for name, about in task.names().items():
        found = task.find(name)
        own = ((key, field) for key, field in keys(found.config) if key not in shared)
        parts += [f"## Task {name}\n", f"{about}\n", _table(own)]
        parts += [f"### Presets of {name}\n", _presets(found)]
    return "\n".join(parts).rstrip() + "\n"


def _table(rows: Iterator[tuple[str, FieldInfo]]) -> str:
    lines = [HEAD]
    for key, field in rows:
        extra = field.json_schema_extra
        kind = KINDS[str(extra.get("identity", "must"))] if isinstance(extra, dict) else KINDS["must"]
        cells = (f"`{key}`", _type(field.annotation), _default(field), _range(field), kind, field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _presets(found: task.Task) -> str:
    """What each preset sets that is not the default."""
    plain = {key: field.get_default(call_default_factory=True) for key, field in keys(found.config)}
    lines = ["| preset | sets |", "|---|---|"]
    for name, preset in found.presets.items():
        values = preset()
        chosen = {key: _look_up(values, key) for key in plain if key != "preset"}
        words = [f"`{key}={_shown(value)}`" for key, value in chosen.items() if value != plain[key]]
        lines.append(f"| `{name}` | {', '.join(words) or 'the defaults'} |")
    return "\n".join(lines) + "\n"


def _look_up(values: Settings, key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _groups(schema: type[Settings]) -> Iterator[tuple[str, type[Settings]]]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield name, field.annotation


def _sentence(group: type[Settings]) -> str:
    return str(group.__doc__ or "").strip().splitlines()[0]


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(part) for part in inner)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_type(part) for part in inner if part is not Ellipsis)}"
    if annotation is type(None):
        return "none"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else f"`{_shown(value)}`"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(_shown(part) for part in value)}]"
    return repr(value) if value == "" else str(value)


def _range(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in SIGNS.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join(limits)


if __name__ == "__main__":
    main()
