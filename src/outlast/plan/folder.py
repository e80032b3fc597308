"""Whether a session may go on in a run folder: what stands there, for which stage, and whether all processes see it.

Promises: it refuses, in one sentence, what it does not know; nothing that lies in a folder is deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from outlast.base.files import TEMPORARY
from outlast.base.log import say
from outlast.config.identity import Changes
from outlast.config.schema import TaskConfig
from outlast.env.host import Host
from outlast.errors import RunError, UsageError
from outlast.loop.accel import Compute
from outlast.plan import hours, ledger, record
from outlast.plan.request import Request
from outlast.save import bring_back
from outlast.task import Stage, Task, needed

_SEEN_SECONDS = 30.0  # a file system between machines may show a new file late


def check_run(run: Path, task: Task, config: TaskConfig, asked: Request, preset: str) -> Changes | None:
    """What was changed on purpose in the run that goes on, or None if none does; refuses anything else there."""
    if run.is_dir() and not os.access(run, os.W_OK | os.X_OK):
        raise RunError(f"{run} may not be written", hint="give another folder with --out, or change its permissions")
    if record.is_run(run):
        if asked.resume == "never":
            return None
        command = replace(asked, extend=True).command(run, preset)
        return record.check_same(run, task.name, config, extend=asked.extend, extend_command=command)
    # A kill in the first moments of a run may leave its configuration alone; nothing is lost by beginning again.
    if run.exists() and not is_beginning(run):
        raise RunError(f"{run} exists and is not a run of Outlast", hint="give another folder with --out")
    if asked.resume == "must":
        raise RunError(
            f"there is no run in {run} to resume", hint="use --resume auto, or give the run's folder with --out"
        )
    if asked.extend:
        raise RunError(
            f"there is no run in {run} to extend", hint="give the run's folder with --out, or leave --extend out"
        )
    return None


def is_beginning(run: Path) -> bool:
    """Whether a folder is empty, or holds what a plan, or a kill in a run's first moments, leaves there."""
    known = ("config.yaml", hours.PLAN)
    return run.is_dir() and all(path.name in known or path.name.startswith(TEMPORARY) for path in run.iterdir())


def set_aside(run: Path, resume: str, compute: Compute) -> None:
    """`--resume never` starts anew; the run that was there is kept under another name."""
    if resume == "never" and compute.main and record.is_run(run):
        say(f"--resume never: the run that was in {run} is now {bring_back.set_aside(run)}")
    compute.wait()


def check_stage(plan: Sequence[Stage], name: str | None, run: Path | None) -> None:
    if name is None:
        return
    stages = {stage.name: stage for stage in plan}
    if name not in stages:
        raise UsageError(f"there is no stage {name!r}", hint=f"the stages are: {', '.join(stages)}")
    unmet = [need for need in needed(stages[name]) if run is None or not (run / need / ledger.RECORD).is_file()]
    if unmet:
        raise UsageError(
            f"the stage {name!r} needs {', '.join(unmet)}, which is not done yet",
            hint=f"begin with --stage {unmet[0]}, or leave --stage out to do all of the plan",
        )


def threads_so_far(run: Path, machine: Host) -> int | None:
    """The CPU threads that the run was begun with: float kernels give other bits with another number of threads."""
    threads = record.load(run).get("threads") if record.is_run(run) else None
    if isinstance(threads, int) and threads > machine.cores:
        say(f"the run was begun with {threads} CPU threads; this machine has {machine.cores} cores: slower")
    return threads if isinstance(threads, int) else None


def check_shared(run: Path, compute: Compute) -> None:
    """Processes on several machines need one run folder. Raises RunError, in all of them."""
    compute.wait()
    until = time.monotonic() + (_SEEN_SECONDS if compute.processes > 1 else 0.0)
    while not record.is_run(run) and time.monotonic() < until:
        time.sleep(0.5)
    seen = compute.gather(record.load(run)["created"] if record.is_run(run) else None)
    others = [str(rank) for rank, created in enumerate(seen) if created != seen[0]]
    if others:
        raise RunError(
            f"{run} is not one folder for all processes: rank {', '.join(others)} sees another one, or none, there",
            hint="give with --out a folder on a file system that all machines share",
        )
