"""Forgeries: images in; what was copied within them out, as masks and instances, and whether anything was.

The plan: train the network on forgeries that are composed on the fly, run it and the classical baseline over val and
test, choose on val how each of them (and both together) is decided, score all three on test. What is delivered is the
model that `decision.model` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from outlast.task import Call, Delivery, Figure, Predict, Rows, Stage, Task, Train
from outlast.tasks.forgeries import learner as forgeries
from outlast.tasks.forgeries import unseen, use
from outlast.tasks.forgeries.config import PRESETS, ForgeriesConfig, MatchConfig, StageConfig
from outlast.tasks.forgeries.public import DATA_SETS
from outlast.tasks.forgeries.scores import (
    CALIBRATE,
    CALIBRATION,
    CLASSICAL,
    MAPS,
    NETWORK,
    SCORES,
    calibrate_models,
    match,
    score,
)
from outlast.tasks.forgeries.synthetic import write

about = "copy-move forgeries in figures and photos: what was copied, as masks (self-correlation, classical matching)"
_Part = TypeVar("_Part", StageConfig, MatchConfig)
_OUTPUTS = ("map", "score", "flow")


def stages(config: ForgeriesConfig) -> Sequence[Stage]:
    """classical; network -> maps; then calibrate (on val) -> scores (on test)."""
    judged = Rows(values=("val", "test"))
    needs = (MAPS, CLASSICAL)
    return (
        # First: it needs no GPU and no training, and says at once if what it needs is not installed.
        Call(
            CLASSICAL, match, _part(config, MatchConfig), learner=forgeries.LEARNER,
            makes=("classical.npz", "scores.json"),
        ),
        Train(NETWORK, forgeries.LEARNER, _part(config, StageConfig)),
        Predict(MAPS, (NETWORK,), judged, outputs=_OUTPUTS, together=use.members_together),
        Call(CALIBRATE, calibrate_models, config, learner=forgeries.LEARNER, needs=needs, makes=(CALIBRATION,)),
        Call(
            SCORES, score, config, learner=forgeries.LEARNER, needs=(*needs, CALIBRATE),
            makes=("metrics.json", "models.json", "examples.png"),
        ),
    )  # fmt: skip


def deliver(config: ForgeriesConfig) -> Delivery:
    """The network, and what decides with it."""
    return Delivery(
        models=(NETWORK,),
        outputs=_OUTPUTS,
        labelled=forgeries.labelled,
        sidecar=use.sidecar,
        together=use.members_together,
        scenes=use.scenes,
        judge=use.judge,
        submit=unseen.submit,
    )


def _part(config: ForgeriesConfig, kind: type[_Part]) -> _Part:
    """What a stage depends on: settings that it does not use must not make it be done again."""
    return kind.model_validate({name: getattr(config, name) for name in kind.model_fields})


TASK = Task(
    name="forgeries",
    about=about,
    config=ForgeriesConfig,
    presets=PRESETS,
    learners={"forgeries": forgeries.LEARNER},
    stages=stages,
    deliver=deliver,
    synthetic=write,
    figures=(
        Figure("class_table", "scores/models.json", "Network, classical baseline, and both"),
        Figure(
            "image", "scores/examples.png", "What was found in test images",
            "Left: what is marked, in red; the outline of the truth, in blue; arrows from marked places to what they "
            "match. Right: how many neighbours agree on the offset of a match. Numbers: the score of the image.",
        ),
        Figure("curves", "network/metrics.jsonl", "Training of the network"),
    ),
    quick=("train.epochs=2", "train.minimum_steps=0", "data.samples=64"),
    data_sets=DATA_SETS,
)  # fmt: skip
