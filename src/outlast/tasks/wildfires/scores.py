"""Teacher, student, and the student without a teacher, scored once on the test split from stored predictions.

Promises: thresholds are tuned on the validation split alone; intervals are of whole scenes drawn anew, the same for all
models, or of pairs where the test split has one scene, which is said; a combination of labels that does not occur is
named. Writes metrics.json (of the student, for the report), models.json (all models), overview.json (what each is worth
and costs) and models.csv (the table).
What depends on the machine (latency) stands under names that end in "seconds", which comparisons of runs leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from outlast.base.files import read_json, write_json, write_text
from outlast.base.log import say
from outlast.data.shards import read_shards
from outlast.errors import DataError
from outlast.model.bootstrap import Draws, draw_groups, drawn_scores, interval
from outlast.model.distillation_settings import DualSettings, student_rung
from outlast.model.dual import DualBranch
from outlast.model.latency import latencies
from outlast.model.lightweight import student
from outlast.model.multilabel_metrics import multilabel, tuned_thresholds
from outlast.task import Work
from outlast.tasks.wildfires.config import WildfiresConfig
from outlast.tasks.wildfires.labels import CLASSES, COMBINATIONS

STUDENT, ALONE, TEACHER = "student", "student-alone", "teacher"
JUDGED = "judge-"  # what the stage that predicts with a model is called
_OF_LABEL = ("f1", "precision", "recall", "auc", "average_precision", "ece", "threshold")
_OVERVIEW = ("macro_f1", "macro_auc", "exact_match", "ece")
_LATENCY_SECONDS = 10.0  # for all models together, once each was called often enough
_OVER_LABELS = ("macro_f1", "macro_auc", "ece", "exact_match", "hamming", "loss")


@dataclass(frozen=True)
class _Judged:
    """A model's scores on the test split; drawn: each score in every draw of scenes. at_half: without tuning.

    latency: of one sample on a CPU with one thread.
    """

    metrics: Mapping[str, Any]
    at_half: Mapping[str, Any]
    drawn: Mapping[str, np.ndarray]
    parameters: int
    size_bytes: int
    latency: Mapping[str, float]

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        intervals = {name: interval(values) for name, values in self.drawn.items()}
        return {
            "metrics": self.metrics, "intervals": intervals, "at_one_half": _short(self.at_half),
            "parameters": self.parameters, "bytes": self.size_bytes,
            "latency_seconds": {"batch": 1, "threads": 1, "device": "cpu", **self.latency},
        }  # fmt: skip


def score(work: Work) -> Mapping[str, Any]:
    """Score every model that was judged, and write the table."""
    assert work.examples is not None
    names = [name for name in (TEACHER, STUDENT, ALONE) if JUDGED + name in work.inputs]
    table = work.examples.table.set_index("id")
    tested = table[table["split"] == "test"]
    scenes = tested["group"].nunique()
    draws = draw_groups(tested["group"].tolist() if scenes > 1 else tested.index.astype(str).tolist())
    unit = "scenes" if scenes > 1 else "pairs"
    modules = {name: _module(work, name) for name in names}
    times = _latencies(work, modules)
    judged = {name: _judge(work, name, table, draws, modules[name], times[name]) for name in names}
    own = judged[STUDENT].metrics
    about = {
        "split": "test", "images": len(tested), "scenes": scenes, "synthetic": work.synthetic,
        "intervals_by": f"{draws.groups} {unit}", "empty_combinations": own["empty_combinations"],
    }  # fmt: skip
    write_json(
        work.out / "metrics.json",
        {**about, "metrics": _for_report(own), "classes": list(COMBINATIONS), "confusion": own["combinations"]},
    )
    gains = {
        f"{STUDENT} - {other}": _gain(judged[STUDENT], judged[other]) for other in names if other != STUDENT
    }  # fmt: skip
    write_json(
        work.out / "models.json",
        {
            **about, "models": {name: one.values() for name, one in judged.items()}, "gains": gains,
            "metrics": {"per_class": _rows(judged)}, "classes": list(_rows(judged)),
        },
    )  # fmt: skip
    write_json(
        work.out / "overview.json",
        {**about, "metrics": {"per_class": {name: _overview(one) for name, one in judged.items()}},
         "classes": list(judged)},
    )  # fmt: skip
    frame = _table(judged)
    write_text(work.out / "models.csv", frame.to_csv(index=False, float_format="%.4f"))
    _tell(judged, gains, about)
    return {
        **about, **_short(own), "student_parameters": judged[STUDENT].parameters,
        **{f"{name}_{key}": one.metrics[key] for name, one in judged.items() for key in ("macro_f1", "macro_auc")},
    }  # fmt: skip


def _judge(
    work: Work, name: str, table: pd.DataFrame, draws: Draws, module: nn.Module, latency: Mapping[str, float]
) -> _Judged:
    ids, arrays = read_shards(work.inputs[JUDGED + name])
    rows = table.loc[ids]
    splits = rows["split"].to_numpy()
    if set(splits) - {"val", "test"}:
        raise DataError(
            f"predictions of the stage {JUDGED + name!r} are not of the val and test splits alone",
            hint="start a new run with --out",
        )
    place = pd.Series(np.arange(len(ids)), index=ids)
    tested = table.index[table["split"] == "test"]
    labels, logits = rows[list(CLASSES)].to_numpy(np.float32), arrays["logits"]
    thresholds = tuned_thresholds(logits[splits == "val"], labels[splits == "val"])
    chosen = place.loc[tested].to_numpy()  # in the order of the draws
    logits, labels = logits[chosen], labels[chosen]
    return _Judged(
        multilabel(logits, labels, CLASSES, thresholds), multilabel(logits, labels, CLASSES),
        drawn_scores(logits, labels, CLASSES, thresholds, draws),
        sum(parameter.numel() for parameter in module.parameters()),
        sum(value.numel() * value.element_size() for value in module.state_dict().values()), latency,
    )  # fmt: skip


def _module(work: Work, name: str) -> nn.Module:
    """What is delivered of a stage, as it was built: without its weights, and without what only the training needed."""
    assert isinstance(work.config, WildfiresConfig)
    rung = str(read_json(work.inputs[name] / "stage.json")["result"]["rung"])
    side, settings = work.config.data.image_size, work.config.student
    if name == TEACHER:
        return DualBranch(DualSettings(name=rung), len(CLASSES), (side, side)).eval()
    unweighted = settings.model_copy(update={"pretrained": False, "weights": None})
    return student(student_rung(unweighted, rung), len(CLASSES), (side, side)).eval()


def _latencies(work: Work, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
    """How long each takes for one sample."""
    assert isinstance(work.config, WildfiresConfig)
    side = work.config.data.image_size
    pictures = torch.zeros(1, 3, side, side), torch.zeros(1, 1, side, side)

    def called(name: str) -> Callable[[], Any]:
        given = pictures if name == TEACHER else pictures[:1]
        return lambda: modules[name](*given)

    with torch.inference_mode():
        return latencies({name: partial(called, name) for name in modules}, 1, seconds=_LATENCY_SECONDS)


def _gain(one: _Judged, other: _Judged) -> dict[str, Any]:
    """How much better one model is, with the interval of the difference over the same draws."""
    return {
        name: {"difference": one.metrics[name] - other.metrics[name],
               "interval": interval(one.drawn[name] - other.drawn[name])}
        for name in ("macro_f1", "macro_auc", "exact_match")
    }  # fmt: skip


def _short(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a line holds."""
    found = {name: metrics[name] for name in _OVER_LABELS}
    return found | {f"{label}_{name}": metrics[label][name] for label in CLASSES for name in ("f1", "auc")}


