"""How trained glacier models are used: together, over turned views, on whole scenes, and as one module for export."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from outlast.base.files import write_json
from outlast.base.log import Progress
from outlast.data import texture
from outlast.data.masks import encoded
from outlast.data.raster import write_geotiff
from outlast.errors import DataError, listed
from outlast.model.mosaic import ALL, FLIPS, ensemble, predict_scene, tta
from outlast.task import Member, Scenes, Solution
from outlast.tasks.glaciers.config import GlaciersConfig
from outlast.tasks.glaciers.layout import CLASSES
from outlast.tasks.glaciers.learner import TEXTURES, deploy, textures
from outlast.tasks.glaciers.scenes import Scene, find_scenes

Batch = dict[str, Tensor]

_VIEWS = {"none": ("identity",), "flips": FLIPS, "dihedral": ALL}
_BATCH = 16
_FORWARD_BYTES_PER_PIXEL = 2000  # of a ResNet34 U-Net in float32, without gradient


def together(config: GlaciersConfig, members: Sequence[Member], batch: Batch) -> Batch:
    """Mean probabilities of all members over the views of `tta`: {"logits": their logarithm, "classes": (B, H, W)}."""
    probabilities = forward(config, members)(batch["image"])
    return {"logits": probabilities.clamp_min(1e-12).log(), "classes": probabilities.argmax(dim=1)}


def forward(config: GlaciersConfig, members: Sequence[Member]) -> Callable[[Tensor], Tensor]:
    """Raw bands (B, C, H, W) to probabilities (B, 4, H, W) of all members over all views."""
    return ensemble([tta(_one(member.module), _VIEWS[config.tta]) for member in members])


def module(members: Sequence[Member]) -> nn.Module:
    """The members as one module: raw bands to the logarithm of their mean probabilities (logits of the only one)."""
    modules = [deploy(member.config, member.module) for member in members]
    return modules[0] if len(modules) == 1 else Averaged(modules)


class Averaged(nn.Module):
    """Raw bands (B, C, H, W) to log mean probabilities (B, 4, H, W)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        total = torch.stack([member(images).float().softmax(dim=1) for member in self.members]).mean(dim=0)
        return total.clamp_min(1e-12).log()


def scenes(asked: Scenes) -> pd.DataFrame:
    """Write a map (0, 85, 170, 255) with the georeference of its input for each scene; the shares of each class.

    Files: folders with BandK folders, single tiles of them, or files that hold all bands. Raises DataError.
    """
    config: GlaciersConfig = asked.config
    found = find_scenes(asked.files)
    wrong = [scene.name for scene in found if scene.bands != asked.facts["bands"]]
    if wrong:
        raise DataError(
            f"{listed(wrong)}: not the {asked.facts['bands']} bands that the run was trained on",
            hint="give scenes with the same bands, in the same order",
        )
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with Progress("predicting scenes", len(found)) as progress:
        for number, scene in enumerate(found):
            rows.append(_predict(asked, config, scene))
            progress.update(number + 1)
    write_json(asked.out / "provenance.json", dict(asked.provenance))
    return pd.DataFrame(rows)


def sidecar(config: GlaciersConfig, facts: Mapping[str, Any], rung: str) -> dict[str, Any]:
    """What the bare weights need: what goes in, and what comes out."""
    return {
        "model": {"name": rung, "settings": config.model.model_dump(mode="json"), "members": list(config.members)},
        "input": {
            "layout": "NCHW float32, raw band values, NaN where nothing was observed",
            "shape": ["batch", facts["channels"], "height", "width"],
            "bands": list(facts["used_bands"]),
            "texture": {"band": config.bands.texture_band, **config.bands.glcm.model_dump()}
            if config.bands.texture
            else None,
            "steps": ["none: the normalisation by the training tiles' mean and standard deviation is inside the model"],
            "statistics": dict(facts["statistics"]),
        },
        "output": {
            "values": "logits or log-probabilities (N, 4, H, W); argmax gives the class",
            "classes": list(facts["classes"]),
            "mask_values": [0, 85, 170, 255],
        },
    }


def solution(config: GlaciersConfig, facts: Mapping[str, Any]) -> Solution:
    """The hackathon's submission: the same tiles and views as `predict`; textures by the same source."""
    overlap = round(config.tile * config.overlap)
    known: dict[str, Any] = {"tile": config.tile, "overlap": overlap, "views": _VIEWS[config.tta]}
    used = tuple(facts["used_bands"])
    if not config.bands.texture:
        return Solution(channels=used, **known)
    band = config.bands.texture_band
    extra = band not in used
    return Solution(
        channels=(*used, band) if extra else used,
        adapter=_PREPARED,
        adds=TEXTURES - extra,
        modules={"texture": inspect.getsource(texture)},
        options={
            "settings": config.bands.glcm.model_dump(), "used": len(used),
            "band": len(used) if extra else used.index(band), "value_range": tuple(config.bands.texture_range),
        },
        **known,
    )  # fmt: skip


_PREPARED = '''"""Adds contrast and energy of one band to the bands that the networks see."""

import numpy as np

from outlast.data.texture import Texture, glcm


def prepared(bands, settings, used, band, value_range):
    return np.concatenate([bands[:used], glcm(bands[band], Texture(**settings), value_range)])
'''


def _predict(asked: Scenes, config: GlaciersConfig, scene: Scene) -> dict[str, Any]:
    names, channels = asked.facts["band_names"], asked.facts["channels"]
    used = [names.index(name) for name in asked.facts["used_bands"]]

    def read(y: int, x: int, height: int, width: int) -> np.ndarray:
        if not config.bands.texture:
            return scene.read(y, x, height, width)[used]
        rim = config.bands.glcm.window // 2
        wider = scene.read(y - rim, x - rim, height + 2 * rim, width + 2 * rim)
        inner = wider[used, rim : rim + height, rim : rim + width]
        return np.concatenate([inner, textures(config, wider[names.index(config.bands.texture_band)])])

    tile = min(config.tile, -(-max(scene.height, scene.width) // 32) * 32)
    classes = np.full((scene.height, scene.width), 255, np.uint8)
    for rows in predict_scene(
        forward(config, asked.members), read, scene.height, scene.width, channels, classes=len(CLASSES), tile=tile,
        overlap=round(tile * config.overlap), batch=_BATCH, budget_bytes=asked.budget_bytes, device=asked.device,
        forward_bytes=_FORWARD_BYTES_PER_PIXEL * tile * tile,
    ):  # fmt: skip
        part = rows.probabilities.argmax(axis=0)
        classes[rows.y : rows.y + part.shape[0], rows.x : rows.x + part.shape[1]] = part
    target = asked.out / f"{Path(scene.name).stem}.tif"
    write_geotiff(target, encoded(classes), scene.georeference)
    counts = np.bincount(classes.ravel(), minlength=len(CLASSES))[: len(CLASSES)]
    shares = {f"share_{name}": count / classes.size for name, count in zip(CLASSES, counts, strict=True)}
    return {"scene": scene.name, "file": target.name, "height": scene.height, "width": scene.width, **shares}


def _one(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def probabilities(images: Tensor) -> Tensor:
        outputs = module(images)
        logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs
        return logits.float().softmax(dim=1)

    return probabilities
