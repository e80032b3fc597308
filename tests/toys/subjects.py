"""Subjects for tests of the checks: the toy task on a made-up machine, with one thing changed at a time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from outlast.check.machine import Machine
from outlast.check.subject import Subject
from outlast.data.readers import read_image
from outlast.data.table import Examples
from outlast.env.host import Host
from outlast.task import Rows, Train
from toys import one, plan


def subject(folder, *, table=None, facts=None, root=None, config=None, train=None, changes=None, **fields):
    """The toy task. table(frame): its examples changed; facts, train, changes: of examples, settings, learner."""
    learner = replace(plan.LEARNER, **(changes or {}))
    config = config or plan.smoke()
    config = config.model_copy(update={"train": config.train.model_copy(update=train or {})})
    stage = Train("train-one", learner, config, Rows("split", ("train",)), Rows("split", ("val",)))
    machine = Machine(
        host=Host("plain", time.time(), Path(folder) / "scratch", 1),
        python="3.11", requires_python=">=3.11", requirements=(), packages={}, free_bytes=lambda path: 10**12,
    )  # fmt: skip
    made = Subject(
        machine=machine,
        task_=replace(one.TASK, learners={"toy": learner}, stages=lambda config: [stage]),
        config_=config,
        preset="smoke",
        run=Path(folder) / "run",
        **fields,
    )

    def examples():
        found = learner.examples(config, {"data": root or folder})
        frame = found.table if table is None else table(found.table.copy()).reset_index(drop=True)
        return {"toy": replace(found, table=frame, facts={**found.facts, **(facts or {})})}

    made.find_examples = examples
    (Path(folder) / "scratch").mkdir(exist_ok=True)
    return made


def pictures(folder, count=24, size=(64, 48)):
    """Image files of noise in two class folders: a/00.jpg, b/01.png, ... Returns the folder."""
    root = Path(folder) / "pictures"
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:02d}.{('jpg', 'png')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return root


def of_pictures(folder, root, **more):
    """A subject whose samples are the files under `root`, read as 32x32 pictures."""
    return subject(folder, root=root, changes={"examples": _listed, "read": _read_picture}, **more)


def _listed(config, roots):
    root = Path(roots["data"])
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    names = sorted({path.split("/")[0] for path in paths})
    table = pd.DataFrame(
        {
            "id": paths,
            "path": paths,
            "hash": [str((root / path).stat().st_size) + path for path in paths],
            "label": np.asarray([names.index(path.split("/")[0]) for path in paths], dtype=np.int64),
            "split": ["val" if number % 4 == 3 else "train" for number in range(len(paths))],
        }
    )
    return Examples(table, root, {"classes": names, "channels": 3}, ("label",))


def _read_picture(config, root, row):
    image = Image.fromarray(read_image(root / row["path"])).resize((32, 32))
    return {"image": np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))}


def severities(check, subject):
    """What the check finds, as severities."""
    return [finding.severity for finding in check(subject)]


def only(check, subject):
    """The one finding of the check; its remedy must say what to do."""
    (finding,) = check(subject)
    assert finding.remedy, finding
    return finding
