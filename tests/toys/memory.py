"""A task with one training, for tests of running out of memory: what fits is up to the test.

`TROUBLE[0](place, rows)` is called with "step" and "predict" after every forward pass, when buffers and generators
have moved; it may raise. The model takes `bytes_per_sample` of activations.
"""

import dataclasses

from pydantic import Field
from torch import nn
from torch.utils.checkpoint import checkpoint

from outlast.config.schema import Saving, TaskConfig, Training
from outlast.task import Task, Train
from toys import plan

about = "one training that runs out of memory, for tests"
TROUBLE = [lambda place, rows: None]


class MemoryModel(plan.ToyModel):
    dropout: float = 0.0
    norm: bool = False
    bytes_per_sample: int = Field(0, ge=0)


class MemoryConfig(TaskConfig):
    data: plan.ToyData = plan.ToyData()
    model: MemoryModel = MemoryModel()


def smoke():
    return MemoryConfig(
        train=Training(
            epochs=2,
            batch_size=8,
            optimizer="sgd",
            learning_rate=0.05,
            clip_norm=None,
            threads=1,
            seed=3,
            ema_decay=0.9,
        ),
        saving=Saving(every_minutes=60),
    )


class Net(nn.Module):
    """Layers in a row; `set_grad_checkpointing` as timm's models have it."""

    def __init__(self, width, settings):
        super().__init__()
        norm = [nn.BatchNorm2d(width)] if settings.norm else []
        drop = [nn.Dropout(settings.dropout)] if settings.dropout else []
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), *norm, nn.Tanh(), *drop, nn.Flatten())
        self.head = nn.Linear(width * 64, len(plan.CLASSES))
        self.copies = settings.bytes_per_sample // (4 * width * 64)
        self.checkpointing = False

    def set_grad_checkpointing(self, enable=True):
        self.checkpointing = enable

    def forward(self, images):
        features = checkpoint(self.layers, images, use_reentrant=False) if self.checkpointing else self.layers(images)
        if self.copies:
            large = features[:, None].expand(-1, self.copies, -1) * 1.0  # kept until the backward pass
            features = (large * large).mean(1).sqrt() * features.detach().sign()
        return self.head(features)


def model(config, inputs, rung):
    return Net({"wide": 8, "narrow": 2}[rung], config.model)


def step(config, model, batch):
    logits = model(batch["image"])
    TROUBLE[0]("step", batch["row"])
    return {
        "loss_sum": nn.functional.cross_entropy(logits.float(), batch["label"], reduction="sum"),
        "weight": len(logits),
    }


def predict(config, model, batch):
    logits = model(batch["image"]).float()
    TROUBLE[0]("predict", batch["row"])
    return {"logits": logits, "probabilities": logits.softmax(1)}


LEARNER = dataclasses.replace(plan.LEARNER, name="memory", model=model, step=step, predict=predict)


TASK = Task(
    name="toys.memory",
    about=about,
    config=MemoryConfig,
    presets={"smoke": smoke},
    learners={"memory": LEARNER},
    stages=lambda config: [Train("train", LEARNER, config)],
    deliver=lambda config: dataclasses.replace(plan.TASK.deliver(config), models=("train",)),
    synthetic=plan.synthetic,
)
