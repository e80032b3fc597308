"""`outlast pack` and `outlast unpack`: a run, or what one stage of it needs, from one machine to another.

A pack is a zip file or a folder with one manifest (`save.archive`); it may be read where it lies read-only. A run
folder can be unpacked as it is, such as the output of a session that is attached to the next one. Unpacking verifies
everything in a folder beside the run before the run is touched; then a new run appears by one rename, and one that is
there takes over stage by stage what the pack has and it has not (`plan.merge`). What is killed in between is done again
by the same command.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from outlast.base.accident import reached
from outlast.base.files import MANIFEST, TEMPORARY, locked, sync_path
from outlast.base.log import say
from outlast.errors import CheckpointError, RunError, SaveError, UsageError, listed
from outlast.plan import carry, ledger, merge, record
from outlast.report import sweep
from outlast.save import archive
from outlast.save.archive import Archive
from outlast.save.space import in_words
from outlast.task import Stage

KIND = "outlast pack"
_FORMAT = 1
_DEPTH = 3  # how far below a folder that was named a pack or a run is looked for


def pack(run: Path, to: Path, stage: str | None = None, *, everything: bool = False) -> dict[str, Any]:
    """Write what the next session needs of a run to a .zip file or a folder; see `outlast.pack`."""
    if stage is not None and everything:
        raise UsageError("--for and --all exclude each other", hint="leave one of them out")
    archive.check_target(to)
    _check_run(run)
    if to.absolute().resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{to} lies inside of the run that is packed", hint="give --to a place outside of it")
    with _quiet_run(run):
        _, _, plan = carry.plan_of(run)
        load = carry.load(run, plan, stage, everything=everything)
        size = archive.write(to, load.files, _about(run, load, stage))
    what = "all of the run" if load.whole else f"what {stage} needs" if stage else "what the rest of the plan needs"
    left = f"; {in_words(load.left_bytes)} of it stay here" if load.left_bytes else ""
    say(f"{to}: {what}, {in_words(size)}{left}; there: outlast unpack {shlex.quote(to.name)} --out {run.name}")
    return {
        "pack": str(to), "bytes": size, "files": len(load.files), "for": stage, "whole": load.whole,
        "stages": load.stages, "left_bytes": load.left_bytes,
    }  # fmt: skip


def unpack(source: Path, out: Path) -> dict[str, Any]:
    """Put a pack, or a run folder as it is, in place at `out`, or take over from it; see `outlast.unpack`."""
    if not out.name:
        raise UsageError(f"{out} is no name of a run folder", hint="give --out the folder that the run is to have")
    busy = f"another process is training in {out}"
    with _opened(source) as found, locked(out.parent / f".{out.name}.lock", busy):
        if out.exists() and not record.is_run(out) and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} exists and is not a run of Outlast", hint="give another folder with --out")
        staged = out.absolute().with_name(f"{TEMPORARY}{out.name}-unpacking")
        with _staged(found, staged):
            plan = _check(found, staged)
            if record.is_run(out):
                result = merge.take_over(out, staged, str(found.path))
            else:
                _put_in_place(staged, out)
                how = dict.fromkeys(_stages(out, plan), merge.AS_IT_WAS)
                result = merge.Taken(how, f"{out} comes from {found.path}: {merge.in_words(how, out)}")
    left = [stage.name for stage in plan if not (out / stage.name / ledger.RECORD).is_file()]
    command = _command(out, found.manifest.get("for"), plan) if left else None
    say(result.sentence + (f"; go on with:\n  {command}" if command else ""))
    return {
        "run": str(out), "pack": str(found.path), "for": found.manifest.get("for"), "stages": dict(result.stages),
        "stages_left": left, "next_command": command,
    }  # fmt: skip


# -- packing -----------------------------------------------------------------------------------------------------------


def _check_run(run: Path) -> None:
    if sweep.is_sweep(run):
        raise RunError(f"{run} is a sweep of many runs", hint="pack one of the runs in its folder models")
    record.load(run)


@contextlib.contextmanager
def _quiet_run(run: Path) -> Iterator[None]:
    """Nobody trains in the run meanwhile. Where nothing can be written (an attached input) nobody does."""
    if not os.access(run.absolute().parent, os.W_OK):
        yield
        return
    with locked(run.parent / f".{run.name}.lock", f"another process is training in {run}"):
        yield


def _about(run: Path, load: carry.Load, stage: str | None) -> dict[str, Any]:
    known = record.load(run)
    return {
        "kind": KIND, "format": _FORMAT, "task": known["task"], "run_id": known.get("run_id"), "for": stage,
        "whole": load.whole, "stages": load.stages, "made": record.now(), "synthetic": known.get("synthetic"),
        "outlast": metadata.version("outlast"),
    }  # fmt: skip


# -- unpacking ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[Archive]:
    """The pack, or the run as if it had been packed, that `source` is or holds. Raises OutlastError."""
    place = _find(source)
    if record.is_run(place) and not (place / MANIFEST).is_file():
        with _quiet_run(place):
            _, _, plan = carry.plan_of(place)
            load = carry.load(place, plan, None, everything=True)
            yield archive.of_files(place, load.files, _about(place, load, None))
        return
    with archive.opened(place) as found:
        if found.manifest.get("kind") != KIND or found.manifest.get("format") != _FORMAT:
            raise CheckpointError(
                f"{place} is not a pack that this version of Outlast can read",
                hint="give what `outlast pack` wrote; unpack with the version of Outlast that made it",
            )
        yield found


def _find(source: Path) -> Path:
    """The pack or run that is meant: `source`, or the only one in that folder (platforms put inputs into folders)."""
    if not source.exists():
        raise UsageError(f"there is no {source}", hint="give a pack (FILE.zip or its folder) or a run folder")
    if source.is_file():
        if zipfile.is_zipfile(source):
            return source
        raise CheckpointError(f"{source} is refused: it is no zip file, or a part of one", hint="copy it again")
    found: list[Path] = []
    level = [source]
    for _ in range(_DEPTH + 1):
        found += [folder for folder in level if (folder / MANIFEST).is_file() or record.is_run(folder)]
        found += [path for folder in level for path in sorted(folder.glob("*.zip")) if path.is_file()]
        if found:
            break
        level = [path for folder in level for path in sorted(folder.iterdir()) if path.is_dir()]
    if len(found) != 1:
        what = f"{len(found)} packs or runs: {listed(found)}" if found else "no pack and no run"
        raise UsageError(f"{source} holds {what}", hint="name the one that is meant")
    return found[0]


@contextlib.contextmanager
def _staged(found: Archive, staged: Path) -> Iterator[None]:
    """All files of the pack in a folder of their own, verified; gone afterwards, however the block ends."""
    shutil.rmtree(staged, ignore_errors=True)  # of an unpacking that was killed: the lock is ours
    try:
        staged.mkdir(parents=True)
        archive.fetch(found, staged)
        yield
    except OSError as error:
        raise SaveError(
            f"{staged.parent} cannot be written: {error.strerror or error}", hint="give --out another folder"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check(found: Archive, staged: Path) -> list[Stage]:
    """The plan of an unpacked run; refuses what holds anything but parts of one, or records that its files contradict.

    Raises CheckpointError.
    """
    for name in (record.NAME, "config.yaml"):
        if name not in found.files:
            raise CheckpointError(f"{found.path} is refused: it has no {name}", hint="make it again: outlast pack")
    _, _, plan = carry.plan_of(staged)
    names = {stage.name for stage in plan}
    roots = {*carry.root_names(staged)}
    stray = [name for name in found.files if name not in roots and name.partition("/")[0] not in names]
    if stray:
        raise CheckpointError(
            f"{found.path} is refused: {listed(stray)} is no part of a run of this task",
            hint="give what `outlast pack` wrote; unpack with the version of the task that made it",
        )
    for name in _stages(staged, plan):
        known = ledger.record_of(staged / name) or {"outputs": {}}
        absent = ledger.elsewhere(staged / name)
        for file, output in known["outputs"].items():
            if file not in absent and dict(found.files.get(f"{name}/{file}", {})) != output:
                raise CheckpointError(
                    f"{found.path} is refused: {name}/{file} is not what the record of {name!r} says",
                    hint="make it again: outlast pack",
                )
    return plan


def _stages(run: Path, plan: Sequence[Stage]) -> list[str]:
    return [stage.name for stage in plan if (run / stage.name).is_dir()]


def _put_in_place(staged: Path, out: Path) -> None:
    reached("unpack.rename")
    if out.exists():
        out.rmdir()
    staged.replace(out)
    sync_path(out.absolute().parent)


def _command(out: Path, stage: str | None, plan: Sequence[Stage]) -> str | None:
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
