"""Glacier mapping: bands of satellite tiles in, maps of ice, debris-covered ice and lakes out.

The plan: pretrain on HKH patches (if asked for), finetune each member of the ensemble on each fold, predict what each
fold was not trained on, score it. What is delivered is the average of all members and folds, over turned views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from outlast.config.schema import Training
from outlast.model.segmenter_settings import SegmenterSettings
from outlast.task import DATA, Call, Delivery, Predict, Rows, Stage, Task, Train
from outlast.tasks.glaciers import learner as glaciers
from outlast.tasks.glaciers import use
from outlast.tasks.glaciers.config import PRESETS, GlaciersConfig, StageConfig
from outlast.tasks.glaciers.learner import FINETUNE, PRETRAIN
from outlast.tasks.glaciers.public import DATA_SETS
from outlast.tasks.glaciers.scores import score
from outlast.tasks.glaciers.synthetic import write

about = "ice, debris and lakes from satellite bands: tiles in, maps out (boundary-aware U-Nets, GlaViTU hybrid, folds)"


_APART = 100_003  # between the seeds of repeated trainings: those of neighbouring runs stay different


class Member(NamedTuple):
    """A model of the ensemble: which one ('' is the only one), which of its repeated trainings, and how it is made."""

    kind: str
    repeat: str
    model: SegmenterSettings
    train: Training


def stages(config: GlaciersConfig) -> Sequence[Stage]:
    """pretrain (each kind) -> finetune (members x folds) -> judge (by models that did not see it) -> scores."""
    plan: list[Stage] = []
    members = list(_members(config))
    before: dict[str, tuple[str, ...]] = dict.fromkeys((member.kind for member in members), ())
    if config.pretrain.enabled:
        for member in members:
            if not before[member.kind]:
                changed = {"train": config.pretrain.train, "loss": config.pretrain.loss, "model": member.model}
                plan.append(Train(_named(PRETRAIN, member.kind), glaciers.PRETRAINER, _stage(config, None, **changed)))
                before[member.kind] = (plan[-1].name,)
    judges = []
    for fold in range(config.data.folds) if config.data.folds > 1 else (None,):
        held = Rows(values=("val",)) if fold is None else Rows("fold", (fold,))
        rest = Rows(values=("train",)) if fold is None else _others(fold, config.data.folds)
        number = "" if fold is None else f"fold{fold}"
        names = []
        for member in members:
            name = _named(FINETUNE, member.kind, member.repeat, number)
            stage = _stage(config, fold, model=member.model, train=member.train)
            plan.append(Train(name, glaciers.SEGMENTER, stage, rest, held, before[member.kind]))
            names.append(name)
        judges.append(_named("judge", number))
        plan.append(Predict(judges[-1], tuple(names), held, outputs=("classes",), together=use.together))
    plan.append(Predict("test", _finetuned(plan), Rows(values=("test",)), outputs=("classes",), together=use.together))
    makes = ("metrics.json", "examples.npz", "boundary.json")
    plan.append(Call("scores", score, config, learner=glaciers.SEGMENTER, needs=(*judges, "test"), makes=makes))
    return plan


def deliver(config: GlaciersConfig) -> Delivery:
    """Every member of every fold, averaged over turned views."""
    return Delivery(
        models=_finetuned(stages(config)),
        outputs=("classes",),
        labelled=glaciers.labelled,
        sidecar=use.sidecar,
        together=use.together,
        module=use.module,
        scenes=use.scenes,
        solution=use.solution,
    )


def _members(config: GlaciersConfig) -> Iterator[Member]:
    """Every member of the ensemble."""
    for kind in config.members or ("",):
        model = config.model.model_dump()
        if kind:
            model |= {"architecture": "glavitu"} if kind == "glavitu" else {"architecture": "unet", "encoder": kind}
        for number in range(config.repeats):
            seed = (config.train.seed + _APART * number) % 2**32
            yield Member(
                kind,
                f"again{number}" if number else "",
                type(config.model).model_validate(model),
                config.train.model_copy(update={"seed": seed}),
            )


def _stage(config: GlaciersConfig, fold: int | None, **changed: Any) -> StageConfig:
    """A training stage's configuration: no model part that no loss trains, no loss of a part that the model has not."""
    values = {**config.model_dump(), **{name: part.model_dump() for name, part in changed.items()}, "fold": fold}
    if values["model"]["architecture"] == "unet":
        values["loss"]["auxiliary"] = 0.0
    if values["loss"]["boundary_head"] == 0:
        values["model"]["boundary_head"] = False
    return StageConfig.model_validate(values)


def _others(fold: int, folds: int) -> Rows:
    return Rows("fold", tuple(other for other in range(folds) if other != fold))


def _finetuned(plan: Sequence[Stage]) -> tuple[str, ...]:
    return tuple(stage.name for stage in plan if isinstance(stage, Train) and stage.name.startswith(FINETUNE))


def _named(*parts: str) -> str:
    return "-".join(part for part in parts if part)


TASK = Task(
    name="glaciers",
    about=about,
    config=GlaciersConfig,
    presets=PRESETS,
    learners={each.name: each for each in (glaciers.SEGMENTER, glaciers.PRETRAINER)},
    stages=stages,
    deliver=deliver,
    synthetic=write,
    data=(DATA, PRETRAIN, FINETUNE),
    quick=(
        "train.epochs=2", "train.minimum_steps=0", "data.folds=1", "repeats=1", "members=[]", "sampling.samples=64",
        "pretrain.train.epochs=1", "pretrain.fraction=0.02",
    ),
    data_sets=DATA_SETS,
)  # fmt: skip
