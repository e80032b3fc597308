"""Forgeries on real photos: network, classical model and both, beside a forest on histograms and trivial answers.

    python benchmarks/forgeries.py --data ../shared/data/forgeries --out FOLDER --json forgeries.json
    python benchmarks/forgeries.py --data ../shared/data/forgeries --run RUN     # one that is trained already

Trains `outlast train forgeries --preset cpu` on the folder (photos and crops, split by scene) and prints pixel F1 (the
mean over forged images), image AUC and the official oF1 of the test scenes, with intervals of whole scenes drawn anew.
The forest, on histograms of colours and gradients, learns from the train and val scenes.

Then copies of every kind are composed in the authentic test images, `--copies` times each, and scored by
`outlast eval`: which of them does a model find? --no-kinds leaves that out. What is made and trained stays in --out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from outlast.data.readers import read_image
from outlast.model.bootstrap import draw_groups, interval
from outlast.tasks.forgeries import from_photos
from outlast.tasks.forgeries.composer import Composition
from outlast.tasks.forgeries.layout import labelled

TREES, SEED = 300, 7
METRICS = ("pixel_f1", "image_auc", "of1")
# Nothing but what is named is done to a copy; its side is 24 pixels to a third of the image's shorter side.
PLAIN: dict[str, Any] = {
    "authentic": 0, "smallest_side": 24, "rotate": 0, "scale": 0, "flip": 0, "subpixel": 0, "brightness": 0, "jpeg": 0,
    "decoy": 0,
}  # fmt: skip
SMALL: dict[str, Any] = {"smallest_side": 12, "largest_share": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "shifted": {},
    "shifted, 12 to 25 px": SMALL,
    "brighter or darker": {"brightness": 1},
    "scaled by 0.7 to 1.4": {"scale": 1},
    "turned by up to 15 degrees": {"rotate": 1, "rotation_degrees": 15},
    "turned by any angle": {"rotate": 1},
    "mirrored": {"flip": 1},
    "JPEG, quality 60 to 95": {"jpeg": 1},
}


def main() -> None:
    """Train if need be, and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the labelled images")
    parser.add_argument("--run", type=Path, help="a finished run on that data; none: train one")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--copies", type=int, default=3, help="forgeries that are composed in each authentic image")
    parser.add_argument("--no-kinds", action="store_true", help="leave the composed copies out")
    parser.add_argument("--out", type=Path, help="a folder to keep; none: a temporary one")
    parser.add_argument("--json", type=Path, help="write every number to this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.out or Path(temporary)
        run = asked.run or train(asked.data, folder / "run", asked.overrides)
        table = labelled(asked.data).table.set_index("id", drop=False)
        split = pd.read_csv(run / "split.csv", dtype=str).set_index("id")["split"]
        found: dict[str, Any] = {"photos": on_photos(asked.data, run, table, split)}
        if not asked.no_kinds:
            photos = table[(split.loc[table.index] == "test") & (table["forged"] == 0)]
            found["kinds"] = by_kind(asked.data, photos, run, folder / "kinds", asked.copies)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def train(data: Path, run: Path, overrides: Sequence[str]) -> Path:
    """The run, trained to its end, and what that took."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    outlast("train", "forgeries", "--data", str(data), "--preset", "cpu", "--out", str(run), *overrides)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"trained in {(time.perf_counter() - began) / 60:.0f} min, {spent / 60:.0f} min of processor time")
    return run


def outlast(*words: str) -> dict[str, Any]:
    """What a command says in JSON; its progress goes to the screen."""
    command = [sys.executable, "-m", "outlast", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"outlast {words[0]} failed: see above")
    known: dict[str, Any] = json.loads(done.stdout)
    return known


def on_photos(root: Path, run: Path, table: pd.DataFrame, split: pd.Series) -> dict[str, Any]:
    """Every model's scores on the test scenes, as the run itself says, and the forest's."""
    models: dict[str, Any] = json.loads((run / "scores" / "models.json").read_text(encoding="utf-8"))["models"]
    tested = (split.loc[table.index] == "test").to_numpy()
    models["forest on histograms"] = forest(root, table[~tested], table[tested])
    scored = table[tested]
    print(f"\n{len(scored)} test images, {scored['forged'].sum()} forged, {scored['group'].nunique()} scenes")
    for name, scores in models.items():
        told = [f"{metric} {with_interval(scores, metric)}" for metric in METRICS if scores.get(metric) is not None]
        print(f"  {name:<22}{'   '.join(told)}")
    return models


def forest(root: Path, learned: pd.DataFrame, tested: pd.DataFrame) -> dict[str, Any]:
    """Image AUC of a forest on histograms, and its interval."""
    features = [np.stack([histograms(read_image(root / path)) for path in part["image"]]) for part in (learned, tested)]
    model = RandomForestClassifier(TREES, random_state=0, min_samples_leaf=2).fit(features[0], learned["forged"])
    scores, truth = model.predict_proba(features[1])[:, 1], tested["forged"].to_numpy()
    draws = draw_groups(tested["group"].tolist())
    drawn = [auc(truth, scores, counts[draws.of_sample]) for counts in draws.counts]
    return {
        "image_auc": auc(truth, scores, np.ones(len(truth))),
        "intervals": {"image_auc": interval(np.array(drawn))},
    }


def auc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """NaN where one class has no weight."""
    if not (weights[truth == 1].sum() and weights[truth == 0].sum()):
        return float("nan")
    return float(roc_auc_score(truth, scores, sample_weight=weights))


def histograms(image: np.ndarray) -> np.ndarray:
    """Shares of pixels by level of each colour, and by how steep grey is."""
    grey = image.astype(np.float32).mean(axis=2)
    parts = [np.histogram(image[..., channel], 16, (0, 256))[0] for channel in range(3)]
    parts += [np.histogram(np.hypot(*np.gradient(grey)), 16, (0, 64))[0]]
    return np.asarray(np.concatenate(parts) / grey.size)


def by_kind(root: Path, photos: pd.DataFrame, run: Path, out: Path, copies: int) -> dict[str, Any]:
    """Every model's scores on copies of each kind, in photos of scenes that no model saw."""
    found: dict[str, Any] = {}
    (out / "photos").mkdir(parents=True)
    for number, path in enumerate(photos["image"]):
        shutil.copyfile(root / path, out / "photos" / f"{number:03d}{Path(path).suffix}")
    print(f"\ncomposed in {len(photos)} authentic test images: pixel F1 / image AUC / oF1")
    for number, (kind, settings) in enumerate(KINDS.items()):
        folder = out / str(number)
        from_photos.write(
            out / "photos", folder, copies=copies, seed=SEED, settings=Composition(**{**PLAIN, **settings})
        )
        found[kind] = outlast("eval", str(run), "--data", str(folder))["metrics"]["models"]
        told = [f"{name} {' / '.join(f'{one[metric]:.3f}' for metric in METRICS)}" for name, one in found[kind].items()]
        print(f"  {kind:<28}{'   '.join(told)}", flush=True)
    return found


def with_interval(scores: Mapping[str, Any], metric: str) -> str:
    """A score and its interval, where it has one."""
    bounds = (scores.get("intervals") or {}).get(metric)
    return f"{scores[metric]:.3f}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")


if __name__ == "__main__":
    main()
