"""Weights that `outlast export` wrote, opened in the model of the run that they come from.

Of the run only run.json and config.yaml are needed: what the model is built from. Half-precision weights are widened.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from outlast.base.files import read_json
from outlast.base.log import say
from outlast.errors import CheckpointError, RunError, TaskError, UsageError
from outlast.export.sidecar import path_of
from outlast.loop.memory import Portion
from outlast.loop.setup import load_weights
from outlast.model import own_weights
from outlast.plan.members import Opened
from outlast.save.format import read_weights
from outlast.task import Inputs, Member, Train


def open_exported(
    run: Path, task: str, stage: Train, facts: Mapping[str, Any], file: Path, device: torch.device
) -> Opened:
    """The model of a training stage with the weights of an exported file.

    Raises UsageError for a file that is none, RunError for one of another task, CheckpointError if it does not fit.
    """
    if not file.is_file() or file.suffix not in (".safetensors", ".pth"):
        reason = "there is no such file" if not file.is_file() else "it is not .safetensors or .pth"
        raise UsageError(f"{file} holds no weights: {reason}", hint="give --weights a file that `outlast export` wrote")
    sidecar = read_sidecar(file)
    if sidecar.get("task", task) != task:
        raise RunError(
            f"{file} holds weights of the task {sidecar['task']!r}, not of {task!r}", hint="give its own run"
        )
    if sidecar.get("stages"):
        raise UsageError(
            f"{file} holds several models ({', '.join(sidecar['stages'])})", hint="export one with `--stage NAME`"
        )
    rung = _rung(sidecar, stage, file)
    with own_weights.coming():
        model = stage.learner.model(stage.config, Inputs(facts, {need: run / need for need in stage.needs}), rung)
    deployed = stage.learner.deploy(stage.config, model)
    if not set(model.parameters()).issuperset(deployed.parameters()):
        raise TaskError(
            f"the learner {stage.learner.name!r} deploys a copy of its model, so exported weights can't be put back",
            hint="leave --weights out: the run's own are used",
        )
    load_weights(deployed, _read(file), file)
    member = Member(stage.config, model.to(device).eval())
    return Opened((stage,), (member,), (), Portion(stage.config.train.batch_size), None)


def read_sidecar(file: Path) -> dict[str, Any]:
    """What an exported file says about itself: in its metadata, or in the JSON beside it; empty if it says nothing."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                note = (opened.metadata() or {}).get("sidecar")
        except (OSError, SafetensorError):
            note = None  # reading the weights says what is wrong
        if note:
            return dict(json.loads(note))
    beside = path_of(file)
    return dict(read_json(beside)) if beside.is_file() else {}


def _rung(sidecar: Mapping[str, Any], stage: Train, file: Path) -> str:
    rung = sidecar.get("rung", {}).get("rung")
    rungs = stage.learner.rungs(stage.config)
    if rung is None:
        say(f"{file} does not say which model it holds: taken for {rungs[0]!r}, which the run asks for")
        return rungs[0]
    if rung not in rungs:
        raise RunError(
            f"{file} holds the model {rung!r}; the run builds {', '.join(rungs)}",
            hint="give the run that the weights come from",
        )
    return str(rung)


def _read(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return read_weights(file)
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "it is cut off")
        raise CheckpointError(f"{file} holds no weights that can be read: {reason}", hint="export it again") from error
