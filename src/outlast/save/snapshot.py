"""The run folder at one moment, and how far a run has come: both without stopping the training.

A snapshot is a folder of hard links, so that it costs no time and no copy; what training appends to is copied. It holds
all that is needed to go on elsewhere: not what was set aside or is half written, and of the checkpoints the newest.
While it exists, it keeps the disk space of what the run has removed since.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.base.accident import reached
from outlast.base.files import MANIFEST, TEMPORARY, sha256
from outlast.save import store

SET_ASIDE = "set-aside"
_APPENDED = ("metrics.jsonl",)  # grows in place; a link would grow with it
_RECORDS = ("run.json", "stage.json", "progress.json")  # taken first: what they name is already there
_ATTEMPTS = 5
Facts = dict[str, dict[str, Any]]  # {stage: {"step": int, "finished": bool}}


@dataclass(frozen=True)
class Snapshot:
    """The files of a run as they were at `taken_at` (seconds since the epoch), and its progress then."""

    folder: Path
    progress: Facts
    taken_at: float

    def names(self) -> list[str]:
        """The relative paths of its files."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def drop(self) -> None:
        """Remove it; the run's own files stay."""
        shutil.rmtree(self.folder, ignore_errors=True)


def take(run: Path) -> Snapshot:
    """A snapshot of the run. Raises OSError if the disk does not allow it."""
    for attempt in range(_ATTEMPTS):
        reached("mirror.take")
        folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}mirror-", dir=run))
        try:
            for path in _needed(run):
                _link(path, folder / path.relative_to(run))
            return Snapshot(folder, progress(folder), time.time())
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            # Training goes on meanwhile: what it removed between our look and our link makes another look necessary.
            if not isinstance(error, FileNotFoundError) or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def progress(run: Path, *, verify: bool = False) -> Facts:
    """How far each stage of a run is: its newest checkpoint (or number of finished shards or units), and if it is done.

    With `verify` only what still has the contents that were recorded counts.
    """
    stages = sorted(path for path in run.iterdir() if path.is_dir() and not path.name.startswith(TEMPORARY))
    found = {stage.name: _progress_of(stage, verify) for stage in stages if stage.name != SET_ASIDE}
    return {name: facts for name, facts in found.items() if facts["step"] or facts["finished"]}


def further(mirrored: Mapping[str, Mapping[str, Any]], local: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the mirror's copy of a run has come further: ahead in some stage, behind in none."""
    pairs = [(_key(mirrored, name), _key(local, name)) for name in {*mirrored, *local}]
    return any(there > here for there, here in pairs) and all(there >= here for there, here in pairs)


def _key(facts: Mapping[str, Mapping[str, Any]], name: str) -> tuple[bool, int]:
    return (bool(facts[name]["finished"]), int(facts[name]["step"])) if name in facts else (False, 0)


def _progress_of(stage: Path, verify: bool) -> dict[str, Any]:
    try:
        record = json.loads((stage / "stage.json").read_text(encoding="utf-8"))
        left = {name for name in record.get("elsewhere", ()) if not (stage / name).exists()}  # not carried here
        here = {name: output for name, output in record["outputs"].items() if name not in left}
        if not verify or all(_is(stage / name, output["sha256"]) for name, output in here.items()):
            return {"step": int(record["result"].get("steps", 0)), "finished": True}
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # a damaged record: the stage will be done again
    checkpoints = stage / "checkpoints"
    newest = store.newest(checkpoints, []) if verify else None
    folder = newest.folder if newest else None if verify else _newest_complete(checkpoints)
    step = _step(folder) if folder else _pieces(stage)
    return {"step": step, "finished": False}


def _pieces(stage: Path) -> int:
    """Finished shards of a prediction (where each model predicts alone, in a folder for each), or units of a call."""
    patterns = ("part-*.safetensors", "*/part-*.safetensors", "kept/[!.]*")
    return sum(1 for pattern in patterns for _ in stage.glob(pattern))


def _is(path: Path, expected: str) -> bool:
    return path.is_file() and sha256(path) == expected


def _newest_complete(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the manifest comes last, before the folder has its name."""
    return max((path.parent for path in checkpoints.glob(f"step-*/{MANIFEST}")), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _needed(run: Path) -> Iterator[Path]:
    """The files of a run that are needed to go on, records first."""
    files = []
    for here, folders, names in os.walk(run, onerror=_raise):
        folder = Path(here)
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]
        if folder == run:
            folders[:] = [name for name in folders if name != SET_ASIDE]
        elif folder.name == "checkpoints" and folder.parent.parent == run:
            newest = _newest_complete(folder)
            folders[:] = [newest.name] if newest else []
        files += [folder / name for name in names if not name.startswith(TEMPORARY)]
    yield from sorted(files, key=lambda path: path.name not in _RECORDS)


def _raise(error: OSError) -> None:
    raise error


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name not in _APPENDED:
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            pass  # a file system without links (some network and cloud disks)
    shutil.copyfile(source, target)
