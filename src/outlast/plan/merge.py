"""Two folders of one run come together: what was done in one of them and not in the other is taken over.

They are one run if task, configuration, data, split and number of CPU threads are the same; then a stage of one
identity is the same stage wherever it was done. Promises: nothing that is done here is ever replaced by anything else,
and what is begun only by what is further, and is then kept beside it; what contradicts itself (a stage done in both
with other results, or begun under other identities) is refused before a file is touched; each stage appears whole, so
that the same command goes on after a kill.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlast.base.accident import reached
from outlast.base.files import TEMPORARY, place_folder, read_json, sha256, sync_path, write_json
from outlast.base.log import say
from outlast.config.identity import differences, identity
from outlast.errors import RunError
from outlast.plan import carry, ledger, record
from outlast.plan.shared import link
from outlast.save import bring_back, snapshot

AS_IT_WAS, TAKEN, FURTHER, COMPLETED, KEPT = "unpacked", "taken over", "further there", "completed", "kept"
TAKES = (TAKEN, FURTHER, COMPLETED)


def begin(staged: Path, run: Path) -> None:
    """A run that was not there appears at once. What a kill in a run's first moments left there gets another name."""
    reached("unpack.rename")
    if run.exists() and any(run.iterdir()):
        say(f"what was in {run} is now {bring_back.set_aside(run)}")
    elif run.exists():
        run.rmdir()
    staged.replace(run)
    sync_path(run.absolute().parent)


def decide(run: Path, other: Path, source: str) -> dict[str, str]:
    """What becomes of each stage that `other` has: only that folder's records count, of its other files the names.

    Raises RunError if they are not one run, or contradict each other. source: what to call it.
    """
    check_same(run, other, str(run), source)
    _, _, plan = carry.plan_of(run)
    ahead = snapshot.progress(run, verify=True), snapshot.progress(other)
    conflicts: list[str] = []
    stages: dict[str, str] = {}
    for stage in plan:
        if (other / stage.name).is_dir():
            here, there = (facts.get(stage.name, {}).get("step", 0) for facts in ahead)
            stages[stage.name] = _decide(run / stage.name, other / stage.name, there > here, conflicts)
    if conflicts:
        raise RunError(
            f"{run} and {source} contradict each other",
            details=conflicts,
            hint="keep one of them; or set the folder of the stage that you trust less aside, and unpack again",
        )
    return stages


def put(run: Path, staged: Path, known: Mapping[str, Any], stages: Mapping[str, str]) -> None:
    """Put these stages of `staged`, whole there, into the run; `known`: the record of where they were done."""
    write_json(run / record.NAME, record.joined(record.load(run), known, list(stages)))
    give_way = [name for name, how in stages.items() if how != COMPLETED and (run / name).is_dir()]
    if give_way:
        _keep(run, give_way)
    for name, how in stages.items():
        reached("unpack.stage")
        if how == COMPLETED:
            _complete(staged / name, run / name)
        _move(staged / name, run / name)


def in_words(stages: Mapping[str, str], run: Path) -> str:
    """'folds done (kept), train-fold0 at 120 (taken over)'."""
    facts = snapshot.progress(run)
    told = []
    for name, how in stages.items():
        at = facts.get(name)
        where = "begun" if at is None else "done" if at["finished"] else f"at {at['step']}"
        told.append(f"{name} {where}" + (f" ({how})" if how != AS_IT_WAS else ""))
    return ", ".join(told) or "nothing done yet"


def check_same(run: Path, other: Path, target: str, source: str) -> None:
    """Refuse what is another run, each reason in a line: these two folders' records are of `target` and `source`.

    Raises RunError.
    """
    here, there = record.load(run), record.load(other)
    if here["task"] != there["task"]:
        raise RunError(
            f"{source} is of the task {there['task']!r}, and {target} is a run of {here['task']!r}",
            hint="give another folder with --out",
        )
    (_, own, _), (_, foreign, _) = carry.plan_of(run), carry.plan_of(other)
    reasons = differences(identity(own), identity(foreign))
    prints = [{name: item["fingerprint"] for name, item in known.get("data", {}).items()} for known in (here, there)]
    reasons += ["the data: other fingerprints"] if prints[0] != prints[1] else []
    splits = [{path.name: sha256(path) for path in folder.glob("split*.csv")} for folder in (run, other)]
    reasons += ["the frozen split"] if splits[0] != splits[1] else []
    threads = [known.get("threads") for known in (here, there)]
    reasons += [f"CPU threads: {threads[0]} and {threads[1]}"] if threads[0] != threads[1] else []
    if reasons:
        raise RunError(
            f"{source} is another run than the one in {target}",
            details=reasons,
            hint="give another folder with --out; runs that are to come together need the same settings and data "
            "(and the same train.threads)",
        )


def _decide(here: Path, there: Path, further: bool, conflicts: list[str]) -> str:
    """What becomes of one stage."""
    own, other = ledger.record_of(here), ledger.record_of(there)
    if own is not None and other is not None:
        if own["outputs"] != other["outputs"] or own["identity"] != other["identity"]:
            conflicts.append(f"{here.name} is done in both, with other results")
        spoilt = {path.relative_to(here).as_posix() for path in ledger.damaged(here)}
        more = (spoilt | set(ledger.elsewhere(here))) - set(ledger.elsewhere(there))
        return COMPLETED if more else KEPT
    if own is not None:
        return KEPT
    begun = ledger.begun_as(here)
    meant = str(other["identity"]) if other is not None else ledger.begun_as(there)
    if begun is not None and begun != meant:
        conflicts.append(f"{here.name} was begun here with other data or inputs")
    if other is not None:
        return TAKEN
    return KEPT if begun is not None and not further else FURTHER


def _complete(staged: Path, here: Path) -> None:
    """Add to an unpacked stage what the same stage has here, so that it can take its place."""
    for path in sorted(path for path in here.rglob("*") if path.is_file()):
        name = path.relative_to(here)
        if not (staged / name).exists() and not any(part.startswith(TEMPORARY) for part in name.parts):
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staged / name)
            sync_path(staged / name)
    known = read_json(staged / ledger.RECORD)
    write_json(staged / ledger.RECORD, ledger.leaving(known, ledger.elsewhere(staged)))


def _keep(run: Path, stages: Sequence[str]) -> None:
    """What gives way to more is kept beside the run, as links where the disk has them."""
    aside = bring_back.free_name(run)
    paths = [run / name for name in carry.root_names(run)] + [p for each in stages for p in (run / each).rglob("*")]

    def fill(kept: Path) -> None:
        for path in paths:
            target = kept / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                link(path, target)

    place_folder(aside, fill, lambda kept: None)
    say(f"what {run} had of {', '.join(stages)} is kept in {aside}")


def _move(staged: Path, target: Path) -> None:
    """A verified stage takes its place in the run at once."""

    def fill(folder: Path) -> None:
        for path in staged.iterdir():
            os.rename(path, folder / path.name)  # noqa: PTH104

    place_folder(target, fill, lambda folder: None)
