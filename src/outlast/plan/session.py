"""One session of a run: find and check everything, then go on with the plan until it is finished or must stop.

Nothing is written into the run folder before the configuration, the data (every sample decodes) and the models (they
build, and fit their checkpoints) were found right. `run.json` always says how the session stands.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from outlast import task as tasks
from outlast.base.clock import Deadline, Durations, careful_guess, format_duration, parse_duration
from outlast.base.files import TEMPORARY, locked, sha256, sweep
from outlast.base.log import quiet, say, warn
from outlast.config.identity import Changes, digest, lines
from outlast.config.load import resolve
from outlast.config.schema import TaskConfig
from outlast.data.split import freeze
from outlast.data.table import Examples
from outlast.env import bounds, device, host, signals
from outlast.env.host import Host
from outlast.errors import OutlastError, RunError, UsageError
from outlast.loop.accel import Compute, check_precision, set_up, with_threads
from outlast.plan import disk, extension, hours, ledger, preflight, record, runner, sources
from outlast.plan.mirroring import copies, open_mirror
from outlast.report import page
from outlast.save import bring_back, store
from outlast.save.mirror import Mirror
from outlast.save.place import shown
from outlast.task import DATA, Stage, Task, Train, needed

_SEEN_SECONDS = 30.0  # a file system between machines may show a new file late


@dataclass(frozen=True)
class Request:
    """What the user asked for, as `outlast.train` takes it."""

    task: str
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None
    out: Path | None = None
    preset: str | None = None
    config: Path | None = None
    overrides: Sequence[str] = ()
    resume: Literal["auto", "must", "never"] = "auto"
    start_from: Path | None = None
    session_limit: str | float | None = None
    time_limit: str | float | None = None
    quota_left: str | float | None = None
    quota_rate: float = 1.0
    stage: str | None = None
    synthetic: bool = False
    fallback: bool = True
    extend: bool = False
    mirror: str | None = None
    deadline: Deadline | None = None
    processes: int = 1  # on this machine
    starter: Sequence[str] = ("outlast",)  # what stands before `train`; with several machines that is torchrun's

    def command(self, run: Path, preset: str, quota_used_seconds: float = 0.0) -> str:
        """The command that goes on with this run, with the quota that is then left."""
        words = [*self.starter, "train", self.task]
        for name, folder in sources.parse_data(self.data).items():
            words += ["--data", str(folder) if name == DATA else f"{name}={folder}"]
        words += ["--preset", preset, "--out", str(run)]
        words += ["--config", str(self.config)] if self.config else []
        words += ["--session-limit", str(self.session_limit)] if self.session_limit is not None else []
        words += ["--time-limit", str(self.time_limit)] if self.time_limit is not None else []
        if self.quota_left is not None:
            words += ["--quota-left", f"{max(round(_seconds(self.quota_left) - quota_used_seconds), 0)}s"]
            words += ["--quota-rate", f"{self.quota_rate:g}"] if self.quota_rate != 1 else []
        words += ["--start-from", str(self.start_from)] if self.start_from else []
        words += ["--mirror", shown(self.mirror)] if self.mirror else []
        words += ["--stage", self.stage] if self.stage else []
        words += ["--synthetic"] if self.synthetic else []
        words += [] if self.fallback else ["--no-fallback"]
        words += ["--extend"] if self.extend else []
        words += ["--processes", str(self.processes)] if self.processes > 1 else []
        return shlex.join([*words, *self.overrides])


@dataclass
class Session:
    """What is known once everything was found right."""

    task: Task
    config: TaskConfig
    run: Path
    plan: list[Stage]
    examples: dict[str, Examples]  # by learner
    compute: Compute
    machine: Host
    deadline: Deadline
    device_name: str
    asked: Request
    began: float  # on the monotonic clock
    synthetic: bool
    warnings: list[str] = field(default_factory=list)
    disk: dict[str, Any] = field(default_factory=dict)  # what it was predicted to need
    changed: Changes = field(default_factory=dict)  # on purpose, since the last session
    earlier: list[list[Stage]] = field(default_factory=list)  # the plans of the run's earlier configurations

    @property
    def command(self) -> str:
        """The command that goes on with this run, as things stand now."""
        used = (time.time() - self.machine.session_started) * self.asked.quota_rate
        return self.asked.command(self.run, self.config.preset, used)


def run_session(asked: Request) -> dict[str, Any]:
    """Do one session of what was asked for. Returns what `outlast.train` returns."""
    began = time.monotonic()
    _check_usage(asked)
    machine = host.detect()
    task = preflight.find_task(asked.task)
    preset = asked.preset or device.default_preset(list(task.presets))
    overrides = [*asked.overrides, *([] if asked.fallback else ["train.fallback=false"])]
    config, warnings = resolve(task.config, task.presets, preset, file=asked.config, overrides=overrides)
    run = asked.out or Path("runs") / f"{task.name.rpartition('.')[2]}-{preset}"
    preflight.require(preflight.before_training(task, config, run))
    compute = set_up(config.train.threads, machine.cores)
    quiet(not compute.main)
    check_precision(config.train.precision, compute.device)
    accelerator = device.detect()
    if asked.preset is None:
        say(f"preset {preset!r}, because this machine computes with {accelerator.name}; choose another with --preset")
    if compute.processes == 1 and accelerator.count > 1:
        all_of_them = replace(asked, processes=accelerator.count).command(run, preset)
        warn(f"this machine has {accelerator.count} GPUs, and one process uses one; all are used by\n  {all_of_them}")
    busy = f"another process is training in {run}"
    with locked(run.parent / f".{run.name}.lock", busy) if compute.main else contextlib.nullcontext():
        mirror = open_mirror(asked.mirror, run, asked.resume) if asked.mirror and compute.main else None
        compute.wait()
        deadline = asked.deadline or _deadline(asked, machine, run, began)
        if config.train.threads is None and (threads := _threads_so_far(run, machine)) is not None:
            compute = with_threads(compute, threads)
        changed = _check_run(run, task, config, asked, preset)
        exists = changed is not None
        warnings += [f"changed in the middle of the run: {line}" for line in lines(changed or {})]
        host.make_scratch(machine)
        plan = list(task.stages(config))
        _check_stage(plan, asked.stage, run if exists else None)
        if asked.resume == "must":
            runner.check_progress(plan, run)
        examples = sources.examples_of(
            plan,
            sources.roots(task, asked.data, preset, machine, compute, synthetic=asked.synthetic),
            run if exists else None,
        )
        sources.check_samples(plan, examples, machine, run if exists else None)
        earlier = (
            [list(task.stages(each)) for each in record.earlier(run, config, changed)] if changed is not None else []
        )
        extension.check(plan, earlier, examples, run)
        sizes = runner.check_models(
            plan, examples, run, begun=exists, start_from=_beginnings(plan, asked), processes=compute.processes
        )
        limit_gigabytes = config.saving.disk_limit_gigabytes
        space, scarce = disk.check(plan, sizes, run, machine, limit_gigabytes, begun=exists, only=asked.stage)
        _set_aside(run, asked.resume, compute)
        session = Session(
            task=task, config=config, run=run, plan=plan, examples=examples, compute=compute, machine=machine,
            deadline=deadline, device_name=accelerator.name, disk=space,
            asked=asked, began=began, warnings=[*warnings, *scarce], changed=changed or {}, earlier=earlier,
            synthetic=any((item.root / sources.SYNTHETIC).is_file() for item in examples.values()),
        )  # fmt: skip
        return _go_on(session, mirror)


def _go_on(session: Session, mirror: Mirror | None) -> dict[str, Any]:
    """Run the plan; the record is right before, during and after."""
    run, compute, asked = session.run, session.compute, session.asked
    for sentence in [*session.warnings, *(note for item in session.examples.values() for note in item.notes)]:
        warn(sentence)
    if session.synthetic:
        say("SYNTHETIC: this run trains on made-up data; its numbers say nothing about real data")
    provenance = _provenance(session)
    kept = record.RunRecord.open(
        run, session.config, {**provenance, **_facts(session)}, writes=compute.main, began=session.began,
        changed=session.changed, at=extension.standing(session.plan, run) if session.changed else {},
    )  # fmt: skip
    if compute.main:
        sweep(run)
        for name, item in session.examples.items():
            path = run / sources.split_name(name, session.examples)
            if not path.is_file():
                freeze(item.table, path, decided=sources.DECIDED, compared=item.batch_columns)
        kept.values["split_hash"] = digest(
            [sha256(run / sources.split_name(name, session.examples)) for name in session.examples]
        )
    if session.changed and "rule" in kept.values["changes"][-1]:
        say(f"extended: {record.EXTENSION}")
    now = bounds.bounds(tasks.sources(session.task.name), session.device_name, compute.threads, compute.processes)
    moved = bounds.changed(kept.last_bounds(), now)
    for sentence in moved:
        warn(sentence)
    kept.warn([*session.warnings, *moved])
    kept.begin_session(compute.device.type, now, asked.quota_rate)
    _check_shared(run, compute)
    # What took long in the sessions before is set aside from the first step of this one.
    durations = kept.durations
    if session.deadline.limited:
        durations.guess_seconds = careful_guess(session.deadline.remaining())
    with signals.listen() as request, copies(mirror, kept) as copy:

        def noted(stage: str, facts: Mapping[str, Any]) -> None:
            kept.note(stage, facts)
            copy.offer()

        around = runner.Surroundings(
            run=run, plan=session.plan, examples=session.examples, compute=compute, scratch=session.machine.scratch,
            cores=session.machine.cores, record={**provenance, "config_hash": kept.values["config_hash"]},
            synthetic=session.synthetic, deadline=session.deadline, durations=durations,
            stop=lambda: request.reason, start_from=_beginnings(session.plan, asked), earlier=session.earlier,
            noted=noted, finished=copy.offer, words=copy.words, afterwards=("report", *copy.afterwards),
            warned=lambda sentence: _warn(kept, sentence),
            entered=kept.enter,
        )  # fmt: skip
        try:
            stopped = runner.run(around, asked.stage)
        except BaseException as error:
            reason = error.message if isinstance(error, OutlastError) else f"{type(error).__name__}: {error}"
            kept.end_session("failed", reason, session.command)
            raise
        results = {stage.name: ledger.result(run / stage.name) for stage in session.plan}
        left = [name for name, value in results.items() if value is None]
        status = "stopped" if stopped or left else "finished"
        why = stopped or (f"stages left: {', '.join(left)}" if left else None)
        next_command = session.command if status == "stopped" else None
        kept.end_session(status, why, next_command)
        began = session.deadline.now()
        report = write_report(run) if compute.main else run / "report.html"
        durations.record("report", session.deadline.now() - began)
        kept.save()
        not_mirrored = copy.finish(session.deadline)
        compute.wait()
    if stopped == session.deadline.reason and not around.progressed:
        raise RunError(
            f"the session ended before anything could be done: the {stopped} left too little for getting ready "
            f"(reading the data, building the model) and for the {format_duration(_reserve(durations))} set aside",
            hint=f"give more with --{stopped.replace(' ', '-')}",
        )
    _say_end(session, why, report, not_mirrored)
    return {
        "status": status,
        "reason": why,
        "run": str(run),
        "next_command": next_command,
        "report": str(report),
        "synthetic": session.synthetic,
        "stages": {name: value for name, value in results.items() if value is not None},
        "stages_left": left,
        "mirror": kept.values.get("mirror"),
    }


def _check_shared(run: Path, compute: Compute) -> None:
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


def _warn(kept: record.RunRecord, sentence: str) -> None:
    warn(sentence)
    kept.warn([sentence])


def write_report(run: Path) -> Path:
    """Write the run's report.html with the figures of its task."""
    return page.write(run, tasks.find(record.load(run)["task"]).figures)


