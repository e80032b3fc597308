"""What the image models are worth: every fold scored on all of its rows, by the model that never saw them.

For each backbone a table of pAUC and AUC by fold with mean and standard deviation, the epoch that was best, and both
over all folds together. Early stopping may have watched a part of a fold; these scores are of all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from outlast.base.files import read_json, write_json, write_text
from outlast.base.log import say
from outlast.model.partial_auc import auc, partial_auc
from outlast.task import Work
from outlast.tasks.lesions.extracted import out_of_fold, read_listing, training_stage

MAKES = ("metrics.json", "folds.csv")
EXTRACT, TESTED = "extract-", "test-"  # what stages that predict are called, before the name of the backbone


def score(work: Work) -> Mapping[str, Any]:
    """Write metrics.json (for the report) and folds.csv, the table."""
    listing = read_listing(work.inputs["folds"]).set_index("id")
    rows = []
    for name, folder in work.inputs.items():
        if name.startswith(EXTRACT):
            rows += _of_backbone(name.removeprefix(EXTRACT), folder, work.inputs, listing)
    table = pd.DataFrame(rows)
    write_text(work.out / "folds.csv", table.to_csv(index=False, float_format="%.6f"))
    said = {f"{row['backbone']} {row['fold']}": row for row in rows}
    summary = {
        f"{row['backbone']}_{name}": row[name] for row in rows if row["fold"] == "all" for name in ("pauc", "auc")
    }
    spread = {
        f"{row['backbone']}_{kind}_{name}": row[name]
        for row in rows
        for kind in ("mean", "sd")
        if row["fold"] == kind
        for name in ("pauc", "auc")
    }
    document = {
        "split": "out of fold", "images": int(table["images"].max()), "synthetic": work.synthetic,
        "metrics": {**summary, "per_class": said}, "classes": list(said),
    }  # fmt: skip
    write_json(work.out / "metrics.json", document)
    for row in rows:
        if row["fold"] in ("mean", "all"):
            say(f"{row['backbone']}, {row['fold']} of folds: pAUC {row['pauc']:.4f}, AUC {row['auc']:.4f}")
    return {**summary, **spread}


def _of_backbone(name: str, folder: Path, inputs: Mapping[str, Path], listing: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per fold, their mean and standard deviation, and one over all folds together."""
    found = out_of_fold(folder, inputs["folds"])
    labels = listing.loc[found["id"], "label"].to_numpy()
    logits, folds = found["logit"].to_numpy(), found["fold"].to_numpy()
    rows: list[dict[str, Any]] = []
    for fold in np.unique(folds):
        own = folds == fold
        result = read_json(inputs[training_stage(name, int(fold))] / "stage.json")["result"]
        rows.append(
            {"backbone": name, "fold": str(fold), "pauc": partial_auc(labels[own], logits[own]),
             "auc": auc(labels[own], logits[own]), "images": int(own.sum()), "positives": int(labels[own].sum()),
             "best_epoch": result["best_epoch"], "watched_pauc": result["best_score"]}
        )  # fmt: skip
    areas = {key: [row[key] for row in rows] for key in ("pauc", "auc")}
    several = len(rows) > 1
    rows.append({"backbone": name, "fold": "mean", **{key: float(np.mean(values)) for key, values in areas.items()}})
    if several:
        spread = {key: float(np.std(values, ddof=1)) for key, values in areas.items()}
        rows.append({"backbone": name, "fold": "sd", **spread})
    rows.append(
        {"backbone": name, "fold": "all", "pauc": partial_auc(labels, logits), "auc": auc(labels, logits),
         "images": len(labels), "positives": int(labels.sum())}
    )  # fmt: skip
    return rows
