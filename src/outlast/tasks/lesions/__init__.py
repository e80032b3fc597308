"""Skin lesions: two image models over patient-disjoint folds, and a boosted ensemble with the patient's table.

The plan: decide the folds, train each backbone on each fold, let every model predict the fold that it never saw, score
that; let every model predict all test rows, combine it with the table, write the submission. Once it is finished,
another test set can take the place of its own (unseen.py). A quick test ends with the scores of fold 0: it has no
out-of-fold predictions to train an ensemble on, and no submission to mistake for one.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlast.task import Call, Delivery, Figure, Predict, Rows, Stage, Task, Train
from outlast.tasks.lesions import ensemble, folds, learner, scores, submit, unseen, use
from outlast.tasks.lesions.config import PRESETS, LesionsConfig
from outlast.tasks.lesions.extracted import training_stage
from outlast.tasks.lesions.public import DATA_SETS
from outlast.tasks.lesions.scores import EXTRACT, TESTED
from outlast.tasks.lesions.synthetic import write
from outlast.tasks.lesions.table import TEST_FOLD

about = "skin lesions, benign or malignant: two image models over folds, boosted with the patient's table"


def stages(config: LesionsConfig) -> Sequence[Stage]:
    """folds -> train (backbones x folds) -> extract, test (a backbone each) -> scores, ensemble -> submit."""
    of_data = config.data_stage()
    trains: list[Train] = []
    extracts: list[Predict] = []
    tests: list[Predict] = []
    for backbone in config.backbones:
        own = config.train_stage(backbone)
        rows: dict[str, Rows] = {}
        for fold in config.trained_folds:
            others = tuple(other for other in range(config.data.folds) if other != fold)
            name = training_stage(backbone.short, fold)
            rows[name] = Rows("fold", (fold,))
            trains.append(
                Train(name, learner.LEARNER, own, Rows("fold", others), Rows("watched", (fold,)), needs=("folds",))
            )
        outputs = ("logits", "features")
        extracts.append(
            Predict(EXTRACT + backbone.short, tuple(rows), rows, outputs, needs=("folds",), together=use.together)
        )
        # Apart from the rows of the folds: the same batches as where another test set takes this one's place.
        tested = dict.fromkeys(rows, Rows("fold", (TEST_FOLD,)))
        tests.append(
            Predict(TESTED + backbone.short, tuple(rows), tested, outputs, needs=("folds",), together=use.together)
        )
    predicted = ("folds", *(stage.name for stage in extracts))
    judged = (*predicted, *(stage.name for stage in trains))
    boosted = (*predicted, *(stage.name for stage in tests))
    together: list[Stage] = [
        *tests,
        Call(unseen.ENSEMBLE, ensemble.build, config.ensemble_stage(), learner.LEARNER, boosted, ensemble.MAKES),
        Call("submit", submit.build, config, learner.LEARNER, needs=(unseen.ENSEMBLE,), makes=submit.MAKES),
    ]
    return [
        Call("folds", folds.build, of_data, learner.LEARNER, makes=folds.MAKES),
        *trains,
        *extracts,
        Call("scores", scores.score, of_data, learner.LEARNER, needs=judged, makes=scores.MAKES),
        *([] if config.quick.enabled else together),
    ]


def deliver(config: LesionsConfig) -> Delivery:
    """The image models of all folds together; the ensemble needs a table, which an image alone does not have."""
    return Delivery(
        models=tuple(stage.name for stage in stages(config) if isinstance(stage, Train)),
        outputs=("logits",),
        labelled=learner.labelled,
        unlabelled=learner.unlabelled,
        table=use.predicted,
        sidecar=use.sidecar,
        together=use.together,
        module=use.module,
        submit=unseen.submit,
        embedded=tuple(training_stage(backbone.short, 0) for backbone in config.backbones),
    )


TASK = Task(
    name="lesions",
    about=about,
    config=LesionsConfig,
    presets=PRESETS,
    learners={learner.LEARNER.name: learner.LEARNER},
    stages=stages,
    deliver=deliver,
    synthetic=write,
    figures=(
        Figure("class_table", "scores/metrics.json", "Image models, fold by fold"),
        Figure("class_table", "ensemble/metrics.json", "The ensemble and its parts, out of fold"),
        Figure(
            "importance",
            "ensemble/importance.json",
            "What the ensemble's trees go by",
            "Beyond the image logits that the trees start from.",
        ),
    ),
    quick=("quick.enabled=true", "quick.epochs=2"),
    data_sets=DATA_SETS,
)
