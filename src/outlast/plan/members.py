"""The trained models of a run in use: one, or several that predict together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outlast.errors import CheckpointError, TaskError
from outlast.loop.memory import Fit, Portion
from outlast.loop.setup import load_weights
from outlast.model import own_weights
from outlast.plan import ledger
from outlast.save.store import Saved, best_weights
from outlast.task import Inputs, Learner, Member, Together, Train

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Opened:
    """Best weights loaded into their models. `learner` and `config` are those of the first stage."""

    stages: tuple[Train, ...]
    members: tuple[Member, ...]
    saved: tuple[Saved, ...]
    portion: Portion
    together: Together | None

    @property
    def learner(self) -> Learner:
        """The learner; what it predicts is what all members give together."""
        learner = self.stages[0].learner
        together, members = self.together, self.members
        if together is None:
            return learner

        def predict(config: Any, model: nn.Module, batch: Batch) -> Batch:
            return together(config, members, batch)

        return replace(learner, predict=predict)

    @property
    def config(self) -> Any:
        return self.stages[0].config

    @property
    def model(self) -> nn.Module:
        """All of the members in one module (the only one as it is)."""
        modules = [member.module for member in self.members]
        return modules[0] if len(modules) == 1 else nn.ModuleList(modules)


def stages_named(names: Sequence[str], trains: Mapping[str, Train], by: str) -> tuple[Train, ...]:
    """The training stages of these names; they must be of one learner. Raises TaskError. by: who names them."""
    missing = [name for name in names if name not in trains]
    if missing or not names:
        raise TaskError(f"{by} predicts with {', '.join(missing) or 'nothing'}, which is no training stage")
    stages = tuple(trains[name] for name in names)
    if len({stage.learner.name for stage in stages}) > 1:
        raise TaskError(f"{by} predicts with stages of several learners: {', '.join(names)}")
    return stages


def open_members(
    run: Path,
    stages: Sequence[Train],
    facts: Mapping[str, Any],
    device: torch.device,
    together: Together | None,
    name: str,
) -> Opened:
    """Load the best weights of these stages. Raises CheckpointError, and TaskError of several with no `together`."""
    if len(stages) > 1 and together is None:
        raise TaskError(f"{name} uses {len(stages)} models, and the task does not say what they give together")
    members, kept, sizes = [], [], []
    for stage in stages:
        if ledger.elsewhere(run / stage.name):
            raise CheckpointError(
                f"the weights of {stage.name!r} were not carried to {run}",
                hint="where it was trained: outlast pack RUN --all --to FILE.zip; here: outlast unpack FILE.zip "
                f"--out {run}",
            )
        weights, saved = best_weights(run / stage.name)
        fit = Fit.read(saved.manifest["fit"])
        needs = {need: run / need for need in stage.needs}
        with own_weights.coming():
            model = stage.learner.model(stage.config, Inputs(facts, needs), fit.rung)
        load_weights(model, weights, saved.folder)
        members.append(Member(stage.config, model.to(device).eval()))
        kept.append(saved)
        sizes.append(fit.evaluated)
    return Opened(tuple(stages), tuple(members), tuple(kept), Portion(min(sizes)), together)
