"""The stage `ensemble`: boosted trees over the table and the image models' out-of-fold logits, fold by fold.

One unit of work is one (fold, seed): the model of fold k is fitted to the rows of all other folds, and predicts
those of fold k and all test rows; beside it one that sees no image, for the ablation. A finished unit outlives the
session.

Why the scores can be believed:
- a row's logits come from image models that never saw it, and its prediction from trees that never saw it;
- fold k says nothing about how many trees its model has. Stopping early on the rows that are scored afterwards would
  pick the count that happens to suit them; instead the training patients are cut into parts, each left out once, and
  the count with the best mean pAUC is taken (model.boosting.choose_rounds); then all training rows are fitted with it.
What remains: image models of other folds have learned from fold k, and the trees of fold k learn from their logits (as
in any stacking over the same folds); and an image model that was stopped early on its own fold flatters its logits,
alone as well as in the ensemble.

The trees start from a logistic regression on the logits, so that they only have to learn what the table adds: on a
small set they would need all their splits to redraw a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.base.files import read_json, verify_folder, write_folder, write_json, write_text
from outlast.base.log import Progress, say
from outlast.data.patients import patient_folds
from outlast.data.shards import read_shards, write_shard
from outlast.errors import CheckpointError
from outlast.model.boosting import Boosted, Rows, choose_rounds, fit
from outlast.task import Work
from outlast.tasks.lesions import boosted
from outlast.tasks.lesions.boosted import MODELS, fit_start, read_starts, unit_name
from outlast.tasks.lesions.config import EnsembleConfig
from outlast.tasks.lesions.ensemble_columns import Measures, image_columns, levels, measured, table_columns
from outlast.tasks.lesions.ensemble_scores import BOTH, IMAGES, RANKED, TABLE, compare, documents, tell
from outlast.tasks.lesions.extracted import of_test, out_of_fold
from outlast.tasks.lesions.layout import ID, PATIENT, TARGET
from outlast.tasks.lesions.scores import EXTRACT, TESTED
from outlast.tasks.lesions.submit import PREDICTIONS
from outlast.tasks.lesions.table import read_features

KINDS = (BOTH, TABLE)  # of models: with the logits, and without
SCORED = "out_of_fold.csv"
MAKES = ("metrics.json", "importance.json", SCORED, PREDICTIONS, MODELS)
_OWN, _TEST, _ABOUT = "own", "test", "unit.json"  # what a unit holds, beside its models

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Training or test rows: id, patient, target and fold, the columns of their table, and {fold: columns of images}.

    Training rows have one set of image columns, out of fold, whichever fold is asked for. logits: as the models gave
    them out of fold, and measures: what makes those of different folds comparable.
    """

    rows: pd.DataFrame
    table: pd.DataFrame
    images: Mapping[int, pd.DataFrame]
    logits: pd.DataFrame
    measures: Measures

    def columns(self, kind: str, fold: int) -> pd.DataFrame:
        """What a model of this kind sees."""
        return pd.concat([self.table, self.images[fold]], axis=1) if kind == BOTH else self.table


def build(work: Work) -> Mapping[str, Any]:
    """Fit every unit that is not there yet, then put them together and score them."""
    config = work.config
    train, test = read(work.inputs)
    units = [(fold, seed) for fold in sorted(test.images) for seed in range(config.ensemble.seeds)]
    with Progress("boosting", len(units)) as progress:
        for number, (fold, seed) in enumerate(units, start=1):
            folder = _unit(work.kept, fold, seed)
            if not _is_whole(folder):
                unit = _Unit(train, test, config, fold, seed)
                write_folder(folder, unit.write, {})
                work.pause()
            progress.update(number)
    return gather(train, test, [_unit(work.kept, fold, seed) for fold, seed in units], work)


def read(inputs: Mapping[str, Path]) -> tuple[Part, Part]:
    """Training and test rows, from the stages `folds`, extract-<backbone> and test-<backbone>. Raises DataError."""
    features = read_features(inputs["folds"])
    columns = table_columns(features)
    rows = [features.rows[own].reset_index(drop=True) for own in (~features.test, features.test)]
    tables = [columns[own].reset_index(drop=True) for own in (~features.test, features.test)]
    known, tested = _logits(inputs, rows[0], rows[1][ID].tolist())
    measures = measured(known, rows[0]["fold"])
    seen = image_columns(measures.out_of_fold(known, rows[0]["fold"]), rows[0][PATIENT])
    images = {fold: image_columns(measures.of_model(fold, made), rows[1][PATIENT]) for fold, made in tested.items()}
    return (
        Part(rows[0], tables[0], dict.fromkeys(tested, seen), known, measures),
        Part(rows[1], tables[1], images, pd.DataFrame(), measures),
    )


def _logits(
    inputs: Mapping[str, Path], train: pd.DataFrame, test: list[str]
) -> tuple[pd.DataFrame, dict[int, pd.DataFrame]]:
    """A column per backbone, in the order of both tables: out-of-fold logits, and by fold those of the test rows."""
    own: dict[str, Any] = {}
    tested: dict[int, dict[str, Any]] = {int(fold): {} for fold in sorted(train["fold"].unique())}
    for stage, folder in inputs.items():
        if stage.startswith(EXTRACT):
            name = stage.removeprefix(EXTRACT)
            found = out_of_fold(folder, inputs["folds"]).set_index("id")["logit"]
            own[name] = found.loc[train[ID]].to_numpy(np.float64)
            of_tests = of_test(inputs[TESTED + name], test)
            for fold, made in tested.items():
                part = of_tests[of_tests["fold"] == fold].set_index("id")["logit"]
                made[name] = part.loc[test].to_numpy(np.float64)
    return pd.DataFrame(own), {fold: pd.DataFrame(found) for fold, found in tested.items()}


