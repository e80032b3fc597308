"""A teacher and a student on the made-up images of toys.plan, whose points `embed` draws in four groups, one empty."""

from dataclasses import replace

from torch import nn

from outlast.task import Delivery, Groups, Mark, Rows, Task, Train
from toys import plan

about = "a teacher and a student on made-up images, for tests"
MARKS = {
    "no fire no smoke": Mark("#1f5fbf", "circle"),
    "fire only": Mark("#d62728", "square"),
    "smoke only": Mark("#7f7f7f", "triangle"),
    "fire and smoke": Mark("#ff7f0e", "diamond"),
}
OCCURRING = ("no fire no smoke", "fire only", "fire and smoke")


def predict(config, model, batch):
    features = model.layers[:-1](batch["image"])
    return {"logits": model.layers[-1](features).float(), "features": features.float()}


class Deployed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.layers = model.layers


def groups(config, examples):
    return Groups([OCCURRING[number] for number in examples.table["label"]], MARKS)


TEACHER = replace(plan.LEARNER, name="teacher", predict=predict, deploy=lambda config, model: Deployed(model))
STUDENT = replace(TEACHER, name="student", rungs=lambda config: ("narrow",))


def stages(config):
    rows = {"fit": Rows("fold", (0,)), "validate": Rows("fold", (1,))}
    return [
        Train("teacher", TEACHER, config, **rows),
        Train("student", STUDENT, config, needs=("teacher",), **rows),
    ]


TASK = Task(
    name="toys.pair",
    about=about,
    config=plan.ToyConfig,
    presets={"smoke": plan.smoke},
    learners={"teacher": TEACHER, "student": STUDENT},
    stages=stages,
    deliver=lambda config: Delivery(
        models=("student",),
        outputs=("logits",),
        labelled=lambda config, root, facts: plan.examples(config, {"data": root}),
        sidecar=lambda config, facts, rung: {"classes": facts["classes"]},
        groups=groups,
        embedded=("teacher", "student"),
    ),
    synthetic=plan.synthetic,
)
