"""Makes what the training loop acts on (model, optimizer, average, schedule), brought to the state to start from.

A restore is whole or an error: every tensor must be there with its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from outlast.base.clock import Deadline, Durations
from outlast.base.files import write_json
from outlast.base.log import warn
from outlast.config.identity import digest
from outlast.config.schema import TaskConfig
from outlast.data.loader import Loader
from outlast.data.sampler import recut
from outlast.data.table import Examples
from outlast.errors import CheckpointError, DataError
from outlast.loop import deterministic
from outlast.loop.accel import Compute, unwrapped
from outlast.loop.headroom import Headroom
from outlast.loop.memory import Fit, can_checkpoint, find_fit, turn_on_checkpointing
from outlast.loop.optim import Plateau, build_average, build_optimizer
from outlast.loop.samples import epoch_order, first_samples
from outlast.loop.step import Stepper
from outlast.loop.teaching import Teacher, taught_step
from outlast.save import rng
from outlast.save.format import read_weights
from outlast.save.resume import Resume, Start
from outlast.state import RunState
from outlast.task import Inputs, Learner, Train, Trained, select

BEGUN = "begun.json"  # in a training stage's folder: what a learner's `begin` brought over


@dataclass
class Job:
    """A training stage with all that the loop needs to know about its surroundings.

    stop(): why the run should stop now (a signal), or None. record: provenance that every checkpoint carries.
    saved(facts): told by the writer's thread, at every save, how far this session has come. warned(sentence): told
    what belongs into the record. afterwards: the kinds of work that follow a stop, for which time is set aside.
    words(): what else the progress line tells. trained(): the best weights of the training stages it needs. teacher():
    the same one each time.
    """

    stage: Train
    folder: Path
    examples: Examples
    needs: Mapping[str, Path]
    loader: Loader
    compute: Compute
    record: Mapping[str, Any]
    deadline: Deadline = field(default_factory=Deadline)
    durations: Durations = field(default_factory=Durations)
    stop: Callable[[], str | None] = lambda: None
    resume: Resume = "auto"
    start_from: Path | None = None
    saved: Callable[[Mapping[str, Any]], None] = lambda facts: None
    warned: Callable[[str], None] = warn
    afterwards: tuple[str, ...] = ("report",)
    words: Callable[[], str] = lambda: ""
    trained: Callable[[], Mapping[str, Trained]] = dict
    teacher: Callable[[], Teacher | None] = lambda: None

    @property
    def learner(self) -> Learner:
        return self.stage.learner

    @property
    def config(self) -> TaskConfig:
        return self.stage.config


@dataclass
class Setup:
    """The live objects of a training stage."""

    model: nn.Module  # wrapped for several processes
    stepper: Stepper
    average: AveragedModel | None
    plateau: Plateau | None
    fit: np.ndarray
    validate: np.ndarray
    steps_per_epoch: int
    epochs: int
    micro_batch: int
    rung: str
    parameters: int

    def evaluated(self) -> nn.Module:
        """The model that is evaluated and delivered: the average if there is one."""
        return self.average.module if self.average is not None else unwrapped(self.model)


def rows_of(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and the validation rows. Raises DataError if there are none."""
    fit, validate = select(job.examples.table, job.stage.fit), select(job.examples.table, job.stage.validate)
    for name, rows in (("training", fit), ("validation", validate)):
        if len(rows) == 0:
            raise DataError(
                f"there are no {name} examples in {job.examples.root}", hint="look at the split of the data"
            )
    return fit, validate


