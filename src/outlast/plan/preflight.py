"""Looks for everything that can go wrong before it costs: `outlast check`, and what `outlast train` runs of it.

Promises: it never stops at the first finding; what can't be looked at because something else is missing is said to be
unchecked. It writes nothing but the cache of decoded samples.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from outlast import task as tasks
from outlast.base.clock import parse_duration
from outlast.check import config as configuration
from outlast.check import cost, data, environment, files, hardware, model, samples, session
from outlast.check.finding import Finding, checks_of, run
from outlast.check.machine import Machine, look
from outlast.check.subject import Subject
from outlast.check.table import counts, table
from outlast.config.load import resolve
from outlast.config.schema import TaskConfig
from outlast.data.table import Examples
from outlast.env import device
from outlast.errors import ConfigError, RunError, TaskError
from outlast.loop.accel import set_up
from outlast.plan import record, sources
from outlast.task import Task, Train

BEFORE_TRAINING = (environment, hardware, session, configuration)  # cheap: no data, no model
FAMILIES = (*BEFORE_TRAINING, data, files, samples, model, cost)

# What a torchvision that was built for another torch raises while it is imported.
_IMPORT_FAILURES = (ImportError, OSError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class Question:
    """What `outlast check` was asked about; as for training."""

    task: str
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None
    preset: str | None = None
    config: Path | None = None
    overrides: Sequence[str] = ()
    out: Path | None = None
    session_limit: str | float | None = None
    quota_left: str | float | None = None
    quota_rate: float = 1.0
    mirror: str | None = None
    start_from: Path | None = None
    processes: int = 1
    side_by_side: int = 1
    synthetic: bool = False


def check(asked: Question, machine: Machine | None = None) -> dict[str, Any]:
    """Run all checks. Returns {"errors", "warnings", "unchecked", "notes", "findings", "ran", "text"}."""
    subject = subject_of(asked, machine or look())
    findings = list(run(FAMILIES, subject))
    ran = [identifier for family in FAMILIES for identifier in checks_of(family)]
    count = counts(findings)
    return {
        "task": asked.task,
        "preset": subject.preset,
        "errors": count["error"],
        "warnings": count["warning"],
        "unchecked": count["unchecked"],
        "notes": count["note"],
        "findings": [asdict(finding) for finding in findings],
        "ran": ran,
        "text": f"{asked.task}, preset {subject.preset}\n\n{table(findings, len(ran))}",
    }


def require(subject: Subject) -> None:
    """Refuse (RunError) to begin a training that can't go well, as far as that can be told at once."""
    errors = [finding for finding in run(BEFORE_TRAINING, subject) if finding.severity == "error"]
    if len(errors) == 1:
        (only,) = errors
        raise RunError(only.sentence, details=[only.evidence] if only.evidence else (), hint=only.remedy)
    if errors:
        raise RunError(
            f"{len(errors)} things stand in the way of training",
            details=[_line(finding) for finding in errors],
            hint="outlast check, with the same words, says what else there is",
        )


def before_training(task: Task, config: TaskConfig, run: Path) -> Subject:
    """What a training looks at before it begins: this process's GPU; its session's end is the deadline's business."""
    machine = look()
    if "torchvision" not in sys.modules:  # importing it takes a second, and this task doesn't
        machine = replace(machine, torchvision_error=lambda: None)
    own = int(os.environ.get("LOCAL_RANK", "0"))
    return Subject(
        machine=machine, task_=task, config_=config, preset=config.preset, run=run, devices=range(own, own + 1),
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )  # fmt: skip


def find_task(name: str) -> Task:
    """`task.find`, which says so (TaskError) where the reason for a failure is a torchvision that doesn't work."""
    try:
        return tasks.find(name)
    except _IMPORT_FAILURES as error:
        raise _broken(name, error, look()) from error


def subject_of(asked: Question, machine: Machine) -> Subject:
    """The subject of a question; what is wrong with its task or configuration is in `problems`."""
    limit, quota = _seconds(asked.session_limit), _seconds(asked.quota_left)
    preset = asked.preset or ("t4" if machine.gpus else "cpu")
    subject = Subject(
        machine=machine, task_=None, config_=None, preset=preset, processes=asked.processes, session_limit=limit,
        quota_left=quota, quota_rate=asked.quota_rate, mirror=asked.mirror, side_by_side=asked.side_by_side,
    )  # fmt: skip
    try:
        task = tasks.find(asked.task)
    except _IMPORT_FAILURES as error:
        subject.problems["task"] = _broken(asked.task, error, machine)
        return subject
    subject.task_ = task
    if asked.preset is None:
        subject.preset = device.default_preset(list(task.presets))
    subject.run = asked.out or Path("runs") / f"{task.name.rpartition('.')[2]}-{subject.preset}"
    try:
        config, no_effect = resolve(
            task.config, task.presets, subject.preset, file=asked.config, overrides=asked.overrides
        )
    except ConfigError as problem:
        subject.problems["config"] = problem
        return subject
    subject.config_, subject.no_effect = config, tuple(no_effect)
    subject.find_examples = lambda: _examples(asked, subject)
    if asked.start_from is not None:
        trains = [stage.name for stage in task.stages(config) if isinstance(stage, Train)]
        subject.start_from = {trains[0]: asked.start_from} if len(trains) == 1 else {}
    return subject


def _seconds(duration: str | float | None) -> float | None:
    return parse_duration(duration) if isinstance(duration, str) else duration


def _examples(asked: Question, subject: Subject) -> Mapping[str, Examples]:
    """The examples that a training of this subject would find; a run that exists keeps its split."""
    machine, run = subject.machine.host, subject.run
    compute = set_up(subject.config.train.threads, machine.cores)
    subject.roots = sources.roots(subject.task, asked.data, subject.preset, machine, compute, synthetic=asked.synthetic)
    return sources.examples_of(subject.plan, subject.roots, run if record.is_run(run) else None)


def _broken(name: str, error: Exception, machine: Machine) -> TaskError:
    """Says why the import failed if that is torchvision's doing; anything else is raised again with its traceback."""
    problem = machine.torchvision_error()
    if problem is None:
        raise error
    return TaskError(
        f"the task {name!r} can't be imported, because torchvision doesn't work with this torch",
        details=[problem],
        hint="take the image's own pair again (a fresh session), or install both together from one index",
    )


def _line(finding: Finding) -> str:
    evidence = f" ({finding.evidence})" if finding.evidence else ""
    return f"{finding.sentence}{evidence}: {finding.remedy}"
