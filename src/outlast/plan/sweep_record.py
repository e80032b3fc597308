"""sweep.json: which cells a sweep has and how each of them stands; written at every change, always as a whole.

A sweep is known again by its task, its axes and the configuration of every cell. It may get more values, and so more
cells, from one session to the next; anything else is refused before a file is touched. Whether a cell is finished is
read from its own run folder, so that a kill can't make this record say too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlast.base.clock import Durations
from outlast.base.files import TEMPORARY, write_json
from outlast.config.identity import digest, identity
from outlast.errors import RunError, listed
from outlast.plan import ledger, record
from outlast.plan.grid import Cell, Grid
from outlast.report import sweep
from outlast.task import Task


class SweepRecord:
    """The record of a sweep while a session of it goes on."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder, self.values = folder, values
        self.cells: dict[str, dict[str, Any]] = {cell["cell"]: cell for cell in values["cells"]}
        self.durations = Durations(longest=dict(values.get("longest_seconds", {})))

    @classmethod
    def open(cls, folder: Path, task: Task, preset: str, grid: Grid, must: bool) -> SweepRecord:
        """Go on with the sweep in `folder` or begin one; nothing is written. must: there has to be one.

        Raises RunError if what is there is something else, or another sweep.
        """
        known = sweep.load(folder) if sweep.is_sweep(folder) else None
        if known is None:
            _check_free(folder, must)
        else:
            _check_same(folder, known, task, preset, grid)
        values = {
            "format": 1, "created": record.now(), "sessions": [], **(known or {}),
            "task": task.name, "preset": preset, "over": grid.repeats, "settings": list(grid.settings),
            "axes": [{"name": axis.name, "key": axis.key, "values": list(axis.texts)} for axis in grid.axes],
        }  # fmt: skip
        before = {cell["cell"]: cell for cell in (known or {}).get("cells", [])}
        values["cells"] = [_standing(folder, cell, before.get(cell.place, {})) for cell in grid.cells]
        return cls(folder, values)

    def begin_session(self) -> None:
        """A session begins; one that was killed has no end."""
        self.values["sessions"].append({"started": record.now(), "ended": None})
        self.values |= {"status": "running", "reason": None}
        self.save()

    def end_session(self, status: str, reason: str | None, next_command: str | None) -> None:
        """The session ends: finished, stopped or failed, why, and what to type next."""
        self.values["sessions"][-1]["ended"] = record.now()
        self.values |= {"status": status, "reason": reason, "next_command": next_command}
        self.save()

    def note(self, cell: Cell, status: str, reason: str | None = None) -> None:
        """How a cell stands now."""
        self.cells[cell.place] |= {"status": status, "reason": reason}
        self.save()

    def is_finished(self, cell: Cell) -> bool:
        """Whether there is nothing left to do for a cell."""
        return bool(self.cells[cell.place]["status"] == "finished")

    def having(self, status: str) -> list[dict[str, Any]]:
        """The cells that stand so."""
        return [cell for cell in self.cells.values() if cell["status"] == status]

    def save(self) -> None:
        """Write sweep.json."""
        self.values["longest_seconds"] = dict(self.durations.longest)
        write_json(self.folder / sweep.NAME, self.values)


def seconds_spent(folder: Path, grid: Grid) -> float:
    """Seconds that all sessions of all cells took so far."""
    return sum(record.seconds_spent(folder / cell.place) for cell in grid.cells)


def _check_free(folder: Path, must: bool) -> None:
    if record.is_run(folder):
        raise RunError(f"{folder} is a run, not a sweep", hint="give another folder with --out")
    if folder.exists() and (
        not folder.is_dir() or any(not path.name.startswith(TEMPORARY) for path in folder.iterdir())
    ):
        raise RunError(f"{folder} exists and is not a sweep of Outlast", hint="give another folder with --out")
    if must:
        raise RunError(
            f"there is no sweep in {folder} to resume", hint="use --resume auto, or give its folder with --out"
        )


def _check_same(folder: Path, known: Mapping[str, Any], task: Task, preset: str, grid: Grid) -> None:
    new = "give the same words to go on with it, or another folder with --out for a new sweep"
    if known["task"] != task.name:
        raise RunError(f"{folder} is a sweep of the task {known['task']!r}, not of {task.name!r}", hint=new)
    before, now = [axis["key"] for axis in known["axes"]], [axis.key for axis in grid.axes]
    if before != now:
        raise RunError(f"{folder} is a sweep over {listed(before)}, not over {listed(now)}", hint=new)
    cells = {cell.place: cell for cell in grid.cells}
    left = [cell for cell in known["cells"] if cell["cell"] not in cells]
    if left:
        raise RunError(
            f"{folder} has {len(left)} cells that are not among these: {listed([sweep.label(cell) for cell in left])}",
            hint="name all the values it was begun with, and more if you like; or give another folder with --out",
        )
    for cell in known["cells"]:
        if cell["config_hash"] != _hash(cells[cell["cell"]]):
            settings = [f"{known['preset']} {' '.join(known['settings'])}", f"{preset} {' '.join(grid.settings)}"]
            raise RunError(
                f"{folder} was begun with other settings", details=[f"{settings[0]} -> {settings[1]}"], hint=new
            )


def _standing(folder: Path, cell: Cell, before: Mapping[str, Any]) -> dict[str, Any]:
    """How a cell stands when a session begins, by what lies in its own folder."""
    run = folder / cell.place
    status, reason = "waiting", None
    if record.is_run(run):
        known = record.load(run)
        status, reason = str(known.get("status")), known.get("reason")
        if status == "finished" and (known.get("config_hash") != _hash(cell) or not _is_whole(run)):
            status = "stopped"
        elif status == "running":
            status = "stopped"  # it was killed
    if status == "waiting" and before.get("status") == "failed":
        status, reason = "failed", before.get("reason")
    return {"cell": cell.place, "values": dict(cell.texts), "status": status, "reason": reason,
            "config_hash": _hash(cell)}  # fmt: skip


def _is_whole(run: Path) -> bool:
    """Whether every stage that the run has finished still has the files that it made."""
    return all(not ledger.damaged(path.parent) for path in run.glob(f"*/{ledger.RECORD}"))


def _hash(cell: Cell) -> str:
    return digest(identity(cell.config))
