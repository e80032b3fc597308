"""What a training needs to know: examples, models, steps, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from outlast.base.files import read_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from outlast.data.sampler import Drawn
    from outlast.data.table import Examples

    Batch = dict[str, torch.Tensor]
    Row = Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a model is built from: facts about the data (channels, classes) and the folders of the stages it needs."""

    facts: Mapping[str, Any]
    needs: Mapping[str, Path] = field(default_factory=dict)

    def rung(self, stage: str) -> str | None:
        """Which model of its ladder a needed training stage has trained; None if it is not done."""
        record = self.needs[stage] / "stage.json" if stage in self.needs else None
        return str(read_json(record)["result"]["rung"]) if record is not None and record.is_file() else None


@dataclass(frozen=True)
class Trained:
    """The best weights of a training stage that is done, and the facts that its model was built from."""

    weights: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """A trained model in use: its stage's configuration, and its module on the device, evaluating."""

    config: Any
    module: torch.nn.Module


class Metric(Protocol):
    """Accumulates what an evaluation needs, batch by batch; `merge` takes in what another process accumulated."""

    def update(self, outputs: Batch, batch: Batch) -> None: ...
    def merge(self, other: Any) -> None: ...
    def compute(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Learner:
    """One model to be trained: how its samples, its model, its step and its score are made.

    examples(config, roots)   every example with its split, classes and fingerprint; roots: {name: folder}
    read(config, root, row)   arrays of one row, decoded, before any augmentation; they are cached
    reads(config)             JSON: the settings that `read` depends on; the cache is keyed by them
    sampler(config, table, seed, epoch)   int64 positions into the training table: the order of one epoch; or Drawn:
                              positions, and what was drawn for each sample besides
    draw(config, seed, epoch, indices)    the random numbers of these samples, first axis = samples
    augment(config, batch, draws)   the whole batch on its way into the model; draws is None when evaluating
    model(config, inputs, rung)     an nn.Module that holds everything that is trained
    begin(config, model, inputs, trained)   once before a fresh training: brings over weights of the stages it needs,
                              {stage: Trained}; returns a JSON-able account of it, kept in begun.json
    rungs(config)             names of the ladder, the wanted model first, then smaller ones to fall back on
    step(config, model, batch)      {"loss_sum": tensor, "weight": number, extras}; extras are sums too, and logged
                              divided by the weight. batch["epochs"] (0-dim float32) tells how many epochs were
                              trained so far, for losses with a schedule.
    predict(config, model, batch)   outputs without gradient, first axis = samples
    metric(config, facts)     a fresh Metric fed with predict's outputs
    score                     "+name" (more is better) or "-name": what early stopping and "best" go by
    deploy(config, model)     the module that users of the weights get
    teacher(config, inputs, trained)   a model to learn from, made of weights of the stages it needs, {stage: Trained};
                              none: this stage has none. It is frozen, evaluates, and is no part of what is trained
    teach(config, teacher, batch)   what the teacher makes of a batch, without gradient; `step` finds it in its batch
    loss_at_start(config, facts)    the mean loss of a model that knows nothing, None if that is not known; without it,
                              ln(classes) where there is one label per sample
    rates(config, model)      {beginning of parameters' names: their learning rate as a part of the others'}
    alarms(config, facts, line)     sentences on what looks wrong after an epoch, and why; line: that of metrics.jsonl
    couples_batch             the loss is not a sum over samples: micro-batches change it; recorded, and warned of
    """

    name: str
    examples: Callable[[Any, Mapping[str, Path]], Examples]
    read: Callable[[Any, Path, Row], dict[str, np.ndarray]]
    reads: Callable[[Any], Any]
    sampler: Callable[[Any, pd.DataFrame, int, int], np.ndarray | Drawn]
    draw: Callable[[Any, int, int, np.ndarray], np.ndarray | None]
    augment: Callable[[Any, Batch, np.ndarray | None], Batch]
    model: Callable[[Any, Inputs, str], torch.nn.Module]
    rungs: Callable[[Any], tuple[str, ...]]
    step: Callable[[Any, torch.nn.Module, Batch], dict[str, Any]]
    predict: Callable[[Any, torch.nn.Module, Batch], Batch]
    metric: Callable[[Any, Mapping[str, Any]], Metric]
    score: str
    deploy: Callable[[Any, torch.nn.Module], torch.nn.Module]
    begin: Callable[[Any, torch.nn.Module, Inputs, Mapping[str, Trained]], Mapping[str, Any]] | None = None
    teacher: Callable[[Any, Inputs, Mapping[str, Trained]], torch.nn.Module | None] | None = None
    teach: Callable[[Any, torch.nn.Module, Batch], Batch] | None = None
    loss_at_start: Callable[[Any, Mapping[str, Any]], float | None] | None = None
    rates: Callable[[Any, torch.nn.Module], Mapping[str, float]] | None = None
    alarms: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Sequence[str]] | None = None
    couples_batch: bool = False
