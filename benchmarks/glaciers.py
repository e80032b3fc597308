"""What the glaciers recipe reaches on one Landsat scene, and which part of it brings what.

    python benchmarks/glaciers.py --data ../shared/data/glaciers/everest --seeds 0 1 2
    python benchmarks/glaciers.py --data ... --only recipe yardstick

Every run is `outlast train glaciers --preset cpu` with some settings changed, on the split that the data gives: trained
on its train tiles, weights chosen and scored on its val tiles (so that both sides are chosen alike, and neither is a
test). The score is MCC (R_K) over all labelled pixels of val. "without views" is the same run, scored without
test-time augmentation. Prints a line per run, then a table; --json keeps every number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CROSS_ENTROPY = ("loss.cross_entropy=1", "loss.dice=0", "loss.mcc=0")
# ResNet18 U-Net from scratch, cross entropy, every tile once per epoch, flips and turns: what anyone would try first.
YARDSTICK = (
    "model.encoder=resnet18", "model.depth=5", "model.attention=none", "model.boundary_head=false",
    "loss.boundary_head=0", *CROSS_ENTROPY, "sampling.balanced=false", "augment.gain=0", "augment.shift=0", "tta=none",
    "train.ema_decay=null", "train.epochs=60", "repeats=1",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "yardstick": YARDSTICK,
    "with cross entropy alone": (*CROSS_ENTROPY, "loss.boundary_head=0", "model.boundary_head=false"),
    "without boundary head": ("loss.boundary_head=0", "model.boundary_head=false"),
    "without balanced sampler": ("sampling.balanced=false",),
    "without light augmentation": ("augment.gain=0", "augment.shift=0"),
    "without average of weights": ("train.ema_decay=null",),
    "with ResNet18 encoder": ("model.encoder=resnet18", "model.depth=5"),
    "with textures": ("bands.texture=true",),
    "one training instead of three": ("repeats=1",),
}


def main() -> None:
    """Train every variant with every seed, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write every number to this file")
    asked = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in asked.only}
    for seed in asked.seeds:
        for name in asked.only:
            result = run(asked.data, seed, asked.threads, VARIANTS[name])
            found[name].append(result)
            print(f"{name:<28} seed {seed}  mcc {result['mcc']:.4f}  {result['seconds']:.0f} s", flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))


def run(data: Path, seed: int, threads: int, settings: tuple[str, ...]) -> dict[str, Any]:
    """One training; what the tiles it was judged on say, and how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "outlast", "train", "glaciers", "--data", str(data), "--preset", "cpu", "--json",
            "--out", f"{folder}/run", "--no-fallback", *settings, f"train.seed={seed}", f"train.threads={threads}",
        ]  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=False)
        wall = time.perf_counter() - began
        if done.returncode:
            sys.exit(done.stderr.decode())
        scored = json.loads(Path(folder, "run/scores/metrics.json").read_text(encoding="utf-8"))["metrics"]
    train = json.loads(done.stdout)["stages"]["finetune"]
    return {
        "seed": seed, "mcc": scored["mcc"], "iou": scored["iou"], "f1": scored["f1"], "mean_iou": scored["mean_iou"],
        "one_view": train["best_score"], "epoch": train.get("best_epoch"), "seconds": wall,
    }  # fmt: skip


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Mean and spread over the seeds, and the difference to the recipe."""
    base = statistics.mean(one["mcc"] for one in found["recipe"]) if found.get("recipe") else None
    lines = [
        "| | MCC by seed | mean | less than the recipe | IoU background, ice, debris | seconds |",
        "|---|---|---|---|---|---|",
    ]
    rows = {name: [one["mcc"] for one in runs] for name, runs in found.items()}
    if found.get("recipe"):
        rows = {
            "recipe": rows.pop("recipe"),
            "without views (one_view)": [r["one_view"] for r in found["recipe"]],
            **rows,
        }
    for name, values in rows.items():
        mean = statistics.mean(values)
        less = "" if base is None else f"{base - mean:+.3f}"
        runs = found.get(name)
        iou = (
            ""
            if not runs
            else ", ".join(
                f"{statistics.mean(one['iou'][label] for one in runs):.2f}" for label in ("background", "ice", "debris")
            )
        )
        seconds = "" if not runs else f"{statistics.mean(one['seconds'] for one in runs):.0f}"
        by_seed = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {by_seed} | {mean:.3f} | {less} | {iou} | {seconds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
