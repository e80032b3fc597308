"""Forgeries on real photos: the classical model beside "mark everything", "mark nothing" and a forest on histograms.

    python benchmarks/forgeries.py --data ../shared/data/forgeries/fau ../shared/data/forgeries/crops256

Scored are pixel F1 (the mean over forged images) and the AUC of the images' scores, with bootstrap intervals that draw
whole scenes. `SEEN` are the scenes that were looked at while the classical model's constants were chosen; the others
are reported by themselves. The forest (on colour and gradient histograms) is scored by folds that keep scenes together.
What was searched is kept in --out, a JSON file, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from outlast.base.files import write_json
from outlast.data.readers import read_image
from outlast.model.bootstrap import draw_groups, interval
from outlast.model.forgery_metrics import pixel_f1
from outlast.tasks.forgeries.classical import ClassicalSettings, detect
from outlast.tasks.forgeries.layout import labelled
from outlast.tasks.forgeries.truth import read_masks

SEEN = (
    "barrier", "bricks", "cattle", "christmas_hedge", "dark_and_bright", "fountain", "giraffe", "knight_moves",
    "egyptian", "lone_cat", "motorcycle", "no_beach", "port", "scotland", "supermarket", "tree", "window",
)  # fmt: skip
RESAMPLES = 500
FOLDS = 5

Images = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of labelled images")
    parser.add_argument("--out", type=Path, default=Path("forgeries.json"), help="keeps what was searched")
    parser.add_argument("--only-shifts", action="store_true", help="without keypoints (and without OpenCV)")
    parser.add_argument("--limit", type=int, help="images of each folder, drawn by their hash; none: all")
    arguments = parser.parse_args()
    settings = ClassicalSettings(keypoints=not arguments.only_shifts)
    for root in arguments.data:
        images = _images(root, arguments.limit)
        _search(images, settings, arguments.out)
        for name, chosen in _parts(images):
            _report(f"{root.name}, {name}", chosen)


def _images(root: Path, limit: int | None) -> Images:
    table = labelled(root).table.sort_values("hash").head(limit)
    return [{**row, "root": root} for row in table.to_dict("records")]


def _search(images: Images, settings: ClassicalSettings, kept: Path) -> None:
    """Fill in score and pixel F1 of the classical model, and of marking everything."""
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    for number, row in enumerate(images, start=1):
        key = f"{row['hash']} {settings.model_dump_json()}"
        if key not in known:
            known[key] = _searched(row, settings)
            write_json(kept, known)
            print(f"{number} of {len(images)}: {row['id']}", flush=True)
        row.update(known[key])


def _searched(row: dict[str, Any], settings: ClassicalSettings) -> dict[str, Any]:
    image = read_image(row["root"] / row["image"])
    start = time.process_time()
    found = detect(image, settings)
    seconds = time.process_time() - start
    result = {"classical score": found.score, "seconds": seconds, "pixels": image.shape[0] * image.shape[1]}
    if row["forged"]:
        truth = read_masks(row["root"] / row["mask"], row["height"], row["width"]).any(axis=0)
        result["classical f1"] = pixel_f1(found.probability >= 0.5, truth)
        result["everything f1"] = pixel_f1(np.ones_like(truth), truth)
    return result


def _parts(images: Images) -> list[tuple[str, Images]]:
    seen = [row for row in images if row["group"].removeprefix("fau_") in SEEN]
    unseen = [row for row in images if row["group"].removeprefix("fau_") not in SEEN]
    return [("all", images), ("scenes that were looked at", seen), ("other scenes", unseen)]


def _report(title: str, images: Images) -> None:
    if not images:
        return
    forged = [row for row in images if row["forged"]]
    scenes = len({row["group"] for row in images})
    seconds = np.median([row["seconds"] for row in images])
    print(
        f"\n{title}: {len(forged)} forged, {len(images) - len(forged)} authentic, {scenes} scenes; {seconds:.1f} s each"
    )
    models: dict[str, tuple[list[float], list[float]]] = {
        "classical": ([row["classical f1"] for row in forged], [row["classical score"] for row in images]),
        "mark everything": ([row["everything f1"] for row in forged], [1.0] * len(images)),
        "mark nothing": ([0.0] * len(forged), [0.0] * len(images)),
    }
    forest = _forest(images)
    if forest is not None:
        models["forest on histograms"] = ([float("nan")] * len(forged), forest)
    for name, (f1, scores) in models.items():
        groups = [row["group"] for row in forged]
        by_pixel = _with_interval(groups, lambda weight, f1=f1: float(np.average(f1, weights=weight)))
        truth = np.array([row["forged"] for row in images])
        by_image = _with_interval(
            [row["group"] for row in images],
            lambda weight, scores=scores, truth=truth: (
                float(roc_auc_score(truth, scores, sample_weight=weight))
                if weight[truth == 1].sum() and weight[truth == 0].sum()
                else float("nan")
            ),
        )
        print(f"  {name:22s} pixel F1 {by_pixel}   image AUC {by_image}")


def _with_interval(groups: list[str], score: Callable[[np.ndarray], float]) -> str:
    """A score with every sample weighing 1, and its interval over draws of groups."""
    if not groups:
        return "-"
    value = score(np.ones(len(groups)))
    draws = draw_groups(groups, number=RESAMPLES)
    bounds = interval(np.array([score(counts[draws.of_sample]) for counts in draws.counts.astype(float)]))
    return f"{value:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def _forest(images: Images) -> list[float] | None:
    """Probabilities of a forest on histograms, each of a fold without the image's scene; None for too few images."""
    labels, groups = np.array([row["forged"] for row in images]), [row["group"] for row in images]
    if len(set(groups)) < 2 * FOLDS or min(labels.sum(), len(labels) - labels.sum()) < FOLDS:
        return None
    features = np.stack([_histograms(read_image(row["root"] / row["image"])) for row in images])
    scores = np.full(len(images), np.nan)
    for train, test in GroupKFold(FOLDS).split(features, labels, groups):
        forest = RandomForestClassifier(300, random_state=0, min_samples_leaf=2).fit(features[train], labels[train])
        scores[test] = forest.predict_proba(features[test])[:, 1]
    return scores.tolist()


def _histograms(image: np.ndarray) -> np.ndarray:
    grey = image.astype(np.float32).mean(axis=2)
    steps = np.hypot(*np.gradient(grey))
    parts = [np.histogram(image[..., channel], 16, (0, 256))[0] for channel in range(3)]
    parts += [np.histogram(steps, 16, (0, 64))[0]]
    return np.concatenate(parts) / grey.size


if __name__ == "__main__":
    main()
