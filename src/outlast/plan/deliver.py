"""A finished (or stopped) run opened for use: its task, configuration and best weights. `eval`, `predict`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from outlast import task as tasks
from outlast.config.load import read_config
from outlast.data.table import Examples
from outlast.env import host
from outlast.errors import RunError
from outlast.loop.accel import set_up
from outlast.loop.evaluate import collect, evaluate
from outlast.loop.memory import Fit, Portion
from outlast.loop.samples import open_loader
from outlast.loop.setup import load_weights
from outlast.plan.record import NAME, load
from outlast.save.store import best_weights
from outlast.task import Inputs, Learner, Train


class Delivered:
    """A run opened for use."""

    def __init__(self, run: Path) -> None:
        self.run, self.record = run, load(run)
        self.task = tasks.find(self.record["task"])
        self.config: Any = read_config(self.task.config, run / "config.yaml")
        self.delivery = self.task.deliver(self.config)
        trains = [stage for stage in self.task.stages(self.config) if isinstance(stage, Train)]
        self.stage = next(stage for stage in trains if stage.name == self.delivery.model)
        self.learner: Learner = self.stage.learner
        self.config = self.stage.config
        try:
            self.facts = self.record["facts"][self.learner.name]
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{run / NAME} does not say what the model was trained on (no facts of {self.learner.name!r})",
                hint="restore it from a copy of the run",
            ) from error
        self.weights, self.saved = best_weights(run / self.delivery.model)
        self.rung = str(self.saved.manifest["fit"]["rung"])
        self.wanted = self.learner.rungs(self.config)[0]
        self.portion = Portion(Fit.read(self.saved.manifest["fit"]).evaluated)
        self.machine = host.detect()
        host.make_scratch(self.machine)
        self.compute = set_up(self.config.train.threads, self.machine.cores)

    def model(self) -> nn.Module:
        """The trained module with its best weights, on the device, in evaluation mode."""
        needs = {name: self.run / name for name in self.stage.needs}
        model = self.learner.model(self.config, Inputs(self.facts, needs), self.rung)
        load_weights(model, self.weights, self.saved.folder)
        return model.to(self.compute.device).eval()

    def evaluate(self, examples: Examples) -> dict[str, Any]:
        """The learner's metrics over all examples."""
        config, compute, cores = self.config, self.compute, self.machine.cores
        rows = np.arange(len(examples.table))
        with open_loader(self.learner, config, examples, self.machine.scratch, compute, cores) as loader:
            metrics = evaluate(self.learner, config, self.model(), loader, rows, self.facts, compute, self.portion)
        assert metrics is not None  # nothing asks it to stop
        return metrics

    def outputs(self, examples: Examples) -> dict[str, np.ndarray]:
        """The learner's outputs for all examples, first axis = examples."""
        config, compute, cores = self.config, self.compute, self.machine.cores
        rows, names = np.arange(len(examples.table)), self.delivery.outputs
        with open_loader(self.learner, config, examples, self.machine.scratch, compute, cores) as loader:
            return collect(self.learner, config, self.model(), loader, rows, names, compute, self.portion)
