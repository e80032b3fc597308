"""One file that trains a task where Outlast is not installed: a script, or a notebook with a cell per step.

Promises: it holds the sources with the size and SHA-256 of every file listed at its top, the resolved configuration,
and a CONFIG block that people edit; it installs and fetches nothing (bundle_template.py is what it does). The same
question gives the same bytes. Without other people's packages it takes at most LIMIT_BYTES.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from outlast.base.files import write_text
from outlast.errors import UsageError
from outlast.export.bundle_sources import Contents, Wheel

LIMIT_BYTES = 2**20
ENDINGS = (".py", ".ipynb")
# The cells of a notebook after what it holds: their titles, and the code below them.
STEPS = {
    "train": (
        ("Check: everything that can go wrong, before it costs", "check()"),
        (
            "Plan: what is done in which session",
            "from IPython.display import Image, display\n\ndisplay(Image(filename=plan()))",
        ),
        ("Train: until it is finished, or the session must end", "train()"),
        ("Figures", "for picture in figures():\n    display(Image(filename=picture))"),
        ("What next?", "what_next()"),
    ),
    "submit": (("Submit: predict the test set that is there, with a run that is finished", "submit()"),),
}  # fmt: skip
_HOW = {  # continues a line of the opening
    "train": """add the data as an input, choose the accelerator, and run. It stops in time before the session's end;
the next session finds what this one made, once its output was added as an input.""",
    "submit": """add the competition and the output of the notebook that has finished the training as inputs, choose the
accelerator, and run. It trains nothing: it writes submission.csv for the test set that is there.""",
}
_WIDTH = 116
_HIDDEN = "# What is inside, and what unpacks it. Nothing here is to be changed.\n"


@dataclass(frozen=True)
class Recipe:
    """What a bundle trains: a task with a preset and settings on top of it (key=value).

    presets, names: what may be given for the preset, and as names of data. data: {name: folder or input}; empty: it is
    looked for. quick: settings of a short test. configuration: all settings, as YAML, for people to read. do: "train",
    or "submit": predict a test set with a run that is finished.
    """

    task: str
    about: str
    preset: str
    presets: Sequence[str]
    overrides: Sequence[str]
    quick: Sequence[str]
    names: Sequence[str]
    data: Mapping[str, str]
    configuration: str
    do: str = "train"


def write(target: Path, recipe: Recipe, contents: Contents) -> dict[str, Any]:
    """Write the bundle. Returns {"files", "bytes", "bytes_of_packages", "sources", "packages"}.

    Raises UsageError if the sources take more than LIMIT_BYTES.
    """
    payloads = {"outlast": _payload(contents.files)}
    payloads |= {wheel.name: _payload(wheel.files) for wheel in contents.wheels}
    parts = _Parts(
        opening=_opening(recipe, target.name),
        config=_config(recipe),
        inside=_inside(recipe, contents),
        code=_code(),
        payloads=f"PAYLOADS = {{\n{''.join(_payload_entry(name, data) for name, data in payloads.items())}}}\n",
    )
    text = _notebook(parts, STEPS[recipe.do]) if target.suffix == ".ipynb" else _script(parts)
    others = sum(len(payloads[wheel.name]) + len(_listing(wheel.files)) for wheel in contents.wheels)
    size = len(text.encode())
    if size - others > LIMIT_BYTES:
        raise UsageError(
            f"the file would take {size - others:,} bytes, more than the {LIMIT_BYTES:,} that can be pasted",
            hint="the task imports too much of what lies beside it; move data out of its .py files",
        )
    write_text(target, text)
    return {
        "files": [target],
        "bytes": size,
        "bytes_of_packages": others,
        "sources": len(contents.files),
        "packages": [f"{wheel.name} {wheel.version} ({wheel.licence})" for wheel in contents.wheels],
    }


def check_target(target: Path) -> None:
    """Refuse (UsageError) an ending that is no bundle's."""
    if target.suffix not in ENDINGS:
        raise UsageError(
            f"a task is exported as a script or a notebook, not as {target.name!r}",
            hint="give --to kaggle.py or kaggle.ipynb",
        )


@dataclass(frozen=True)
class _Parts:
    """The pieces of a bundle, in the order in which they stand."""

    opening: str
    config: str
    inside: str
    code: str
    payloads: str


def _script(parts: _Parts) -> str:
    rule = "# " + "-" * (_WIDTH - 2)
    pieces = [
        '"""' + parts.opening.replace("\\", "\\\\").replace('"""', "'") + '"""\n',
        parts.config,
        f"{rule}\n{parts.inside}",
        parts.code,
        parts.payloads,
        'if __name__ == "__main__":\n    main()\n',
    ]
    return "\n".join(pieces)


