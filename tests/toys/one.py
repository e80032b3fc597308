"""A task of one training: that of `toys.plan` on its first fold, 12 steps in 3 epochs. For tests that train often."""

from outlast.task import Rows, Task, Train
from toys import plan

about = "one training on made-up images, for tests"


def stages(config):
    return [Train("train-one", plan.LEARNER, config, fit=Rows("fold", (1,)), validate=Rows("fold", (0,)))]


TASK = Task(
    name="toys.one",
    about=about,
    config=plan.ToyConfig,
    presets={"smoke": plan.smoke},
    learners={"toy": plan.LEARNER},
    stages=stages,
    deliver=plan.TASK.deliver,
    synthetic=plan.synthetic,
)
