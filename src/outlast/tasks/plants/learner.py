"""How plants are learned: photos in class folders, batch-wise augmentation, cross entropy, balanced accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn
from torch.nn import functional

from outlast.base.scratch import hashes_of
from outlast.data import augment as augmentation
from outlast.data.find import check_names, find_root
from outlast.data.folders import class_folders, labelled_folders, looks_like_classes
from outlast.data.readers import center_crop, hash_files, list_images, read_image, resize
from outlast.data.sampler import balanced, shuffled
from outlast.data.split import check_split, complete_split
from outlast.data.table import Examples
from outlast.errors import DataError, listed
from outlast.model.backbone import normalisation
from outlast.model.metrics import Classification
from outlast.task import DATA, Inputs, Learner
from outlast.tasks.plants.config import PlantsConfig
from outlast.tasks.plants.models import OWN, build

Batch = dict[str, Tensor]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's; timm models bring their own


def examples(config: PlantsConfig, roots: Mapping[str, Path]) -> Examples:
    """Every photo with its class and split; a split that is given is kept, what it lacks is cut off from train."""
    check_names("plants", roots, (DATA,))
    root = find_root("plants", roots.get(DATA), looks_like_classes, accepts=Path.is_dir)
    found = class_folders(root, memo=hashes_of(root))
    data = config.data
    fractions = {
        "train": 1 - data.val_fraction - data.test_fraction, "val": data.val_fraction, "test": data.test_fraction
    }  # fmt: skip
    table = found.table.assign(split=complete_split(found.table, fractions=fractions, seed=data.split_seed))
    check_split(table)
    if config.loss.class_weights == "none":
        return replace(found, table=table)
    counts = table["label"].value_counts()  # of all splits: a frozen split must not change it
    weight = counts.mean() / counts
    table = table.assign(weight=table["label"].map(weight).astype(np.float32))
    return replace(found, table=table, batch_columns=("label", "weight"))


def labelled(config: PlantsConfig, root: Path, facts: Mapping[str, Any]) -> Examples:
    """Every labelled photo below a folder; its classes must be among those that the run knows."""
    found = labelled_folders(root, memo=hashes_of(root))
    known = list(facts["classes"])
    unknown = [name for name in found.facts["classes"] if name not in known]
    if unknown:
        raise DataError(
            f"{root} has classes that the run was not trained on: {listed(unknown)}",
            hint=f"the run knows: {listed(known)}; rename or leave out the others",
        )
    label = found.table["class"].map(known.index).astype(np.int64)
    return replace(found, table=found.table.assign(label=label), facts=facts)


def unlabelled(config: PlantsConfig, images: Sequence[Path], facts: Mapping[str, Any]) -> Examples:
    """Images and folders of images, in the order in which they were given."""
    missing = [str(path) for path in images if not path.exists()]
    if missing:
        raise DataError(f"there is no such file: {listed(missing)}", hint="check the path")
    paths = [file for path in images for file in (list_images(path) if path.is_dir() else [path])]
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise DataError(f"there are no images in {listed(images)}", hint="give image files, or folders of them")
    names = [str(path) for path in paths]
    foreign = [repr(name) for name in names if not _is_utf8(name)]
    if foreign:
        raise DataError(f"file names that are not valid UTF-8: {listed(foreign)}", hint="rename the files")
    table = pd.DataFrame({"id": names, "path": names, "hash": hash_files(paths)})
    return Examples(table, Path(), facts)


def read(config: PlantsConfig, root: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"image": uint8 (3, S, S)}: decoded, cropped to the middle, resized to S = image_size x oversize."""
    data = config.data
    side = _side(config)
    needed = math.ceil(side / data.center_crop)
    image = read_image(root / row["path"], at_least=(needed, needed))
    image = resize(center_crop(image, data.center_crop), (side, side))
    return {"image": np.ascontiguousarray(image.transpose(2, 0, 1))}


def reads(config: PlantsConfig) -> Any:
    """What `read` depends on."""
    return ["plants", _side(config), config.data.center_crop]


def order(config: PlantsConfig, table: pd.DataFrame, seed: int, epoch: int) -> np.ndarray:
    """Every photo once, shuffled; or every class equally often."""
    if config.data.balanced:
        return balanced(table["label"].to_numpy(), seed, epoch)
    return shuffled(len(table), seed, epoch)


def draw(config: PlantsConfig, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """The numbers behind each photo's crop, turn and colours."""
    return augmentation.draw(config.data.augment, seed, epoch, indices)


def augment(config: PlantsConfig, batch: Batch, draws: np.ndarray | None) -> Batch:
    """uint8 (B, 3, S, S) to normalised float32 (B, 3, image_size, image_size)."""
    size = (config.data.image_size, config.data.image_size)
    images = augmentation.apply(batch["image"], draws, config.data.augment, size)
    mean, std = mean_and_std(config)
    return {**batch, "image": augmentation.normalise(images, mean, std)}


def mean_and_std(config: PlantsConfig) -> tuple[Sequence[float], Sequence[float]]:
    """The normalisation: a timm model's own, ImageNet's for ours."""
    if config.model.name in OWN:
        return _MEAN, _STD
    own = normalisation(config.model.name, also=OWN)
    return own.mean, own.std


def model(config: PlantsConfig, inputs: Inputs, rung: str) -> nn.Module:
    """The classifier, fresh or with the pretrained weights that the configuration names."""
    size = config.data.image_size
    wanted = config.model
    return build(
        rung,
        len(inputs.facts["classes"]),
        settings=wanted.sclusterformer.settings() if rung == "sclusterformer" else None,
        pretrained=wanted.pretrained and rung == wanted.name,
        weights=wanted.weights if rung == wanted.name else None,
        image_size=None if rung in OWN else (size, size),
    )


def rungs(config: PlantsConfig) -> tuple[str, ...]:
    """The wanted model, then the smaller ones of the ladder."""
    name = config.model.name
    return OWN[OWN.index(name) :] if name in OWN else (name, *OWN[1:])


def step(config: PlantsConfig, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Cross entropy, summed; with class weights the weight is the sum of the weights."""
    labels = batch["label"]
    logits = model(batch["image"]).float()
    smoothing = config.loss.label_smoothing
    if "weight" not in batch:
        loss = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        return {"loss_sum": loss, "weight": len(labels)}
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return {"loss_sum": (losses * batch["weight"]).sum(), "weight": batch["weight"].sum()}


def predict(config: PlantsConfig, model: nn.Module, batch: Batch) -> Batch:
    """{"logits": (B, classes), "probabilities": (B, classes)}, float32."""
    logits = model(batch["image"]).float()
    return {"logits": logits, "probabilities": logits.softmax(dim=1)}


def metric(config: PlantsConfig, facts: Mapping[str, Any]) -> Classification:
    """OA, AA, kappa, macro F1, loss."""
    return Classification(facts["classes"])


def deploy(config: PlantsConfig, model: nn.Module) -> nn.Module:
    """The classifier itself: normalised images to logits or log-probabilities."""
    return model


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _side(config: PlantsConfig) -> int:
    return round(config.data.image_size * config.data.oversize)


LEARNER = Learner(
    name="classifier",
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
    score="+balanced_accuracy",
    deploy=deploy,
)
