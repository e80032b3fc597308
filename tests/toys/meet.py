"""A plan of calls alone, for tests of stages side by side: two that wait for each other, and two that need them.

OUTLAST_TOY_MEET is the folder in which they meet; OUTLAST_TOY_FAILS names the one that then fails.
"""

import os
import time
from pathlib import Path

from outlast.errors import DataError
from outlast.task import Call, Task
from toys import plan

about = "calls that meet, for tests"
PATIENCE_SECONDS = 120.0


def _meet(name, other):
    folder = Path(os.environ["OUTLAST_TOY_MEET"])
    (folder / name).touch()
    until = time.monotonic() + PATIENCE_SECONDS
    while not (folder / other).exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{other} never came")
        time.sleep(0.05)
    if os.environ.get("OUTLAST_TOY_FAILS") == name:
        raise DataError(f"{name} has bad data", hint="mend them")


def left(work):
    _meet("left", "right")


def right(work):
    _meet("right", "left")


def after(work):
    (work.out / "done.txt").write_text(", ".join(sorted(work.inputs)))


def stages(config):
    return [
        Call("both", after, config, needs=("left", "right"), makes=("done.txt",)),
        Call("after-right", after, config, needs=("right",), makes=("done.txt",)),
        Call("left", left, config),
        Call("right", right, config),
    ]


TASK = Task(
    name="toys.meet",
    about=about,
    config=plan.ToyConfig,
    presets={"smoke": plan.smoke},
    learners=plan.TASK.learners,
    stages=stages,
    deliver=plan.TASK.deliver,
    synthetic=plan.synthetic,
)
