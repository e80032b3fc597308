"""Leaf disease classification: a folder of photos per disease in, a trained classifier and an honest test out.

The plan: train (best weights by balanced accuracy on the val split), predict the test split once, score it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from outlast.task import Call, Delivery, Figure, Predict, Rows, Stage, Task, Train
from outlast.tasks.plants import learner as plants
from outlast.tasks.plants.config import PRESETS, PlantsConfig
from outlast.tasks.plants.public import DATA_SETS
from outlast.tasks.plants.scores import score
from outlast.tasks.plants.synthetic import write

about = "leaf disease classification: folders of photos in, a classifier out (SClusterFormer, minimal, tiny, any timm)"


def stages(config: PlantsConfig) -> Sequence[Stage]:
    """train -> test -> scores."""
    return (
        Train("train", plants.LEARNER, config),
        Predict("test", models=("train",), rows=Rows("split", ("test",)), outputs=("logits",)),
        Call(
            "scores",
            score,
            config,
            learner=plants.LEARNER,
            needs=("test",),
            makes=("metrics.json", "mistakes.json"),
        ),
    )


def deliver(config: PlantsConfig) -> Delivery:
    """The classifier."""
    return Delivery(
        models=("train",),
        outputs=("probabilities",),
        labelled=plants.labelled,
        unlabelled=plants.unlabelled,
        table=table,
        sidecar=sidecar,
    )


def table(
    config: PlantsConfig, facts: Mapping[str, Any], ids: Sequence[str], outputs: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """file, class, and the probability of every class."""
    classes = list(facts["classes"])
    probabilities = outputs["probabilities"]
    frame = pd.DataFrame(probabilities, columns=[f"probability_{name}" for name in classes])
    frame.insert(0, "file", list(ids))
    frame.insert(1, "class", [classes[number] for number in probabilities.argmax(axis=1)])
    return frame


def sidecar(config: PlantsConfig, facts: Mapping[str, Any], rung: str) -> dict[str, Any]:
    """What the bare weights need: how an image becomes their input, and what their output means."""
    mean, std = plants.mean_and_std(config)
    size = config.data.image_size
    decoded = round(size * config.data.oversize)
    return {
        "model": {
            "name": rung,
            "settings": config.model.sclusterformer.model_dump() if rung == "sclusterformer" else {},
        },
        "input": {
            "layout": "NCHW float32, RGB",
            "shape": ["batch", 3, size, size],
            "steps": [
                "apply the EXIF rotation, convert to 8-bit RGB",
                f"crop the middle {config.data.center_crop:g} of each side",
                f"resize to {decoded}x{decoded}, then to {size}x{size} (bilinear with antialias)",
                "divide by 255, subtract mean, divide by std",
            ],
            "mean": list(mean),
            "std": list(std),
        },
        "output": {
            "values": "logits or log-probabilities; softmax gives probabilities",
            "classes": list(facts["classes"]),
        },
    }


TASK = Task(
    name="plants",
    about=about,
    config=PlantsConfig,
    presets=PRESETS,
    learners={"classifier": plants.LEARNER},
    stages=stages,
    deliver=deliver,
    synthetic=write,
    figures=(
        Figure("curves", "train/metrics.jsonl", "Training"),
        Figure("confusion_matrix", "scores/metrics.json", "Confusion matrix"),
        Figure("per_class", "scores/metrics.json", "Per class"),
        Figure("image_grid", "scores/mistakes.json", "Worst mistakes"),
    ),
    data_sets=DATA_SETS,
)
