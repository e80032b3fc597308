"""What the plan of lesions reaches on real images, against plain yardsticks on the very same folds.

    python benchmarks/lesions.py --data ../shared/data/lesions/isic --out RUN

Runs `outlast train lesions --preset cpu` (or goes on with the run that is in RUN), and prints the time of every stage,
the areas of the ensemble and its parts out of fold, and by how much the ensemble is above each. Yardsticks, on the
folds of the run: a forest on the table alone, and a plain ResNet18 from scratch at 96 pixels (flips, cosine, its last
weights; --resnet-epochs 0 leaves it out). Intervals resample patients, differences on the same resamples.

--json writes every number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn
from torch.nn import functional

from outlast.data.hdf5 import open_images, read_by_id
from outlast.data.readers import resize
from outlast.data.sampler import equal_batches, shuffled
from outlast.model import backbone
from outlast.model.area_bootstrap import Area, bootstrap, paired_bootstrap
from outlast.tasks.lesions.layout import ID, PATIENT, TARGET, train_images
from outlast.tasks.lesions.table import Features, read_features

AREAS: tuple[Area, ...] = ("auc", "pauc")
SIDE, BATCH, RATE = 96, 32, 1e-3  # of the plain ResNet18
TREES = 500
Predicted = np.ndarray


def main() -> None:
    """Run the plan, then the yardsticks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--resnet-epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every number to this file")
    asked = parser.parse_args()
    seconds = train(asked)
    features = read_features(asked.out / "folds")
    rows = features.rows[~features.test].reset_index(drop=True)
    ensemble = pd.read_csv(asked.out / "ensemble" / "out_of_fold.csv", dtype={ID: str}).set_index(ID).loc[rows[ID]]
    found = json.loads((asked.out / "ensemble" / "metrics.json").read_text(encoding="utf-8"))
    print_parts(found)
    yardsticks = {"forest on the table": forest(features)}
    if asked.resnet_epochs:
        began = time.process_time()
        yardsticks[f"ResNet18, {SIDE} px"] = resnet(asked, rows)
        print(f"the ResNet18 of all folds took {time.process_time() - began:.0f} s of processor time")
    compared = against(ensemble["both"].to_numpy(), yardsticks, rows)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")
    if asked.json:
        told = {"seconds": seconds, "parts": found["parts"], "above": found["ensemble_above"], "yardsticks": compared}
        asked.json.write_text(json.dumps(told, indent=1), encoding="utf-8")


def train(asked: argparse.Namespace) -> dict[str, float]:
    """{stage: seconds}; prints them with the time that this call took."""
    command = [
        sys.executable, "-m", "outlast", "train", "lesions", "--preset", "cpu", "--data", str(asked.data),
        "--out", str(asked.out), *asked.overrides,
    ]  # fmt: skip
    began = time.monotonic()
    subprocess.run(command, check=True)
    print(f"\n{' '.join(command[1:])}\n  {time.monotonic() - began:.0f} s in this call")
    records = {path.parent.name: json.loads(path.read_text()) for path in asked.out.glob("*/stage.json")}
    seconds = {name: float(record["seconds"]) for name, record in sorted(records.items())}
    for name, value in seconds.items():
        print(f"  {name:<28}{value:8.1f} s")
    print(f"  {'all stages':<28}{sum(seconds.values()):8.1f} s")
    return seconds


def print_parts(found: Mapping[str, Any]) -> None:
    """The ensemble and its parts, out of fold."""
    print(f"\nout of fold: {found['images']} lesions of {found['patients']} patients, {found['positives']} malignant")
    for name, areas in found["parts"].items():
        told = [f"{area} {one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}]" for area, one in areas.items()]
        above = found["ensemble_above"].get(name, {})
        told += [f"below by {one['value']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]" for one in above.values()]
        print(f"  {name:<22}{'; '.join(told)}")


def forest(features: Features) -> Predicted:
    """Probabilities out of fold of a forest on the table, missing values as -1, categories by their codes."""
    known = features.values[~features.test].reset_index(drop=True)
    rows = features.rows[~features.test].reset_index(drop=True)
    coded = {
        name: column.cat.codes if name in features.columns.categories else column for name, column in known.items()
    }
    values, labels = pd.DataFrame(coded).fillna(-1.0).to_numpy(np.float64), rows[TARGET].to_numpy(np.int64)
    predicted = np.zeros(len(rows))
    for fold in np.unique(rows["fold"]):
        own = (rows["fold"] == fold).to_numpy()
        trees = RandomForestClassifier(TREES, min_samples_leaf=5, random_state=0).fit(values[~own], labels[~own])
        predicted[own] = trees.predict_proba(values[own])[:, 1]
    return predicted


def resnet(asked: argparse.Namespace, rows: pd.DataFrame) -> Predicted:
    """Logits out of fold of a plain ResNet18."""
    torch.set_num_threads(asked.threads)
    source = train_images(asked.data)
    assert source is not None
    images = open_images(asked.data / source)
    pixels = np.stack([resize(read_by_id(images, name), (SIDE, SIDE)).transpose(2, 0, 1) for name in rows[ID]])
    labels = torch.from_numpy(rows[TARGET].to_numpy(np.float32))
    predicted = np.zeros(len(rows))
    for fold in np.unique(rows["fold"]):
        own = np.flatnonzero(rows["fold"] == fold)
        others = np.flatnonzero(rows["fold"] != fold)
        model = fitted(torch.from_numpy(pixels), labels, others, asked.resnet_epochs, int(fold))
        with torch.inference_mode():
            parts = [model.eval()(scaled(torch.from_numpy(pixels[part]))) for part in equal_batches(own, 64)]
        predicted[own] = torch.cat(parts).squeeze(1).numpy()
    return predicted


def fitted(pixels: torch.Tensor, labels: torch.Tensor, rows: np.ndarray, epochs: int, seed: int) -> nn.Module:
    """A ResNet18 trained on these rows, each epoch in a new order, each image flipped or not."""
    torch.manual_seed(seed)
    model = backbone.classifier("resnet18", 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    steps = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for batch in equal_batches(rows[shuffled(len(rows), seed, epoch)], BATCH):
            images = scaled(pixels[batch])
            images = torch.where((torch.rand(len(batch)) < 0.5)[:, None, None, None], images.flip(3), images)
            loss = functional.binary_cross_entropy_with_logits(model(images).squeeze(1), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to about -2 to 2."""
    return (pixels.float() / 255 - 0.5) / 0.25


def against(ensemble: Predicted, yardsticks: Mapping[str, Predicted], rows: pd.DataFrame) -> dict[str, Any]:
    """Print and return every yardstick's areas, and by how much the ensemble is above."""
    labels, patients = rows[TARGET].to_numpy(np.int64), rows[PATIENT].to_numpy()
    found: dict[str, Any] = {}
    for name, predicted in yardsticks.items():
        found[name] = {}
        for area in AREAS:
            own = bootstrap(labels, predicted, patients, area=area)
            gain = paired_bootstrap(labels, ensemble, predicted, patients, area=area)
            found[name][area] = {"own": asdict(own), "ensemble_above": asdict(gain)}
            print(
                f"  {name:<22}{area} {own.value:.4f} [{own.low:.4f}, {own.high:.4f}]; the ensemble is above it by "
                f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
            )
    return found


if __name__ == "__main__":
    main()