def choose_fit(job: Job, fit: np.ndarray) -> Fit:
    """Find the rung and micro-batch by real steps on real samples; nothing of them remains."""
    train, rungs = job.config.train, job.learner.rungs(job.config)
    wanted = train.micro_batch or -(-train.batch_size // job.compute.processes)
    batch = _trial_batch(job, fit, wanted)
    seen = deterministic.Seen()
    alone = replace(job, compute=replace(job.compute, processes=1))  # a trial that fails must not leave others waiting
    job.teacher()  # it takes its memory before there is a model
    room = Headroom(job.compute.device, train.memory_budget_gigabytes, job.compute.processes)

    def attempt(rung: str, micro_batch: int, checkpointing: bool) -> None:
        nonlocal seen
        model = _model(job, rung)
        if checkpointing:
            turn_on_checkpointing(model)
        model = model.to(job.compute.device)
        average, stepper = build_average(model, train.ema_decay), _stepper(alone, model)
        part = {name: tensor[:micro_batch] for name, tensor in batch.items()}
        with room.kept(), deterministic.watch(train.deterministic) as seen:
            for _ in range(2):  # in the second one what the optimizer remembers is there too
                stepper.run([{**part, "epochs": torch.tensor(0.0)}], micro_batch, 0.0)
        del average  # it was there, as it will be in training

    found = find_fit(
        attempt, rungs, wanted, fallback=train.fallback, can_checkpoint=lambda rung: can_checkpoint(_model(job, rung))
    )
    # Every process must take the same: the smallest of what fits, and the lowest rung.
    all_found: list[Fit] = job.compute.gather(
        replace(found, asked=train.micro_batch, inexact=tuple(sorted(seen.operations)))
    )
    refused = {name for names in job.compute.gather(seen.refused) for name in names}
    taken = max(all_found, key=lambda fit: (rungs.index(fit.rung), fit.checkpointing, -fit.micro_batch))
    if refused:
        deterministic.check(job.stage.name, taken.inexact, job.compute.device.type, exact=True, refused=refused)
    if taken.rung != rungs[0]:
        job.warned(
            f"{job.stage.name}: THE MODEL {rungs[0]!r} DOES NOT FIT INTO MEMORY: TRAINING FALLS BACK TO "
            f"{taken.rung!r}. REASON: {taken.reason}"
        )
    elif taken.reason is not None:
        how = " and activations computed again instead of kept" if taken.checkpointing else ""
        job.warned(
            f"{job.stage.name}: batches of {job.config.train.batch_size} are made of micro-batches of "
            f"{taken.micro_batch}{how}, because memory is short ({taken.reason})"
        )
    return taken


def build(job: Job, fit: Fit) -> Setup:
    """Build everything fresh from the seed."""
    train = job.config.train
    rows, validate = rows_of(job)
    rng.seed_everything(train.seed)
    model = _model(job, fit.rung)
    if fit.checkpointing:
        turn_on_checkpointing(model)
    model = job.compute.wrap(model)
    # From here on every process draws its own numbers (dropout); the models began equal.
    rng.seed_everything(train.seed + job.compute.rank)
    steps = len(epoch_order(job.learner, job.config, job.examples.table, rows, 0).rows)
    setup = Setup(
        model=model,
        stepper=_stepper(job, model),
        average=build_average(unwrapped(model), train.ema_decay),
        plateau=Plateau(train) if train.schedule == "plateau" else None,
        fit=rows,
        validate=validate,
        steps_per_epoch=steps,
        epochs=max(train.epochs, -(-train.minimum_steps // steps)),
        micro_batch=fit.micro_batch,
        rung=fit.rung,
        parameters=sum(parameter.numel() for parameter in unwrapped(model).parameters()),
    )
    if job.compute.processes > 1:
        warm_up(setup, job)
    return setup


def warm_up(setup: Setup, job: Job) -> None:
    """One pass forward and backward through the wrapped model, of which only the order of the gradients remains.

    DistributedDataParallel lays out its buckets anew after its first pass, by the order in which the gradients became
    ready, and with three or more processes the rounding of a sum depends on its place in a bucket. Every session
    begins with this pass, so that the first step of a resumed one adds up as the same step of an uninterrupted one.
    """
    stepper, model = setup.stepper, setup.model
    batch = {**_trial_batch(job, setup.fit, setup.micro_batch), "epochs": torch.tensor(0.0)}
    generators = rng.capture()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with job.compute.autocast(stepper.precision):
        loss = stepper.step(model, job.compute.put(batch))["loss_sum"]
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    rng.restore(generators)


def model_hash(model: nn.Module) -> str:
    """A hash of every tensor's name, shape and type: what a checkpoint must fit."""
    tensors = {name: [list(value.shape), str(value.dtype)] for name, value in unwrapped(model).state_dict().items()}
    return digest(tensors)


def start(setup: Setup, job: Job, choice: Start) -> RunState:
    """Bring the live objects to where `choice` says, and return the state to go on from."""
    model = unwrapped(setup.model)
    if choice.weights is not None:
        load_weights(model, read_weights(choice.weights), choice.weights)
        _average_begins(setup)
    elif choice.state is None and job.learner.begin is not None:
        _begin(job.learner.begin, setup, job)
    if choice.state is None:
        return RunState(
            model={},
            optimizer={},
            rung=setup.rung,
            micro_batch=setup.micro_batch,
            batch_size=job.config.train.batch_size,
        )
    state = choice.state
    source = choice.saved.folder if choice.saved else job.folder
    if state.processes != job.compute.processes:
        job.warned(
            f"{job.stage.name} was saved by {_count(state.processes)} and goes on with "
            f"{_count(job.compute.processes)}: each step has the same samples, but "
            f"{'; '.join(what_differs(model, job.learner))}. It does not end bit for bit where it would have ended"
        )
        state.ranks = _redistributed(state.ranks, job.compute.processes)
    load_weights(model, state.model, source)
    setup.stepper.optimizer.load_state_dict(state.optimizer)
    if (setup.average is None) != (state.average is None) or (setup.plateau is None) != (state.plateau is None):
        raise CheckpointError(
            f"{source} was saved with another train.ema_decay or train.schedule",
            hint="give the configuration that made it",
        )
    if setup.average is not None and state.average is not None:
        setup.average.load_state_dict(state.average)
    if setup.plateau is not None and state.plateau is not None:
        setup.plateau.load(state.plateau)
    if setup.stepper.scaler is not None and state.scaler is not None:
        setup.stepper.scaler.load_state_dict(state.scaler)
    if job.compute.rank < len(state.ranks):
        rng.restore(state.ranks[job.compute.rank]["generators"])
    if state.batch_size != job.config.train.batch_size:
        _recut(setup, job, state)
    return state


def _begin(begin: Callable[..., Mapping[str, Any]], setup: Setup, job: Job) -> None:
    """Bring over what the learner takes from the stages it needs; BEGUN says what that was."""
    inputs = Inputs(job.examples.facts, job.needs)
    account = begin(job.config, unwrapped(setup.model), inputs, job.trained())
    _average_begins(setup)
    if job.compute.main:
        write_json(job.folder / BEGUN, account)


def _average_begins(setup: Setup) -> None:
    if setup.average is not None:
        setup.average.module.load_state_dict(unwrapped(setup.model).state_dict())


def _recut(setup: Setup, job: Job, state: RunState) -> None:
    """Go on with batches of another size: from the first one that leaves no sample of the epoch out."""
    before, after = state.batch_size, job.config.train.batch_size
    samples = epoch_order(job.learner, job.config, job.examples.table, setup.fit, state.epoch).samples
    state.cursor, twice = recut(samples, before, after, state.cursor)
    state.batch_size = after
    warn(
        f"effective batch size {before} -> {after} from step {state.step} of {job.stage.name} on: this is another "
        f"training from here on ({setup.steps_per_epoch} steps per epoch; {twice} samples are seen twice in this epoch)"
    )


def what_differs(model: nn.Module, learner: Learner) -> list[str]:
    """What another number of processes changes in training this model, one clause each."""
    clauses = ["sums are rounded in another order"]
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        clauses.append("each process normalises its own share of a batch (BatchNorm)")
    if any(_draws(module) for module in model.modules()):
        clauses.append("dropout draws other numbers")
    if learner.couples_batch:
        clauses.append(f"the loss of {learner.name!r} couples the samples of each process's share")
    return clauses


def _draws(module: nn.Module) -> bool:
    """Whether it draws random numbers in training: dropout, drop path, attention or recurrence with dropout."""
    shares = [getattr(module, name, None) for name in ("drop_prob", "dropout", "dropout_p")]
    if isinstance(module, nn.modules.dropout._DropoutNd):
        shares.append(module.p)
    return any(isinstance(share, int | float) and share > 0 for share in shares)


def _redistributed(ranks: list[dict[str, Any]], processes: int) -> list[dict[str, Any]]:
    """Each process's own state, for another number of processes: the first takes over what all had summed up."""
    total: dict[str, float] = {}
    for rank in ranks:
        for name, value in rank["sums"].items():
            total[name] = total.get(name, 0.0) + value
    generators = [rank["generators"] for rank in ranks[:processes]]
    generators += [rng.capture()] * (processes - len(generators))  # of a process that is new: those it was given
    # All need the same names: at the end of an epoch the sums are added up over the processes, name by name.
    sums = [total, *[dict.fromkeys(total, 0.0)] * (processes - 1)]
    return [{"generators": mine, "sums": dict(its)} for mine, its in zip(generators, sums, strict=True)]


def _count(processes: int) -> str:
    return "one process" if processes == 1 else f"{processes} processes"


def snapshot(setup: Setup, job: Job, state: RunState, sums: Mapping[str, float]) -> RunState:
    """Fill the state from the live objects. Every process must call it: the generators of all are gathered."""
    state.model = unwrapped(setup.model).state_dict()
    state.optimizer = setup.stepper.optimizer.state_dict()
    state.average = setup.average.state_dict() if setup.average is not None else None
    state.plateau = setup.plateau.state() if setup.plateau is not None else None
    state.scaler = setup.stepper.scaler.state_dict() if setup.stepper.scaler is not None else None
    state.ranks = job.compute.gather({"generators": rng.capture(), "sums": dict(sums)})
    state.processes = job.compute.processes
    return state


def _trial_batch(job: Job, fit: np.ndarray, count: int) -> dict[str, Any]:
    """The first `count` training samples, as training gets them: a crop takes less memory than what it is cut from."""
    order = epoch_order(job.learner, job.config, job.examples.table, fit, 0)
    return dict(next(iter(job.loader.batches([first_samples(order, count)]))))


def _model(job: Job, rung: str) -> nn.Module:
    return job.learner.model(job.config, Inputs(job.examples.facts, job.needs), rung)


def _stepper(job: Job, model: nn.Module) -> Stepper:
    train, learner = job.config.train, job.learner
    rates = learner.rates(job.config, unwrapped(model)) if learner.rates is not None else None
    return Stepper(
        model=model,
        optimizer=build_optimizer(unwrapped(model), train, rates),
        step=taught_step(job.learner, job.config, job.teacher()),
        compute=job.compute,
        precision=train.precision,
        clip_norm=train.clip_norm,
        scaler=job.compute.scaler(train.precision),
    )


def load_weights(model: nn.Module, weights: Mapping[str, Any], source: Path) -> None:
    """Load all tensors into the model. Raises CheckpointError that names those that don't fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {source} do not fit the model",
            details=[line.strip() for line in str(error).splitlines()[1:]],
            hint="give the configuration that made them",
        ) from error
