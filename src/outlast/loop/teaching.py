"""The frozen teacher of a training: a model of an earlier stage whose outputs the step gets beside the samples.

Promises: it is built once per session, evaluates, gets no gradient, and draws no random number that the training would
have drawn; it is no part of the model, so it is neither wrapped for several processes nor saved. Teacher and student
see the same samples of the same micro-batch, under the same precision. Its hash stands in the records of the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outlast.config.schema import TaskConfig
from outlast.errors import CheckpointError, TrainingError
from outlast.loop.memory import why_out_of_memory
from outlast.loop.step import Batch
from outlast.save import rng, store
from outlast.task import Inputs, Learner, Train, Trained

Step = Callable[[nn.Module, Batch], dict[str, Any]]


@dataclass(frozen=True)
class Teacher:
    """A teacher on its device, and what the records say of it: the SHA-256 of its weights, and how many there are."""

    module: nn.Module
    sha256: str
    parameters: int

    def record(self) -> dict[str, Any]:
        """What stands in the records."""
        return {name: value for name, value in vars(self).items() if name != "module"}


class Needed(dict[str, Trained]):
    """The weights of the stages that a training needs; to ask for one that is not there is a clear error."""

    def __init__(self, stage: str, known: Mapping[str, Trained]) -> None:
        super().__init__(known)
        self.stage = stage

    def __missing__(self, name: str) -> Trained:
        raise CheckpointError(
            f"{self.stage} learns from the stage {name!r}, whose best weights are not there",
            hint=f"train {name} first, and name it among the stages that {self.stage} needs",
        )


def open_teacher(
    stage: Train, inputs: Inputs, trained: Callable[[], Mapping[str, Trained]], device: torch.device
) -> Teacher | None:
    """The stage's teacher, frozen and evaluating; None if it has none.

    Raises CheckpointError if the weights that it is made of are missing, TrainingError if it does not fit into memory.
    """
    if stage.learner.teacher is None:
        return None
    generators = rng.capture()
    try:
        module = stage.learner.teacher(stage.config, inputs, Needed(stage.name, trained()))
        if module is None:
            return None
        module = module.to(device).eval().requires_grad_(False)
    except (RuntimeError, MemoryError) as error:
        why = why_out_of_memory(error)
        if why is None:
            raise
        raise TrainingError(
            f"the teacher of {stage.name} does not fit into the memory of this machine: {why}",
            hint="free memory (other processes, notebooks), or learn from a smaller teacher",
        ) from error
    finally:
        rng.restore(generators)
    return Teacher(module, weights_hash(module), sum(parameter.numel() for parameter in module.parameters()))


def taught_step(learner: Learner, config: TaskConfig, teacher: Teacher | None) -> Step:
    """The learner's step with its configuration bound; with a teacher, the batch has the teacher's outputs too."""
    if teacher is None:
        return partial(learner.step, config)
    return partial(_taught, learner, config, teacher.module)


def _taught(learner: Learner, config: TaskConfig, teacher: nn.Module, model: nn.Module, batch: Batch) -> dict[str, Any]:
    assert learner.teach is not None
    with torch.no_grad():  # not inference_mode: what it gives takes part in the student's backward pass
        told = learner.teach(config, teacher, batch)
    return learner.step(config, model, {**batch, **told})


def trained_so_far(
    stage: Train, trains: Mapping[str, Train], facts: Mapping[str, Mapping[str, Any]], run: Path
) -> dict[str, Trained]:
    """The weights that a stage needs, for a trial of it: those of the run where there are any, else fresh ones.

    trains: the plan's trainings. facts: by learner. A trial costs as much with a teacher that knows nothing.
    """
    found = {}
    for name in stage.needs:
        if name not in trains:
            continue
        source = trains[name]
        known = facts[source.learner.name]
        if (run / name / "best").is_dir():
            weights = store.best_weights(run / name)[0]
        else:
            generators = rng.capture()
            needs = {need: run / need for need in source.needs}
            rung = source.learner.rungs(source.config)[0]
            weights = source.learner.model(source.config, Inputs(known, needs), rung).state_dict()
            rng.restore(generators)
        found[name] = Trained(weights, known)
    return found


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of every tensor of the module: name, type, shape and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
