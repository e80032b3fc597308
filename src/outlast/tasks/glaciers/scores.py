"""The tiles that no model was trained on, scored once from stored maps: metrics, pictures, errors near boundaries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlast.base.files import write_json
from outlast.base.log import say
from outlast.data.pictures import composite, errors_by_distance, write_boundary, write_examples
from outlast.data.shards import read_shards
from outlast.data.table import Examples
from outlast.model.segmentation_metrics import confusion_matrix, segmentation
from outlast.task import Work
from outlast.tasks.glaciers import tiles
from outlast.tasks.glaciers.layout import CLASSES

_PICTURES = 6


def score(work: Work) -> Mapping[str, Any]:
    """Write metrics.json (and pictures) of the stages that judge: each tile by the models that did not train on it."""
    assert work.examples is not None
    judges = [name for name in work.inputs if name.startswith("judge")]
    judged = _scored(work.examples, [work.inputs[name] for name in judges])
    result = {"split": "out of fold" if len(judges) > 1 else "val", **judged.summary()}
    document = {
        "split": result["split"], "images": judged.tiles, "metrics": judged.metrics, "classes": list(CLASSES),
        "confusion": judged.confusion.tolist(), "unit": "pixels", "synthetic": work.synthetic,
    }  # fmt: skip
    tested = _scored(work.examples, [work.inputs["test"]])
    if tested.tiles:
        document["test"] = {"images": tested.tiles, "metrics": tested.metrics, "confusion": tested.confusion.tolist()}
        result |= {f"test_{name}": value for name, value in tested.summary().items()}
    document["sampling"] = mix = _mix(work)
    for name, shares in mix.items():
        say(
            f"{name} was shown "
            + ", ".join(f"{k} {v['shown']:.0%} (wanted {v['wanted']:.0%})" for k, v in shares.items())
        )
    write_json(work.out / "metrics.json", document)
    _draw(work, judged)
    return result


def _mix(work: Work) -> dict[str, dict[str, dict[str, float]]]:
    """{training: {class: {"wanted", "shown"}}}: the mix of pixels that the sampler aimed at, and the mean it reached.

    A crop shows more than the class that it was made for, so that the two differ; a class that is nowhere has no share.
    """
    if not work.config.sampling.balanced:
        return {}
    wanted = work.config.sampling.shares()
    found = {}
    for path in sorted(work.inputs["test"].parent.glob("finetune*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        shown = {name: float(np.mean([line[f"train_share_{name}"] for line in lines])) for name in CLASSES}
        there = sum(wanted[number] for number, name in enumerate(CLASSES) if shown[name] > 0)
        found[path.parent.name] = {
            name: {"wanted": wanted[number] / there, "shown": shown[name]}
            for number, name in enumerate(CLASSES)
            if shown[name] > 0
        }
    return found


class _Scored:
    """What stored maps are worth; `worst` are ids, the most mistaken tiles first."""

    def __init__(self) -> None:
        self.confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
        self.distances = np.zeros((2, 21), np.int64)
        self.mistakes: dict[str, float] = {}
        self.maps: dict[str, np.ndarray] = {}

    @property
    def tiles(self) -> int:
        return len(self.maps)

    @property
    def metrics(self) -> dict[str, Any]:
        return segmentation(self.confusion, CLASSES)

    def summary(self) -> dict[str, float]:
        """The numbers that a line holds."""
        metrics = self.metrics
        return {name: metrics[name] for name in ("mcc", "mean_iou", "macro_f1", "accuracy")} | {"images": self.tiles}


def _scored(examples: Examples, folders: list[Path]) -> _Scored:
    found = _Scored()
    table = examples.table.set_index("id", drop=False)
    for folder in folders:
        ids, arrays = read_shards(folder)
        for number, name in enumerate(ids):
            predicted = arrays["classes"][number].astype(np.uint8)
            truth = _sample(examples, table.loc[name])["mask"]
            found.confusion += confusion_matrix(
                torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)), len(CLASSES)
            )
            found.distances += errors_by_distance(truth, predicted)
            labelled = truth != 255
            found.mistakes[name] = float((predicted != truth)[labelled].mean()) if labelled.any() else 0.0
            found.maps[name] = predicted
    return found


def _sample(examples: Examples, row: Any) -> dict[str, np.ndarray]:
    return tiles.read_window(examples.root, {str(name): value for name, value in row.items()})


def _draw(work: Work, judged: _Scored) -> None:
    """The tiles with the most mistakes, one of few and one between; and the errors by distance to the boundary."""
    assert work.examples is not None
    order = sorted(judged.mistakes, key=lambda name: -judged.mistakes[name])
    places = np.unique(np.linspace(0, len(order) - 1, min(_PICTURES, len(order))).round().astype(int))
    chosen = [order[place] for place in places]
    table = work.examples.table.set_index("id", drop=False)
    samples = [_sample(work.examples, table.loc[name]) for name in chosen]
    write_examples(
        work.out / "examples.npz", [composite(sample["bands"]) for sample in samples],
        [sample["mask"] for sample in samples], [judged.maps[name] for name in chosen], chosen, CLASSES,
    )  # fmt: skip
    write_boundary(work.out / "boundary.json", judged.distances, examples="examples.npz")