def _check_usage(asked: Request) -> None:
    """Refuse what is wrong whatever lies in the folder. Raises UsageError."""
    if asked.extend and asked.resume == "never":
        raise UsageError(
            "--extend goes on with a run and --resume never begins a new one", hint="leave one of them out"
        )
    for duration in (asked.session_limit, asked.time_limit, asked.quota_left):
        if duration is not None:
            _seconds(duration)
    if not asked.quota_rate > 0:
        raise UsageError(f"--quota-rate {asked.quota_rate:g} is not a rate", hint="give a number such as 1.0")


def _check_run(run: Path, task: Task, config: TaskConfig, asked: Request, preset: str) -> Changes | None:
    """What was changed on purpose in the run that goes on, or None if none does; refuses anything else there."""
    if run.is_dir() and not os.access(run, os.W_OK | os.X_OK):
        raise RunError(f"{run} may not be written", hint="give another folder with --out, or change its permissions")
    if record.is_run(run):
        if asked.resume == "never":
            return None
        command = replace(asked, extend=True).command(run, preset)
        return record.check_same(run, task.name, config, extend=asked.extend, extend_command=command)
    # A kill in the first moments of a run may leave its configuration alone; nothing is lost by beginning again.
    if run.exists() and (not run.is_dir() or any(not _is_remnant(path) for path in run.iterdir())):
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


