"""The cells of a sweep: which settings are varied, through which values, and the folder that each combination gets.

A word `name=value,value` varies a short name of the task (`Task.axes`, and `seed`) or a key of the configuration;
values are YAML, and `all` stands for the task's own list. Cells are ordered so that a part of them is a table already:
the seed changes last. Wrong words are refused in one sentence, before anything is begun.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.config.identity import digest, identity
from outlast.config.load import keys, parse_yaml, resolve
from outlast.config.schema import TaskConfig
from outlast.errors import UsageError, did_you_mean, listed
from outlast.task import Axis, Task

SEED = "train.seed"
CELLS = "models"  # the folder of the sweep that holds them
_ORDINARY = {"seed": Axis(SEED)}
_PIECE = re.compile(r"""[^,\[\]{}"']|"[^"]*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}""")


@dataclass(frozen=True)
class Varied:
    """One axis of the grid: its name, the key of the configuration, and the texts of its values."""

    name: str
    key: str
    texts: tuple[str, ...]

    @property
    def word(self) -> str:
        """As it is typed."""
        return f"{self.name}={','.join(self.texts)}"


@dataclass(frozen=True)
class Cell:
    """One combination: its folder below the sweep's, the value of each axis as text, and its configuration."""

    place: str
    texts: Mapping[str, str]  # by the axis's name
    overrides: tuple[str, ...]
    config: TaskConfig


@dataclass(frozen=True)
class Grid:
    """All cells in the order in which they are done; `settings` are the overrides that every cell has."""

    axes: tuple[Varied, ...]
    settings: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def repeats(self) -> str | None:
        """The axis over which means are taken: the one of the seed."""
        return next((axis.name for axis in self.axes if axis.key == SEED), None)


def make_grid(
    task: Task, preset: str, words: Sequence[str], overrides: Sequence[str], file: Path | None
) -> tuple[Grid, list[str]]:
    """The grid, and warnings about settings that have no effect. Raises UsageError and ConfigError.

    words: what was given to --sweep. Among `overrides` those are axes too whose key is a short name of the task, or
    that have several values.
    """
    known = {**_ORDINARY, **task.axes}
    own = [word for word in overrides if _varies(word, known)]
    settings = tuple(word for word in overrides if word not in own)
    axes = [_axis(word, task, known) for word in (*words, *own)]
    _refuse_twice(axes, settings)
    axes.sort(key=lambda axis: _rank(axis, known))
    cells, warnings = [], dict[str, None]()
    # The seed is the slowest: after its first value every combination has been tried once.
    ordered = sorted(axes, key=lambda axis: axis.key != SEED)
    for chosen in itertools.product(*(axis.texts for axis in ordered)):
        texts = dict(zip((axis.name for axis in ordered), chosen, strict=True))
        own_settings = (*settings, *(f"{axis.key}={texts[axis.name]}" for axis in axes))
        config, idle = resolve(task.config, task.presets, preset, file=file, overrides=own_settings)
        warnings.update(dict.fromkeys(idle))
        place = "/".join([CELLS, *(_folder(axis, texts[axis.name]) for axis in axes)])
        cells.append(Cell(place, {axis.name: texts[axis.name] for axis in axes}, own_settings, config))
    _refuse_same(cells)
    return Grid(tuple(axes), settings, tuple(cells)), list(warnings)


def _varies(word: str, known: Mapping[str, Axis]) -> bool:
    name, equals, text = word.partition("=")
    return bool(equals) and (name in known or text == "all" or len(_split(text)) > 1)


def _axis(word: str, task: Task, known: Mapping[str, Axis]) -> Varied:
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise UsageError(f"--sweep {word!r} is not of the form name=value,value", hint="write it like --sweep seed=1,2")
    settable = dict(keys(task.config))
    if name not in known and name not in settable:
        raise UsageError(
            f"there is nothing called {name!r} to sweep over.{did_you_mean(name, [*known, *settable])}",
            hint=f"the short names of {task.name} are {listed([*known])}; a key of its configuration will do too",
        )
    axis = known.get(name, Axis(name))
    if text == "all":
        if not axis.all:
            raise UsageError(
                f"the task {task.name} has no list of all values of {name!r}", hint=f"name them: {name}=value,value"
            )
        return Varied(name, axis.key, tuple(_written(value) for value in axis.all))
    texts = [piece.strip() for piece in _split(text)]
    if not all(texts):
        raise UsageError(f"--sweep {word!r} has an empty value", hint="write it like --sweep seed=1,2,3")
    return Varied(name, axis.key, tuple(texts))


def _split(text: str) -> list[str]:
    """The values between commas; a comma inside of brackets or quotes does not part them."""
    pieces, at, start = [], 0, 0
    while at < len(text):
        if text[at] == ",":
            pieces.append(text[start:at])
            start = at = at + 1
            continue
        found = _PIECE.match(text, at)
        at = found.end() if found else at + 1
    return [*pieces, text[start:]]


def _written(value: Any) -> str:
    """The text that YAML reads as this value."""
    if isinstance(value, str) and parse_yaml(value, "a value of the task") == value and len(_split(value)) == 1:
        return value
    return json.dumps(value, ensure_ascii=False)


def _refuse_twice(axes: Sequence[Varied], settings: Sequence[str]) -> None:
    of_key: dict[str, str] = {}
    for axis in axes:
        if axis.key in of_key:
            raise UsageError(
                f"{of_key[axis.key]!r} and {axis.name!r} vary the same setting, {axis.key}"
                if of_key[axis.key] != axis.name
                else f"{axis.name!r} is given twice",
                hint=f"give all its values once: {axis.name}=value,value",
            )
        of_key[axis.key] = axis.name
    for word in settings:
        key = word.partition("=")[0]
        if key in of_key:
            raise UsageError(f"{key} is set for all cells and varied by {of_key[key]!r}", hint="leave one of them out")


def _refuse_same(cells: Sequence[Cell]) -> None:
    """Two cells of one configuration would be one training in two rows."""
    seen: dict[str, Cell] = {}
    places: dict[str, Cell] = {}
    for cell in cells:
        decisive = digest(identity(cell.config, ("must", "extendable", "declared", "free")))
        other = seen.get(decisive) or places.get(cell.place)
        if other is not None:
            same = sorted(name for name, text in cell.texts.items() if text != other.texts[name]) or [*cell.texts]
            values = " and ".join(f"{name}={each.texts[name]}" for name in same for each in (other, cell))
            raise UsageError(f"two cells of the sweep are the same: {values}", hint="give each value once")
        seen[decisive] = places[cell.place] = cell


def _rank(axis: Varied, known: Mapping[str, Axis]) -> tuple[int, int]:
    """Axes as the task names them, then others as they were typed, the seed last: so lie the folders."""
    if axis.key == SEED:
        return 2, 0
    names = [name for name in known if name not in _ORDINARY]
    return (0, names.index(axis.name)) if axis.name in names else (1, 0)


def _folder(axis: Varied, text: str) -> str:
    """The folder of a value: a word as it is, anything else behind the name of its axis."""
    value = parse_yaml(text, f"the value of {axis.name}")
    name = value if isinstance(value, str) else f"{axis.name.rpartition('.')[2]}_{text}"
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip(".-")
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"


def describe(values: Mapping[str, str]) -> str:
    """'teacher=resnet18 loss=kl_bce seed=1'."""
    return " ".join(f"{name}={text}" for name, text in values.items())
