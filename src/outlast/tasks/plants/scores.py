"""The test split, scored once from stored predictions: metrics, confusion matrix, and the worst mistakes to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from outlast.base.files import write_json
from outlast.data.readers import center_crop, read_image, resize
from outlast.data.shards import read_shards
from outlast.errors import DataError
from outlast.model.metrics import classification, log_probabilities
from outlast.task import Work

_MOST_MISTAKES = 24
_THUMBNAIL = 128  # pixels


def score(work: Work) -> Mapping[str, Any]:
    """Write metrics.json and mistakes.json (with thumbnails) for the predictions of the stage "test"."""
    assert work.examples is not None
    ids, arrays = read_shards(work.inputs["test"])
    classes = list(work.examples.facts["classes"])
    table = work.examples.table.set_index("id").loc[ids]
    labels = table["label"].to_numpy()
    if (table["split"] != "test").any():
        raise DataError(
            "predictions of the stage 'test' are not all of the test split", hint="start a new run with --out"
        )
    metrics = classification(arrays["logits"], labels, classes)
    confusion = metrics.pop("confusion")
    write_json(
        work.out / "metrics.json",
        {
            "split": "test", "images": len(ids), "metrics": metrics, "classes": classes, "confusion": confusion,
            "synthetic": work.synthetic,
        },
    )  # fmt: skip
    write_json(work.out / "mistakes.json", {"mistakes": _mistakes(work, table, arrays["logits"], labels, classes)})
    return {"split": "test", "images": len(ids), **{name: metrics[name] for name in metrics if name != "per_class"}}


def _mistakes(
    work: Work, table: pd.DataFrame, logits: np.ndarray, labels: np.ndarray, classes: list[str]
) -> list[dict[str, Any]]:
    """The wrong predictions that were surest, with a thumbnail each."""
    assert work.examples is not None
    probabilities = np.exp(log_probabilities(logits))
    predicted = logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    surest = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:_MOST_MISTAKES]
    (work.out / "mistakes").mkdir()
    found = []
    for number, row in enumerate(surest):
        record = table.iloc[row]
        image = center_crop(read_image(work.examples.root / record["path"]), work.config.data.center_crop)
        name = f"mistakes/{number:04d}.png"
        Image.fromarray(resize(image, (_THUMBNAIL, _THUMBNAIL))).save(work.out / name)
        found.append(
            {
                "id": str(table.index[row]),
                "truth": classes[labels[row]],
                "predicted": classes[predicted[row]],
                "probability": float(probabilities[row, predicted[row]]),
                "truth_probability": float(probabilities[row, labels[row]]),
                "thumbnail": f"scores/{name}",
            }
        )
    return found
