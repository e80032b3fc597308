"""How lesions are learned: one image, one label, a logit; every positive and fresh negatives in each epoch.

One learner for all trainings; which timm model is trained is told by the stage's configuration. The table of the
patient plays no part here: it comes in with the ensemble.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn
from torch.nn import functional

from outlast.data import augment as augmentation
from outlast.data.find import check_names, find_root
from outlast.data.hdf5 import Images, open_images, read_by_id
from outlast.data.readers import hash_files, list_images, read_image, resize
from outlast.data.sampler import balanced, shuffled
from outlast.data.table import Examples
from outlast.errors import DataError, listed
from outlast.model.partial_auc import SHARE, PartialAUC
from outlast.task import DATA, Inputs, Learner
from outlast.tasks.lesions import layout, network
from outlast.tasks.lesions import rows as lesions
from outlast.tasks.lesions.config import DataConfig, StageConfig

Batch = dict[str, Tensor]
FILES = "files"  # the source of images that are files of their own, not known by an id
_CHANCE = SHARE**2 / 2
_LOOKED_AT = 3  # the epoch by which a training must have learned something
_OFF_BALANCE = 0.1


def examples(config: DataConfig, roots: Mapping[str, Path]) -> Examples:
    """Every training and test row, with folds; no image is decoded."""
    check_names("lesions", roots, (DATA,))
    root = find_root("lesions", roots.get(DATA), layout.looks_like_lesions, accepts=Path.is_dir)
    return lesions.read_examples(root, config)


def labelled(config: StageConfig, root: Path, facts: Mapping[str, Any]) -> Examples:
    """Every labelled lesion of a folder in the layout of the training set."""
    return lesions.read_labelled(root, facts)


def unlabelled(config: StageConfig, images: Sequence[Path], facts: Mapping[str, Any]) -> Examples:
    """Image files and folders of them, in the order in which they were given. Raises DataError."""
    missing = [str(path) for path in images if not path.exists()]
    if missing:
        raise DataError(f"there is no such file: {listed(missing)}", hint="check the path")
    files = [file for path in images for file in (list_images(path) if path.is_dir() else [path])]
    names = [str(path) for path in dict.fromkeys(files)]
    if not names:
        raise DataError(f"there are no images in {listed(images)}", hint="give image files, or folders of them")
    found = pd.DataFrame({"id": names, "source": FILES, "hash": hash_files(names)})
    return Examples(found, Path(), facts)


def read(config: StageConfig, root: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"image": uint8 (3, S, S)}: decoded and resized to S = image_size x oversize. Raises DataError naming the id."""
    side = config.data.decoded_side
    if row["source"] == FILES:
        image = read_image(root / row["id"], at_least=(side, side))
    else:
        path = root / row["source"]
        image = read_by_id(_opened(path, path.stat().st_mtime_ns), row["id"], at_least=(side, side))
    return {"image": np.ascontiguousarray(resize(image, (side, side)).transpose(2, 0, 1))}


def reads(config: StageConfig) -> Any:
    """What `read` depends on."""
    return ["lesions", config.data.decoded_side]


def order(config: StageConfig, rows: pd.DataFrame, seed: int, epoch: int) -> np.ndarray:
    """Every positive once and its share of negatives, drawn anew and spread evenly over the batches; or all rows."""
    labels, ratio = rows["label"].to_numpy(), config.sampling.negatives_per_positive
    if ratio is None:
        return shuffled(len(labels), seed, epoch)
    positives = int((labels == 1).sum())
    negatives = min(round(positives * ratio), len(labels) - positives)
    return balanced(labels, seed, epoch, count=positives + negatives, shares={0: negatives, 1: positives})


