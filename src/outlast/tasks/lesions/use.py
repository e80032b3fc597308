"""How trained image models are used: over turned views, together, and as one module for export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from outlast.task import Member
from outlast.tasks.lesions.config import StageConfig
from outlast.tasks.lesions.network import Probability

Batch = dict[str, Tensor]
_TURNS = {"none": (0,), "flips": (0, 2), "dihedral": (0, 1, 2, 3)}  # quarter turns; but for "none" mirrored too


def turned(images_BCHW: Tensor, kind: str) -> list[Tensor]:
    """The images (S x S), and what they are mirrored and turned: 1, 4 or 8 views."""
    turns = [torch.rot90(images_BCHW, number, (2, 3)) for number in _TURNS[kind]]
    return turns if kind == "none" else [*turns, *(image.flip(3) for image in turns)]


def together(config: StageConfig, members: Sequence[Member], batch: Batch) -> Batch:
    """{"logits": (B,)}: of each model the mean logit over the views, of several models that of their mean probability.

    Of one model alone also {"features": (B, F)}, the mean over the views; those of several are not comparable.
    """
    views = turned(batch["image"], config.views)
    logits, features = [], []
    for member in members:
        outputs = [member.module(view) for view in views]
        logits.append(torch.stack([one["logits"].float() for one in outputs]).mean(dim=0))
        features.append(torch.stack([one["features"].float() for one in outputs]).mean(dim=0))
    if len(members) == 1:
        return {"logits": logits[0], "features": features[0]}
    probabilities = torch.stack(logits).double().sigmoid().mean(dim=0)
    return {"logits": torch.logit(probabilities)}


def module(members: Sequence[Member]) -> nn.Module:
    """Images in [0, 1] to the mean probability of all models."""
    return Probability([member.module for member in members])


def predicted(
    config: StageConfig, facts: Mapping[str, Any], ids: Sequence[str], outputs: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """file, and the probability that the lesion is malignant, by the image alone."""
    return pd.DataFrame({"file": list(ids), "probability": 1 / (1 + np.exp(-outputs["logits"].astype(np.float64)))})


def sidecar(config: StageConfig, facts: Mapping[str, Any], rung: str) -> dict[str, Any]:
    """What the bare weights need: how an image becomes their input, and what their output means."""
    size, side = config.data.image_size, config.data.decoded_side
    return {
        "model": {"name": rung, "settings": {"dropout": config.model.dropout}},
        "input": {
            "layout": "NCHW float32, RGB, 0 to 1",
            "shape": ["batch", 3, size, size],
            "steps": [
                f"resize to {side}x{side}, then to {size}x{size} (bilinear with antialias)",
                "divide by 255; the normalisation is inside the model",
            ],
        },
        "output": {"values": "probabilities (batch,) of the class malignant", "classes": list(facts["classes"])},
    }
