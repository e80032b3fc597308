"""How glaciers are learned: windows of tiles, pixel-balanced crops, losses with schedules, one confusion matrix.

Two learners share all of it but where their samples come from: "segmenter" reads tiles in the competition layout,
"pretrainer" reads HKH patches, which have other channels and no lakes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from outlast.base.log import say
from outlast.base.scratch import hashes_of, scratch_folder
from outlast.data import segment_augment as augmentation
from outlast.data.distance import signed_distance
from outlast.data.find import check_names, find_root
from outlast.data.sampler import WANTED, Drawn, in_rounds, pixel_balanced
from outlast.data.table import Examples
from outlast.data.texture import glcm
from outlast.errors import DataError, DataNotFoundError, ModelError, listed
from outlast.model.normalised import Normalised
from outlast.model.objective import total
from outlast.model.segmentation_metrics import Segmentation
from outlast.model.segmenter import build, deployed
from outlast.model.segmenter_settings import rung_settings
from outlast.model.segmenter_settings import rungs as ladder
from outlast.model.transfer import transfer
from outlast.task import DATA, Inputs, Learner, Trained
from outlast.tasks.glaciers import hkh, tiles
from outlast.tasks.glaciers.config import GlaciersConfig
from outlast.tasks.glaciers.layout import CLASSES

Batch = dict[str, Tensor]
_HEAD = "net.boundary."  # what only the loss on boundaries needs
_MEASURED = 24  # windows that the statistics of textures are of
TEXTURES = 2  # channels: contrast and energy
PRETRAIN, FINETUNE = "pretrain", "finetune"  # names of data roots, and of stages


def examples(config: GlaciersConfig, roots: Mapping[str, Path]) -> Examples:
    """Every window of the tiles in the competition layout, with its split, its fold and its pixels per class."""
    check_names("glaciers", roots, (DATA, FINETUNE, PRETRAIN))
    root = find_root("glaciers", roots.get(FINETUNE, roots.get(DATA)), tiles.looks_like_tiles, accepts=Path.is_dir)
    found = tiles.examples(root, window=config.data.window, memo=hashes_of(root))
    table = found.table.assign(split=_split(found.table, config))
    facts, notes = dict(found.facts), list(found.notes)
    bands = _chosen(config, facts["band_names"])
    if config.data.folds > 1:
        judged = table["split"] != "test"
        fold = np.full(len(table), -1, np.int64)
        fold[judged] = tiles.folds(
            table[judged], config.data.folds, by=config.data.folds_by, seed=config.data.split_seed
        )
        table["fold"] = fold
        trained_on = {str(k): np.flatnonzero((fold >= 0) & (fold != k)) for k in range(config.data.folds)}
    else:
        trained_on = {"": np.flatnonzero(table["split"] == "train")}
    facts |= {
        "channels": len(bands) + TEXTURES * config.bands.texture,
        "used_bands": [facts["band_names"][number] for number in bands],
        "statistics": {
            name: _with_textures(config, root, table, rows, _statistics(table, rows, bands))
            for name, rows in trained_on.items()
        },
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
    wanted = config.pretrain
    found = hkh.examples(
        roots[PRETRAIN], channels=wanted.channels, fraction=wanted.fraction, cache=scratch_folder() / "hkh"
    )
    table = found.table.assign(split=_split(found.table, config))
    rows = np.flatnonzero(table["split"] == "train")
    statistics = {"": _statistics(table, rows, list(range(len(config.pretrain.channels))))}
    return replace(found, table=table, facts={**found.facts, "statistics": statistics})


def labelled(config: GlaciersConfig, root: Path, facts: Mapping[str, Any]) -> Examples:
    """Every labelled tile below a folder; its bands must be those that the run was trained on."""
    found = tiles.examples(root, window=config.data.window, splits=False, memo=hashes_of(root))
    if found.facts["band_names"] != facts["band_names"]:
        raise DataError(
            f"{root} has the bands {listed(found.facts['band_names'])}, and the run was trained on "
            f"{listed(facts['band_names'])}",
            hint="give tiles with the same bands, in the same order",
        )
    return replace(found, facts=facts)


def read(config: GlaciersConfig, root: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"bands": float32 (C, S, S), NaN where nothing was observed; "mask": uint8 (S, S)}, "distance" if needed."""
    sample = tiles.read_window(root, row, bands=config.bands.use)
    if config.bands.texture:
        rim = config.bands.glcm.window // 2
        wider = {
            "y": row["y"] - rim,
            "x": row["x"] - rim,
            "height": row["height"] + 2 * rim,
            "width": row["width"] + 2 * rim,
        }
        band = tiles.read_window(root, {**row, **wider}, bands=[config.bands.texture_band])["bands"][0]
        sample["bands"] = np.concatenate([sample["bands"], textures(config, band)])
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
    return in_rounds(len(table), seed, epoch, count=count)


