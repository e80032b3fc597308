"""How forgeries are learned: forgeries composed on the fly, cross entropy and Dice of pixels, a score of each image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.base.scratch import scratch_folder
from outlast.data.find import find_root
from outlast.data.sampler import in_rounds
from outlast.data.table import Examples
from outlast.model.copy_move import CopyMove
from outlast.model.copy_move_settings import rung_settings
from outlast.model.copy_move_settings import rungs as ladder
from outlast.task import DATA, Inputs, Learner
from outlast.tasks.forgeries import layout, samples, views
from outlast.tasks.forgeries.config import StageConfig
from outlast.tasks.forgeries.judge import Judge
from outlast.tasks.forgeries.listing import looks_like_forgeries

Batch = dict[str, Tensor]
_SMOOTH = 1.0  # pixels added above and below in Dice
_BUCKET = 56  # pixels: images of the same size but for this much are predicted together


def examples(config: StageConfig, roots: Mapping[str, Path]) -> Examples:
    """Every labelled image, with its split; ordered by size, so that batches of whole images hold little padding."""
    root = find_root("forgeries", roots.get(DATA), looks_like_forgeries, accepts=Path.is_dir)
    found = layout.examples(root, seed=config.data.split_seed, memo=scratch_folder() / "forgeries")
    return _by_size(found, config.data.side)


def labelled(config: StageConfig, root: Path, facts: Mapping[str, Any]) -> Examples:
    """Every labelled image of a folder, to be scored."""
    found = layout.labelled(root, dict(facts), memo=scratch_folder() / "forgeries")
    return _by_size(found, config.data.side)


def read(config: StageConfig, root: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The image on its canvas, the numbers of its instances, its size there."""
    return samples.read(root, row, config.data.side)


def reads(config: StageConfig) -> Any:
    """What `read` depends on."""
    return ["forgeries", config.data.side]


def order(config: StageConfig, table: pd.DataFrame, seed: int, epoch: int) -> np.ndarray:
    """Every image as often, shuffled, until there are as many crops as an epoch has."""
    return in_rounds(len(table), seed, epoch, count=config.data.samples)


def draw(config: StageConfig, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """The numbers behind each crop and its forgery."""
    return samples.draw(seed, epoch, indices)


def augment(config: StageConfig, batch: Batch, draws: np.ndarray | None) -> Batch:
    """Canvases to crops with forgeries; to whole images where draws is None."""
    return samples.whole(batch) if draws is None else samples.crops(batch, draws, config.data)


def model(config: StageConfig, inputs: Inputs, rung: str) -> nn.Module:
    """The network, whose descriptors begin as cosines."""
    return CopyMove(rung_settings(config.model, rung))


def rungs(config: StageConfig) -> tuple[str, ...]:
    """The wanted network, then smaller ones."""
    return ladder(config.model)


def step(config: StageConfig, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The losses in force, each summed over images; pixels on padding and UNKNOWN ones do not count."""
    outputs = model(batch["image"], batch["valid"])
    logits = outputs["logits"].float()
    counted = (batch["valid"] & (batch["mask"] != samples.UNKNOWN)).float()
    truth = (batch["mask"] == 1).float()
    parts = {
        "cross_entropy": cross_entropy(logits, truth, counted).sum(),
        "dice": dice(logits, truth, counted).sum(),
        "image": _of_images(outputs["score"].float(), _known(batch)).sum(),
    }
    weights = config.loss.model_dump()
    total = sum(weights[name] * part for name, part in parts.items())
    return {"loss_sum": total, "weight": len(logits), **{name: part.detach() for name, part in parts.items()}}


def cross_entropy(logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """(B,): the mean over the pixels of each image (B, H, W) that count."""
    values = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * counted
    return values.flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1)


def dice(logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """(B,): 1 - (2 sum(p y) + s) / (sum p + sum y + s) of each image with a forgery, 0 of every other.

    Source: Milletari et al. 2016, with p and y for their squares.
    """
    probability, truth = (logits.sigmoid() * counted).flatten(1), (truth * counted).flatten(1)
    both = (probability * truth).sum(dim=1)
    share = (2 * both + _SMOOTH) / (probability.sum(dim=1) + truth.sum(dim=1) + _SMOOTH)
    return torch.where(truth.any(dim=1), 1 - share, 0)


def predict(config: StageConfig, model: nn.Module, batch: Batch) -> Batch:
    """What `views.seen` gives of one network."""
    return views.seen([model], batch, config.data.side, config.tta)


def metric(config: StageConfig, facts: Mapping[str, Any]) -> Judge:
    """pixel_f1 and image_auc."""
    return Judge()


def deploy(config: StageConfig, model: nn.Module) -> nn.Module:
    """The network: images (B, 3, H, W) in 0..255 and where they are valid to logits and a score; see `repeatable`."""
    return model.repeatable() if isinstance(model, CopyMove) else model


def _of_images(scores: Tensor, known: Tensor) -> Tensor:
    values = F.binary_cross_entropy_with_logits(scores, known.clamp(min=0).float(), reduction="none")
    return torch.where(known >= 0, values, 0)


def _known(batch: Batch) -> Tensor:
    """Of crops what is known of them; of whole images their label."""
    return batch["known"] if "known" in batch else batch["forged"]


def _by_size(found: Examples, side: int) -> Examples:
    """With rows in the order of their size on the canvas."""
    table = found.table
    sizes = [samples.fitted(height, width, side) for height, width in zip(table["height"], table["width"], strict=True)]
    bucket = pd.DataFrame([[-(-h // _BUCKET), -(-w // _BUCKET)] for h, w in sizes], columns=["_h", "_w"])
    rows = pd.concat([bucket, table[["id"]].reset_index(drop=True)], axis=1).sort_values(["_h", "_w", "id"]).index
    ordered = table.iloc[rows.to_numpy()].reset_index(drop=True)
    return Examples(ordered, found.root, found.facts, found.batch_columns, found.notes)


LEARNER = Learner(
    name="forgeries",
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
    score="+quality",
    deploy=deploy,
)
