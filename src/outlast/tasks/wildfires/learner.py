"""How wildfires are learned: registered pairs of RGB and infrared, two independent labels, one learner for all stages.

Teacher and students see the same data in the same way; what is trained is told by the stage's configuration: a
TeacherConfig a model over both pictures, a StudentConfig one over RGB alone, which learns from the teacher's outputs
for the very same samples if it names a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from outlast.data import augment as augmentation
from outlast.data.find import check_names, find_root
from outlast.data.readers import hash_files, list_images
from outlast.data.sampler import in_rounds
from outlast.data.table import Examples
from outlast.errors import DataError, TaskError, listed
from outlast.model.distillation import bce, total
from outlast.model.distillation_settings import (
    DistillationLoss,
    DualSettings,
    student_rung,
    student_rungs,
    teacher_rung,
    teacher_rungs,
)
from outlast.model.dual import DualBranch
from outlast.model.lightweight import WithRegressor, student
from outlast.model.multilabel_metrics import Multilabel, multilabel, tuned_thresholds
from outlast.task import DATA, Inputs, Learner, Trained
from outlast.tasks.wildfires import pairs
from outlast.tasks.wildfires.config import StageConfig, StudentConfig, TeacherConfig, WildfiresConfig
from outlast.tasks.wildfires.labels import CLASSES

Batch = dict[str, Tensor]
TEACHER = "teacher"  # the stage that students learn from
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's; the models bring it to their own
IR_MEAN, IR_STD = 0.5, 0.25  # fixed: the thermal level of an image is what tells fire


def examples(config: StageConfig | WildfiresConfig, roots: Mapping[str, Path]) -> Examples:
    """Every pair with its labels, scene and split."""
    check_names("wildfires", roots, (DATA,))
    root = find_root("wildfires", roots.get(DATA), pairs.looks_like_pairs, accepts=Path.is_dir)
    return pairs.examples(root, config.data)


def labelled(config: StageConfig, root: Path, facts: Mapping[str, Any]) -> Examples:
    """Every labelled pair below a folder."""
    return pairs.labelled(root, facts)


def unlabelled(config: StageConfig, images: Sequence[Path], facts: Mapping[str, Any]) -> Examples:
    """RGB images and folders of them, in the order in which they were given; no infrared. Raises DataError."""
    missing = [str(path) for path in images if not path.exists()]
    if missing:
        raise DataError(f"there is no such file: {listed(missing)}", hint="check the path")
    files = [file for path in images for file in (list_images(path) if path.is_dir() else [path])]
    files = list(dict.fromkeys(files))
    if not files:
        raise DataError(f"there are no images in {listed(images)}", hint="give RGB images, or folders of them")
    names = [str(path) for path in files]
    table = pd.DataFrame({"id": names, "rgb": names, "ir": "", "hash": hash_files(files)})
    return Examples(table, Path(), facts)


def read(config: StageConfig, root: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"rgb": uint8 (3, S, S), "ir": uint8 (1, S, S)}."""
    return pairs.read(root, row, side=config.data.decoded_side, thermal=config.data.thermal)


def reads(config: StageConfig) -> Any:
    """What `read` depends on."""
    return ["wildfires", config.data.decoded_side, config.data.thermal.model_dump(mode="json")]


def order(config: StageConfig, table: pd.DataFrame, seed: int, epoch: int) -> np.ndarray:
    """Every pair as often, shuffled: once, or as many times as it takes to show `epoch_pairs`."""
    rounds = max(math.ceil(config.data.epoch_pairs / len(table)), 1)
    return in_rounds(len(table), seed, epoch, count=rounds * len(table))


