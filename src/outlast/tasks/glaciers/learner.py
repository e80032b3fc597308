"""How glaciers are learned: windows of tiles, pixel-balanced crops, losses with schedules, one confusion matrix.

Two learners share all of it but where their samples come from: "segmenter" reads tiles in the competition layout,
"pretrainer" reads HKH patches, which have other channels and no lakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from outlast.data import segment_augment as augmentation
from outlast.data.distance import signed_distance
from outlast.data.find import check_names, find_root
from outlast.data.sampler import WANTED, Drawn, pixel_balanced, shuffled
from outlast.data.split import check_split
from outlast.data.table import Examples
from outlast.data.texture import with_texture
from outlast.errors import DataError, DataNotFoundError
from outlast.model.losses import total
from outlast.model.segmentation_metrics import Segmentation
from outlast.model.segmenter import build, deployed
from outlast.model.segmenter_settings import rung_settings
from outlast.model.segmenter_settings import rungs as ladder
from outlast.model.transfer import transfer
from outlast.task import DATA, Inputs, Learner, Trained
from outlast.tasks.glaciers import hkh, tiles
from outlast.tasks.glaciers.config import CLASSES, GlaciersConfig, StageConfig

Batch = dict[str, Tensor]
PRETRAIN, FINETUNE = "pretrain", "finetune"  # names of data roots, and of stages


def examples(config: GlaciersConfig, roots: Mapping[str, Path]) -> Examples:
    """Every window of the tiles in the competition layout, with its split, its fold and its pixels per class."""
    check_names("glaciers", roots, (DATA, FINETUNE, PRETRAIN))
    root = find_root("glaciers", roots.get(FINETUNE, roots.get(DATA)), tiles.looks_right, accepts=Path.is_dir)
    found = tiles.examples(root, window=config.data.window)
    table = found.table.assign(split=_split(found.table, config))
    facts, notes = dict(found.facts), list(found.notes)
    bands = _bands(config, facts["bands"])
    if config.data.folds > 1:
        judged = table["split"] != "test"
        fold = np.full(len(table), -1, np.int64)
        fold[judged] = tiles.folds(
            table[judged], config.data.folds, by=config.data.folds_by, seed=config.data.split_seed
        )
        table["fold"] = fold
        trained_on = {str(k): np.flatnonzero((fold >= 0) & (fold != k)) for k in range(config.data.folds)}
    else:
        check_split(table, required=("train", "val"))
        trained_on = {"": np.flatnonzero(table["split"] == "train")}
    facts |= {
        "channels": len(bands) + 2 * config.bands.texture,
        "used_bands": [number + 1 for number in bands],
        "statistics": {name: _statistics(table, rows, bands) for name, rows in trained_on.items()},
    }
    return replace(found, table=table, facts=facts, notes=tuple(notes))


def pretraining_examples(config: GlaciersConfig, roots: Mapping[str, Path]) -> Examples:
    """Every HKH patch, with its split and its pixels per class."""
    check_names("glaciers", roots, (DATA, FINETUNE, PRETRAIN))
    if PRETRAIN not in roots:
        raise DataNotFoundError(
            "pretrain.enabled is true, and no HKH patches were given",
            hint="name their folder with --data pretrain=DIR (and the tiles with --data finetune=DIR), or leave the "
            "pretraining out with pretrain.enabled=false",
        )
    found = hkh.examples(roots[PRETRAIN], channels=config.pretrain.channels, fraction=config.pretrain.fraction)
    table = found.table.assign(split=_split(found.table, config))
    check_split(table, required=("train", "val"))
    rows = np.flatnonzero(table["split"] == "train")
    statistics = {"": _statistics(table, rows, list(range(len(config.pretrain.channels))))}
    return replace(found, table=table, facts={**found.facts, "statistics": statistics})


def labelled(config: GlaciersConfig, root: Path, facts: Mapping[str, Any]) -> Examples:
    """Every labelled tile below a folder; its bands must be those that the run was trained on."""
    found = tiles.examples(root, window=config.data.window)
    if found.facts["bands"] != facts["bands"]:
        raise DataError(
            f"{root} has {found.facts['bands']} bands, and the run was trained on {facts['bands']}",
            hint="give tiles with the same bands, in the same order",
        )
    return replace(found, facts=facts)


def read(config: GlaciersConfig, root: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"bands": float32 (C, S, S), NaN where nothing was observed; "mask": uint8 (S, S); "distance" if it is asked for}."""
    sample = tiles.read_window(root, row, bands=config.bands.use)
    if config.bands.texture:
        sample["bands"] = _with_texture(config, root, row, sample["bands"])
    return _with_distance(config, sample)