def _for_report(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Means as they are, and both labels as rows. All F1 are of tuned thresholds: the score that trainings go by."""
    scalars = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    scalars["tuned_macro_f1"] = metrics["macro_f1"]
    rows = {label: {**metrics[label], "images": metrics[label]["support"]} for label in CLASSES}
    return {**scalars, "per_class": rows}


def _overview(one: _Judged) -> dict[str, Any]:
    """A model in a row: what it is worth on the test split, and what it costs."""
    return {
        **{name: one.metrics[name] for name in _OVERVIEW},
        "parameters": one.parameters, "megabytes": one.size_bytes / 1e6,
        "milliseconds": one.latency["median_seconds"] * 1e3,
    }  # fmt: skip


def _rows(judged: Mapping[str, _Judged]) -> dict[str, dict[str, Any]]:
    """Every label of every model as a row of a class table."""
    return {
        f"{label}, {name}": {key: one.metrics[label][key] for key in _OF_LABEL}
        for label in CLASSES
        for name, one in judged.items()
    }


def _table(judged: Mapping[str, _Judged]) -> pd.DataFrame:
    """A row per model: every score, and the interval of those that have one."""
    rows = []
    for name, one in judged.items():
        row: dict[str, Any] = {
            "model": name, "parameters": one.parameters, "megabytes": one.size_bytes / 1e6,
            "milliseconds": one.latency["median_seconds"] * 1e3,
        }  # fmt: skip
        scores = {key: one.metrics[key] for key in _OVER_LABELS}
        scores |= {f"{label} {key}": one.metrics[label][key] for label in CLASSES for key in _OF_LABEL}
        for key, value in scores.items():
            row[key] = value
            if key in one.drawn:
                row[f"{key} low"], row[f"{key} high"] = interval(one.drawn[key]) or (None, None)
        rows.append(row)
    return pd.DataFrame(rows)


def _tell(judged: Mapping[str, _Judged], gains: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    mark = " (SYNTHETIC data)" if about["synthetic"] else ""
    say(f"test split{mark}: {about['images']} pairs, {about['scenes']} scenes; intervals by {about['intervals_by']}")
    for name, one in judged.items():
        told = [
            f"{key} {one.metrics[key]:.3f} {_bounds(interval(one.drawn[key]))}" for key in ("macro_f1", "macro_auc")
        ]
        told += [f"{one.parameters:,} parameters, {one.latency['median_seconds'] * 1e3:.1f} ms"]
        told += [f"{label} F1 {one.metrics[label]['f1']:.3f}, AUC {one.metrics[label]['auc']:.3f}" for label in CLASSES]
        say(f"  {name:<14}{'; '.join(told)}")
    for name, gain in gains.items():
        say(f"  {name}: macro_f1 {gain['macro_f1']['difference']:+.3f} {_bounds(gain['macro_f1']['interval'])}")


def _bounds(known: Sequence[float] | None) -> str:
    return f"[{known[0]:.3f}, {known[1]:.3f}]" if known is not None else "[no interval]"
