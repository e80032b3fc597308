"""A call, and a second one that is done in units, on the data of toys.plan; nothing is trained: it takes no time.

A unit's numbers depend on the first call and on the unit alone, and what is made on all of them in their order. `BEGUN`
is told every unit that is begun, `FOLDS` is what the first call writes.
"""

import hashlib
from dataclasses import replace

from pydantic import Field

from outlast.base.files import read_json, write_json
from outlast.config.schema import TaskConfig, Training
from outlast.task import Call
from toys import plan

about = "a call in units, for tests"

BEGUN = [lambda name: None]
FOLDS = [[0, 1]]


class UnitsConfig(TaskConfig):
    data: plan.ToyData = plan.ToyData()
    train: Training = Training(epochs=1, threads=1)
    units: int = Field(4, ge=1)


def smoke():
    return UnitsConfig()


def fold(work):
    write_json(work.out / "folds.json", FOLDS[0])


def build(work):
    folds = read_json(work.inputs["folds"] / "folds.json")
    made = []
    for number in range(work.config.units):
        path = work.kept / f"unit-{number}.json"
        if not path.is_file():
            BEGUN[0](path.stem)
            write_json(path, hashlib.sha256(f"{number}{folds}".encode()).hexdigest())
            work.pause()
        made.append(read_json(path))
    write_json(work.out / "units.json", made)
    return {"units": len(made)}


def stages(config):
    return [
        Call("folds", fold, config, plan.LEARNER, makes=("folds.json",)),
        Call("build", build, config, plan.LEARNER, needs=("folds",), makes=("units.json",)),
    ]


TASK = replace(plan.TASK, name="toys.units", about=about, config=UnitsConfig, presets={"smoke": smoke}, stages=stages)