def draw(config: GlaciersConfig, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """The numbers behind each crop, its turn and its light."""
    return augmentation.draw(config.augment, seed, epoch, indices)


def augment(config: GlaciersConfig, batch: Batch, draws: np.ndarray | None) -> Batch:
    """Windows as they were read to crops as they are trained on; whole windows where draws is None.

    Textures keep their level: what changes the light of a band changes them otherwise than by a factor.
    """
    anywhere = torch.full((len(batch["mask"]),), augmentation.ANYWHERE)
    made = augmentation.apply({WANTED: anywhere, **batch}, draws, config.augment, config.data.crop)
    if config.bands.texture:
        made["gain"][:, -TEXTURES:], made["shift"][:, -TEXTURES:] = 1.0, 0.0
    return made


def model(config: GlaciersConfig, inputs: Inputs, rung: str) -> nn.Module:
    """The segmenter behind its normalisation by the training tiles' statistics."""
    facts = inputs.facts
    fold = getattr(config, "fold", None)
    statistics = facts["statistics"]["" if fold is None else str(fold)]
    mean, std = list(statistics["mean"]), list(statistics["std"])
    built = build(rung_settings(config.model, rung), len(mean), len(CLASSES), mean, std)
    vars(built)["class_pixels"] = statistics["pixels"]  # for losses that weigh classes by how many pixels they have
    return built


def begin(
    config: GlaciersConfig, model: nn.Module, inputs: Inputs, trained: Mapping[str, Trained]
) -> Mapping[str, Any]:
    """Bring over what was pretrained: every tensor is accounted for; channels and classes are matched by position."""
    if not trained:
        return {"from": None}
    [(source, pretrained)] = trained.items()
    assert isinstance(model, Normalised)
    wanted, given = inputs.facts["channels"], pretrained.facts["channels"]
    mapping = None
    if wanted != given and config.pretrain.partial:
        # By position: textures come last and were not pretrained, the bands before them are the same on both sides.
        mapping = {number: number for number in range(min(wanted, given))}
    has_head = any(name.startswith(_HEAD) for name in model.state_dict())
    weights = {name: part for name, part in pretrained.weights.items() if has_head or not name.startswith(_HEAD)}
    try:
        report = transfer(
            weights, model, partial=config.pretrain.partial, channels=mapping, statistics=False,
            source=f"the weights of the stage {source!r}",
        )  # fmt: skip
    except ModelError as error:
        error.hint = f"{error.hint} (pretrain.partial=true)"
        raise
    say(report.summary())
    return {"from": source, **report.as_json()}


def rungs(config: GlaciersConfig) -> tuple[str, ...]:
    """The wanted model, then smaller ones."""
    return ladder(config.model)


def step(config: GlaciersConfig, model: nn.Module, batch: Batch, left_out: tuple[int, ...] = ()) -> dict[str, Any]:
    """The losses in force, weighted by labelled pixels; extras: each loss, its weight, and the share of each class."""
    outputs = model(batch["image"], batch["gain"], batch["shift"])
    pixels: list[int] = vars(getattr(model, "module", model))["class_pixels"]  # several processes wrap the model
    sums = total(config.loss, outputs, batch, batch["epochs"], pixels=pixels, left_out=left_out).sums()
    mask = batch["mask"]
    shares = {f"share_{name}": (mask == k).sum() / mask[0].numel() for k, name in enumerate(CLASSES)}
    return {**sums, **shares}


def pretraining_step(config: GlaciersConfig, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The same without the classes that HKH has no labels for."""
    return step(config, model, batch, tuple(CLASSES.index(name) for name in hkh.ABSENT_CLASSES))


def predict(config: GlaciersConfig, model: nn.Module, batch: Batch) -> Batch:
    """{"logits": (B, 4, H, W), "classes": (B, H, W)}."""
    logits = model(batch["image"])["logits"].float()
    return {"logits": logits, "classes": logits.argmax(dim=1)}


def metric(config: GlaciersConfig, facts: Mapping[str, Any]) -> Segmentation:
    """MCC (R_K) and the scores of each class, from one confusion matrix."""
    return Segmentation(facts["classes"], facts.get("absent_classes", ()))


def deploy(config: GlaciersConfig, model: nn.Module) -> nn.Module:
    """Raw bands to logits; the normalisation is inside."""
    assert isinstance(model, Normalised)
    return deployed(model)


def textures(config: GlaciersConfig, band: np.ndarray) -> np.ndarray:
    """Contrast and energy (2, H, W) of a band that is wider by half a texture window on each side."""
    rim = config.bands.glcm.window // 2
    return glcm(band, config.bands.glcm, config.bands.texture_range)[
        :, rim : band.shape[0] - rim, rim : band.shape[1] - rim
    ]


def _with_distance(config: GlaciersConfig, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if config.loss.needs_distance:
        sample["distance"] = signed_distance(sample["mask"], len(CLASSES))
    return sample


def _chosen(config: GlaciersConfig, names: Sequence[str]) -> list[int]:
    """The numbers of the bands that are used, from 0."""
    wanted = config.bands.use or tuple(names)
    unknown = [name for name in (*wanted, *([config.bands.texture_band] * config.bands.texture)) if name not in names]
    if unknown:
        raise DataError(f"there is no {listed(unknown)} in the data", hint=f"the bands are {listed(names)}")
    return [list(names).index(name) for name in wanted]


def _split(table: pd.DataFrame, config: GlaciersConfig) -> pd.Series[str]:
    """The split that the data gives; where it gives no val, neighbouring tiles are cut off from train for it."""
    given = table["split"].astype(object).where(table["split"] != "", "train")
    if config.data.folds > 1 or (given == "val").any():
        return given
    sides = round(1 / config.data.val_fraction)
    train = np.flatnonzero(given == "train")
    part = tiles.folds(table.iloc[train], sides, by=config.data.folds_by, seed=config.data.split_seed)
    given.iloc[train[part == 0]] = "val"
    return given


def _statistics(table: pd.DataFrame, rows: np.ndarray, bands: Sequence[int]) -> dict[str, Any]:
    """Of training rows: mean and standard deviation of each used band, labelled pixels of each class."""
    mean, std = tiles.statistics(table, rows)
    return {
        "mean": [float(mean[band]) for band in bands],
        "std": [float(std[band]) for band in bands],
        "pixels": [int(table[f"pixels_{number}"].iloc[rows].sum()) for number in range(len(CLASSES))],
    }


def _with_textures(
    config: GlaciersConfig, root: Path, table: pd.DataFrame, rows: np.ndarray, statistics: dict[str, Any]
) -> dict[str, Any]:
    """With the mean and standard deviation of both textures, of some training windows spread over all of them."""
    if not config.bands.texture:
        return statistics
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_MEASURED, len(rows))).round().astype(int))]
    records = table.iloc[chosen].to_dict("records")
    samples = [read(config, root, {str(name): value for name, value in row.items()})["bands"] for row in records]
    values = np.concatenate([sample[-TEXTURES:].reshape(TEXTURES, -1) for sample in samples], axis=1).astype(np.float64)
    mean, std = np.nanmean(values, axis=1), np.nanstd(values, axis=1)
    return {**statistics, "mean": [*statistics["mean"], *mean.tolist()], "std": [*statistics["std"], *std.tolist()]}


SEGMENTER = Learner(
    name="segmenter",
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
    score="+mcc",
    deploy=deploy,
    begin=begin,
    couples_batch=True,
)
PRETRAINER = replace(
    SEGMENTER,
    name="pretrainer",
    examples=pretraining_examples,
    read=read_patch,
    reads=reads_patch,
    step=pretraining_step,
    begin=None,
)
