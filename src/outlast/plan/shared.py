"""Stages that several cells of a sweep have in common: done once, taken over by the others.

A cell takes a stage only if it is the very same: the same settings of its own (also those that a run may change on
purpose), data and inputs. Its files are hard links where the disk has them, else copies; each is compared with the hash
in the stage's record before the stage counts. Its checkpoints stay where it was trained.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outlast.base.accident import reached
from outlast.base.files import TEMPORARY, place_folder, read_json, sync_path, write_json
from outlast.base.log import say, warn
from outlast.config.identity import digest, identity
from outlast.errors import CheckpointError, RunError
from outlast.plan import ledger
from outlast.task import Predict, Stage, Train, needed, topological

_APPENDED = "metrics.jsonl"  # written in place: a link would write into the other cell's
_LEFT = ("checkpoints",)


@dataclass(frozen=True)
class Twin:
    """Another cell with the same stage: its run folder, what it is called, and why it failed in this session."""

    run: Path
    name: str
    failed: str | None = None


def signatures(plan: Sequence[Stage]) -> dict[str, str]:
    """{stage: hash of all that its settings, and those of the stages it needs, decide}; data do not count here."""
    found: dict[str, str] = {}
    trains = {stage.name: stage for stage in plan if isinstance(stage, Train)}
    for stage in topological(plan):
        config = trains[stage.models[0]].config if isinstance(stage, Predict) else stage.config
        needs = {name: found[name] for name in needed(stage)}
        found[stage.name] = digest({**ledger.described(stage), "config": identity(config), "needs": needs})
    return found


def expected(folder: Path, twins: Sequence[Twin]) -> bool:
    """Whether a stage that was never begun here will most likely be taken over: it needs no model and little room."""
    return not folder.exists() and any((twin.run / folder.name / ledger.RECORD).is_file() for twin in twins)


def take(folder: Path, expected: str, twins: Sequence[Twin]) -> Twin | None:
    """Take over the stage `folder` under this identity from the first twin that has it whole; None if none has.

    What was begun here goes on here. Raises RunError if a twin has just failed in this stage: so would this one.
    """
    if folder.exists() and ledger.finished_as(folder) != expected:
        return None
    for twin in twins:
        source = twin.run / folder.name
        if ledger.finished_as(source) == expected and not ledger.elsewhere(source):
            try:
                place_folder(folder, lambda new, source=source: _fill(new, source), _verify)  # type: ignore[misc]
            except CheckpointError as error:
                warn(f"{folder.name} is not taken over from {twin.name}: {error.message}")
                continue
            say(f"{folder.name} is the same as in {twin.name}, which has done it: taken over, every file verified")
            return twin
    for twin in twins:
        if twin.failed is not None and ledger.begun_as(twin.run / folder.name) == expected:
            raise RunError(
                f"it shares the stage {folder.name!r} with {twin.name}, which failed there: {twin.failed}",
                hint="the same command tries both again",
            )
    return None


def _fill(folder: Path, source: Path) -> None:
    """The stage's files, its record last."""
    where = os.path.relpath(source.parent, folder.parent)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if name.parts[0] in _LEFT or any(part.startswith(TEMPORARY) for part in name.parts):
            continue
        if path.is_dir():
            (folder / name).mkdir()
        elif name.as_posix() != ledger.RECORD:
            reached("take.file")
            link(path, folder / name)
    write_json(folder / ledger.RECORD, {**read_json(source / ledger.RECORD), "taken_from": where})


def link(path: Path, target: Path) -> None:
    """The file under another name: a hard link; a copy where the disk has none, or of what is written in place."""
    if path.name != _APPENDED:
        try:
            os.link(path, target)
        except OSError:  # not every disk has links (FAT, some network disks), and some have a limit on them
            pass
        else:
            return
    shutil.copyfile(path, target)
    sync_path(target)


def _verify(folder: Path) -> None:
    damaged = ledger.damaged(folder)
    if damaged:
        raise CheckpointError(
            f"{damaged[0].relative_to(folder)} is not what was recorded", hint="the stage is done again"
        )
