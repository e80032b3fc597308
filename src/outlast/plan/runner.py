"""Runs a plan on this machine: stage after stage in the order of needs, skipping what is done, until it must stop.

Every stage is resumable: training by its checkpoints, prediction by its shards, a call by the units that it has kept
(one that keeps none is done again). Stages that were begun under another identity (their configuration, data or inputs
changed) are done again from the start; trainings that were only made longer go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from outlast.base.accident import reached
from outlast.base.clock import Deadline, Durations
from outlast.base.files import place_folder, sweep, sync_path, verify_folder, write_manifest
from outlast.base.log import say, warn
from outlast.data.table import Examples
from outlast.errors import CheckpointError, RunError, TaskError, TrainingError
from outlast.loop.accel import Compute
from outlast.loop.evaluate import predict
from outlast.loop.samples import open_loader
from outlast.loop.setup import Job, load_weights, model_hash
from outlast.loop.teaching import open_teacher
from outlast.loop.train import train
from outlast.plan import extension, ledger, shared
from outlast.plan.members import open_members, stages_named
from outlast.plan.shared import Twin
from outlast.save import store
from outlast.save.format import read_weights
from outlast.save.resume import choose
from outlast.save.space import Sizes, sizes
from outlast.task import (
    Call,
    Inputs,
    Learner,
    Predict,
    Stage,
    Train,
    Trained,
    Work,
    needed,
    predictions,
    select,
    topological,
)

# What a stage does, once begun, before it asks again whether there is time.
_AT_ONCE = {Train: ("begin", "step", "save"), Predict: ("shard",), Call: ("call",)}


@dataclass
class Surroundings:
    """What a plan runs in: the run folder, the data of each learner, the machine, and when to stop.

    noted(name, facts) is told what belongs into the run's record as soon as it is known; warned(sentence) what a person
    should know besides.
    """

    run: Path
    plan: Sequence[Stage]
    examples: Mapping[str, Examples]  # by learner
    compute: Compute
    scratch: Path
    cores: int
    record: Mapping[str, Any]
    synthetic: bool = False
    deadline: Deadline = field(default_factory=Deadline)
    durations: Durations = field(default_factory=Durations)
    stop: Callable[[], str | None] = lambda: None
    start_from: Mapping[str, Path] = field(default_factory=dict)  # weights to begin with, by training stage
    earlier: Sequence[Sequence[Stage]] = ()  # the plans of this run's earlier configurations
    noted: Callable[[str, Mapping[str, Any]], None] = lambda name, facts: None
    finished: Callable[[], None] = lambda: None  # told when a stage, or a unit of a call, is done
    words: Callable[[], str] = lambda: ""  # for the progress line
    warned: Callable[[str], None] = warn
    entered: Callable[[str], None] = lambda name: None  # told the stage that begins
    left: Callable[[str], None] = lambda name: None  # told the stage that is left, done or stopped
    twins: Mapping[str, Sequence[Twin]] = field(default_factory=dict)  # by stage: other cells of a sweep
    took: Callable[[str, Path], None] = lambda name, run: None  # told a stage that was taken over, and from which run
    afterwards: tuple[str, ...] = ("report",)  # kinds of work that follow a stop, for which time is set aside
    progressed: bool = False  # whether this session has done anything that the next one need not do again


def run(around: Surroundings, only: str | None = None) -> str | None:
    """Do what is left of the plan (or of the one stage `only`). Returns why it stopped, or None when all is done."""
    ordered = topological(around.plan)
    trains = {stage.name: stage for stage in ordered if isinstance(stage, Train)}
    for stage in ordered:
        if only is not None and stage.name != only:
            continue
        examples, fingerprint, identity = identify(stage, around)
        folder = around.run / stage.name
        if ledger.done(folder, identity):
            continue
        twin = shared.take(folder, identity, around.twins[stage.name]) if stage.name in around.twins else None
        if twin is not None:
            around.progressed = True
            around.took(stage.name, twin.run)
            around.finished()
            continue
        reason = reason_to_begin_nothing(stage, around)
        if reason:
            return reason
        if around.compute.main:
            if extension.was_begun(stage, identity, fingerprint, around.run, around.earlier):
                _extend(folder, identity)
            _prepare(folder, identity, around)
        around.compute.wait()
        began = time.monotonic()
        around.entered(stage.name)
        if isinstance(stage, Train):
            reason = _train(stage, folder, identity, around, began)
        elif isinstance(stage, Predict):
            reason = _predict(stage, trains, folder, identity, around, began)
        else:
            main = around.compute.main
            reason = _call(stage, folder, identity, examples, around, began) if main else None
            reason = around.compute.share(reason)
        around.compute.wait()
        around.left(stage.name)
        if reason:
            return reason
        if around.compute.main:
            around.finished()
    return None


def identify(stage: Stage, around: Surroundings) -> tuple[Examples | None, str, str]:
    """The examples of a stage, their fingerprint, and its identity. Raises TaskError before its needs are done."""
    trains = {each.name: each for each in around.plan if isinstance(each, Train)}
    learner, config = _learner(stage, trains), _config(stage, trains)
    examples = around.examples[learner.name] if learner is not None else None
    fingerprint = ledger.data_fingerprint(examples)
    unmet = [name for name in needed(stage) if not (around.run / name / ledger.RECORD).is_file()]
    if unmet:
        raise TaskError(f"the stage {stage.name!r} needs {', '.join(unmet)}, which is not done yet")
    return examples, fingerprint, ledger.stage_identity(stage, config, fingerprint, around.run)


def reason_to_begin_nothing(stage: Stage, around: Surroundings) -> str | None:
    """Why this stage must not be begun or gone on with now; None if there is time for it."""
    return _reason_to_stop(around, *_AT_ONCE[type(stage)])


def check_models(
    stages: Sequence[Stage],
    examples: Mapping[str, Examples],
    run: Path,
    *,
    begun: bool,
    start_from: Mapping[str, Path],
    processes: int = 1,
) -> dict[str, Sizes]:
    """Build each model that can be built now, and read what it will start from; writes nothing.

    begun: the run goes on with what is in its folder. Returns what each will take on the disk. Raises ModelError
    (weights that are missing or don't fit) or CheckpointError (a checkpoint that is damaged or of another model).
    """
    found: dict[str, Sizes] = {}
    calls = {stage.name for stage in stages if isinstance(stage, Call)}
    for stage in stages:
        folder = run / stage.name
        # What a call makes is data: no model is built from it, so that models can be built before.
        waits = [name for name in needed(stage) if name not in calls]
        ready = not waits or (begun and all((run / name / ledger.RECORD).is_file() for name in waits))
        if not isinstance(stage, Train) or not ready or (begun and (folder / ledger.RECORD).is_file()):
            continue
        saved = store.newest(folder / "checkpoints", []) if begun else None
        rungs = stage.learner.rungs(stage.config)
        rung = str(saved.manifest.get("fit", {}).get("rung", rungs[0])) if saved is not None else rungs[0]
        inputs = Inputs(examples[stage.learner.name].facts, {name: run / name for name in stage.needs})
        model = stage.learner.model(stage.config, inputs, rung)
        choice = choose(
            folder, "auto" if begun else "never", start_from=start_from.get(stage.name), model_hash=model_hash(model)
        )
        if choice.weights is not None:
            load_weights(model, read_weights(choice.weights), choice.weights)
        found[stage.name] = sizes(model, stage.config.train, processes)
    return found


def check_progress(stages: Sequence[Stage], run: Path) -> None:
    """Refuse (RunError) to resume a run in which no stage is done and no checkpoint verifies."""
    problems: list[str] = []
    for stage in stages:
        folder = run / stage.name
        if (folder / ledger.RECORD).is_file() or store.newest(folder / "checkpoints", problems) is not None:
            return
    raise RunError(
        f"there is nothing to resume in {run}: no stage is done, and no checkpoint verifies",
        details=problems,
        hint="use --resume auto to go on from the start",
    )


def _train(stage: Train, folder: Path, identity: str, around: Surroundings, began: float) -> str | None:
    examples = around.examples[stage.learner.name]
    needs = {name: around.run / name for name in stage.needs}
    trained = partial(_trained, stage, around)
    with open_loader(stage.learner, stage.config, examples, around.scratch, around.compute, around.cores) as loader:
        job = Job(
            stage=stage,
            folder=folder,
            examples=examples,
            needs=needs,
            loader=loader,
            compute=around.compute,
            record={**around.record, "stage": stage.name, "stage_identity": identity},
            deadline=around.deadline,
            durations=around.durations,
            stop=around.stop,
            start_from=around.start_from.get(stage.name),
            saved=lambda facts: around.noted(stage.name, facts),
            warned=around.warned,
            afterwards=around.afterwards,
            words=around.words,
            trained=trained,
            teacher=cache(partial(open_teacher, stage, Inputs(examples.facts, needs), trained, around.compute.device)),
        )
        outcome = train(job)
    around.progressed |= outcome.advanced or outcome.stopped is None
    if outcome.stopped is None and around.compute.main:
        _check_best(folder, outcome.result)
        outputs = [path for path in (folder / "best").rglob("*") if path.is_file()]
        ledger.finish(folder, stage, identity, outputs, outcome.result, outcome.result["train_seconds"])
        if stage.config.saving.keep_when_finished == "best":
            store.drop_checkpoints(folder)  # only now: until the record is there, the last checkpoint is what counts
    return outcome.stopped


def _trained(stage: Train, around: Surroundings) -> dict[str, Trained]:
    """The best weights of the training stages that a stage needs."""
    trains = {each.name: each for each in around.plan if isinstance(each, Train)}
    return {
        name: Trained(store.best_weights(around.run / name)[0], around.examples[trains[name].learner.name].facts)
        for name in stage.needs
        if name in trains
    }


def _predict(
    stage: Predict, trains: Mapping[str, Train], folder: Path, identity: str, around: Surroundings, began: float
) -> str | None:
    """Predict part by part: all models together, or each with rows of its own into a folder of its own."""
    first = stages_named(stage.models, trains, f"the stage {stage.name!r}")[0]
    learner, config, examples = first.learner, first.config, around.examples[first.learner.name]
    parts = [(place, models, select(examples.table, rows)) for place, models, rows in predictions(stage)]
    for place, _, rows in parts:
        if len(rows) == 0:
            name = f"{stage.name} ({place})" if place else stage.name
            say(f"{name}: there are no rows of these values; nothing to predict")
    todo = [part for part in parts if len(part[2])]
    with contextlib.ExitStack() as stack:
        loader = None
        for number, (place, models, rows) in enumerate(todo):
            reason = _reason_to_stop(around, "shard") if number else None
            if reason:
                return reason
            if around.compute.main:
                (folder / place).mkdir(exist_ok=True)
                sweep(folder / place)
            around.compute.wait()
            sources = stages_named(models, trains, f"the stage {stage.name!r}")
            opened = open_members(
                around.run, sources, examples.facts, around.compute.device, stage.together, stage.name
            )
            if loader is None:
                loader = stack.enter_context(
                    open_loader(learner, config, examples, around.scratch, around.compute, around.cores)
                )
            reason = predict(
                opened.learner, opened.config, opened.model, loader, rows, examples.table["id"].tolist(),
                stage.outputs, folder / place, around.compute, opened.portion, around.durations,
                around.deadline.now, lambda: _reason_to_stop(around, "shard"),
            )  # fmt: skip
            around.progressed = True  # at least one shard is done before it asks whether to stop
            if reason:
                return reason
    if around.compute.main:
        shards = sorted(folder.rglob("part-*.safetensors"))
        told = {"rows": sum(len(rows) for _, _, rows in parts)}
        ledger.finish(folder, stage, identity, shards, told, time.monotonic() - began)
    return None


class _Pause(BaseException):
    """Ends a call between two of its units. No Exception: a function must not take it for a failure of its own."""


def _call(
    stage: Call, folder: Path, identity: str, examples: Examples | None, around: Surroundings, began: float
) -> str | None:
    """Call the stage's function, in the main process alone. Returns why it paused, or None when the stage is done.

    What it makes takes the stage's name together with the stage's record, in one rename: until then all that it has
    kept is there, and from then on nothing of that is needed.
    """
    inputs = {name: around.run / name for name in needed(stage)}
    kept = folder / ledger.KEPT
    kept.mkdir(exist_ok=True)
    sync_path(folder)
    sweep(kept)
    since = around.deadline.now()

    def measure() -> None:
        nonlocal since
        now = around.deadline.now()
        around.durations.record("call", now - since)
        since = now

    def pause() -> None:
        measure()
        reached("unit")
        around.progressed = True
        around.finished()
        reason = _own_reason_to_stop(around, "call")
        if reason is not None:
            raise _Pause(reason)

    def fill(out: Path) -> None:
        reached("call")
        work = Work(stage.config, inputs, out, examples, around.synthetic, kept, pause)
        results = stage.function(work) or {}
        missing = [name for name in stage.makes if not (out / name).exists()]
        if missing:
            raise TaskError(f"the stage {stage.name!r} did not make {', '.join(missing)}")
        write_manifest(out, {"stage": stage.name, **around.record})
        outputs = [path for path in out.rglob("*") if path.is_file()]
        ledger.finish(out, stage, identity, outputs, results, time.monotonic() - began)

    try:
        place_folder(folder, fill, lambda out: verify_folder(out, from_disk=True))
    except _Pause as pausing:
        return str(pausing)
    measure()
    around.progressed = True
    return None


def _prepare(folder: Path, identity: str, around: Surroundings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    if not ledger.begin(folder, identity):
        aside = _free_name(around.run / "set-aside", folder.name)
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        say(f"{folder.name}: its data or inputs changed; it is done again, what was there is kept in {aside}")
        folder.mkdir()
        ledger.begin(folder, identity)
    if (folder / ledger.RECORD).is_file():
        for path in ledger.damaged(folder):
            say(f"{path} is not what was recorded; it is made again")
            path.unlink(missing_ok=True)
        (folder / ledger.RECORD).unlink()


def _extend(folder: Path, identity: str) -> None:
    """The training that lies here was made longer: it goes on under its new identity."""
    extension.check_checkpoint(folder)
    saved = store.newest(folder / "checkpoints", [])
    say(f"{folder.name} is extended: it goes on from step {saved.step if saved else 0} under the longer plan")
    ledger.note(folder, identity)


def _free_name(parent: Path, name: str) -> Path:
    number = 1
    while (path := parent / f"{name}-{number}").exists():
        number += 1
    return path


def _check_best(folder: Path, result: Mapping[str, Any]) -> None:
    """A training is done only with its best weights. Raises TrainingError or CheckpointError."""
    if result["best_score"] is None:
        raise TrainingError(
            f"{folder.name}: the score {result['score'][1:]} was never a finite number, so there are no best weights",
            hint="look at metrics.jsonl in that folder, and at the validation split",
        )
    _, saved = store.best_weights(folder)
    if saved.step != result["best_step"]:
        raise CheckpointError(
            f"{saved.folder} is not of step {result['best_step']}, where the score was best",
            hint=f"restore the best weights from a copy, or remove {folder} to train it again",
        )


def _reason_to_stop(around: Surroundings, *before: str) -> str | None:
    """Why to stop now; `before`: kinds of work that come before the next stop."""
    return None if (answer := around.compute.share(_own_reason_to_stop(around, *before))) is None else str(answer)


def _own_reason_to_stop(around: Surroundings, *before: str) -> str | None:
    """The same as this process alone sees it."""
    reason = around.stop()
    if reason is None and around.deadline.expired(around.durations.expected(*before, *around.afterwards)):
        reason = around.deadline.reason
    return reason


def _learner(stage: Stage, trains: Mapping[str, Train]) -> Learner | None:
    if isinstance(stage, Predict):
        return stages_named(stage.models, trains, f"the stage {stage.name!r}")[0].learner
    return stage.learner


def _config(stage: Stage, trains: Mapping[str, Train]) -> Any:
    return trains[stage.models[0]].config if isinstance(stage, Predict) else stage.config