def _is_remnant(path: Path) -> bool:
    return path.name in ("config.yaml", hours.PLAN) or path.name.startswith(TEMPORARY)


def _set_aside(run: Path, resume: str, compute: Compute) -> None:
    """`--resume never` starts anew; the run that was there is kept under another name."""
    if resume == "never" and compute.main and record.is_run(run):
        say(f"--resume never: the run that was in {run} is now {bring_back.set_aside(run)}")
    compute.wait()


def _check_stage(plan: Sequence[Stage], name: str | None, run: Path | None) -> None:
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


def _deadline(asked: Request, machine: Host, run: Path, began: float) -> Deadline:
    """The earliest of the ends that were given. Raises RunError if there is no time at all.

    Session and quota count from the session's start (the container's, on a platform); the time limit is the run's, over
    all its sessions, and counts from the command.
    """
    ends = [Deadline()]
    if asked.session_limit is not None:
        ends.append(Deadline.after(_seconds(asked.session_limit), since=machine.session_started))
    if asked.quota_left is not None:
        session = _seconds(asked.quota_left) / asked.quota_rate
        ends.append(Deadline.after(session, "quota left", since=machine.session_started))
    if asked.time_limit is not None:
        spent = record.seconds_spent(run)
        ends.append(Deadline(began + _seconds(asked.time_limit) - spent, "time limit"))
    first = min(ends, key=lambda end: end.ends_at)
    if first.expired():
        raise RunError(
            f"there is no time to train: the {first.reason} is too short, or used up",
            hint=f"give more with --{first.reason.replace(' ', '-')}; what was trained is kept",
        )
    return first


