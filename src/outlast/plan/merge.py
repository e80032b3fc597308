"""Two folders of one run come together: what was done in one of them and not in the other is taken over.

They are one run if task, configuration, data, split and number of CPU threads are the same; then a stage of one
identity is the same stage wherever it was done. Promises: nothing that is done here is ever replaced by anything else;
what contradicts itself (a stage done in both with other results, or begun under other identities) is refused before a
file is touched; each stage appears whole, so that the same command goes on after a kill.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from outlast.base.accident import reached
from outlast.base.files import TEMPORARY, place_folder, read_json, sha256, sync_path, write_json
from outlast.config.identity import differences, identity
from outlast.errors import RunError
from outlast.plan import carry, ledger, record
from outlast.save import snapshot

AS_IT_WAS, TAKEN, FURTHER, COMPLETED, KEPT = "unpacked", "taken over", "further there", "completed", "kept"
_TAKES = (TAKEN, FURTHER, COMPLETED)


@dataclass(frozen=True)
class Taken:
    """What became of each stage, and a sentence about it."""

    stages: Mapping[str, str]
    sentence: str


def take_over(run: Path, staged: Path, source: str) -> Taken:
    """Take over into `run` what the unpacked one in `staged` has more; `source` is where that came from.

    Raises RunError if they are not one run, or contradict each other; nothing is changed then.
    """
    _check_same(run, staged, source)
    _, _, plan = carry.plan_of(run)
    ahead = snapshot.progress(run, verify=True), snapshot.progress(staged, verify=True)
    conflicts: list[str] = []
    stages: dict[str, str] = {}
    for stage in plan:
        if (staged / stage.name).is_dir():
            here, there = (facts.get(stage.name, {}).get("step", 0) for facts in ahead)
            stages[stage.name] = _decide(run / stage.name, staged / stage.name, there > here, conflicts)
    if conflicts:
        raise RunError(
            f"{run} and {source} contradict each other",
            details=conflicts,
            hint="keep one of them; or set the folder of the stage that you trust less aside, and unpack again",
        )
    taken = [name for name, how in stages.items() if how in _TAKES]
    if not taken:
        return Taken(stages, f"{source} holds nothing that {run} does not have: {in_words(stages, run)}")
    write_json(run / record.NAME, record.joined(record.load(run), record.load(staged), taken))
    for name in taken:
        reached("unpack.stage")
        if stages[name] == COMPLETED:
            _complete(staged / name, run / name)
        _move(staged / name, run / name)
    return Taken(stages, f"{run} takes over from {source}: {in_words(stages, run)}")


def in_words(stages: Mapping[str, str], run: Path) -> str:
    """'folds done (kept), train-fold0 at 120 (taken over)'."""
    facts = snapshot.progress(run)
    told = []
    for name, how in stages.items():
        at = facts.get(name)
        where = "begun" if at is None else "done" if at["finished"] else f"at {at['step']}"
        told.append(f"{name} {where}" + (f" ({how})" if how != AS_IT_WAS else ""))
    return ", ".join(told) or "nothing done yet"


def _check_same(run: Path, staged: Path, source: str) -> None:
    """Refuse what is another run: each reason in a line. Raises RunError."""
    here, there = record.load(run), record.load(staged)
    if here["task"] != there["task"]:
        raise RunError(
            f"{source} is of the task {there['task']!r}, and {run} is a run of {here['task']!r}",
            hint="give another folder with --out",
        )
    (_, own, _), (_, other, _) = carry.plan_of(run), carry.plan_of(staged)
    reasons = differences(identity(own), identity(other))
    prints = [{name: item["fingerprint"] for name, item in known.get("data", {}).items()} for known in (here, there)]
    reasons += ["the data: other fingerprints"] if prints[0] != prints[1] else []
    splits = [{path.name: sha256(path) for path in folder.glob("split*.csv")} for folder in (run, staged)]
    reasons += ["the frozen split"] if splits[0] != splits[1] else []
    threads = [known.get("threads") for known in (here, there)]
    reasons += [f"CPU threads: {threads[0]} and {threads[1]}"] if threads[0] != threads[1] else []
    if reasons:
        raise RunError(
            f"{source} is another run than the one in {run}",
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
        more = set(ledger.elsewhere(here)) - set(ledger.elsewhere(there))
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
    absent = ledger.elsewhere(staged)
    kept = {key: value for key, value in known.items() if key != ledger.ELSEWHERE}
    write_json(staged / ledger.RECORD, {**kept, **({ledger.ELSEWHERE: absent} if absent else {})})


def _move(staged: Path, target: Path) -> None:
    """A verified stage takes its place in the run at once."""

    def fill(folder: Path) -> None:
        for path in staged.iterdir():
            os.rename(path, folder / path.name)  # noqa: PTH104

    place_folder(target, fill, lambda folder: None)
