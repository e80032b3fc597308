"""Images per second into training: torchvision's ImageFolder + DataLoader beside our cache + loader.

    python benchmarks/input.py --data ../shared/data/plants/potato

Both: 2 worker processes, batches of 32, JPEG files decoded to 64 px, random resized crop, flip, colour jitter,
normalised float32 tensors. The first epoch starts from nothing (for us: listing, hashing, building the cache, starting
workers); the later ones are timed together. The two alternate, and medians are reported, because machines are shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from outlast.data import augment, cache, folders, readers, sampler
from outlast.data.loader import BatchPlan, Loader

SIZE, CACHED, BATCH, WORKERS, PREFETCH = 64, 96, 32, 2, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPEC = augment.Augmentation(crop_scale=(0.5, 1.0), brightness=0.2, contrast=0.2, saturation=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one sub-folder of images per class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--later-epochs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    images = readers.list_images(arguments.data)
    readers.hash_files(images)  # so that both read from the page cache
    rates: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, epochs in (("torchvision", torchvision_epochs), ("outlast", outlast_epochs)):
            first, later = timed(epochs(arguments.data), len(images), arguments.later_epochs)
            rates.setdefault(f"{name} first", []).append(first)
            rates.setdefault(f"{name} later", []).append(later)
    report(rates, len(images), arguments.json)


def timed(epochs: Iterator[int], count: int, later: int) -> tuple[float, float]:
    """Images per second of the first epoch, and of the `later` ones after it."""
    start = time.perf_counter()
    assert next(epochs) == count
    first = time.perf_counter() - start
    start = time.perf_counter()
    assert sum(next(epochs) for _ in range(later)) == count * later
    rest = time.perf_counter() - start
    epochs.close()  # type: ignore[attr-defined]
    return count / first, later * count / rest


def torchvision_epochs(root: Path) -> Iterator[int]:
    steps = [
        transforms.RandomResizedCrop(SIZE, scale=(0.5, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.2, 0.2, 0.2),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    files = datasets.ImageFolder(str(root), transforms.Compose(steps))
    loader = DataLoader(
        files, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, prefetch_factor=PREFETCH
    )
    while True:
        yield sum(len(labels) for _, labels in loader)


def outlast_epochs(root: Path) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as folder:
        table = folders.class_folders(root).table
        rows = table.to_dict("records")
        read = partial(read_row, root)
        built = cache.build(rows, read, key="bench", folder=Path(folder), budget_bytes=10**10, threads=WORKERS)
        columns = {"label": table["label"].to_numpy()}
        draw = partial(augment.draw, SPEC, 0)
        with built, Loader(built.get, columns, finish, draw, workers=WORKERS, prefetch_batches=PREFETCH) as loader:
            epoch = 0
            while True:
                order = sampler.shuffled(len(rows), 0, epoch)
                plans = (BatchPlan(epoch, n, b, b) for n, b in enumerate(sampler.equal_batches(order, BATCH)))
                yield sum(len(batch["label"]) for batch in loader.batches(plans))
                epoch += 1


def read_row(root: Path, row: dict[str, Any]) -> dict[str, np.ndarray]:
    image = readers.read_image(root / row["path"], at_least=(CACHED, CACHED))
    return {"image": readers.resize(image, (CACHED, CACHED))}


def finish(batch: dict[str, Any], draws: np.ndarray | None) -> dict[str, Any]:
    images = batch["image"].permute(0, 3, 1, 2)
    batch["image"] = augment.normalise(augment.apply(images, draws, SPEC, (SIZE, SIZE)), MEAN, STD)
    return batch


def report(rates: dict[str, list[float]], count: int, as_json: bool) -> None:
    middle = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {when: middle[f"outlast {when}"] / middle[f"torchvision {when}"] for when in ("first", "later")}
    if as_json:
        print(json.dumps({"images": count, "images_per_second": rates, "median": middle, "ratio": ratios}))
        return
    print(f"{count} images, {WORKERS} workers, {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
    rounds = len(rates["outlast first"])
    print(f"{'images per second':20s} {'torchvision':>12s} {'outlast':>12s} {'ratio':>7s}   median of {rounds} rounds")
    for when, name, goal in (("first", "first epoch", 1), ("later", "later epochs", 4)):
        tv, own = middle[f"torchvision {when}"], middle[f"outlast {when}"]
        verdict = "reached" if ratios[when] >= goal else "MISSED"
        print(f"{name:20s} {tv:12.0f} {own:12.0f} {ratios[when]:6.1f}x   goal {goal}x: {verdict}")


if __name__ == "__main__":
    main()
