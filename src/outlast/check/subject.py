"""What checks look at: a task, its configuration, the run that is meant, the machine, and, made when first asked for,
its data and models.

A part that isn't there (a configuration that is wrong, data that was not found) raises `CannotCheck` for every check
that needs it; the one check whose business it is reads the reason from `problems`. So a check needs no case for what
another check has found already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from outlast.check.finding import CannotCheck
from outlast.check.machine import Machine
from outlast.check.measure import Measured, measure
from outlast.check.reading import RAISED, Reading
from outlast.check.trial import Trial, told
from outlast.config.identity import digest
from outlast.config.schema import Settings, TaskConfig
from outlast.data.loader import BatchPlan, Loader
from outlast.data.sampler import batches_in
from outlast.data.table import Examples
from outlast.env.disk import file_system
from outlast.errors import OutlastError
from outlast.loop.accel import set_up
from outlast.loop.samples import epoch_order, workers_of
from outlast.loop.teaching import trained_so_far
from outlast.task import Stage, Task, Train, select, topological

Part = TypeVar("Part")


def _later() -> Mapping[str, Examples]:
    raise CannotCheck("the data is looked at later")


@dataclass(frozen=True)
class Training:
    """A training stage with the number of its examples, and of the samples that its sampler shows in an epoch."""

    stage: Train
    examples: int
    shown: int

    @property
    def steps_per_epoch(self) -> int:
        return batches_in(self.shown, self.stage.config.train.batch_size)

    @property
    def epochs(self) -> int:
        train = self.stage.config.train
        return max(train.epochs, -(-train.minimum_steps // self.steps_per_epoch))

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass
class Subject:
    """Everything a check may ask for. Times are in seconds, sizes in bytes.

    machine: facts, replaceable in tests. task_, config_: None where they could not be had; checks use `task` and
    `config`. problems: why a part is not there, by its name ("task", "config", "examples"). no_effect: the warnings of
    `resolve`. run: the run folder. devices: the numbers of the GPUs that are this
    process's business. find_examples(): {learner: Examples}.
    """

    machine: Machine
    task_: Task | None
    config_: TaskConfig | None
    preset: str
    run: Path = Path("runs/run")
    no_effect: tuple[str, ...] = ()
    session_limit: float | None = None
    processes: int = 1
    side_by_side: int = 1
    devices: range = range(64)
    mirror: str | None = None
    roots: Mapping[str, Path] = field(default_factory=dict)
    find_examples: Callable[[], Mapping[str, Examples]] = _later
    problems: dict[str, OutlastError] = field(default_factory=dict)
    quota_left: float | None = None
    quota_rate: float = 1.0  # quota seconds that a second costs
    start_from: Mapping[str, Path] = field(default_factory=dict)  # weights to begin with, by training stage
    file_system: Callable[[Path], str] = file_system
    not_measured: dict[str, str] = field(default_factory=dict)  # why not, by training stage

    @property
    def task(self) -> Task:
        if self.task_ is None:
            raise CannotCheck("the task can't be imported")
        return self.task_

    @property
    def config(self) -> TaskConfig:
        if self.config_ is None:
            self.task  # noqa: B018 - without a task there is no configuration, and that is then the reason
            raise CannotCheck("the configuration is wrong")
        return self.config_

    @cached_property
    def plan(self) -> list[Stage]:
        """The stages, in order."""
        return topological(self.task.stages(self.config))

    @property
    def examples(self) -> Mapping[str, Examples]:
        """By learner."""
        return self._part("examples", "the data can't be used", self.find_examples)

    @property
    def trainings(self) -> list[Training]:
        """Every training stage, counted; a stage without examples is left out (the data's checks say so)."""
        found = []
        for stage in self.plan:
            if isinstance(stage, Train):
                table = self.examples[stage.learner.name].table
                fit = select(table, stage.fit)
                if len(fit):
                    samples = epoch_order(stage.learner, stage.config, table, fit, 0).samples
                    found.append(Training(stage, len(fit), samples))
        return found

    @cached_property
    def readings(self) -> list[Reading]:
        """The data of every learner that is trained; several where stages read it in several ways."""
        return list({id(reading): reading for _, reading in self._read}.values())

    @cached_property
    def trials(self) -> list[Trial]:
        """Every training stage to be tried out; of stages that differ only in their rows, the first."""
        # Several processes share the cores: what is tried here is one of them.
        cores = max(self.machine.host.cores // self.at_once, 1)
        compute = set_up(self.config.train.threads, cores)
        trains = {stage.name: stage for stage in self.plan if isinstance(stage, Train)}
        facts = {name: examples.facts for name, examples in self.examples.items()}
        found: dict[str, Trial] = {}
        for stage, reading in self._read:
            kind = digest(
                [stage.learner.name, stage.config.model_dump(mode="json"), str(self.start_from.get(stage.name))]
            )
            if kind not in found:
                trained = partial(trained_so_far, stage, trains, facts, self.run)
                found[kind] = Trial(stage, reading, compute, self.run, self.start_from.get(stage.name), trained)
            found[kind].alike.append(stage.name)
        return list(found.values())

    @cached_property
    def measured(self) -> list[Measured]:
        """What the training stages cost; of one that can't be measured, `not_measured` says why."""
        found = []
        for trial in self.trials:
            try:
                if not trial.reading.samples.whole:
                    raise CannotCheck("not all of its samples can be read")
                if self.config.train.needs_gpu and not self.machine.gpus:
                    raise CannotCheck("it is meant for a GPU, and there is none here to measure it on")
                if self.workers > 2 * self.machine.host.cores:
                    raise CannotCheck(
                        f"{self.workers} loader processes are not tried on {self.machine.host.cores} cores"
                    )
                trial.steps  # noqa: B018 - a stage that can't be trained can't be measured
                host = self.machine.host
                found.append(measure(trial, host.scratch, host.cores, self.processes))
            except CannotCheck as reason:
                self.not_measured[trial.stage.name] = str(reason)
            except OutlastError as problem:
                self.not_measured[trial.stage.name] = problem.message
            except RAISED as problem:
                self.not_measured[trial.stage.name] = told(problem)
        return found

    @cached_property
    def _read(self) -> list[tuple[Train, Reading]]:
        """Training stages with their data; those without examples are left out (a check of the data says so)."""
        host = self.machine.host
        found: dict[str, Reading] = {}
        pairs = []
        for stage in self.plan:
            if not isinstance(stage, Train) or not len(self.examples[stage.learner.name].table):
                continue
            kind = digest([stage.learner.name, stage.learner.reads(stage.config)])
            if kind not in found:
                examples = self.examples[stage.learner.name]
                found[kind] = Reading(stage.learner, stage.config, examples, host.scratch, host.cores)
            pairs.append((stage, found[kind]))
        return pairs

    @property
    def at_once(self) -> int:
        """Processes that train at a time, of one stage or of several: each uses a GPU of its own."""
        return self.processes * self.side_by_side

    @property
    def workers(self) -> int:
        """Loader workers of each process."""
        machine = self.machine
        cores = max(machine.host.cores // self.side_by_side, 1)
        return workers_of(self.config, cores, self.processes, beside_gpu=bool(machine.gpus))

    @property
    def micro_batch(self) -> int:
        """Samples of one forward pass in one process, before memory has its say."""
        share = -(-self.config.train.batch_size // self.processes)
        return min(self.config.train.micro_batch or share, share)

    @property
    def micro_batch_bytes(self) -> int:
        """What the loader hands over for one forward pass; of the stage with the largest samples."""
        shown = max((training.shown for training in self.trainings), default=0)
        return min(self.micro_batch, shown) * self._part("sample", "no sample can be read", self._sample_bytes)

    def _sample_bytes(self) -> int:
        stages = [training.stage for training in self.trainings]
        return max((_bytes_of_one(stage, self.examples[stage.learner.name]) for stage in stages), default=0)

    def _part(self, name: str, reason: str, make: Callable[[], Part]) -> Part:
        """Make a part once; if that fails, remember why and say to everyone that it isn't there."""
        if name in self.problems:
            raise CannotCheck(reason)
        if name not in self._made:
            try:
                self._made[name] = make()
            except OutlastError as problem:
                self.problems[name] = problem
                raise CannotCheck(reason) from problem
        made: Part = self._made[name]
        return made

    @cached_property
    def _made(self) -> dict[str, Any]:
        return {}


def _bytes_of_one(stage: Train, examples: Examples) -> int:
    """The size of the first sample as the loader makes it."""
    learner, table = stage.learner, examples.table
    first = {str(name): value for name, value in table.iloc[0].to_dict().items()}
    read = learner.read(stage.config, examples.root, first)
    loader = Loader(
        get=lambda rows: {name: array[None] for name, array in read.items()},
        columns={name: table[name].to_numpy() for name in examples.batch_columns},
        finish=partial(learner.augment, stage.config),
        draw=None,
        workers=0,
    )
    row = np.zeros(1, np.int64)
    (batch,) = loader.batches([BatchPlan(0, 0, row, row)], augmented=False)
    tensors = [one for value in batch.values() for one in (value if isinstance(value, list) else [value])]
    return sum(int(one.nbytes) for one in tensors)


def groups(settings: Settings, prefix: str = "") -> list[tuple[str, Settings]]:
    """Every group of settings with its dotted prefix, the whole one (prefix "") first."""
    found = [(prefix, settings)]
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            found += groups(value, f"{prefix}{name}.")
    return found
