"""What comes from elsewhere into a run folder: `outlast unpack`, and `outlast train --previous`.

A pack or a run, named or attached as an input, perhaps read-only, is looked at by its records alone; then what it has
and the run here has not is fetched into a folder beside the run, stage by stage, every file compared with its hash,
and put in place. A new run appears by one rename, and one that is there takes over each stage whole (`plan.merge`).
Several that are one run come together so, the furthest first. What is killed in between is done again by the same
command. Where there is no room for all, what nothing reads any more stays where it is.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.base.files import TEMPORARY, locked, read_json, write_json
from outlast.base.log import say, warn
from outlast.config.schema import TaskConfig
from outlast.data.find import KAGGLE_INPUT
from outlast.env import host
from outlast.errors import CheckpointError, OutlastError, RunError, SaveError, UsageError, listed
from outlast.plan import attached, carry, folder, ledger, merge, pack, record
from outlast.save import archive, snapshot
from outlast.save.archive import Archive
from outlast.save.need import limit_of
from outlast.save.space import in_words, room
from outlast.task import Call, Stage, Task

AUTO = "auto"
_SMALL_BYTES = 10**6

Check = Callable[[Path], object]  # raises OutlastError about the folder with a run's records


@dataclass(frozen=True)
class _Arrival:
    """A pack or a run that was looked at. outline: its records, verified, and all its other files, empty."""

    found: Archive
    outline: Path
    plan: list[Stage]

    @property
    def path(self) -> Path:
        return self.found.path


def unpack(source: Path, out: Path) -> dict[str, Any]:
    """Put what `source` is or holds in place at `out`, or take over from it; see `outlast.unpack`."""
    if not out.name:
        raise UsageError(f"{out} is no name of a run folder", hint="give --out the folder that the run is to have")
    places = [place for place in attached.named(source) if place.resolve() != out.resolve()]
    if not places:
        raise UsageError(f"{source} is what it would be unpacked to", hint="name another pack or run")
    with locked(out.parent / f".{out.name}.lock", f"another process is training in {out}"):
        _check_free(out)
        with _arrived(places, out, lambda records: None) as (arrivals, refused):
            if refused:
                raise refused[0]
            for other in [] if record.is_run(out) else arrivals[1:]:
                merge.check_same(arrivals[0].outline, other.outline, str(arrivals[0].path), str(other.path))
            stages: dict[str, str] = {}
            for each in arrivals:
                told = _take(each, out)
                stages |= {name: how for name, how in told.items() if how in merge.TAKES or name not in stages}
            first = arrivals[0]
    left = [stage.name for stage in first.plan if not (out / stage.name / ledger.RECORD).is_file()]
    command = _command(out, first.found.manifest.get("for")) if left else None
    if command:
        say(f"go on with:\n  {command}")
    return {
        "run": str(out), "pack": str(first.path), "for": first.found.manifest.get("for"), "stages": stages,
        "stages_left": left, "next_command": command,
    }  # fmt: skip


def bring(
    wish: str,
    run: Path,
    task: Task,
    config: TaskConfig,
    *,
    extend: bool = False,
    inputs: Path | None = None,
) -> list[Path]:
    """Take over into `run`, which the caller has locked, what earlier sessions left; returns what brought anything.

    wish: a pack, a run or a folder that holds some; or "auto" for all that is attached. Only what is of the same task
    and configuration is taken. Raises UsageError or RunError if nothing that was named is; what is attached beside it
    and does not fit is said in a sentence. Raises SaveError where there is no room: it is not begun anew then.
    """
    places = attached.among(inputs or KAGGLE_INPUT) if wish == AUTO else attached.named(Path(wish))
    places = [place for place in places if place.resolve() != run.resolve()]
    if wish == AUTO:
        places = [place for place in places if attached.task_of(place) in (None, task.name)]
    if not places:
        return []
    _check_free(run)
    brought = []

    def fits(records: Path) -> None:
        record.check_same(records, task.name, config, extend=extend, extend_command="")

    with _arrived(places, run, fits) as (arrivals, refused):
        fitting = len(arrivals)
        for each in arrivals:
            try:
                if set(_take(each, run).values()) != {merge.KEPT}:
                    brought.append(each.path)
            except (CheckpointError, RunError) as error:
                refused.append(error)
                fitting -= 1
        if wish != AUTO and not fitting:
            if len(refused) == 1:
                raise refused[0]
            raise RunError(
                f"{wish} holds no run that this one could go on with",
                details=[_sentence(error) for error in refused],
                hint="give what was made with the same task and settings, or leave --previous out",
            )
        for reason in refused:
            warn(f"not gone on with: {_sentence(reason)}")
    return brought


def complete(run: Path, source: Path) -> None:
    """Take over into a run what another folder of the same run has besides. Raises RunError, CheckpointError."""
    with _arrived([source], run, lambda records: None) as (arrivals, refused):
        if refused:
            raise refused[0]
        _take(arrivals[0], run)


# -- looking -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _arrived(places: Sequence[Path], run: Path, check: Check) -> Iterator[tuple[list[_Arrival], list[OutlastError]]]:
    """What lies at these places, the furthest first, and what was refused; a folder beside the run holds the outlines.

    `check` is asked about the records of each. That folder is gone afterwards, however the block ends.
    """
    beside = _beside(run)
    shutil.rmtree(beside, ignore_errors=True)  # of an unpacking that was killed: the lock is ours
    arrivals: list[_Arrival] = []
    refused: list[OutlastError] = []
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, beside, ignore_errors=True)
        for number, place in enumerate(places):
            try:
                found = stack.enter_context(_opened(place, check))
                outline = beside / f"outline-{number}"
                with _written(run):
                    _outline(found, outline)
                check(outline)
                arrivals.append(_Arrival(found, outline, _checked(found, outline)))
            except SaveError:  # nothing can be written here
                raise
            except OutlastError as error:
                refused.append(error)
        ordered: list[_Arrival] = []
        for each in arrivals:  # stable: of two that are as far, the first one
            at = next((i for i, other in enumerate(ordered) if _is_further(each, other)), len(ordered))
            ordered.insert(at, each)
        yield ordered, refused


def _is_further(one: _Arrival, other: _Arrival) -> bool:
    return snapshot.further(snapshot.progress(one.outline), snapshot.progress(other.outline))


@contextlib.contextmanager
def _opened(place: Path, check: Check) -> Iterator[Archive]:
    """The pack, or the run as if it had been packed. Raises OutlastError."""
    if not attached.is_pack(place) and place.is_dir():
        check(place)  # before all of it is read
        with pack.quiet_run(place):
            _, _, plan = carry.plan_of(place)
            spoilt: list[str] = []
            load = carry.load(place, plan, None, everything=True, spoilt=spoilt)
            for sentence in spoilt:
                warn(f"that stage is not taken: {sentence}")
            yield archive.of_files(place, load.files, pack.about(place, load, None))
        return
    with archive.opened(place) as found:
        if found.manifest.get("kind") != attached.KIND or found.manifest.get("format") != pack.FORMAT:
            raise CheckpointError(
                f"{place} is not a pack that this version of Outlast can read",
                hint="give what `outlast pack` wrote; unpack with the version of Outlast that made it",
            )
        for name in (record.NAME, "config.yaml"):
            if name not in found.files:
                raise CheckpointError(f"{place} is refused: it has no {name}", hint="make it again: outlast pack")
        yield found


def _outline(found: Archive, outline: Path) -> None:
    """The records of an archive in a new folder, verified; its other files are empty there: that they exist, counts."""
    outline.mkdir(parents=True)
    records = {name for name in found.files if _is_record(name)}
    archive.fetch(found, outline, records, room(outline).free)
    for name in set(found.files) - records:
        (outline / name).parent.mkdir(parents=True, exist_ok=True)
        (outline / name).touch()


def _is_record(name: str) -> bool:
    stage, _, rest = name.rpartition("/")
    return not stage or ("/" not in stage and rest in (ledger.RECORD, ledger.PROGRESS))


def _checked(found: Archive, outline: Path) -> list[Stage]:
    """The plan of what was looked at. Raises CheckpointError if it holds anything but parts of a run, contradicts its
    own records, or has nothing to go on from.
    """
    _, _, plan = carry.plan_of(outline)
    names = {stage.name for stage in plan}
    roots = {*carry.root_names(outline)}
    stray = [name for name in found.files if name not in roots and name.partition("/")[0] not in names]
    if stray:
        raise CheckpointError(
            f"{found.path} is refused: {listed(stray)} is no part of a run of this task",
            hint="give what `outlast pack` wrote; unpack with the version of the task that made it",
        )
    for name in (stage.name for stage in plan if (outline / stage.name).is_dir()):
        known = ledger.record_of(outline / name) or {"outputs": {}}
        absent = ledger.elsewhere(outline / name)
        for file, output in known["outputs"].items():
            if file not in absent and dict(found.files.get(f"{name}/{file}", {})) != output:
                raise CheckpointError(
                    f"{found.path} is refused: {name}/{file} is not what the record of {name!r} says",
                    hint="make it again: outlast pack",
                )
    if not snapshot.progress(outline):
        raise CheckpointError(
            f"in {found.path} no stage is done, and no checkpoint verifies", hint="there is nothing to go on from"
        )
    return plan


# -- taking ------------------------------------------------------------------------------------------------------------


def _take(arrival: _Arrival, run: Path) -> Mapping[str, str]:
    """Take over what the run has not; says so in a sentence, and returns what became of each stage."""
    fresh = not record.is_run(run)
    if fresh:
        stages = {stage.name: merge.AS_IT_WAS for stage in arrival.plan if (arrival.outline / stage.name).is_dir()}
    else:
        stages = merge.decide(run, arrival.outline, str(arrival.path))
    taken = [name for name, how in stages.items() if how in (merge.AS_IT_WAS, *merge.TAKES)]
    if not taken:
        say(f"{arrival.path} holds nothing that {run} does not have: {merge.in_words(stages, run)}")
        return stages
    names, left = _selection(arrival, run, taken, fresh=fresh)
    staged = _beside(run) / "files"
    with _written(run):
        shutil.rmtree(staged, ignore_errors=True)  # of one that was refused
        staged.mkdir()
        archive.fetch(arrival.found, staged, names, _free(arrival, run))
        for name, outputs in left.items():
            known = read_json(staged / name / ledger.RECORD)
            write_json(staged / name / ledger.RECORD, ledger.leaving(known, outputs))
        if fresh:
            merge.begin(staged, run)
        else:
            merge.put(run, staged, record.load(arrival.outline), {name: stages[name] for name in taken})
        shutil.rmtree(staged, ignore_errors=True)
    how = "comes" if fresh else "takes over"
    say(f"{run} {how} from {arrival.path}: {merge.in_words(stages, run)}{_words_of_left(arrival, left)}")
    return stages


def _selection(
    arrival: _Arrival, run: Path, taken: Sequence[str], *, fresh: bool
) -> tuple[set[str], dict[str, list[str]]]:
    """The files of the stages that are taken; and {stage: outputs} of those that stay where they are.

    All are taken where that leaves as much room as it uses; else only what the rest of the plan and the task's
    delivery read, and what is small.
    """
    files = arrival.found.files
    names = {name for name in files if name.partition("/")[0] in taken or (fresh and "/" not in name)}
    if 2 * sum(int(files[name]["bytes"]) for name in names) <= _free(arrival, run):
        return names, {}
    read = _still_read(arrival, run)
    stay: set[str] = set()
    left: dict[str, list[str]] = {}
    for stage in taken:
        known = ledger.record_of(arrival.outline / stage)
        if known is not None and stage not in read:
            own = (name for name in names if name.startswith(f"{stage}/") and not _is_record(name))
            large = {name for name in own if files[name]["bytes"] > _SMALL_BYTES}
            stay |= large
            absent = ledger.elsewhere(arrival.outline / stage)
            left[stage] = [name for name in known["outputs"] if name in absent or f"{stage}/{name}" in large]
    return names - stay, {stage: outputs for stage, outputs in left.items() if outputs}


def _still_read(arrival: _Arrival, run: Path) -> set[str]:
    """The stages whose outputs are read by what is still to be done then, or may be by what the task delivers."""
    task, config, plan = carry.plan_of(arrival.outline)
    folders = (arrival.outline, run)
    undone = [each for each in plan if not any((at / each.name / ledger.RECORD).is_file() for at in folders)]
    delivered = {*task.deliver(config).models, *(each.name for each in plan if isinstance(each, Call))}
    return {name for each in undone for name in carry.read_by(each, plan)} | delivered


def _words_of_left(arrival: _Arrival, left: Mapping[str, Sequence[str]]) -> str:
    size = sum(
        int(arrival.found.files[f"{stage}/{name}"]["bytes"])
        for stage, outputs in left.items()
        for name in outputs
        if f"{stage}/{name}" in arrival.found.files
    )
    return f"; {in_words(size)} that nothing reads any more stay there, because there is little room" if size else ""


def _free(arrival: _Arrival, run: Path) -> int:
    """Bytes that may be written where the run lies: Kaggle keeps only so much."""
    _, config, _ = carry.plan_of(arrival.outline)
    return room(run, limit_of(run, host.detect(), config.saving.disk_limit_gigabytes)).free


def _beside(run: Path) -> Path:
    return run.absolute().with_name(f"{TEMPORARY}{run.name}-unpacking")


def _check_free(run: Path) -> None:
    """Refuse a folder that holds anything but a run, or what a kill in a run's first moments leaves."""
    if run.exists() and not record.is_run(run) and not folder.is_beginning(run):
        raise RunError(f"{run} exists and is not a run of Outlast", hint="give another folder with --out")


@contextlib.contextmanager
def _written(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{run.absolute().parent} cannot be written: {error.strerror or error}", hint="give --out another folder"
        ) from error


def _sentence(error: OutlastError) -> str:
    return "; ".join([error.message, *error.details])


def _command(out: Path, stage: str | None) -> str | None:
    """The run's next command, with this folder and the stage that was packed for; the user's data may lie elsewhere."""
    known = record.load(out)
    told = known.get("next_command") or known.get("command")
    if not isinstance(told, str):
        return None
    words = shlex.split(told)
    if "--out" in words[:-1]:
        words[words.index("--out") + 1] = str(out)
    if "--stage" in words[:-1]:
        del words[words.index("--stage") : words.index("--stage") + 2]
    if stage is not None and not (out / stage / ledger.RECORD).is_file():
        at = words.index("--out") + 2 if "--out" in words else len(words)
        words[at:at] = ["--stage", stage]
    return shlex.join(words)
