"""Measures a plan on this machine: every distinct training by real steps on its real data; calls are guessed.

Promises: no run is made or touched; the cache of decoded samples is all that stays. Trainings that differ only in
their rows or their seed (folds) are measured once. What can't be measured before the stages that it needs are done is
guessed, and says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from outlast.base.log import say
from outlast.config.identity import digest, identity
from outlast.config.schema import TaskConfig
from outlast.data.table import Examples
from outlast.env import device, host
from outlast.env.host import Host
from outlast.errors import OutlastError, TaskError, UsageError
from outlast.loop.accel import Compute, check_precision, set_up
from outlast.loop.evaluate import SHARD_ROWS
from outlast.loop.measure import Times, measure
from outlast.loop.samples import epoch_order
from outlast.loop.teaching import trained_so_far
from outlast.plan import runner, sources
from outlast.plan.measurement import GUESSED_CALL_SECONDS, Measurement, StageTimes, key
from outlast.plan.record import now
from outlast.task import Learner, Predict, Stage, Task, Train, predictions, select, topological

_YOUNG_SECONDS = 120.0  # a process of no more than this age was started for the command
_GUESSED_IMPORT_SECONDS = 15.0
_DECODED = 16  # samples that tell how long decoding all of them takes


@dataclass(frozen=True)
class _Here:
    """What measuring needs to know about its surroundings."""

    machine: Host
    compute: Compute
    examples: Mapping[str, Examples]
    scratch: Path


def measure_plan(task: Task, config: TaskConfig, data: Any, *, synthetic: bool) -> Measurement:
    """Measure every stage of the plan that can be measured. Raises what getting a training ready raises."""
    age = time.time() - float(psutil.Process().create_time())
    machine = host.detect()
    compute = set_up(config.train.threads, machine.cores)
    if compute.processes > 1:
        raise UsageError("a plan is measured by one process", hint="leave out torchrun or `accelerate launch`")
    check_precision(config.train.precision, compute.device)
    host.make_scratch(machine)
    stages = topological(task.stages(config))
    roots = sources.roots(task, data, config.preset, machine, compute, synthetic=synthetic)
    began = time.perf_counter()
    examples = sources.examples_of(stages, roots, None)
    listed = time.perf_counter() - began
    sources.check_samples(stages, examples, machine, None)
    with tempfile.TemporaryDirectory(dir=machine.scratch) as folder:
        here = _Here(machine, compute, examples, Path(folder))
        ready = _ready_seconds(stages, here)
        times = _all_times(stages, here)
    imports = age if age <= _YOUNG_SECONDS else _GUESSED_IMPORT_SECONDS
    kept = {
        "kind": machine.kind, "device": compute.device.type, "device_name": device.detect().name,
        "cores": machine.cores, "threads": compute.threads,
    }  # fmt: skip
    decided = identity(config)
    return Measurement(
        task=task.name, preset=config.preset, made=now(), source="measured", machine=kept, versions=host.versions(),
        config=decided, config_hash=digest(decided),
        data={name: item.fingerprint for name, item in examples.items()},
        synthetic=any((item.root / sources.SYNTHETIC).is_file() for item in examples.values()),
        startup_seconds=imports + listed + ready, report_seconds=None, stages=times,
    )  # fmt: skip


def _ready_seconds(stages: Sequence[Stage], here: _Here) -> float:
    """What a session does with data and models before its first stage; with decoding where the disk is wiped."""
    began = time.perf_counter()
    sources.check_samples(stages, here.examples, here.machine, None)
    runner.check_models(stages, here.examples, here.scratch, begun=False, start_from={})
    seconds = time.perf_counter() - began
    if here.machine.kind in ("kaggle", "colab"):
        learners = {stage.learner.name: stage for stage in stages if isinstance(stage, Train)}
        seconds += sum(
            _decode_seconds(stage.learner, stage.config, here.examples[name]) for name, stage in learners.items()
        ) / max(here.machine.cores, 1)
    return seconds


def _decode_seconds(learner: Learner, config: TaskConfig, examples: Examples) -> float:
    """The time of one core to decode all samples, from a few spread over them."""
    rows = examples.table.iloc[:: max(len(examples.table) // _DECODED, 1)].to_dict("records")[:_DECODED]
    began = time.perf_counter()
    for row in rows:
        learner.read(config, examples.root, {str(name): value for name, value in row.items()})
    return (time.perf_counter() - began) / max(len(rows), 1) * len(examples.table)


def _all_times(stages: Sequence[Stage], here: _Here) -> dict[str, StageTimes]:
    known: dict[str, tuple[str, Times]] = {}  # by key: the stage that was measured
    blocked: dict[str, str] = {}  # by stage: why it can't be measured yet
    trains = {stage.name: stage for stage in stages if isinstance(stage, Train)}
    for stage in stages:
        if isinstance(stage, Train) and key(stage) not in known:
            try:
                known[key(stage)] = stage.name, _measure(stage, trains, here)
            except (OutlastError, OSError) as error:
                if not stage.needs:
                    raise
                reason = error.message if isinstance(error, OutlastError) else str(error)
                blocked[stage.name] = f"it can't be measured before {', '.join(stage.needs)} is done ({reason})"
    found: dict[str, StageTimes] = {}
    for stage in stages:
        if isinstance(stage, Train):
            found[stage.name] = _training(stage, known, blocked, here)
        elif isinstance(stage, Predict):
            found[stage.name] = _prediction(stage, trains[stage.models[0]], found, here)
        else:
            guessed = "what a call takes is not known before it ran"
            found[stage.name] = StageTimes("call", {"call": GUESSED_CALL_SECONDS}, guessed=guessed)
    return found


def _measure(stage: Train, trains: Mapping[str, Train], here: _Here) -> Times:
    say(f"measuring {stage.name} …")
    needs = {name: here.scratch / name for name in stage.needs}
    examples, machine = here.examples[stage.learner.name], here.machine
    facts = {name: item.facts for name, item in here.examples.items()}
    trained = partial(trained_so_far, stage, trains, facts, here.scratch)
    return measure(stage, examples, needs, here.compute, machine.scratch, machine.cores, trained=trained)


def _training(
    stage: Train, known: Mapping[str, tuple[str, Times]], blocked: Mapping[str, str], here: _Here
) -> StageTimes:
    """A training's times: its own, those of one like it, or (guessed) those of the slowest that was measured."""
    guessed = None
    if key(stage) in known:
        name, times = known[key(stage)]
    elif known:
        name, times = max(known.values(), key=lambda item: item[1].step)
        guessed = f"{blocked.get(stage.name, 'it was not measured')}: as long as {name}"
    else:
        raise TaskError(f"{stage.name}: {blocked[stage.name]}", hint="train first, then plan with --run RUN")
    examples = here.examples[stage.learner.name]
    fit, validate = select(examples.table, stage.fit), select(examples.table, stage.validate)
    steps = len(epoch_order(stage.learner, stage.config, examples.table, fit, 0).rows)
    seconds = {
        "begin": times.fit + times.begin, "step": times.step, "evaluate": times.row * len(validate), "save": times.save,
        "best": times.best, "row": times.row, "build": times.begin,
    }  # fmt: skip
    longest = {name: seconds[name] for name in ("step", "evaluate", "save", "best")}
    return StageTimes("train", seconds, longest, steps, guessed, None if name == stage.name else name)


def _prediction(stage: Predict, source: Train, known: Mapping[str, StageTimes], here: _Here) -> StageTimes:
    """A prediction's times, from the evaluations of the trainings whose models it uses."""
    table, shards, predicting = here.examples[source.learner.name].table, 0, 0.0
    for _, models, wanted in predictions(stage):
        rows = len(select(table, wanted))
        shards += -(-rows // SHARD_ROWS)
        predicting += sum(known[name].seconds["row"] for name in models) * rows
    used = [known[name] for name in stage.models]
    shard = predicting / max(shards, 1)
    seconds = {"begin": sum(times.seconds["build"] for times in used), "shard": shard}
    return StageTimes("predict", seconds, {"shard": shard}, shards, used[0].guessed, source.name)