def _notebook(parts: _Parts, steps: Sequence[tuple[str, str]]) -> str:
    """Notebook format 4.5, as JSON."""
    cells = [
        ("markdown", parts.opening),
        ("code", parts.config),
        ("hidden", "\n".join([_HIDDEN, parts.inside, parts.code, parts.payloads])),
    ]
    for title, code in steps:
        cells += [("markdown", f"## {title}"), ("code", code)]
    notebook = {
        "cells": [_cell(number, kind, text.strip("\n")) for number, (kind, text) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "cell_type": "markdown" if kind == "markdown" else "code",
        "id": f"cell-{number}",
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }
    if kind == "hidden":  # folded: by JupyterLab, and by Kaggle
        cell["metadata"] = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True}
    if kind != "markdown":
        cell |= {"execution_count": None, "outputs": []}
    return cell


def _opening(recipe: Recipe, name: str) -> str:
    version = metadata.version("outlast")
    return f"""Outlast {version} (Apache-2.0): the task {recipe.task}, in one file.

{textwrap.fill(recipe.about, _WIDTH)}

It needs no installation and no internet. Paste it into a Kaggle notebook (or run it with Python 3.11 or newer, or with
exec), {_HOW[recipe.do]}
What may be changed is CONFIG.

Made by: outlast export {recipe.task} --preset {recipe.preset} --to {name}{" --submit" * (recipe.do == "submit")}
"""


def _config(recipe: Recipe) -> str:
    names = "" if list(recipe.names) == ["data"] else f"; or {{name: folder}}, names: {', '.join(recipe.names)}"
    given = dict(recipe.data) or None
    entries: list[tuple[str, str, Any]] = [
        ('"train"; "submit": submission.csv for the test set that is there now, by a finished run among the inputs',
         "do", recipe.do),
        ("another task needs a file of its own: outlast export TASK --to FILE", "task", recipe.task),
        (f"one of {', '.join(recipe.presets)}", "preset", recipe.preset),
        ('settings on top of the preset, such as "train.epochs=40"', "overrides", list(recipe.overrides)),
        ("True: look for everything that can go wrong first, in a minute or two", "check", True),
        ("True: try everything in some minutes first, in a run folder of its own", "quick_test", False),
        ("the settings of that test", "quick_overrides", list(recipe.quick)),
        (f"None: found among the inputs, or in ./data; a folder, or OWNER/SLUG{names}", "data", given),
        ("the run folder; None: in /kaggle/working, elsewhere in ./runs", "out", None),
        ("the platform's, or less; the run stops in time before it", "session_limit", "9h"),
        ('what is left of the weekly accelerator quota, such as "12h"; None: not watched', "quota_left", None),
        ("one per GPU, for one training; None: as many as there are GPUs", "processes", None),
        ("trainings at a time, one GPU each, for plans of several (folds); processes are then 1", "side_by_side", 1),
        ('"auto": goes on with what attached outputs and packs have done; a pack or a folder; None: never',
         "previous", "auto"),
        ('to submit, test rows whose image can\'t be read: "fill" predicts them without it; "refuse": an error',
         "gaps", "fill"),
    ]  # fmt: skip
    lines = [f'    # {comment}\n    "{name}": {_literal(value)},\n' for comment, name, value in entries]
    return "CONFIG = {\n" + "".join(lines) + "}\n"


def _literal(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + "".join(f"        {json.dumps(item)},\n" for item in value) + "    ]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _inside(recipe: Recipe, contents: Contents) -> str:
    """The listings, and the configuration in full."""
    packages = "".join(_package_entry(wheel) for wheel in contents.wheels)
    commented = textwrap.indent(recipe.configuration, "# ", lambda line: True)
    return (
        f"# The configuration in full, as it was when this file was made:\n{commented}\n"
        f"TASK = {recipe.task!r}\n\n"
        "# The package: bytes, SHA-256 and path of every file.\n"
        f"FILES = '''\n{_listing(contents.files)}'''\n\n"
        "# Packages that Kaggle's image lacks; taken from here where the machine has none of its own.\n"
        f"PACKAGES = [\n{packages}]\n"
    )


def _package_entry(wheel: Wheel) -> str:
    facts = {"name": wheel.name, "version": wheel.version, "licence": wheel.licence, "module": wheel.module}
    lines = [f"        {name!r}: {value!r},\n" for name, value in facts.items()]
    return f"    {{\n{''.join(lines)}        'files': '''\n{_listing(wheel.files)}''',\n    }},\n"


def _listing(files: Mapping[str, bytes]) -> str:
    rows = [f"{len(data):>7} {hashlib.sha256(data).hexdigest()} {path}\n" for path, data in files.items()]
    return "".join(rows)


def _payload(files: Mapping[str, bytes]) -> str:
    """All files one after another, compressed, in lines of base64: no character that a cell could take for magic."""
    packed = lzma.compress(b"".join(files.values()), preset=9 | lzma.PRESET_EXTREME)
    text = base64.b64encode(packed).decode("ascii")
    return "\n".join(text[start : start + _WIDTH] for start in range(0, len(text), _WIDTH))


def _payload_entry(name: str, data: str) -> str:
    return f'    {name!r}: """\n{data}\n""",\n'


def _code() -> str:
    text = resources.files(__package__).joinpath("bundle_template.py").read_text(encoding="utf-8")
    _, _, rest = text.partition("# [code]\n")
    code, _, _ = rest.partition("# [end]\n")
    if not code:
        raise RuntimeError("bundle_template.py has lost its marks")
    return code
