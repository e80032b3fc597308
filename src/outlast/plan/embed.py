"""`outlast embed`: what a model has made of the data, as points in two dimensions, several models side by side.

Promises: which samples are shown is a function of the seed and their places in the table; the same run, seed and
settings give the same coordinates. A model without "features" is shown by its logits, and the figure says so. Of a
folder of runs (the cells of a sweep) every run becomes a figure; one that fails is told, and the others are made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from outlast.base.files import check_target, sha256, write_bytes, write_json, write_text
from outlast.base.log import say, warn
from outlast.data.randomness import uniforms
from outlast.data.table import Examples
from outlast.errors import OutlastError, TaskError, UsageError, listed
from outlast.loop.evaluate import collect, output_shapes
from outlast.loop.samples import open_loader
from outlast.model import projection
from outlast.model.projection import Projection
from outlast.plan import record
from outlast.plan.deliver import Delivered
from outlast.plan.exported import open_exported, read_sidecar
from outlast.plan.members import Opened
from outlast.plan.sources import SYNTHETIC
from outlast.report import embedding as drawing
from outlast.report.embedding import Embedding, Panel
from outlast.task import Groups

FEATURES = ("features", "logits")  # outputs of predict that stand for a sample, the best first
FOLDER = "embeddings"


@dataclass(frozen=True)
class Wish:
    """What is shown of each run.

    stages: training stages side by side; none: what the task says, else what it delivers. weights: exported files
    instead of the run's own, one per stage. data: labelled examples; none: the run's own. split: of the run's frozen
    split, only this part. samples: at most so many. to: the folder to write into; none: "embeddings" in the run.
    """

    projection: Projection
    stages: tuple[str, ...] = ()
    weights: tuple[Path, ...] = ()
    data: Path | None = None
    split: str | None = None
    samples: int = 2000
    to: Path | None = None


@dataclass(frozen=True)
class Shown:
    """One stage's samples before they are projected: which output stands for them, and their groups."""

    name: str
    kind: str
    features: np.ndarray
    ids: tuple[str, ...]
    groups: Groups
    root: Path
    notes: tuple[str, ...]
    about: Mapping[str, Any]


def embed(folder: Path, wish: Wish) -> dict[str, Any]:
    """Embed a run, or every run below a folder. Returns {"method", "embeddings", "failed"}, a dict per run each."""
    projection.check_installed(wish.projection)
    drawing.check_installed()
    if wish.samples < projection.FEWEST:
        raise UsageError(f"--samples {wish.samples} is too few", hint=f"give {projection.FEWEST} or more")
    method = wish.projection.method
    runs = runs_below(folder)
    if runs == [folder]:
        return {"method": method, "embeddings": [embed_run(folder, wish)], "failed": []}
    made, failed = [], []
    for run in runs:
        to = wish.to / run.relative_to(folder) if wish.to else None
        try:
            made.append(embed_run(run, replace(wish, to=to), str(run.relative_to(folder))))
        except OutlastError as error:
            warn(f"{run}: {error}")
            failed.append({"run": str(run), "error": error.message, "hint": error.hint})
    return {"method": method, "embeddings": made, "failed": failed}


def runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else every run below it. Raises RunError if there is none."""
    if record.is_run(folder):
        return [folder]
    found = []
    for place, names, _ in os.walk(folder):
        if record.is_run(Path(place)):
            found.append(Path(place))
            names.clear()  # what lies in a run is no run of its own
    if not found:
        record.load(folder)
    return sorted(found)


def embed_run(run: Path, wish: Wish, title: str | None = None) -> dict[str, Any]:
    """Write METHOD.png, .html, .csv and .json of one run; title: what the figure calls it, its folder's name if None.

    Returns {"run", "png", "html", "csv", "json", "images", "stages", "notes", "synthetic"}. Raises UsageError for
    settings that do not fit so many samples, and what opening the run raises.
    """
    folder = wish.to if wish.to is not None else run / FOLDER
    stem = folder / wish.projection.method
    for suffix in (".png", ".html", ".csv", ".json"):
        check_target(stem.with_suffix(suffix))
    opened = _open(run, wish)
    shown = [_shown(delivered, models, file, wish) for delivered, models, file in opened]
    for note in dict.fromkeys(note for each in shown for note in each.notes):
        warn(note)
    if wish.data is None and wish.split is None:
        roots = dict.fromkeys(str(each.root) for each in shown)
        warn(f"showing samples of {listed(list(roots))}, which the run was trained on; --split shows one part of them")
    points, settings, notes = [], {}, []
    for each in shown:
        say(f"{wish.projection.title} of {len(each.ids)} samples: {each.name} ({each.kind}) …")
        found = projection.project(each.features, wish.projection)
        points.append(found.points)
        settings = {**found.settings}
        notes += [f"{each.name}: {note}" for note in found.notes]
        if each.kind != FEATURES[0]:
            notes.append(f"{each.name}: the model gives no features, so these are its {each.kind}")
    for note in notes:
        warn(note)
    known = record.load(run)
    made_up = bool(known.get("synthetic")) or any((each.root / SYNTHETIC).is_file() for each in shown)
    about = {
        "run": str(run), "task": known["task"], "settings": settings, "samples_at_most": wish.samples,
        "split": wish.split, "stages": {each.name: each.about for each in shown}, "notes": notes,
        "synthetic": made_up, "config_hash": known.get("config_hash"), "versions": known.get("versions"),
    }  # fmt: skip
    drawn = _embedding(title or run.name, wish, shown, points, settings, about)
    write_bytes(stem.with_suffix(".png"), drawing.picture(drawn))
    write_text(stem.with_suffix(".html"), drawing.page(drawn))
    write_text(stem.with_suffix(".csv"), _table(shown, points).to_csv(index=False, float_format="%.6g"))
    write_json(stem.with_suffix(".json"), about)
    files = {suffix: str(stem.with_suffix(f".{suffix}")) for suffix in ("png", "html", "csv", "json")}
    stages = {each.name: each.kind for each in shown}
    images = len(shown[0].ids)
    return {"run": str(run), **files, "images": images, "stages": stages, "notes": notes, "synthetic": made_up}


def chosen(count: int, most: int, seed: int) -> np.ndarray:
    """Places of at most `most` of `count` samples, in order: those with the smallest random numbers under the seed."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.argsort(uniforms(seed, 0, np.arange(count), 1)[:, 0], kind="stable")[:most])


def _open(run: Path, wish: Wish) -> list[tuple[Delivered, Opened, Path | None]]:
    """Every model that is shown: a run opened for it, the model, and the file of its weights if it is not the run's."""
    names: Sequence[str | None] = wish.stages or Delivered(run).delivery.embedded or (None,)
    if wish.weights and len(wish.weights) != len(names):
        raise UsageError(
            f"{len(wish.weights)} files of weights for {len(names)} models",
            hint="give --weights once for each --stage, in the same order",
        )
    found: list[tuple[Delivered, Opened, Path | None]] = []
    for place, name in enumerate(names):
        delivered = Delivered(run, name)
        if not wish.weights:
            found.append((delivered, delivered.opened, None))
            continue
        if len(delivered.stages) > 1:
            raise UsageError(
                f"the run delivers {len(delivered.stages)} models together; exported weights are of one",
                hint=f"say which with --stage: {', '.join(stage.name for stage in delivered.stages)}",
            )
        stage, device = delivered.stages[0], delivered.compute.device
        file, task = wish.weights[place], delivered.task.name
        found.append((delivered, open_exported(run, task, stage, delivered.facts, file, device), file))
    return found


def _shown(delivered: Delivered, models: Opened, file: Path | None, wish: Wish) -> Shown:
    root = wish.data if wish.data is not None else Path(delivered.record["data"][delivered.learner.name]["path"])
    examples = delivered.delivery.labelled(delivered.config, root, delivered.facts)
    if wish.split is not None:
        examples = _of_split(examples, delivered, wish.split)
    rows = chosen(len(examples.table), wish.samples, wish.projection.seed)
    examples = replace(examples, table=examples.table.iloc[rows].reset_index(drop=True))
    kind, features = _features(delivered, models, examples)
    name = "+".join(stage.name for stage in delivered.stages)
    source = read_sidecar(file) if file is not None else delivered.provenance()
    about = {
        "features": kind, "size": features.shape[1], "images": len(features), "data": str(root),
        "fingerprint": examples.fingerprint, "weights": {"file": str(file), "sha256": sha256(file)} if file else None,
        **{key: source.get(key) for key in ("rung", "step", "score")},
    }  # fmt: skip
    ids = tuple(str(one) for one in examples.table["id"])
    return Shown(name, kind, features, ids, _groups(delivered, examples), root, examples.notes, about)


