"""One session of a run: find and check everything, then go on with the plan until it is finished or must stop.

Nothing is written into the run folder before the configuration, the data (every sample decodes) and the models (they
build, and fit their checkpoints) were found right. `run.json` always says how the session stands.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from outlast import task as tasks
from outlast.base.clock import Deadline, Durations, careful_guess, format_duration
from outlast.base.files import locked, put_back, sha256, sweep, write_bytes
from outlast.base.log import quiet, say, warn
from outlast.config.identity import Changes, digest, lines
from outlast.config.load import resolve
from outlast.config.schema import TaskConfig
from outlast.data.split import freeze
from outlast.data.table import Examples
from outlast.env import bounds, device, host, signals
from outlast.env.host import Host
from outlast.errors import NoTimeError, OutlastError
from outlast.loop.accel import Compute, check_precision, set_up, with_threads
from outlast.plan import (
    arrivals,
    beside,
    carry,
    disk,
    extension,
    folder,
    ledger,
    limits,
    preflight,
    record,
    runner,
    shared,
    sources,
)
from outlast.plan.mirroring import copies, open_mirror
from outlast.plan.request import Request, beginnings, check_usage
from outlast.report import page
from outlast.report.collect import collect
from outlast.report.plots import draw
from outlast.save import store
from outlast.save.mirror import Mirror
from outlast.task import Stage, Task, Train


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
    check_usage(asked)
    machine = host.detect()
    task = preflight.find_task(asked.task)
    preset = asked.preset or device.default_preset(list(task.presets))
    overrides = [*asked.overrides, *([] if asked.fallback else ["train.fallback=false"])]
    config, warnings = resolve(task.config, task.presets, preset, file=asked.config, overrides=overrides)
    run = asked.out or Path("runs") / f"{task.name.rpartition('.')[2]}-{preset}"
    preflight.require(preflight.before_training(task, config, run))
    compute = set_up(config.train.threads, beside.share_of(machine.cores, asked.side_by_side))
    quiet(not compute.main)
    check_precision(config.train.precision, compute.device)
    accelerator = device.detect()
    beside.check(asked.side_by_side, accelerator.count)
    if asked.preset is None:
        say(f"preset {preset!r}, because this machine computes with {accelerator.name}; choose another with --preset")
    if compute.processes == 1 and accelerator.count > 1 and not asked.twins and asked.side_by_side == 1:
        all_of_them = replace(asked, processes=accelerator.count).command(run, preset)
        warn(f"this machine has {accelerator.count} GPUs, and one process uses one; all are used by\n  {all_of_them}")
    busy = f"another process is training in {run}"
    with locked(run.parent / f".{run.name}.lock", busy) if compute.main else contextlib.nullcontext():
        mirror = open_mirror(asked.mirror, run, asked.resume) if asked.mirror and compute.main else None
        if asked.previous and compute.main:
            arrivals.bring(asked.previous, run, task, config, extend=asked.extend)
        compute.wait()
        deadline = asked.deadline or limits.deadline(asked, machine, record.seconds_spent(run), began)
        if config.train.threads is None and (threads := folder.threads_so_far(run, machine)) is not None:
            compute = with_threads(compute, threads)
        changed = folder.check_run(run, task, config, asked, preset)
        exists = changed is not None
        warnings += [f"changed in the middle of the run: {line}" for line in lines(changed or {})]
        host.make_scratch(machine)
        plan = list(task.stages(config))
        folder.check_stage(plan, asked.stage, run if exists else None)
        if exists:
            carry.check_here(run, plan, asked.stage)
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
        taken = [name for name, twins in asked.twins.items() if shared.expected(run / name, twins)]
        sizes = runner.check_models(
            [stage for stage in plan if stage.name not in taken],
            examples,
            run,
            begun=exists,
            start_from=beginnings(plan, asked),
            processes=compute.processes,
        )
        limit_gigabytes = config.saving.disk_limit_gigabytes
        space, scarce = disk.check(
            plan, sizes, run, machine, limit_gigabytes, begun=exists, only=asked.stage, taken=taken,
            at_once=asked.side_by_side,
        )  # fmt: skip
        folder.set_aside(run, asked.resume, compute)
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
        put_back(run)
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
    in_force = limits.in_force(asked, session.machine)
    kept.begin_session(compute.device.type, now, asked.quota_rate, in_force, asked.side_by_side)
    folder.check_shared(run, compute)
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
            stop=lambda: request.reason, start_from=beginnings(session.plan, asked), earlier=session.earlier,
            noted=noted, finished=copy.offer, words=copy.words, afterwards=("report", *copy.afterwards),
            warned=lambda sentence: _warn(kept, sentence),
            entered=kept.enter, left=kept.leave, twins=asked.twins, took=kept.take_over,
        )  # fmt: skip
        try:
            together = asked.side_by_side > 1
            stopped = beside.run(around, asked, session.config) if together else runner.run(around, asked.stage)
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
        raise NoTimeError(
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


def _warn(kept: record.RunRecord, sentence: str) -> None:
    warn(sentence)
    kept.warn([sentence])


def write_report(run: Path) -> Path:
    """Write the run's report.html with the figures of its task."""
    return page.write(run, tasks.find(record.load(run)["task"]).figures)


def write_figures(run: Path, folder: Path) -> list[Path]:
    """Write the figures of a run's report as PNG files, those that have anything to show; returns their paths."""
    figures = tasks.find(record.load(run)["task"]).figures or page.default_figures(collect(run))
    written = []
    for number, figure in enumerate(figures, start=1):
        picture = draw(figure, run)
        if picture is not None:
            written.append(folder / f"{number:02d}-{figure.kind.replace('_', '-')}.png")
            write_bytes(written[-1], picture)
    return written


def _reserve(durations: Durations) -> float:
    return durations.expected("step", "save", "report")


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
            "side_by_side": session.asked.side_by_side,
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