def _seconds(duration: str | float) -> float:
    return parse_duration(duration) if isinstance(duration, str) else float(duration)


def _reserve(durations: Durations) -> float:
    return durations.expected("step", "save", "report")


def _beginnings(plan: Sequence[Stage], asked: Request) -> dict[str, Path]:
    """{training stage: weights to begin with}: of the only one there is, or of the one that --stage names."""
    if asked.start_from is None:
        return {}
    trains = [stage.name for stage in plan if isinstance(stage, Train)]
    meant = [asked.stage] if asked.stage in trains else trains
    if len(meant) != 1:
        raise UsageError(
            f"--start-from is for one training stage, and this plan has {len(meant)}",
            hint=f"name it with --stage: {', '.join(trains)}",
        )
    return {meant[0]: asked.start_from}


def _threads_so_far(run: Path, machine: Host) -> int | None:
    """The CPU threads that the run was begun with: float kernels give other bits with another number of threads."""
    threads = record.load(run).get("threads") if record.is_run(run) else None
    if isinstance(threads, int) and threads > machine.cores:
        say(f"the run was begun with {threads} CPU threads; this machine has {machine.cores} cores: slower")
    return threads if isinstance(threads, int) else None


def _provenance(session: Session) -> dict[str, Any]:
    """What every artefact carries."""
    return {
        "task": session.task.name,
        "preset": session.config.preset,
        "synthetic": session.synthetic,
        "data": {name: sources.about_data(item, session.synthetic) for name, item in session.examples.items()},
        "versions": host.versions(),
    }


def _facts(session: Session) -> dict[str, Any]:
    compute, machine = session.compute, session.machine
    return {
        "outlast": metadata.version("outlast"),
        "about": session.task.about,
        "facts": {name: dict(item.facts) for name, item in session.examples.items()},
        "host": {
            "kind": machine.kind,
            "device": compute.device.type,
            "device_name": session.device_name,
            "cores": machine.cores,
            "threads": compute.threads,
            "processes": compute.processes,
        },
        "score": {stage.name: stage.learner.score for stage in session.plan if isinstance(stage, Train)},
        "threads": compute.threads,
        "disk": session.disk,
        "command": session.command,
        "next_command": session.command,
    }


def _say_end(session: Session, reason: str | None, report: Path, not_mirrored: str | None) -> None:
    mark = " (SYNTHETIC data)" if session.synthetic else ""
    if reason:
        # What is kept is what verifies: checkpoints, and the stages that are done.
        checkpoints = any(store.newest(session.run / stage.name / "checkpoints", []) for stage in session.plan)
        kept = "a verified checkpoint" if checkpoints else "no checkpoint needed so far"
        say(f"stopped in time ({reason}) with {kept}{mark}; go on with:\n  {session.command}")
    else:
        say(f"finished{mark}; report: {report}")
    if not_mirrored is not None:
        warn(not_mirrored)