def draw(config: StageConfig, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """The numbers behind each pair's crop and turn, and its colours."""
    return augmentation.draw(config.data.augment, seed, epoch, indices)


def augment(config: StageConfig, batch: Batch, draws: np.ndarray | None) -> Batch:
    """Decoded pairs to "rgb" (B, 3, H, W) and "ir" (B, 1, H, W), normalised, and "labels" (B, 2).

    Both pictures are cut and turned by the same numbers; colours and erased boxes are for RGB alone.
    """
    spec, size = config.data.augment, (config.data.image_size, config.data.image_size)
    both = torch.cat((batch["rgb"], batch["ir"]), dim=1)
    if draws is None:
        both = augmentation.resized(both, size)
        rgb, ir = both[:, :3], both[:, 3:]
    else:
        numbers = torch.as_tensor(draws, device=both.device)
        if spec.moves:
            block = augmentation.block_size((both.shape[2], both.shape[3]), size, spec)
            grid = augmentation.geometry(numbers, spec, size)
            both = augmentation.warp(both, grid, reflect=spec.rotation_degrees > 0, block=block)
        else:
            both = augmentation.resized(both, size) * 255
        rgb, ir = augmentation.colour(both[:, :3].contiguous(), numbers, spec), both[:, 3:] / 255
        if spec.erase > 0:
            rgb = augmentation.erase(rgb, numbers)
    made = {
        **batch,
        "rgb": augmentation.normalise(rgb, MEAN, STD),
        "ir": augmentation.normalise(ir, (IR_MEAN,), (IR_STD,)),
    }
    if all(name in batch for name in CLASSES):
        made["labels"] = torch.stack([batch[name] for name in CLASSES], dim=1).float()
    return made


def model(config: StageConfig, inputs: Inputs, rung: str) -> nn.Module:
    """The teacher; or the student, with a regressor onto the teacher's features where the loss compares them."""
    size = (config.data.image_size, config.data.image_size)
    if isinstance(config, TeacherConfig):
        return DualBranch(teacher_rung(config.model, rung), len(CLASSES), size)
    built = student(student_rung(config.model, rung), len(CLASSES), size)  # first: its weights are those it has alone
    if config.loss is None or not config.loss.needs_hint:
        return built
    return WithRegressor(built, _features(_taught_by(config, inputs).timm_name, size))


def rungs(config: StageConfig) -> tuple[str, ...]:
    """The wanted model, then smaller ones."""
    return teacher_rungs(config.model) if isinstance(config, TeacherConfig) else student_rungs(config.model)


def teacher(config: StageConfig, inputs: Inputs, trained: Mapping[str, Trained]) -> nn.Module | None:
    """The model of the stage "teacher" with its best weights; None for a stage that has none."""
    if isinstance(config, TeacherConfig) or config.loss is None:
        return None
    module = DualBranch(_taught_by(config, inputs), len(CLASSES), (config.data.image_size, config.data.image_size))
    module.load_state_dict(trained[TEACHER].weights)
    return module


def teach(config: StageConfig, teacher: nn.Module, batch: Batch) -> Batch:
    """What the teacher makes of both pictures."""
    outputs = teacher(batch["rgb"], batch["ir"])
    return {f"teacher_{name}": outputs[name].float() for name in ("logits", "features")}


def step(config: StageConfig, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Binary cross entropy with the labels; for a student with a teacher the losses in force, each logged."""
    outputs = _outputs(config, model, batch)
    if isinstance(config, StudentConfig) and config.loss is not None:
        if "teacher_logits" not in batch:
            raise TaskError("a student that is to learn from a teacher was given none")
        told = {name: batch[f"teacher_{name}"] for name in ("logits", "features")}
        return total(config.loss, outputs, told, batch["labels"]).sums()
    count = len(batch["labels"])
    return {"loss_sum": bce(outputs["logits"], batch["labels"]) * count, "weight": count}


def predict(config: StageConfig, model: nn.Module, batch: Batch) -> Batch:
    """{"logits": (B, 2), "probabilities": (B, 2), "features": (B, F)}, float32."""
    outputs = _outputs(config, model, batch)
    logits = outputs["logits"].float()
    return {"logits": logits, "probabilities": logits.sigmoid(), "features": outputs["features"].float()}


def metric(config: StageConfig, facts: Mapping[str, Any]) -> Multilabel:
    """Scores of each label and over both, where yes is a probability of at least one half; and tuned_macro_f1."""
    return Judge(CLASSES)


def deploy(config: StageConfig, model: nn.Module) -> nn.Module:
    """The model without what only its training needed."""
    return model.deployed() if isinstance(model, WithRegressor) else model


def loss_at_start(config: StageConfig, facts: Mapping[str, Any]) -> float:
    """Of labels: ln 2. Of a teacher's logits and features nothing is known; their share is left out."""
    if isinstance(config, TeacherConfig) or config.loss is None:
        return math.log(2)
    return config.loss.weights.get("bce", 0.0) * math.log(2)


class Judge(Multilabel):
    """Multilabel, and what the trainings go by: tuned_macro_f1, the macro F1 at the thresholds that are best for it.

    The scores on the test split use thresholds that were tuned on validation, so weights are picked in the same way.
    At one half a model of rare labels says no to everything for its first epochs: a score of 0 that early stopping
    would take for its best. Of data that are no validation split, tuned_macro_f1 is an upper bound.
    """

    def compute(self, thresholds: Sequence[float] | None = None) -> dict[str, Any]:
        logits, labels = np.concatenate(self.logits), np.concatenate(self.labels)
        tuned = multilabel(logits, labels, self.names, tuned_thresholds(logits, labels))
        return {**super().compute(thresholds), "tuned_macro_f1": tuned["macro_f1"]}


def learner_of(loss: DistillationLoss | None) -> Learner:
    """The learner of a stage; a loss that couples the samples of a batch says so."""
    return replace(LEARNER, couples_batch=loss is not None and loss.couples_batch)


def _outputs(config: StageConfig, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    pictures = ("rgb", "ir") if isinstance(config, TeacherConfig) else ("rgb",)
    made: dict[str, Tensor] = model(*(batch[name] for name in pictures))
    return made


def _taught_by(config: StudentConfig, inputs: Inputs) -> DualSettings:
    """The teacher as it was trained: its rung, and neither published weights nor frozen parts to begin with."""
    assert config.teacher is not None
    rung = inputs.rung(TEACHER) or config.teacher.name
    return DualSettings(name=rung, dropout=config.teacher.dropout)


@cache
def _features(name: str, size: tuple[int, int]) -> int:
    """How many features a teacher has; without making its weights."""
    with torch.device("meta"):
        return DualBranch(DualSettings(name=name), len(CLASSES), size).features


LEARNER = Learner(
    name="wildfires",
    examples=examples,
    read=read,
    reads=reads,
    sampler=order,
    draw=draw,
    augment=augment,
    model=model,
    rungs=rungs,
    step=step,
    predict=predict,
    metric=metric,
    score="+tuned_macro_f1",
    deploy=deploy,
    teacher=teacher,
    teach=teach,
    loss_at_start=loss_at_start,
)
