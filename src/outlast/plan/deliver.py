"""A finished (or stopped) run opened for use: its task, configuration and best weights. `eval`, `predict`, `export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from outlast import task as tasks
from outlast.config.load import read_config
from outlast.data.table import Examples
from outlast.env import host
from outlast.errors import RunError, TaskError, UsageError
from outlast.export.solution import Prepare, export_solution
from outlast.loop.accel import set_up
from outlast.loop.evaluate import collect, evaluate
from outlast.loop.headroom import Headroom
from outlast.loop.samples import open_loader
from outlast.plan.members import Opened, open_members, stages_named
from outlast.plan.record import NAME, load
from outlast.task import Judged, Scenes, Train

_ADAPTER = "prepared"  # the module and the function in it that adds channels, in a solution.zip


class Delivered:
    """A run opened for use; `stage`: one training stage instead of what the task delivers."""

    def __init__(self, run: Path, stage: str | None = None) -> None:
        self.run, self.record = run, load(run)
        self.task = tasks.find(self.record["task"])
        self.settings: Any = read_config(self.task.config, run / "config.yaml")
        self.delivery = self.task.deliver(self.settings)
        self.trains = {each.name: each for each in self.task.stages(self.settings) if isinstance(each, Train)}
        if stage is not None:
            if stage not in self.trains:
                raise UsageError(
                    f"there is no training stage {stage!r}", hint=f"the training stages are: {', '.join(self.trains)}"
                )
            self.delivery = replace(self.delivery, models=(stage,), judge=None)
        self.stages = stages_named(self.delivery.models, self.trains, f"the delivery of {self.task.name!r}")
        self.learner, self.config = self.stages[0].learner, self.stages[0].config
        try:
            self.facts = self.record["facts"][self.learner.name]
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{run / NAME} does not say what the model was trained on (no facts of {self.learner.name!r})",
                hint="restore it from a copy of the run",
            ) from error
        self.machine = host.detect()
        host.make_scratch(self.machine)
        self.compute = set_up(self.config.train.threads, self.machine.cores)

    @cached_property
    def opened(self) -> Opened:
        """The models with their best weights, on the device, in evaluation mode."""
        name = f"the delivery of {self.task.name!r}"
        return open_members(self.run, self.stages, self.facts, self.compute.device, self.delivery.together, name)

    @property
    def rung(self) -> str:
        """The rung of the models; several of different ones are told together."""
        return "+".join(dict.fromkeys(str(saved.manifest["fit"]["rung"]) for saved in self.opened.saved))

    def module(self) -> nn.Module:
        """The module that users of the bare weights get. Raises TaskError if several models can't be one."""
        members = self.opened.members
        if self.delivery.module is not None:
            return self.delivery.module(members)
        if len(members) > 1:
            raise TaskError(
                f"the delivery of {self.task.name!r} has {len(members)} models, and the task does not make them one",
                hint=f"export one of them with --stage: {', '.join(stage.name for stage in self.stages)}",
            )
        return self.learner.deploy(members[0].config, members[0].module)

    def evaluate(self, examples: Examples) -> dict[str, Any]:
        """The metrics of all examples: the task's own of what it delivers, or the learner's."""
        if self.delivery.judge is not None:
            return self.delivery.judge(
                Judged(self.config, self.facts, self.opened.members, examples, self.compute.device, self.run)
            )
        opened, compute, cores = self.opened, self.compute, self.machine.cores
        rows = np.arange(len(examples.table))
        with open_loader(opened.learner, self.config, examples, self.machine.scratch, compute, cores) as loader:
            metrics = evaluate(
                opened.learner, self.config, opened.model, loader, rows, self.facts, compute, opened.portion
            )
        assert metrics is not None  # nothing asks it to stop
        return metrics

    def outputs(self, examples: Examples) -> dict[str, np.ndarray]:
        """The outputs that are delivered, for all examples, first axis = examples."""
        opened, compute, cores = self.opened, self.compute, self.machine.cores
        rows, names = np.arange(len(examples.table)), self.delivery.outputs
        with open_loader(opened.learner, self.config, examples, self.machine.scratch, compute, cores) as loader:
            return collect(opened.learner, self.config, opened.model, loader, rows, names, compute, opened.portion)

    def scenes(self, files: Sequence[Path], out: Path) -> pd.DataFrame:
        """Predict files larger than a sample into the folder `out`; only for tasks that do (`delivery.scenes`)."""
        assert self.delivery.scenes is not None
        members, device = self.opened.members, self.compute.device
        room = Headroom(device, self.config.train.memory_budget_gigabytes)
        return self.delivery.scenes(
            Scenes(
                config=self.config, facts=self.facts, members=members, files=files, out=out, device=device,
                budget_bytes=room.left, provenance=self.provenance(), run=self.run,
            )
        )  # fmt: skip

    def solution(self, to: Path, sidecar: Mapping[str, Any], *, half: bool) -> Path:
        """Write a submission that stands alone. Raises UsageError for a task that has none."""
        if self.delivery.solution is None:
            raise UsageError(
                f"the task {self.task.name!r} has no submission that stands alone",
                hint="export its weights: --to model.safetensors",
            )
        known = self.delivery.solution(self.config, self.facts)
        prepare = None
        if known.adapter:
            prepare = Prepare(_ADAPTER, _ADAPTER, known.adds, {**known.modules, _ADAPTER: known.adapter}, known.options)
        networks = [self.learner.deploy(member.config, member.module) for member in self.opened.members]
        return export_solution(
            networks, to, channels=known.channels, tile=known.tile, overlap=known.overlap, tta=known.views,
            sidecar=sidecar, half=half, prepare=prepare,
        )  # fmt: skip

    def provenance(self) -> dict[str, Any]:
        """What everything that is made with these models should carry."""
        record, saved = self.record, self.opened.saved[0]
        rungs = {stage.name: each.manifest["fit"] for stage, each in zip(self.stages, self.opened.saved, strict=True)}
        wanted = self.learner.rungs(self.config)[0]
        return {
            "task": record["task"],
            "synthetic": record["synthetic"],
            "rung": {**saved.manifest["fit"], "wanted": wanted},
            "score": saved.manifest.get("score"),
            "step": saved.step,
            "stages": rungs if len(rungs) > 1 else {},
            "config_hash": record["config_hash"],
            "data": {name: item["fingerprint"] for name, item in record["data"].items()},
            "versions": record["versions"],
        }
