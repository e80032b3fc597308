"""A task for sweeps: a teacher that several students share, and a test of both. Images and network of `toys.plan`.

`FAILS` is called with "teacher" or "student" and the stage's configuration before each step; it may raise. `STEPS`
counts the steps that were really done, by (stage, teacher, loss, seed).
"""

import json
import os
from collections import Counter
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from outlast.config.schema import Saving, TaskConfig, Training
from outlast.errors import TrainingError
from outlast.model.metrics import Classification
from outlast.save.store import best_weights
from outlast.task import Axis, Call, Delivery, Task, Train
from toys import plan as toy

about = "a teacher and two ways to use it, for tests of sweeps"
STEPS = Counter()


def _broken(kind, config):
    """OUTLAST_TOY_BROKEN names the settings with which a training fails."""
    broken = os.environ.get("OUTLAST_TOY_BROKEN", "").split(",")
    if (config.teacher if kind == "teacher" else config.loss) in broken:
        raise TrainingError(f"the {kind} is broken", hint="mend it")


FAILS = [_broken]


class TeacherConfig(TaskConfig):
    data: toy.ToyData = toy.ToyData()
    teacher: Literal["wide", "narrow"] = "wide"


class BranchesConfig(TeacherConfig):
    loss: Literal["plain", "smooth"] = "plain"
    share: float = 0.5


def smoke():
    return BranchesConfig(
        train=Training(epochs=2, batch_size=16, learning_rate=0.01, threads=1), saving=Saving(every_minutes=60)
    )


def _step(kind):
    def step(config, model, batch):
        STEPS[kind, config.teacher, getattr(config, "loss", None), config.train.seed] += 1
        FAILS[0](kind, config)
        logits = model(batch["image"]).float()
        smoothing = 0.3 if getattr(config, "loss", "plain") == "smooth" else 0.0
        loss = nn.functional.cross_entropy(logits, batch["label"], reduction="sum", label_smoothing=smoothing)
        return {"loss_sum": loss, "weight": len(logits)}

    return step


def begin(config, model, inputs, trained):
    with torch.no_grad():
        model.layers[-1].bias.copy_(trained["teacher"].weights["layers.5.bias"] * config.share)
    return {"from": "teacher"}


def _learner(kind):
    return replace(
        toy.LEARNER,
        name=kind,
        rungs=lambda config: (config.teacher if kind == "teacher" else "narrow",),
        model=lambda config, inputs, rung: toy.Net({"wide": 8, "narrow": 2}[rung], 0.2),
        step=_step(kind),
        predict=lambda config, model, batch: {"logits": (logits := model(batch["image"])), "probabilities": logits},
        metric=lambda config, facts: Classification(facts["classes"]),
        score="-loss",
        begin=begin if kind == "student" else None,
    )


TEACHER, STUDENT = _learner("teacher"), _learner("student")


def score(work):
    sums = {name: sum(float(tensor.double().sum()) for tensor in best_weights(folder)[0].values())
            for name, folder in sorted(work.inputs.items())}  # fmt: skip
    result = {"split": "test", "metrics": {"loss": sums["student"], "of_teacher": sums["teacher"]}}
    (work.out / "metrics.json").write_text(json.dumps(result))


def stages(config):
    own = {name: value for name, value in config if name in TeacherConfig.model_fields}
    return [
        Train("teacher", TEACHER, TeacherConfig(**own)),
        Train("student", STUDENT, config, needs=("teacher",)),
        Call("score", score, config, STUDENT, needs=("teacher", "student"), makes=("metrics.json",)),
    ]


TASK = Task(
    name="toys.branches",
    about=about,
    config=BranchesConfig,
    presets={"smoke": smoke},
    learners={"teacher": TEACHER, "student": STUDENT},
    stages=stages,
    deliver=lambda config: Delivery(
        models=("student",),
        outputs=("probabilities",),
        labelled=lambda config, root, facts: toy.examples(config, {"data": root}),
        sidecar=lambda config, facts, rung: {"classes": facts["classes"]},
    ),
    synthetic=toy.synthetic,
    axes={"teacher": Axis("teacher", ("wide", "narrow")), "loss": Axis("loss", ("plain", "smooth"))},
)
