"""The toy plan's learner twice: a teacher, and a narrower student that learns from what the teacher says of its images.

TAUGHT is shown every batch that the teacher saw: the images and what it made of them.
"""

from dataclasses import replace

from torch import nn

from outlast.config.schema import Saving, Training
from outlast.task import Delivery, Task, Train
from toys import plan
from toys.plan import Net, ToyConfig, ToyData, ToyModel

about = "a teacher and a student on made-up images, for tests"
TAUGHT = [lambda teacher, batch, told: None]


class Student(ToyConfig):
    """It depends on the teacher's settings only as far as it must build it."""

    teacher: ToyModel | None = ToyModel()


def smoke():
    return ToyConfig(
        data=ToyData(examples=24),
        train=Training(epochs=3, batch_size=8, learning_rate=0.01, threads=1, seed=3),
        saving=Saving(every_minutes=60),
    )


def teacher(config, inputs, trained):
    if config.teacher is None:
        return None
    weights = trained["teacher"].weights
    module = Net(8, config.teacher.dropout)
    module.load_state_dict(weights)
    return module


def teach(config, teacher, batch):
    logits = teacher(batch["image"])
    TAUGHT[0](teacher, batch, logits)
    return {"taught": logits}


def step(config, model, batch):
    if "taught" not in batch:
        return plan.step(config, model, batch)
    plan.ACCIDENT[0]("step")
    logits = plan._forward("step", model, batch)
    right = nn.functional.cross_entropy(logits, batch["label"], reduction="sum")
    apart = nn.functional.mse_loss(logits, batch["taught"].float(), reduction="none").mean(1).sum()
    return {"loss_sum": right + apart, "weight": len(logits), "apart": apart}


LEARNER = replace(plan.LEARNER, name="toy")
STUDENT = replace(LEARNER, step=step, teacher=teacher, teach=teach, rungs=lambda config: ("narrow",))


def stages(config):
    values = config.model_dump()
    return [
        Train("teacher", LEARNER, config),
        Train("student", STUDENT, Student.model_validate(values), needs=("teacher",)),
        Train("alone", STUDENT, Student.model_validate({**values, "teacher": None})),
    ]


TASK = Task(
    name="toys.taught",
    about=about,
    config=ToyConfig,
    presets={"smoke": smoke},
    learners={"toy": STUDENT},
    stages=stages,
    deliver=lambda config: Delivery(
        models=("student",),
        outputs=("probabilities",),
        labelled=lambda config, root, facts: plan.examples(config, {"data": root}),
        sidecar=lambda config, facts, rung: {"classes": facts["classes"]},
    ),
    synthetic=plan.synthetic,
)
