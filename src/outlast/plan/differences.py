"""In what two runs that should be the same differ: file by file, tensor by tensor, bit by bit.

Everything in the run folders is compared except what is made of times: report.html, the sessions in run.json, durations
(JSON keys and CSV columns that end in `seconds`), how often a stage was resumed. Of the checkpoints the newest counts;
config.yaml may differ in settings that decide nothing, and what decides is compared by its hash.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outlast.base.files import MANIFEST
from outlast.errors import OutlastError
from outlast.plan import ledger, record
from outlast.save import store
from outlast.save.format import read_state, read_weights

_NOT_COMPARED = ("report.html", "config.yaml")
_COUNTED_BY_SESSION = ("train_seconds", "sessions", "from_step")
_OF_THE_RECORD = ("task", "synthetic", "data", "facts", "config_hash", "split_hash", "score", "rung", "parameters")
_MISSING = object()


@dataclass(frozen=True)
class Difference:
    """`what` (a tensor, a field, a line) of `file` differs. For tensors: the largest absolute difference (None: not a
    number) and how many of its `size` elements differ; for anything else `note` says the two values."""

    file: str
    what: str
    note: str
    largest: float | None = None
    elements: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Comparison:
    """The differences, in the order of the run, and how much was compared."""

    differences: list[Difference]
    files: int
    tensors: int


def compare_runs(expected: Path, found: Path, stages: Sequence[str]) -> Comparison:
    """Compare the finished run in `found` with the one in `expected`; `stages` are in the order of the plan."""
    names = sorted(_names(expected) | _names(found), key=lambda name: (_place(name, stages), name))
    count = _Count()
    differences: list[Difference] = []
    for name in names:
        one, other = expected / name, found / name
        if not one.is_file() or not other.is_file():
            where = "uninterrupted" if one.is_file() else "killed"
            differences.append(Difference(name, "the file", f"only in the {where} run"))
        else:
            differences += _file(name, one, other, count)
    for stage in stages:
        differences += _newest_checkpoints(stage, expected / stage, found / stage, count)
    differences.sort(key=lambda difference: _place(difference.file, stages))
    return Comparison(differences, len(names), count.tensors)


def compare_values(file: str, what: str, expected: Any, found: Any, count: _Count) -> Iterator[Difference]:
    """The differences between two values of tensors, mappings, sequences and plain values, depth first."""
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        count.tensors += 1
        yield from _tensors(file, what, expected, found)
    elif isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = f"{what}.{key}" if what else str(key)
            yield from compare_values(file, inner, expected.get(key, _MISSING), found.get(key, _MISSING), count)
    elif _is_list(expected) and _is_list(found) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from compare_values(file, f"{what}[{number}]", one, other, count)
    elif type(expected) is not type(found) or _exact(expected) != _exact(found):
        yield Difference(file, what, f"{_shown(expected)} and {_shown(found)}")


@dataclass
class _Count:
    tensors: int = 0


def _names(run: Path) -> set[str]:
    """The files of a run that are compared one by one."""
    relative = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return {
        name.as_posix()
        for name in relative
        if name.as_posix() not in _NOT_COMPARED and name.parts[1:2] != ("checkpoints",)
    }


def _place(name: str, stages: Sequence[str]) -> int:
    """In the order of the plan; what belongs to no stage comes first."""
    stage = name.partition("/")[0]
    return stages.index(stage) + 1 if stage in stages else 0


def _file(name: str, one: Path, other: Path, count: _Count) -> list[Difference]:
    if one.suffix == ".safetensors":
        return list(compare_values(name, "", read_weights(one), read_weights(other), count))
    expected, found = one.read_bytes(), other.read_bytes()
    if expected == found:
        return []
    reader = _READERS.get(one.name if one.name in _READERS else one.suffix)
    if reader is None:
        at = next((at for at, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), -1)
        if at < 0:
            at = min(len(expected), len(found))
        return [Difference(name, f"byte {at}", f"{len(expected)} and {len(found)} bytes")]
    try:
        return list(compare_values(name, "", reader(expected), reader(found), count))
    except ValueError as error:
        return [Difference(name, "the file", f"it cannot be read: {error}")]


def _newest_checkpoints(stage: str, one: Path, other: Path, count: _Count) -> list[Difference]:
    """The last states of a training stage, field by field."""
    problems: list[str] = []
    expected, found = (store.newest(folder / "checkpoints", problems) for folder in (one, other))
    file = f"{stage}/checkpoints"
    differences = [Difference(file, "the checkpoints", problem) for problem in problems]
    if expected is None or found is None:
        if expected is not found:
            where = "killed" if expected is None else "uninterrupted"
            differences.append(Difference(file, "the newest checkpoint", f"only the {where} run has one"))
        return differences
    try:
        states = read_state(expected.folder), read_state(found.folder)
    except OutlastError as error:
        return [*differences, Difference(file, "the newest checkpoint", error.message)]
    file = f"{file}/{found.folder.name}"
    for field in fields(states[0]):
        if field.name not in _COUNTED_BY_SESSION:
            one_value, other_value = (getattr(state, field.name) for state in states)
            differences += compare_values(file, field.name, one_value, other_value, count)
    return differences


def _tensors(file: str, what: str, expected: Tensor, found: Tensor) -> Iterator[Difference]:
    if expected.dtype != found.dtype or expected.shape != found.shape:
        kinds = " and ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in (expected, found))
        yield Difference(file, what, kinds)
        return
    if expected.numel() == 0:
        return
    bits = [tensor.contiguous().reshape(-1, 1).view(torch.uint8) for tensor in (expected, found)]
    unequal = (bits[0] != bits[1]).any(dim=1)
    if unequal.any():
        wide = torch.complex128 if expected.is_complex() else torch.float64
        largest = float((expected.to(wide) - found.to(wide)).abs().max())
        number = int(unequal.sum())
        yield Difference(
            file, what, f"{number} of {len(unequal)} elements, by at most {largest:.3g}",
            largest=largest if largest == largest else None, elements=number, size=len(unequal),
        )  # fmt: skip


def _json(data: bytes) -> Any:
    return _timeless(json.loads(data))


def _lines(data: bytes) -> dict[str, Any]:
    """Lines of JSON; metrics.jsonl holds no times, so nothing is left out."""
    lines = {f"line {number}": json.loads(line) for number, line in enumerate(data.splitlines(), start=1)}
    return {**lines, "length in bytes": len(data)}


def _table(data: bytes) -> dict[str, Any]:
    """Rows of a CSV file with a header, cells as they are written; without columns of durations."""
    rows = list(csv.DictReader(data.decode("utf-8").splitlines(), restkey="more"))
    return {f"line {number}": _timeless(row) for number, row in enumerate(rows, start=2)}


def _run(data: bytes) -> Any:
    values = json.loads(data)
    return {name: values.get(name) for name in _OF_THE_RECORD}


def _stage(data: bytes) -> Any:
    """A stage's record; its outputs are compared themselves, so that their names are enough here."""
    values = _timeless(json.loads(data))
    result = {name: value for name, value in values["result"].items() if name not in _COUNTED_BY_SESSION}
    return {**values, "outputs": sorted(values["outputs"]), "result": result}


def _manifest(data: bytes) -> Any:
    """A folder's manifest: its files are compared themselves, so that their names are enough here."""
    values = _timeless(json.loads(data))
    values.pop("sha256", None)
    return {**values, "files": sorted(values["files"])}


_READERS: dict[str, Callable[[bytes], Any]] = {
    record.NAME: _run,
    ledger.RECORD: _stage,
    MANIFEST: _manifest,
    ".json": _json,
    ".jsonl": _lines,
    ".csv": _table,
}


def _timeless(value: Any) -> Any:
    """A JSON value without durations: what a key that ends in `seconds` holds."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if not key.endswith("seconds")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _exact(value: Any) -> Any:
    """Floats by their bits: NaN equals itself, and 0.0 is not -0.0."""
    return value.hex() if isinstance(value, float) else value


def _shown(value: Any) -> str:
    text = "nothing" if value is _MISSING else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
