"""Wildfires: a teacher that sees RGB and infrared, and a small student for drones that see RGB alone.

The plan: train the teacher, train the student with what the teacher says of the very same samples, train the same
student without it, and score all of them on the test scenes. What is delivered is the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from outlast.data.table import Examples
from outlast.model.distillation_settings import TEACHERS, StudentSettings
from outlast.task import Axis, Call, Delivery, Figure, Groups, Mark, Predict, Rows, Stage, Task, Train
from outlast.tasks.wildfires import learner as wildfires
from outlast.tasks.wildfires.config import PRESETS, StageConfig, TeacherConfig, WildfiresConfig
from outlast.tasks.wildfires.labels import CLASSES, COMBINATIONS
from outlast.tasks.wildfires.public import DATA_SETS
from outlast.tasks.wildfires.scores import ALONE, JUDGED, STUDENT, TEACHER, score
from outlast.tasks.wildfires.synthetic import write

about = "fire and smoke from a drone: a teacher over RGB and infrared, distilled into a small student over RGB alone"
LOSSES = ("kl_bce", "kl_l2_bce", "kl_contrastive_l2_bce")
COSTS = "Milliseconds: the median for one image on this machine's processor with one thread, after a warm-up."
MARKS = {
    "no fire, no smoke": Mark("#1f77b4", "circle"),
    "fire only": Mark("#d62728", "square"),
    "smoke only": Mark("#7f7f7f", "triangle"),
    "fire and smoke": Mark("#ff7f0e", "diamond"),
}


def stages(config: WildfiresConfig) -> Sequence[Stage]:
    """teacher -> student, and the student alone -> what each predicts of val and test -> scores."""
    taught, alone = config.student_stage(taught=True), config.student_stage(taught=False)
    trains: list[Train] = [
        Train(TEACHER, wildfires.LEARNER, config.teacher_stage()),
        Train(STUDENT, wildfires.learner_of(config.loss), taught, needs=(TEACHER,)),
        *([Train(ALONE, wildfires.LEARNER, alone)] if config.baseline else []),
    ]
    rows = Rows(values=("val", "test"))
    judges = [Predict(JUDGED + each.name, (each.name,), rows, outputs=("logits",)) for each in trains]
    needs = (*(each.name for each in trains), *(each.name for each in judges))
    makes = ("metrics.json", "models.json", "overview.json", "models.csv")
    return (*trains, *judges, Call("scores", score, config, learner=wildfires.LEARNER, needs=needs, makes=makes))


def deliver(config: WildfiresConfig) -> Delivery:
    """The student."""
    return Delivery(
        models=(STUDENT,),
        outputs=("probabilities",),
        labelled=wildfires.labelled,
        unlabelled=wildfires.unlabelled,
        table=table,
        sidecar=sidecar,
        groups=groups,
        embedded=(TEACHER, STUDENT),
    )


def table(
    config: StageConfig, facts: Mapping[str, Any], ids: Sequence[str], outputs: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """file, and the probability of fire and of smoke."""
    frame = pd.DataFrame(outputs["probabilities"], columns=[f"probability_{name}" for name in CLASSES])
    frame.insert(0, "file", list(ids))
    return frame


def sidecar(config: StageConfig, facts: Mapping[str, Any], rung: str) -> dict[str, Any]:
    """What the bare weights need: how an image becomes their input, and what their output means."""
    size, decoded = config.data.image_size, config.data.decoded_side
    known = config.model
    settings = {"width": known.width} if isinstance(known, StudentSettings) and rung == known.name else {}
    inputs = {
        "rgb": {
            "layout": "NCHW float32, RGB", "shape": ["batch", 3, size, size],
            "mean": list(wildfires.MEAN), "std": list(wildfires.STD),
        }
    }  # fmt: skip
    if isinstance(config, TeacherConfig):
        inputs["ir"] = {
            "layout": "NCHW float32, grey", "shape": ["batch", 1, size, size],
            "mean": [wildfires.IR_MEAN], "std": [wildfires.IR_STD],
        }  # fmt: skip
    return {
        "model": {"name": rung, "settings": settings},
        "input": {
            **inputs,
            "steps": [
                "apply the EXIF rotation, convert to 8 bits",
                f"resize to {decoded}x{decoded}, then to {size}x{size} (bilinear with antialias)",
                "divide by 255, subtract mean, divide by std",
            ],
        },
        "output": {
            "values": "logits (batch, 2) of independent labels; the sigmoid gives probabilities",
            "labels": list(CLASSES),
        },
    }


def groups(config: StageConfig, examples: Examples) -> Groups:
    """The four combinations of fire and smoke, in their colours; one that does not occur is empty."""
    names = list(MARKS)
    numbers = examples.table["fire"] + 2 * examples.table["smoke"]
    assert len(names) == len(COMBINATIONS)
    return Groups([names[number] for number in numbers.tolist()], MARKS)


TASK = Task(
    name="wildfires",
    about=about,
    config=WildfiresConfig,
    presets=PRESETS,
    learners={"wildfires": wildfires.LEARNER},
    stages=stages,
    deliver=deliver,
    synthetic=write,
    figures=(
        Figure("class_table", "scores/overview.json", "What each model is worth and costs", COSTS),
        Figure("class_table", "scores/models.json", "Teacher, student, and student alone"),
        Figure("curves", "teacher/metrics.jsonl", "Training of the teacher"),
        Figure("curves", "student/metrics.jsonl", "Training of the student"),
        Figure("curves", "student-alone/metrics.jsonl", "Training of the student alone"),
        Figure("confusion_matrix", "scores/metrics.json", "Fire (Y or N) and smoke (Y or N), student"),
        Figure("per_class", "scores/metrics.json", "Per label, student"),
    ),
    axes={
        "teacher": Axis("teacher.name", tuple(TEACHERS)),
        "loss": Axis("loss.name", LOSSES),
        "student": Axis("student.name"),
    },
    quick=("train.epochs=2", "teacher.train.epochs=2", "data.epoch_pairs=0", "baseline=false"),
    data_sets=DATA_SETS,
)
