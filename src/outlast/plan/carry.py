"""Which files of a run travel: what the next session needs to go on, and nothing else.

Always: the run's record, configuration and frozen split, and the record of every stage that is done, so that it
counts as done wherever it is unpacked: the ledger knows stages by the hashes in their records. The outputs of a done
stage only if a stage that is still to be done reads them; others are named in the record as left elsewhere. Of a stage
that was begun: its newest verified checkpoint, best weights, shards and metrics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outlast import task as tasks
from outlast.base.files import TEMPORARY, plain
from outlast.config.load import read_config
from outlast.config.schema import TaskConfig
from outlast.errors import RunError, UsageError
from outlast.plan import hours, ledger, record
from outlast.save import store
from outlast.save.archive import Source
from outlast.task import Predict, Stage, Task, needed, topological

DONE, BEGUN = "done", "begun"
_CHECKPOINTS = "checkpoints"


@dataclass
class Load:
    """What travels: files by their names in the run, the stages that are in it and how they stand, what is left."""

    files: dict[str, Source] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)  # {stage: DONE | BEGUN}
    left_bytes: int = 0
    whole: bool = False  # nothing of the run is left behind


def plan_of(run: Path) -> tuple[Task, TaskConfig, list[Stage]]:
    """The task of a run, its configuration and the stages of its plan in order."""
    task = tasks.find(str(record.load(run)["task"]))
    config = read_config(task.config, run / "config.yaml")
    return task, config, topological(task.stages(config))


def root_names(run: Path) -> list[str]:
    """The files of the run itself that go with it everywhere."""
    names = [record.NAME, "config.yaml", hours.PLAN, *(path.name for path in sorted(run.glob("split*.csv")))]
    return [name for name in names if (run / name).is_file()]


def load(
    run: Path, plan: Sequence[Stage], stage: str | None, *, everything: bool, spoilt: list[str] | None = None
) -> Load:
    """What `stage` needs, or the rest of the plan, or (everything, or nothing left to do) all of the run.

    Raises UsageError for a stage that can't be done, RunError if something that is needed is not here as recorded;
    with `spoilt` such a stage is left out, and the list gets a sentence about it.
    """
    wanted = _wanted(run, plan, stage)
    found = Load(whole=everything or not wanted)
    found.files = {name: run / name for name in root_names(run)}
    read = {name for each in wanted for name in read_by(each, plan)}
    for each in plan:
        folder = run / each.name
        if (folder / ledger.RECORD).is_file():
            try:
                _done(found, folder, whole=found.whole, outputs=found.whole or each.name in read, by=stage)
            except RunError as error:
                if spoilt is None:
                    raise
                spoilt.append(error.message)
        elif (folder / ledger.PROGRESS).is_file() and (found.whole or each in wanted):
            found.stages[each.name] = BEGUN
            found.files |= {f"{each.name}/{name}": source for name, source in _files(folder)}
    return found


def read_by(stage: Stage, plan: Sequence[Stage]) -> list[str]:
    """The stages whose outputs a stage reads: those it needs, and for a prediction what its models were built from."""
    by_name = {each.name: each for each in plan}
    models = stage.models if isinstance(stage, Predict) else ()
    return list(dict.fromkeys([*needed(stage), *(need for name in models for need in needed(by_name[name]))]))


def check_here(run: Path, plan: Sequence[Stage], only: str | None) -> None:
    """Refuse (RunError) to begin where a stage that is to be done reads what was left on another machine."""
    for stage in plan:
        if only not in (None, stage.name) or (run / stage.name / ledger.RECORD).is_file():
            continue
        for name in read_by(stage, plan):
            if ledger.elsewhere(run / name):
                raise RunError(
                    f"the stage {stage.name!r} reads what {name!r} has made, which was not carried to {run}",
                    hint=f"there: outlast pack RUN --for {stage.name} --to FILE.zip; here: outlast unpack FILE.zip "
                    f"--out {run}; or do the stage that was packed for, with --stage",
                )


def _wanted(run: Path, plan: Sequence[Stage], name: str | None) -> list[Stage]:
    """The stages that are to be done where this is unpacked."""
    undone = [stage for stage in plan if not (run / stage.name / ledger.RECORD).is_file()]
    if name is None:
        return undone
    stages = {stage.name: stage for stage in plan}
    if name not in stages:
        raise UsageError(f"there is no stage {name!r}", hint=f"the stages are: {', '.join(stages)}")
    if stages[name] not in undone:
        left = ", ".join(stage.name for stage in undone) or "none is left"
        raise UsageError(f"the stage {name!r} is done already", hint=f"still to be done: {left}")
    unmet = [need for need in needed(stages[name]) if stages[need] in undone]
    if unmet:
        raise UsageError(
            f"the stage {name!r} needs {', '.join(unmet)}, which is not done yet",
            hint=f"do that first, pack --for {unmet[0]}, or leave --for out to carry all that the plan needs",
        )
    return [stages[name]]


def _done(found: Load, folder: Path, *, whole: bool, outputs: bool, by: str | None) -> None:
    known = ledger.record_of(folder)
    assert known is not None
    absent = ledger.elsewhere(folder)
    if outputs and not whole and absent:
        raise RunError(
            f"{by or 'the rest of the plan'} needs what {folder.name!r} has made, which is not in {folder.parent}: it "
            "was left where that was packed",
            hint="pack the run that is there, or unpack one here that holds it",
        )
    damaged = ledger.damaged(folder) if outputs else []
    if damaged:
        raise RunError(
            f"{damaged[0]} is gone or not what was recorded", hint="`outlast train` makes it again; pack after that"
        )
    left = [name for name in known["outputs"] if not outputs or name in absent]
    found.stages[folder.name] = DONE
    found.left_bytes += sum(known["outputs"][name]["bytes"] for name in left if name not in absent)
    for name, source in _files(folder):
        # What lies in the folder itself is what the machinery notes: small, and read by reports and other stages.
        if outputs if name in known["outputs"] else whole or "/" not in name:
            found.files[f"{folder.name}/{name}"] = source
    record_now = ledger.leaving(known, left)
    if record_now != known:
        text = json.dumps(plain(record_now), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        found.files[f"{folder.name}/{ledger.RECORD}"] = text.encode("utf-8")


def _files(folder: Path) -> Iterator[tuple[str, Source]]:
    """The files of a stage without what a kill left half written, and without older checkpoints."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] != _CHECKPOINTS and not any(part.startswith(TEMPORARY) for part in parts):
            yield "/".join(parts), path
    saved = store.newest(folder / _CHECKPOINTS, [])
    if saved is not None:
        for path in sorted(path for path in saved.folder.rglob("*") if path.is_file()):
            yield f"{_CHECKPOINTS}/{saved.folder.name}/{path.relative_to(saved.folder).as_posix()}", path
        yield f"{_CHECKPOINTS}/LATEST", f"{saved.folder.name}\n".encode()
