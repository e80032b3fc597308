"""Outlast's side of resume.py: the network and data of resume_loops.py as a task, trained by `outlast.train`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from benchmarks import resume_loops
from benchmarks.resume_loops import CASES, CLASSES, CLIP_NORM, FOREVER, LEARNING_RATE, SEED, WEIGHT_DECAY, Net, Work
from torch import Tensor, nn

import outlast
from outlast.config.schema import Loading, Saving, Settings, TaskConfig, Training
from outlast.data.randomness import uniforms
from outlast.data.sampler import shuffled
from outlast.data.table import Examples
from outlast.model.metrics import Classification
from outlast.save import store
from outlast.save.format import read_state
from outlast.task import Delivery, Learner, Task
from outlast.task import Train as TrainStage

about = "made-up samples for the benchmark of resuming"
STAGE = "train"


class Data(Settings):
    case: str = "small"


class Config(TaskConfig):
    data: Data = Data()


def train(work: Work) -> None:
    """Train, or go on with what is in the work's folder: the same call, as a user would repeat it."""
    outlast.train(
        "benchmarks.resume_task",
        out=Path(work.folder) / "run",
        preset="bench",
        overrides=[
            f"data.case={work.case}",
            f"train.batch_size={work.data.batch}",
            f"train.threads={work.threads}",
            f"saving.every_steps={work.save_every}",
            f"loading.workers={work.workers}",
        ],
    )


def at_end(work: Work) -> dict[str, Any]:
    """How long synchronous saves of the newest checkpoint's state take, one after the other, into a folder beside."""
    if not work.synchronous_saves:
        return {}
    problems: list[str] = []
    saved = store.newest(Path(work.folder) / "run" / STAGE / "checkpoints", problems)
    assert saved is not None, problems
    state = read_state(saved.folder)
    seconds = []
    for _ in range(work.synchronous_saves):
        state.step += 1
        began = time.perf_counter()
        store.save(Path(work.folder) / "synchronous", state, {}, keep=2)
        seconds.append(time.perf_counter() - began)
    return {"synchronous_save_seconds": seconds}


def bench() -> Config:
    return Config(
        train=Training(
            epochs=FOREVER, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, schedule="constant",
            clip_norm=CLIP_NORM, evaluate_every_epochs=FOREVER, seed=SEED,
        ),
        loading=Loading(workers=0),
        saving=Saving(every_minutes=600),
    )  # fmt: skip


def _examples(config: Config, roots: Any) -> Examples:
    case = CASES[config.data.case]
    _, labels = resume_loops.made_up(case)
    numbers = np.arange(len(labels))
    table = pd.DataFrame(
        {
            "id": [f"sample-{number}" for number in numbers],
            "hash": "",
            "label": labels,
            "split": np.where(numbers < case.rows, "train", "val"),
        }
    )
    return Examples(table, Path(), {"classes": [str(number) for number in range(CLASSES)]}, ("label",))


_SAMPLES: dict[str, np.ndarray] = {}


def _read(config: Config, root: Path, row: Any) -> dict[str, np.ndarray]:
    name = config.data.case
    if name not in _SAMPLES:
        _SAMPLES[name] = resume_loops.made_up(CASES[name])[0]
    return {"values": _SAMPLES[name][int(row["id"].rpartition("-")[2])]}


def _augment(config: Config, batch: dict[str, Tensor], draws: np.ndarray | None) -> dict[str, Tensor]:
    count = len(batch["values"])
    fixed = draws is None or not CASES[config.data.case].random
    numbers = torch.full((count, 2), 0.5) if fixed else torch.from_numpy(draws.astype(np.float32))
    return {**batch, "values": resume_loops.augmented(batch["values"], numbers)}


def _step(config: Config, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
    resume_loops.METER.seen(model, batch["row"])
    logits = model(batch["values"])
    return {
        "loss_sum": nn.functional.cross_entropy(logits, batch["label"], reduction="sum"),
        "weight": len(logits),
    }


def _unused(*_: Any) -> Any:
    raise AssertionError("the benchmark ends before anything is delivered")


LEARNER = Learner(
    name="resume",
    examples=_examples,
    read=_read,
    reads=lambda config: config.data.case,
    sampler=lambda config, table, seed, epoch: shuffled(len(table), seed, epoch),
    draw=lambda config, seed, epoch, indices: uniforms(seed, epoch, indices, 2),
    augment=_augment,
    model=lambda config, inputs, rung: Net(CASES[config.data.case]),
    rungs=lambda config: ("only",),
    step=_step,
    predict=lambda config, model, batch: {"logits": model(batch["values"])},
    metric=lambda config, facts: Classification(facts["classes"]),
    score="+accuracy",
    deploy=lambda config, model: model,
)

TASK = Task(
    name="benchmarks.resume_task",
    about=about,
    config=Config,
    presets={"bench": bench},
    learners={"resume": LEARNER},
    stages=lambda config: [TrainStage(STAGE, LEARNER, config)],
    deliver=lambda config: Delivery((STAGE,), ("logits",), _unused, _unused, _unused, _unused),
    synthetic=_unused,
)