@dataclass(frozen=True)
class _Unit:
    """The models of one fold and seed."""

    train: Part
    test: Part
    config: EnsembleConfig
    fold: int
    seed: int

    def write(self, out: Path) -> None:
        """Fit both models; write them, what they predict, and how they came about."""
        others = np.flatnonzero(self.train.rows["fold"] != self.fold)
        own = np.flatnonzero(self.train.rows["fold"] == self.fold)
        labels = self.train.rows[TARGET].to_numpy(np.int64)
        settings, threads = self.config.ensemble, _threads(self.config)
        number = _number(self.config.train.seed, self.fold, self.seed)
        patients = self.train.rows.iloc[others]
        parts = patient_folds(patients, settings.inner_parts, number, patient=PATIENT, target=TARGET)
        predicted: dict[str, Float64] = {}
        tested: dict[str, Float64] = {}
        told: dict[str, Any] = {}
        starts: dict[str, boosted.Start] = {}
        for kind in KINDS:
            columns, test = self.train.columns(kind, self.fold), self.test.columns(kind, self.fold)
            rising = levels(columns)
            starts[kind] = fit_start(columns[rising].iloc[others], labels[others])
            start = starts[kind].of(columns)
            rows = Rows(columns.iloc[others], labels[others], start[others], rising)
            chosen = choose_rounds(rows, np.asarray(parts, dtype=np.int64), settings, number, threads)
            model = fit(rows, chosen.rounds, settings, number, threads)
            write_text(out / f"{kind}.txt", model.text)
            predicted[kind] = model.predict(columns.iloc[own], start[own])
            tested[kind] = model.predict(test, starts[kind].of(test))
            told[kind] = {
                "trees": chosen.rounds, "inner_pauc": chosen.pauc, "inner_pauc_of_start": chosen.pauc_of_start,
                "gain": model.gain(),
            }  # fmt: skip
        write_shard(out / _OWN, 0, self.train.rows[ID].iloc[own].tolist(), predicted)
        write_shard(out / _TEST, 0, self.test.rows[ID].tolist(), tested)
        about = {"fold": self.fold, "seed": self.seed, "threads": threads, "models": told}
        write_json(out / _ABOUT, {**about, "starts": {kind: asdict(one) for kind, one in starts.items()}})


def gather(train: Part, test: Part, units: list[Path], work: Work) -> Mapping[str, Any]:
    """Write models, predictions by id, scores and importance into work.out; returns what is recorded."""
    abouts = [read_json(unit / _ABOUT) for unit in units]
    sums = pd.DataFrame(0.0, index=pd.Index(train.rows[ID]), columns=list(KINDS))
    tested = []
    fitted = []
    for unit, about in zip(units, abouts, strict=True):
        models = {
            kind: Boosted(
                (unit / f"{kind}.txt").read_text(encoding="utf-8"), tuple(train.columns(kind, about["fold"]).columns)
            )
            for kind in KINDS
        }
        fitted.append(boosted.Unit(about["fold"], about["seed"], models, read_starts(about["starts"])))
        ids, own = read_shards(unit / _OWN)
        sums.loc[ids] += np.column_stack([own[kind] for kind in KINDS]) / work.config.ensemble.seeds
        ids, made = read_shards(unit / _TEST)
        row = {"id": ids, "fold": about["fold"], "seed": about["seed"], "probability": made[BOTH]}
        tested.append(pd.DataFrame(row))
    boosted.Kept(train.measures, fitted).write(work.out)
    write_text(work.out / PREDICTIONS, pd.concat(tested).to_csv(index=False, lineterminator="\n"))
    images = pd.DataFrame(1 / (1 + np.exp(-train.logits.to_numpy())), columns=train.logits.columns)
    ranked = images.groupby(train.rows["fold"]).rank(pct=True).mean(axis=1)
    together = pd.DataFrame(
        {IMAGES: images.mean(axis=1), RANKED: ranked, TABLE: sums[TABLE].to_numpy(), BOTH: sums[BOTH].to_numpy()}
    )
    rows = train.rows[[ID, PATIENT, "fold", TARGET]].astype({TARGET: np.int64})
    scored = pd.concat([rows, images, together], axis=1)
    write_text(work.out / SCORED, scored.to_csv(index=False, lineterminator="\n"))
    found = compare(scored, list(images.columns))
    metrics, importance = documents(found, scored, abouts, work.synthetic)
    write_json(work.out / "metrics.json", metrics)
    write_json(work.out / "importance.json", importance)
    tell(found, work.synthetic)
    return {**metrics["metrics"], "rows": len(scored), "test_rows": len(test.rows), "models": len(units) * len(KINDS)}


def _number(seed: int, fold: int, repeat: int) -> int:
    """A seed of its own for every model, as LightGBM takes it: 31 bits."""
    return int(np.random.SeedSequence([seed, fold, repeat]).generate_state(1)[0] >> 1)


def _threads(config: EnsembleConfig) -> int:
    import torch

    return config.train.threads or torch.get_num_threads()  # as the session has set it, the same in every session


def _unit(kept: Path, fold: int, seed: int) -> Path:
    return kept / unit_name(fold, seed)


def _is_whole(folder: Path) -> bool:
    """Whether the unit is there as it was written."""
    if not folder.is_dir():
        return False
    try:
        verify_folder(folder)
    except CheckpointError as error:
        say(f"{error.message}; this unit is done again")
        return False
    return True
