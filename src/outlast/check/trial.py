"""One training stage tried out: its model built, two real batches learned from, its outputs compared.

Everything is done once, when a check first asks for it, on a model that is thrown away afterwards. What the task's own
code raises is kept in `problem`, for the one check whose business it is; the others can't check then.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from outlast.check.finding import CannotCheck
from outlast.check.reading import RAISED, Reading
from outlast.check.state import attributes, changed
from outlast.config.schema import TaskConfig
from outlast.data.loader import Loader
from outlast.errors import OutlastError
from outlast.loop import deterministic
from outlast.loop.accel import Compute
from outlast.loop.memory import is_out_of_memory
from outlast.loop.optim import build_optimizer
from outlast.loop.samples import epoch_order
from outlast.loop.step import Stepper
from outlast.loop.teaching import Teacher, open_teacher, taught_step
from outlast.save import rng
from outlast.task import Inputs, Train, Trained, select

Batch = dict[str, Any]
_MOST_SAMPLES = 8  # of a batch here: enough to see, and quick on a CPU


@dataclass(frozen=True)
class Steps:
    """What two steps on real batches showed; names are those of parameters, buffers and attributes.

    losses: mean loss of each batch. no_gradient: trainable, but without a gradient in both steps; zero_gradient: it
    was zero in both. frozen_gradient: not trainable, but got one. drifting: statistics of frozen layers that changed.
    hidden: state outside the state_dict that changed. moved: whether any parameter changed. inexact: operations that do
    not repeat bit for bit on CUDA (loop.deterministic), wherever these steps were done.
    """

    losses: tuple[float, ...]
    no_gradient: tuple[str, ...] = ()
    zero_gradient: tuple[str, ...] = ()
    frozen_gradient: tuple[str, ...] = ()
    drifting: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    moved: bool = True
    inexact: tuple[str, ...] = ()


@dataclass
class Trial:
    """A training stage and what it takes to try it. start_from: weights that it will begin with. trained(): weights
    that its teacher is made of, fresh ones where there are no others yet.

    alike: the names of the stages that differ from it only in their rows, its own first.
    """

    stage: Train
    reading: Reading
    compute: Compute
    run: Path
    start_from: Path | None = None
    trained: Callable[[], Mapping[str, Trained]] = dict
    alike: list[str] = field(default_factory=list)
    problem: str = field(default="", init=False)

    @property
    def config(self) -> TaskConfig:
        return self.stage.config

    @property
    def rung(self) -> str:
        return self.stage.learner.rungs(self.config)[0]

    @property
    def classes(self) -> int | None:
        """How many there are, if the data has classes."""
        classes = self.reading.examples.facts.get("classes")
        return len(classes) if classes is not None else None

    def build(self, seed: int = 0) -> nn.Module:
        """A fresh model on the device. Raises ModelError and others, or what the task's code raises."""
        rng.seed_everything(seed)
        return self.stage.learner.model(self.config, self._inputs, self.rung).to(self.compute.device)

    @cached_property
    def model(self) -> nn.Module:
        """The model that most checks look at; not trained. Raises CannotCheck if it can't be built."""
        missing = [name for name in self.stage.needs if not (self.run / name).is_dir()]
        with self._told("it can't be built", missing):
            return self.build()
        raise AssertionError

    @cached_property
    def teacher(self) -> Teacher | None:
        """What it learns from, if it does. Raises CannotCheck if that can't be built."""
        with self._told("its teacher can't be built"):
            return open_teacher(self.stage, self._inputs, self.trained, self.compute.device)
        raise AssertionError

    def step(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The learner's step, with what its teacher makes of the batch."""
        return taught_step(self.stage.learner, self.config, self.teacher)(model, batch)

    @property
    def _inputs(self) -> Inputs:
        return Inputs(self.reading.examples.facts, {name: self.run / name for name in self.stage.needs})

    @cached_property
    def batches(self) -> list[Batch]:
        """Two augmented training batches of at most 8 samples, on the device."""
        learner, config, reading = self.stage.learner, self.config, self.reading
        good = reading.examples.table["id"].isin(reading.samples.arrays.keys()).to_numpy()
        rows = select(reading.examples.table, self.stage.fit)
        rows = rows[good[rows]]
        if len(rows) < 2:
            raise CannotCheck(f"{self.stage.name} has fewer than two training examples that can be read")
        with self._told("no batch can be made"):
            size = min(config.train.micro_batch or config.train.batch_size, _MOST_SAMPLES, len(rows))
            small = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size})})
            order = epoch_order(learner, small, reading.examples.table, rows, 0)
            columns = {name: reading.examples.table[name].to_numpy() for name in reading.examples.batch_columns}
            draw = partial(learner.draw, config, config.train.seed)
            with Loader(reading.get, columns, partial(learner.augment, config), draw, workers=0) as loader:
                plans = [plan for _, plan in zip(range(2), order.plans(0, 0, size, 0, 1), strict=False)]
                batches = [self.compute.put(batch) for batch in loader.batches(plans)]
            for batch in batches:
                batch["epochs"] = torch.tensor(0.0)
        return batches * 2 if len(batches) == 1 else batches

    @cached_property
    def steps(self) -> Steps:
        """Two optimizer steps in full precision, on a model of its own."""
        self.model, self.teacher, self.batches  # noqa: B018 - what is wrong with these is not this one's business
        with self._told("it can't be trained"):
            return self._steps()
        raise AssertionError

    @cached_property
    def predicted(self) -> dict[str, Tensor]:
        """What the untrained model predicts of the first batch."""
        return self.outputs(self.model, self.batches[0])

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What the learner predicts, in evaluation mode."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), self._told("it can't predict"):
                return self.stage.learner.predict(self.config, model, batch)
        finally:
            model.train(training)
        raise AssertionError

    @contextmanager
    def _told(self, what: str, missing: list[str] | None = None) -> Iterator[None]:
        """What the task's code raises inside becomes `problem`, and CannotCheck for whoever asked."""
        try:
            yield
        except RAISED as error:
            if missing:
                raise CannotCheck(f"{self.stage.name} needs {', '.join(missing)}, which is not done yet") from error
            if is_out_of_memory(error):
                raise CannotCheck(f"{self.stage.name}: {_MOST_SAMPLES} samples don't fit into memory here") from error
            self.problem = self.problem or f"{what}: {told(error)}"
            raise CannotCheck(f"{self.stage.name}: {what}") from error
        except OutlastError as error:
            if missing:
                raise CannotCheck(f"{self.stage.name} needs {', '.join(missing)}, which is not done yet") from error
            self.problem = self.problem or f"{what}: {error}"
            raise CannotCheck(f"{self.stage.name}: {what}") from error

    def _steps(self) -> Steps:
        model = self.build()
        model.train()
        train = self.config.train
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return Steps((), moved=False)
        stepper = Stepper(model, build_optimizer(model, train), self.step, self.compute, "fp32", None)
        parameters = dict(model.named_parameters())
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        frozen = _frozen_buffers(model)
        missing, zero, states, losses = [], [], [], []
        held = attributes(model)
        inexact: set[str] = set()
        for batch in self.batches:
            # A tenth of the learning rate: enough to move, too little to explode without a warm-up.
            with deterministic.watch(deterministic=False) as seen:
                sums = stepper.run([batch], len(batch["row"]), train.learning_rate / 10)
            inexact |= seen.operations
            weight = float(sums["weight"])
            losses.append(float(sums["loss_sum"]) / weight if weight else math.nan)
            missing.append({name for name, one in parameters.items() if one.requires_grad and one.grad is None})
            zero.append({name for name, one in parameters.items() if one.grad is not None and not one.grad.any()})
            states.append(attributes(model))
        now = _frozen_buffers(model)
        return Steps(
            losses=tuple(losses),
            no_gradient=tuple(sorted(missing[0] & missing[1])),
            zero_gradient=tuple(sorted(zero[0] & zero[1])),
            frozen_gradient=tuple(n for n, one in parameters.items() if not one.requires_grad and one.grad is not None),
            drifting=tuple(name for name in frozen if not torch.equal(frozen[name], now[name])),
            hidden=tuple(name for name in changed(states[0], states[1]) if name in held or name in states[0]),
            moved=any(not torch.equal(before[name], one.detach()) for name, one in parameters.items()),
            inexact=tuple(sorted(inexact)),
        )


def told(error: BaseException) -> str:
    """An exception of a task's code in one line, with the place in the code where it was raised."""
    text = (str(error).strip() or "no message").splitlines()[0][:300]
    frames = traceback.extract_tb(error.__traceback__)
    # The last place outside torch and its like: there the reader can do something.
    own = [frame for frame in frames if "site-packages" not in frame.filename] or list(frames)
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{place}"


def replaced(batch: Batch, position: int) -> Batch:
    """The batch with the sample at `position` replaced by another one's mirror image; all else as it was."""
    other = (position + 1) % len(batch["row"])
    result = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.ndim >= 3 and len(value) == len(batch["row"]):
            value = value.clone()
            value[position] = value[other].flip(-1)
            result[name] = value
    return result


def _frozen_buffers(model: nn.Module) -> Mapping[str, Tensor]:
    """Copies of the buffers of layers whose parameters are all frozen (BatchNorm keeps statistics in them)."""
    found = {}
    for prefix, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            for name, buffer in module.named_buffers(prefix, recurse=False):
                found[name] = buffer.detach().clone()
    return found
