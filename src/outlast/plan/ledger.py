"""Which stages are done: a stage's identity, and the record that a finished one leaves in its folder.

A stage's identity is the hash of its own configuration, the fingerprint of its data and the hashes of what the stages
it needs have made. What is done under the same identity is not done again; what changed is. How long to train counts
for trainings only: other stages depend on it through what the trainings made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from outlast.base.accident import reached
from outlast.base.files import read_json, sha256, write_json
from outlast.config.identity import digest, identity
from outlast.data.table import Examples
from outlast.errors import RunError
from outlast.task import Call, Predict, Rows, Stage, Train, needed

RECORD = "stage.json"
PROGRESS = "progress.json"  # under which identity an unfinished stage was begun
ELSEWHERE = "elsewhere"  # in a record: outputs that were not carried here (`outlast pack`); they count by their hashes
KEPT = "kept"  # what the function of an unfinished call has done so far
_KINDS = {Train: "train", Predict: "predict", Call: "call"}


def kind(stage: Stage) -> str:
    """'train', 'predict' or 'call'."""
    return _KINDS[type(stage)]


def stage_identity(stage: Stage, config: Any, fingerprint: str, run: Path) -> str:
    """The identity of a stage whose needs are done. `config` is the stage's own, `fingerprint` that of its data."""
    inputs = {name: _record(run / name)["outputs"] for name in needed(stage)}
    own = identity(config, ("must", "extendable") if isinstance(stage, Train) else ("must",))
    return digest({**described(stage), "config": own, "data": fingerprint, "inputs": inputs})


def described(stage: Stage) -> dict[str, Any]:
    """What a stage is, without its configuration, data and inputs."""
    described: dict[str, Any] = {"kind": kind(stage), "name": stage.name}
    if isinstance(stage, Train):
        described |= {"learner": stage.learner.name, "fit": _rows(stage.fit), "validate": _rows(stage.validate)}
    elif isinstance(stage, Predict):
        rows = stage.rows
        told = _rows(rows) if isinstance(rows, Rows) else {name: _rows(own) for name, own in rows.items()}
        described |= {"rows": told, "outputs": list(stage.outputs), "models": list(stage.models)}
        if stage.together is not None:
            described["together"] = _function(stage.together)
    else:
        described |= {
            "function": _function(stage.function),
            "makes": list(stage.makes),
        }
    return described


def data_fingerprint(examples: Examples | None) -> str:
    """What of the data a stage depends on: contents and split, not only contents."""
    if examples is None:
        return ""
    decided = [name for name in ("split", "fold") if name in examples.table.columns]
    columns = ["id", "hash", *decided, *examples.batch_columns]
    return digest(examples.table[columns].astype(str).to_numpy().tolist())


def done(folder: Path, expected: str) -> bool:
    """Whether the stage in `folder` is finished under this identity and its files are still what they were."""
    if not (folder / RECORD).is_file():
        return False
    record = _record(folder)
    if record.get("identity") != expected:
        return False
    return not damaged(folder)


def damaged(folder: Path) -> list[Path]:
    """The outputs of a finished stage that are gone, or no longer what they were; not those left elsewhere."""
    found, absent = [], elsewhere(folder)
    for name, output in _record(folder)["outputs"].items():
        path = folder / name
        if name in absent:
            continue
        if not path.is_file() or path.stat().st_size != output["bytes"] or sha256(path) != output["sha256"]:
            found.append(path)
    return found


def elsewhere(folder: Path) -> list[str]:
    """The outputs of a finished stage that were left on another machine, because nothing here needed them."""
    if not (folder / RECORD).is_file():
        return []
    return [name for name in _record(folder).get(ELSEWHERE, ()) if not (folder / name).exists()]


def leaving(known: Mapping[str, Any], left: Sequence[str]) -> dict[str, Any]:
    """The record of a finished stage whose outputs `left` are on another machine, and all others here."""
    kept = {key: value for key, value in known.items() if key != ELSEWHERE}
    return {**kept, ELSEWHERE: list(left)} if left else kept


def record_of(folder: Path) -> dict[str, Any] | None:
    """The record of a finished stage, None if it is not finished. Raises RunError if it is damaged."""
    return _record(folder) if (folder / RECORD).is_file() else None


def begin(folder: Path, expected: str) -> bool:
    """Note under which identity a stage is begun. False if what lies there was begun under another one."""
    path = folder / PROGRESS
    if path.is_file():
        return bool(read_json(path).get("identity") == expected)
    note(folder, expected)
    return True


def note(folder: Path, identity: str) -> None:
    """What lies in the folder goes by this identity from now on."""
    write_json(folder / PROGRESS, {"identity": identity})


def finish(
    folder: Path, stage: Stage, expected: str, outputs: list[Path], result: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Record that the stage is done, with the size and hash of each output; from now on it counts."""
    reached("finish")
    record = {
        "name": stage.name,
        "kind": kind(stage),
        "identity": expected,
        "seconds": seconds,
        "outputs": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(outputs)
        },
        "result": dict(result),
    }
    write_json(folder / RECORD, record)
    return record


def begun_as(folder: Path) -> str | None:
    """The identity under which a stage was begun that is not finished; None if there is none."""
    path = folder / PROGRESS
    return read_json(path).get("identity") if path.is_file() and not (folder / RECORD).is_file() else None


def finished_as(folder: Path) -> str | None:
    """The identity under which a stage was finished, whether or not its files are still whole; None if it was not."""
    return str(_record(folder)["identity"]) if (folder / RECORD).is_file() else None


def result(folder: Path) -> dict[str, Any] | None:
    """What a finished stage recorded, or None."""
    return dict(_record(folder)["result"]) if (folder / RECORD).is_file() else None


def _function(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _rows(rows: Rows) -> list[Any]:
    return [rows.column, list(rows.values)]


def _record(folder: Path) -> dict[str, Any]:
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or not {"identity", "outputs", "result"} <= set(record):
        raise RunError(
            f"{folder / RECORD} is not the record of a stage", hint="remove it: the stage will be done again"
        )
    return record