def draw(config: StageConfig, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """The numbers behind each image's crop, turn and colours."""
    return augmentation.draw(config.data.augment, seed, epoch, indices)


def augment(config: StageConfig, batch: Batch, draws: np.ndarray | None) -> Batch:
    """uint8 (B, 3, S, S) to float32 (B, 3, image_size, image_size) in [0, 1]; the models normalise."""
    size = (config.data.image_size, config.data.image_size)
    return {**batch, "image": augmentation.apply(batch["image"], draws, config.data.augment, size)}


def model(config: StageConfig, inputs: Inputs, rung: str) -> nn.Module:
    """The timm model with its logit."""
    return network.LesionNet(network.of_rung(config.model, rung), config.data.image_size)


def rungs(config: StageConfig) -> tuple[str, ...]:
    """The wanted model, then a small one."""
    return network.rungs(config.model)


def rates(config: StageConfig, model: nn.Module) -> dict[str, float]:
    """The timm model learns more slowly than the logit on top of it."""
    return {"backbone.": config.model.backbone_rate}


def step(config: StageConfig, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Binary cross entropy, summed; for the log how many samples are positive."""
    labels = batch["label"].float()
    logits = model(batch["image"])["logits"].float()
    smoothing = config.loss.label_smoothing
    targets = labels * (1 - smoothing) + 0.5 * smoothing
    loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return {"loss_sum": loss, "weight": len(labels), "positives": labels.sum()}


def predict(config: StageConfig, model: nn.Module, batch: Batch) -> Batch:
    """{"logits": (B,), "features": (B, F)}, float32."""
    outputs = model(batch["image"])
    return {"logits": outputs["logits"].float(), "features": outputs["features"].float()}


def metric(config: StageConfig, facts: Mapping[str, Any]) -> PartialAUC:
    """pAUC and AUC."""
    return PartialAUC()


def deploy(config: StageConfig, model: nn.Module) -> nn.Module:
    """Images in [0, 1] to the probability of malignant."""
    return network.Probability([model])


def share_of_positives(config: StageConfig, facts: Mapping[str, Any]) -> float:
    """Which part of an epoch's samples is positive, by the sampling settings and all rows of the data."""
    positives, rows = facts["positives"], facts["rows"]
    ratio = config.sampling.negatives_per_positive
    if ratio is None:
        return float(positives / rows)
    return float(positives / (positives + min(positives * ratio, rows - positives)))


def loss_at_start(config: StageConfig, facts: Mapping[str, Any]) -> float:
    """What a model loses that knows the share of positives and nothing else."""
    half = 0.5 * config.loss.label_smoothing
    share = share_of_positives(config, facts) * (1 - 2 * half) + half
    return -share * math.log(share) - (1 - share) * math.log(1 - share)


def alarms(config: StageConfig, facts: Mapping[str, Any], line: Mapping[str, Any]) -> list[str]:
    """What looks wrong after an epoch, with the likely reasons; `line` is that of metrics.jsonl."""
    found = []
    wanted, shown = share_of_positives(config, facts), line.get("train_positives")
    if line["epoch"] == 1 and shown is not None and abs(shown - wanted) > _OFF_BALANCE:
        found.append(
            f"{shown:.0%} of the samples of an epoch are malignant, where {wanted:.0%} were wanted: the folds hold "
            "very different shares of them, or the sampler was changed"
        )
    if line["epoch"] == _LOOKED_AT:
        score, loss = line.get("val_pauc"), line.get("train_loss")
        if score is not None and score <= _CHANCE * 1.1:
            found.append(
                f"pAUC is {score:.4f} after epoch {_LOOKED_AT}, which is chance ({_CHANCE:.2f}): are the labels those "
                "of these images, does the model see them (weights, normalisation), is train.learning_rate far off?"
            )
        if loss is not None and loss >= loss_at_start(config, facts):
            found.append(
                f"the loss is {loss:.4f} after epoch {_LOOKED_AT}, no less than a model loses that knows nothing "
                f"({loss_at_start(config, facts):.4f}): lower train.learning_rate, or give a warm-up"
            )
    return found


@lru_cache(maxsize=8)
def _opened(path: Path, changed: int) -> Images:
    """The images at a path, listed once per process; `changed` is its time stamp, so that new contents are seen."""
    return open_images(path)


LEARNER = Learner(
    name="lesions",
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
    score="+pauc",
    deploy=deploy,
    loss_at_start=loss_at_start,
    rates=rates,
    alarms=alarms,
)
