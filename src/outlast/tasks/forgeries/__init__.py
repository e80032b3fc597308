"""Forgeries: images in, what was copied within them out: a mask, its instances, and whether there is any.

The plan: train the network on forgeries that are composed on the fly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlast.task import Delivery, Figure, Predict, Rows, Stage, Task, Train
from outlast.tasks.forgeries import learner as forgeries
from outlast.tasks.forgeries.config import PRESETS, ForgeriesConfig, StageConfig
from outlast.tasks.forgeries.synthetic import write

about = "copy-move forgeries in figures and photos: what was copied, as masks (self-correlation, classical matching)"
NETWORK, MAPS = "network", "maps"


def stages(config: ForgeriesConfig) -> Sequence[Stage]:
    """network -> its maps of val and test."""
    trained = Train(NETWORK, forgeries.LEARNER, _stage(config))
    maps = Predict(MAPS, (NETWORK,), Rows(values=("val", "test")), outputs=("map", "score"))
    return trained, maps


def deliver(config: ForgeriesConfig) -> Delivery:
    """The network."""
    return Delivery(models=(NETWORK,), outputs=("map", "score"), labelled=forgeries.labelled, sidecar=sidecar)


def sidecar(config: StageConfig, facts: Mapping[str, Any], rung: str) -> dict[str, Any]:
    """What the bare weights need: what goes in, and what comes out."""
    return {
        "model": {"name": rung, "settings": config.model.model_dump(mode="json")},
        "input": {
            "images": "NCHW, RGB, 0..255",
            "valid": "NHW bool: False on padding",
            "steps": [f"scale down to a longer side of at most {config.data.side}, never up"],
        },
        "output": {
            "logits": "(N, H, W); the sigmoid is the probability that a pixel was copied, or that something was copied"
            " from it",
            "score": "(N,); the sigmoid is the probability that there is such a pixel",
        },
    }


def _stage(config: ForgeriesConfig) -> StageConfig:
    names = (*StageConfig.model_fields,)
    return StageConfig.model_validate({name: getattr(config, name) for name in names})


TASK = Task(
    name="forgeries",
    about=about,
    config=ForgeriesConfig,
    presets=PRESETS,
    learners={"forgeries": forgeries.LEARNER},
    stages=stages,
    deliver=deliver,
    synthetic=write,
    figures=(Figure("curves", "network/metrics.jsonl", "Training of the network"),),
)
