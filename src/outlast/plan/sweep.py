"""A sweep: the cells of a grid one after another as one plan, which any session goes on with until all are done.

Each cell is a run like any other, in a folder of its own; what one of them has finished the others take over
(`plan.shared`). A cell that fails is kept as failed with its reason, the others are done all the same, and the next
session tries it again. A signal or the session's end stops the whole sweep in time. The table, the CSV files, the
picture and the page are written at the end of every session.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from outlast.base.clock import Deadline, careful_guess, format_duration
from outlast.base.files import locked, read_json, sweep
from outlast.base.log import say, warn
from outlast.env import device, host, signals
from outlast.env.host import Host
from outlast.errors import DataError, DataNotFoundError, NoTimeError, OutlastError, UsageError
from outlast.loop.memory import release
from outlast.plan import ledger, limits, preflight, record, sweep_record
from outlast.plan.grid import Cell, Grid, describe, make_grid
from outlast.plan.request import Request, check_usage
from outlast.plan.session import run_session
from outlast.plan.shared import Twin, signatures
from outlast.plan.sweep_record import SweepRecord
from outlast.report import sweep as table
from outlast.report import sweep_page
from outlast.task import Task, Train

# Kinds of work for which time is set aside:
_READY = "ready"  # what a cell takes besides its stages: reading data, building models, its report
_TABLE = "table"  # the sweep's own table and page


@dataclass
class Sweep:
    """A session of a sweep."""

    task: Task
    asked: Request
    folder: Path
    grid: Grid
    kept: SweepRecord
    machine: Host
    deadline: Deadline
    stages: dict[str, dict[str, str]]  # {cell: {stage: signature}}
    failed: dict[str, str] = field(default_factory=dict)  # in this session: {cell: reason}
    progressed: bool = False

    @property
    def command(self) -> str:
        """The command that goes on with this sweep, as things stand now."""
        used = (time.time() - self.machine.session_started) * self.asked.quota_rate
        return self.asked.command(self.folder, str(self.asked.preset), used)


def run_sweep(asked: Request) -> dict[str, Any]:
    """Do one session of the sweep that was asked for. Returns what `outlast.train` returns for one."""
    began = time.monotonic()
    check_usage(asked)
    _check_options(asked)
    machine = host.detect()
    task = preflight.find_task(asked.task)
    preset = asked.preset or device.default_preset(list(task.presets))
    overrides = [*asked.overrides, *([] if asked.fallback else ["train.fallback=false"])]
    grid, warnings = make_grid(task, preset, asked.sweep, overrides, asked.config)
    folder = asked.out or Path("runs") / f"{task.name.rpartition('.')[2]}-{preset}-sweep"
    words = [axis.word for axis in grid.axes]
    asked = replace(asked, preset=preset, out=folder, sweep=words, overrides=grid.settings, fallback=True)
    with locked(folder.parent / f".{folder.name}.lock", f"another process is sweeping in {folder}"):
        kept = SweepRecord.open(folder, task, preset, grid, must=asked.resume == "must")
        deadline = asked.deadline or limits.deadline(asked, machine, sweep_record.seconds_spent(folder, grid), began)
        if deadline.limited:
            kept.durations.guess_seconds = careful_guess(deadline.remaining())
        stages = {cell.place: signatures(list(task.stages(cell.config))) for cell in grid.cells}
        one = Sweep(task, asked, folder, grid, kept, machine, deadline, stages)
        for sentence in warnings:
            warn(sentence)
        say(_announcement(one))
        with signals.listen() as request:
            return _go_on(one, lambda: request.reason)


def _check_options(asked: Request) -> None:
    """Refuse what is for one run only. Raises UsageError."""
    given = {
        "--stage": asked.stage is not None,
        "--start-from": asked.start_from is not None,
        "--extend": asked.extend,
        "--previous": asked.previous is not None,
        "--resume never": asked.resume == "never",
        "--side-by-side": asked.side_by_side > 1,
        "several processes": asked.processes > 1 or list(asked.starter) != ["outlast"],
    }
    named = [name for name, there in given.items() if there]
    if named:
        raise UsageError(
            f"--sweep does not go with {', '.join(named)}",
            hint="leave it out; each cell of a sweep is a run of its own, and can be gone on with alone",
        )


def _go_on(one: Sweep, stop: Callable[[], str | None]) -> dict[str, Any]:
    """Do the cells that are left, then the table; the record is right before, during and after."""
    begun = table.is_sweep(one.folder)
    one.kept.begin_session()
    sweep(one.folder)
    stopped = None
    for number, cell in enumerate(one.grid.cells, start=1):
        if one.kept.is_finished(cell):
            continue
        stopped = stop() or _out_of_time(one)
        if stopped is None:
            say(f"sweep: cell {number} of {len(one.grid.cells)}: {describe(cell.texts)}")
            before = one.kept.cells[cell.place]
            status, why = before["status"], before["reason"]
            one.kept.note(cell, "running")
            try:
                stopped = _do(one, cell)
            except (DataError, UsageError) as error:  # not this cell's fault, but the command's
                one.kept.note(cell, status, why)
                one.kept.end_session("stopped", error.message, one.command)
                if not begun:
                    _take_back(one.folder)
                raise
            release()
        if stopped:
            break
    if stopped == one.deadline.reason and not one.progressed:
        one.kept.end_session("stopped", stopped, one.command)
        raise NoTimeError(
            f"the session ended before anything could be done: the {stopped} left too little for getting ready and for "
            "the time set aside",
            hint=f"give more with --{stopped.replace(' ', '-')}",
        )
    return _finish(one, stopped)


def _do(one: Sweep, cell: Cell) -> str | None:
    """Do what is left of one cell. Returns why everything has to stop, or None.

    Raises DataError and UsageError where all the cells would fail in the same way.
    """
    run = one.folder / cell.place
    try:
        result = run_session(_request(one, cell))
    except NoTimeError:
        one.kept.note(cell, "stopped", one.deadline.reason)
        return one.deadline.reason
    except OutlastError as error:
        begun = any(record.is_run(one.folder / name) for name in one.stages)
        if isinstance(error, DataNotFoundError | UsageError) or (isinstance(error, DataError) and not begun):
            raise
        print(f"error: {error}", file=sys.stderr)
        _fail(one, cell, error.message)
        return None
    except Exception as error:  # the edge of a cell: what is wrong with one must not keep the others from being done
        traceback.print_exc()
        _fail(one, cell, f"{type(error).__name__}: {error}")
        return None
    one.progressed = True
    one.kept.note(cell, result["status"], result["reason"])
    if result["status"] == "finished":
        one.kept.durations.record(_READY, _seconds_around(run))
    return result["reason"] if result["status"] == "stopped" else None


def _request(one: Sweep, cell: Cell) -> Request:
    """What a plain training of this cell would be asked for, and which others it shares stages with."""
    asked, deadline = one.asked, one.deadline
    if deadline.limited:
        deadline = replace(deadline, ends_at=deadline.ends_at - one.kept.durations.expected(_TABLE))
    return replace(
        asked, out=one.folder / cell.place, overrides=cell.overrides, sweep=(), resume="auto", deadline=deadline,
        mirror=f"{asked.mirror.rstrip('/')}/{cell.place}" if asked.mirror else None,
        twins={stage: _twins(one, cell, stage) for stage in one.stages[cell.place]},
    )  # fmt: skip


def _twins(one: Sweep, cell: Cell, stage: str) -> list[Twin]:
    """The other cells that have this stage too."""
    signature = one.stages[cell.place][stage]
    return [
        Twin(one.folder / other.place, describe(other.texts), one.failed.get(other.place))
        for other in one.grid.cells
        if other is not cell and one.stages[other.place].get(stage) == signature
    ]


def _fail(one: Sweep, cell: Cell, reason: str) -> None:
    one.failed[cell.place] = reason
    one.progressed = True
    one.kept.note(cell, "failed", reason)
    say(f"sweep: {describe(cell.texts)} FAILED: {reason}; the others go on")


def _out_of_time(one: Sweep) -> str | None:
    return one.deadline.reason if one.deadline.expired(one.kept.durations.expected(_READY, _TABLE)) else None


def _seconds_around(run: Path) -> float:
    """What the last session of a run took besides its stages."""
    last = record.load(run)["sessions"][-1]
    return float(max(last["seconds"] - sum(last["stages"].values()), 0.0))


def _take_back(folder: Path) -> None:
    """Nothing could be begun: what was made for it goes."""
    (folder / table.NAME).unlink(missing_ok=True)
    for path in [*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder]:
        with contextlib.suppress(OSError):  # something of the user's lies there
            path.rmdir()


def _finish(one: Sweep, stopped: str | None) -> dict[str, Any]:
    """End the session: status, table, last words."""
    kept, failed = one.kept, one.kept.having("failed")
    left = [cell for cell in kept.values["cells"] if cell["status"] not in ("finished", "failed")]
    status = "stopped" if stopped else "failed" if failed else "finished"
    reason = stopped or (f"{len(failed)} of {len(one.grid.cells)} cells failed" if failed else None)
    kept.end_session(status, reason, one.command if status != "finished" else None)
    began = one.deadline.now()
    found = sweep_page.write(one.folder)
    kept.durations.record(_TABLE, one.deadline.now() - began)
    kept.save()
    say(table.text(found))
    mark = " (SYNTHETIC data)" if found["synthetic"] else ""
    page = one.folder / "sweep.html"
    if status == "finished":
        say(f"the sweep is finished{mark}; page: {page}")
    elif status == "failed":
        say(f"the sweep is done but for what FAILED{mark}; page: {page}; try that again with:\n  {one.command}")
    else:
        say(f"the sweep stopped in time ({stopped}), {len(left)} cells are left{mark}; go on with:\n  {one.command}")
    return {
        "status": status,
        "reason": reason,
        "run": str(one.folder),
        "next_command": kept.values["next_command"],
        "report": str(page),
        "csv": str(one.folder / "sweep.csv"),
        "synthetic": found["synthetic"],
        "cells": found["cells"],
        "table": found["rows"],
        "over": found["over"],
        "cells_left": len(left),
    }


def _announcement(one: Sweep) -> str:
    """How much this is: cells, trainings and how many of them are different, and how long if that was measured."""
    sizes = " x ".join(f"{len(axis.texts)} {axis.name}" for axis in one.grid.axes)
    trainings = [
        one.stages[cell.place][stage.name]
        for cell in one.grid.cells
        for stage in one.task.stages(cell.config)
        if isinstance(stage, Train)
    ]
    count, finished, failed = len(one.grid.cells), len(one.kept.having("finished")), len(one.kept.having("failed"))
    words = f"sweep: {count} cells ({sizes}) with {len(trainings)} trainings, {len(set(trainings))} of them different"
    words += f"; {finished} cells are finished" if finished else ""
    words += f"; {failed} failed before and are tried again" if failed else ""
    left = _seconds_left(one)
    return words + (f"; about {format_duration(left)} left, by the stages done so far" if left else "")


def _seconds_left(one: Sweep) -> float | None:
    """The mean time of the stages that were done here, times how many are left; None if one kind was never done."""
    took: dict[str, list[float]] = {}
    done = set()
    for place, stages in one.stages.items():
        for name, signature in stages.items():
            path = one.folder / place / name / ledger.RECORD
            if path.is_file() and signature not in done:
                done.add(signature)
                took.setdefault(name, []).append(float(read_json(path)["seconds"]))
    left = {signature: name for stages in one.stages.values() for name, signature in stages.items()
            if signature not in done}  # fmt: skip
    if not left or not set(left.values()) <= set(took):
        return None
    return sum(statistics.fmean(took[name]) for name in left.values())
