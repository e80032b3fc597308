"""A task that is a plan: folds -> two trainings -> two predictions -> combine. Made-up 8x8 images, a tiny model.

For tests of the machinery. It has dropout, augmentation with random numbers, and a place for accidents: the function in
`ACCIDENT` is called with the name of the place before each training step, each call and each sample that is read.
"""

import hashlib
import json
import os
import signal
import sys
import time

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import nn

from outlast.config.schema import Saving, Settings, TaskConfig, Training
from outlast.data.randomness import uniforms
from outlast.data.sampler import shuffled
from outlast.data.shards import read_shards
from outlast.data.table import Examples
from outlast.model.metrics import Classification
from outlast.task import Call, Delivery, Learner, Predict, Rows, Task, Train

about = "a plan of seven stages on made-up images, for tests"
CLASSES = ("dark", "light", "striped")


def _from_environment(place):
    """OUTLAST_TOY_KILL=place:count kills this process for real when the place is reached for the count-th time.

    OUTLAST_TOY_STOP asks a training in the same way to stop. With OUTLAST_TOY_RANK only the process of that rank.
    OUTLAST_TOY_SLOW=seconds: each training step takes so long.
    """
    if place == "step":
        time.sleep(float(os.environ.get("OUTLAST_TOY_SLOW", "0")))
    meant = os.environ.get("OUTLAST_TOY_RANK", os.environ.get("RANK")) == os.environ.get("RANK")
    for name, number in (("OUTLAST_TOY_KILL", signal.SIGKILL), ("OUTLAST_TOY_STOP", signal.SIGTERM)):
        wanted, _, count = os.environ.get(name, "").partition(":")
        if wanted and place == wanted and meant and (number == signal.SIGKILL or "train" in sys.argv):
            _seen[name] = _seen.get(name, 0) + 1
            if _seen[name] == int(count):
                os.kill(os.getpid(), number)


_seen = {}
ACCIDENT = [_from_environment]

# The function in WITNESS is shown every forward pass: "step" or "predict", the batch, and the logits as they are.
WITNESS = [lambda place, batch, logits: None]


class ToyData(Settings):
    examples: int = Field(60, ge=6)
    folds: int = 2


class ToyModel(Settings):
    name: str = "wide"
    dropout: float = 0.2


class ToyConfig(TaskConfig):
    data: ToyData = ToyData()
    model: ToyModel = ToyModel()


def smoke():
    return ToyConfig(
        train=Training(epochs=3, batch_size=8, learning_rate=0.01, warmup_fraction=0.3, threads=1, seed=3),
        saving=Saving(every_minutes=60),
    )


def examples(config, roots):
    ids = [f"image-{number:03d}" for number in range(config.data.examples)]
    label = np.arange(len(ids)) % len(CLASSES)
    table = pd.DataFrame(
        {
            "id": ids,
            "hash": [hashlib.sha256(name.encode()).hexdigest() for name in ids],
            "label": label.astype(np.int64),
            "group": ids,
            "split": np.where(np.arange(len(ids)) % 6 == 5, "val", "train"),
            "fold": ((np.arange(len(ids)) // 3) % config.data.folds).astype(np.int64),
        }
    )
    root = roots.get("data", os.curdir)
    from pathlib import Path

    return Examples(table, Path(root), {"classes": list(CLASSES), "channels": 1}, ("label",))


def read(config, root, row):
    ACCIDENT[0]("read")
    number = int(row["id"].rpartition("-")[2])
    noise = np.random.default_rng(number).integers(0, 60, (1, 8, 8))
    image = noise + {0: 20, 1: 170, 2: 90}[number % 3]
    if number % 3 == 2:
        image[:, ::2] += 60
    return {"image": image.astype(np.uint8)}


def augment(config, batch, draws):
    images = batch["image"].float() / 255
    if draws is not None:
        shift = torch.from_numpy(draws.astype(np.float32))
        images = images * (0.8 + 0.4 * shift[:, :1, None, None]) + 0.1 * shift[:, 1:, None, None]
    return {**batch, "image": images}


class Net(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
            nn.Dropout(dropout), nn.Linear(width * 64, len(CLASSES)),
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)


def step(config, model, batch):
    ACCIDENT[0]("step")
    logits = _forward("step", model, batch)
    loss = nn.functional.cross_entropy(logits, batch["label"], reduction="sum")
    return {"loss_sum": loss, "weight": len(logits)}


def predict(config, model, batch):
    ACCIDENT[0]("predict")
    logits = _forward("predict", model, batch)
    return {"logits": logits, "probabilities": logits.softmax(1)}


def _forward(place, model, batch):
    logits = model(batch["image"])
    WITNESS[0](place, batch, logits)
    return logits.float()


LEARNER = Learner(
    name="toy",
    examples=examples,
    read=read,
    reads=lambda config: "toy",
    sampler=lambda config, table, seed, epoch: shuffled(len(table), seed, epoch),
    draw=lambda config, seed, epoch, indices: uniforms(seed, epoch, indices, 2),
    augment=augment,
    model=lambda config, inputs, rung: Net({"wide": 8, "narrow": 2}[rung], config.model.dropout),
    rungs=lambda config: ("wide", "narrow") if config.model.name == "wide" else ("narrow",),
    step=step,
    predict=predict,
    metric=lambda config, facts: Classification(facts["classes"]),
    score="+balanced_accuracy",
    deploy=lambda config, model: model,
)


def write_folds(work):
    ACCIDENT[0]("folds")
    folds = dict(zip(work.examples.table["id"], work.examples.table["fold"].tolist(), strict=True))
    (work.out / "folds.json").write_text(json.dumps(folds))


def combine(work):
    ACCIDENT[0]("combine")
    ids, right = [], []
    labels = work.examples.table.set_index("id")["label"]
    for name, folder in sorted(work.inputs.items()):
        if name.startswith("predict"):
            part, arrays = read_shards(folder)
            ids += part
            right += (arrays["logits"].argmax(1) == labels.loc[part].to_numpy()).tolist()
    (work.out / "metrics.json").write_text(json.dumps({"images": len(ids), "accuracy": float(np.mean(right))}))
    return {"images": len(ids), "accuracy": float(np.mean(right))}


def stages(config):
    folds = range(config.data.folds)
    trains = [
        Train(
            f"train-fold{k}", LEARNER, config, fit=Rows("fold", tuple(f for f in folds if f != k)),
            validate=Rows("fold", (k,)), needs=("folds",),
        )
        for k in folds
    ]  # fmt: skip
    predicts = [
        Predict(f"predict-fold{k}", models=(f"train-fold{k}",), rows=Rows("fold", (k,)), outputs=("logits",))
        for k in folds
    ]
    return [
        Call("combine", combine, config, LEARNER, needs=tuple(p.name for p in predicts), makes=("metrics.json",)),
        *predicts,
        *trains,
        Call("folds", write_folds, config, LEARNER, makes=("folds.json",)),
    ]


def synthetic(folder):
    (folder / "SYNTHETIC.txt").write_text("made up\n")


TASK = Task(
    name="toys.plan",
    about=about,
    config=ToyConfig,
    presets={"smoke": smoke},
    learners={"toy": LEARNER},
    stages=stages,
    deliver=lambda config: Delivery(
        models=("train-fold0",),
        outputs=("probabilities",),
        labelled=lambda config, root, facts: examples(config, {"data": root}),
        unlabelled=lambda config, images, facts: examples(config, {}),
        table=lambda config, facts, ids, outputs: pd.DataFrame({"file": ids}),
        sidecar=lambda config, facts, rung: {"classes": facts["classes"]},
    ),
    synthetic=synthetic,
)