def _of_split(examples: Examples, delivered: Delivered, split: str) -> Examples:
    """The examples of one part of the run's frozen split, known by their ids."""
    run = delivered.run
    files = (run / "split.csv", run / f"split-{delivered.learner.name}.csv")
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        raise UsageError(f"{run} has no split file", hint="leave --split out")
    frozen = pd.read_csv(file, dtype=str, keep_default_na=False)
    parts = sorted(set(frozen["split"])) if "split" in frozen.columns else []
    if split not in parts:
        raise UsageError(f"{file} has no split {split!r}", hint=f"it has: {listed(parts) or 'none'}")
    wanted = set(frozen.loc[frozen["split"] == split, "id"])
    inside = examples.table["id"].astype(str).isin(wanted)
    if inside.sum() < len(wanted):
        raise UsageError(
            f"{examples.root} holds {int(inside.sum())} of the {len(wanted)} examples of the split {split!r}",
            hint="give the data that the run was trained on",
        )
    return replace(examples, table=examples.table[inside].reset_index(drop=True))


def _features(delivered: Delivered, models: Opened, examples: Examples) -> tuple[str, np.ndarray]:
    """(the output that stands for a sample, float32 (N, F)). Raises TaskError if the model has no such output."""
    learner, config, compute = models.learner, delivered.config, delivered.compute
    rows = np.arange(len(examples.table))
    with open_loader(learner, config, examples, delivered.machine.scratch, compute, delivered.machine.cores) as loader:
        given = output_shapes(learner, config, models.model, loader, 0, compute, models.portion)
        kind = next((name for name in FEATURES if len(given.get(name, ())) == 1), None)
        if kind is None:
            raise TaskError(
                f"the learner {learner.name!r} predicts nothing that stands for a sample: "
                + listed([f"{name} {tuple(shape)}" for name, shape in given.items()]),
                hint='let its predict return "features" (B, F)',
            )
        return kind, collect(learner, config, models.model, loader, rows, (kind,), compute, models.portion)[kind]


def _groups(delivered: Delivered, examples: Examples) -> Groups:
    """The groups that the task says; else the classes of the column "label"; else all samples as one."""
    if delivered.delivery.groups is not None:
        return delivered.delivery.groups(delivered.config, examples)
    classes, table = delivered.facts.get("classes"), examples.table
    if classes is None or "label" not in table.columns:
        return Groups(["all samples"] * len(table), drawing.marks(["all samples"]))
    return Groups([str(classes[number]) for number in table["label"]], drawing.marks([str(name) for name in classes]))


def _embedding(
    name: str,
    wish: Wish,
    shown: Sequence[Shown],
    points: Sequence[np.ndarray],
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Embedding:
    panels = [
        Panel(each.name, points_of, each.ids, tuple(each.groups.names))
        for each, points_of in zip(shown, points, strict=True)
    ]
    sources = ", ".join(f"{each.kind} of {each.name}" for each in shown)
    part = f" of the split {wish.split!r}" if wish.split else ""
    said = ", ".join(
        f"{name.replace('_', ' ')} {_short(value)}" for name, value in settings.items() if name != "method"
    )
    marks = {name: mark for each in shown for name, mark in each.groups.marks.items()}
    return Embedding(
        title=f"{wish.projection.title}: {name}",
        finding=f"{len(shown[0].ids):,} samples{part}; {sources}; {said}. Only who is near whom means something.",
        panels=panels,
        marks=marks,
        synthetic=bool(about["synthetic"]),
        said=f"task {about['task']}; run {name}; config {about['config_hash']}; data "
        + " ".join(dict.fromkeys(str(each.about["fingerprint"]) for each in shown)),
    )


def _table(shown: Sequence[Shown], points: Sequence[np.ndarray]) -> pd.DataFrame:
    """stage, id, group, x, y of every point."""
    parts = [
        pd.DataFrame(
            {"stage": each.name, "id": each.ids, "group": list(each.groups.names), "x": xy[:, 0], "y": xy[:, 1]}
        )
        for each, xy in zip(shown, points, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