def read_patch(config: GlaciersConfig, root: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The same of an HKH patch."""
    return _with_distance(config, hkh.read_window(root, row, config.pretrain.channels))


def reads(config: GlaciersConfig) -> Any:
    """What `read` depends on."""
    texture = [config.bands.texture_band, config.bands.texture_range, config.bands.glcm.model_dump(mode="json")]
    return ["glaciers", config.bands.use, texture if config.bands.texture else None, config.loss.needs_distance]


def reads_patch(config: GlaciersConfig) -> Any:
    """What `read_patch` depends on."""
    return ["hkh", config.pretrain.channels, config.loss.needs_distance]


def order(config: GlaciersConfig, table: pd.DataFrame, seed: int, epoch: int) -> np.ndarray | Drawn:
    """Windows for wanted classes in the shares of `sampling`; or every window as often, shuffled."""
    data, sampling = config.data, config.sampling
    per_window = max(round((data.window / data.crop) ** 2), 1)
    count = sampling.samples or len(table) * per_window
    if sampling.balanced:
        pixels = table[[f"pixels_{number}" for number in range(len(CLASSES))]].to_numpy()
        return pixel_balanced(pixels, sampling.shares(), seed, epoch, count=count)
    rounds = -(-count // len(table))
    return np.concatenate([shuffled(len(table), seed, epoch * rounds + number) for number in range(rounds)])[:count]


def draw(config: GlaciersConfig, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """The numbers behind each crop, its turn and its light."""
    return augmentation.draw(config.augment, seed, epoch, indices)


def augment(config: GlaciersConfig, batch: Batch, draws: np.ndarray | None) -> Batch:
    """Windows as they were read to crops as they are trained on; whole windows where draws is None."""
    return {**batch, **augmentation.apply(batch, draws, config.augment, config.data.crop)}


def model(config: GlaciersConfig, inputs: Inputs, rung: str) -> nn.Module:
    """The segmenter behind its normalisation by the training tiles' statistics."""
    facts = inputs.facts
    fold = getattr(config, "fold", None)
    statistics = facts["statistics"]["" if fold is None else str(fold)]
    mean, std = list(statistics["mean"]), list(statistics["std"])
    settings = rung_settings(config.model, rung)
    return build(settings, len(mean), len(CLASSES), mean, std)


def begin(
    config: GlaciersConfig, model: nn.Module, inputs: Inputs, trained: Mapping[str, Trained]
) -> Mapping[str, Any]:
    """Bring over what was pretrained: every tensor is accounted for; channels and classes are matched by position."""
    if PRETRAIN not in trained:
        return {"from": None}
    report = transfer(trained[PRETRAIN].weights, model, partial=config.pretrain.partial)
    return {"from": PRETRAIN, **report.as_json()}


def rungs(config: GlaciersConfig) -> tuple[str, ...]:
    """The wanted model, then smaller ones."""
    return ladder(config.model)


def step(config: GlaciersConfig, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The losses in force, weighted by labelled pixels; extras: each loss, its weight, and the share of each class."""
    outputs = model(batch["image"], batch.get("gain"), batch.get("shift"))
    found = total(config.loss, outputs, batch, batch["epochs"])
    mask = batch["mask"]
    pixels = (mask < len(CLASSES)).sum()
    extras = {f"loss_{name}": value.detach() * pixels for name, value in found["parts"].items()}
    extras |= {f"weight_{name}": value * pixels for name, value in found["weights"].items()}
    extras |= {f"share_{name}": (mask == number).sum() for number, name in enumerate(CLASSES)}
    return {"loss_sum": found["loss"] * pixels, "weight": pixels, **extras}


def predict(config: GlaciersConfig, model: nn.Module, batch: Batch) -> Batch:
    """{"logits": (B, 4, H, W), "classes": (B, H, W)}."""
    logits = model(batch["image"])["logits"].float()
    return {"logits": logits, "classes": logits.argmax(dim=1)}


def metric(config: GlaciersConfig, facts: Mapping[str, Any]) -> Segmentation:
    """MCC (R_K) and the scores of each class, from one confusion matrix."""
    return Segmentation(facts["classes"], absent=facts.get("absent_classes", ()))


def deploy(config: GlaciersConfig, model: nn.Module) -> nn.Module:
    """Raw bands to logits; the normalisation is inside."""
    return deployed(model)
