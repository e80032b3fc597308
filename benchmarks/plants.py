"""What the models of the task "plants" reach on real leaves, by the command that a user types.

    python benchmarks/plants.py --data ../shared/data/plants/potato --seeds 0 1 2 --set data.center_crop=0.7
    python benchmarks/plants.py --data ../shared/data/plants/rice --seeds 0 1 2 3 4
    python benchmarks/plants.py --data ... --model resnet18 --yardstick      # the yardstick: see YARDSTICK

Every seed is another split by group (data.split_seed) and another start (train.seed). The weights are chosen on the
val split; the test split is scored once, by the run itself. Prints a line per seed, then mean and spread.
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

# ResNet18 from scratch at 64 px with a plain recipe: what anyone would try first.
YARDSTICK = (
    "data.image_size=64", "train.minimum_steps=0", "train.ema_decay=null", "train.weight_decay=0.01",
    "loss.label_smoothing=0", "data.augment.erase=0",
)  # fmt: skip


def main() -> None:
    """Train each seed in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--model", default="sclusterformer")
    parser.add_argument("--yardstick", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE")
    asked = parser.parse_args()
    settings = [f"model.name={asked.model}", *(YARDSTICK if asked.yardstick else ()), *asked.overrides]
    found = [run(asked.data, asked.preset, seed, settings) for seed in asked.seeds]
    for name in ("balanced_accuracy", "accuracy", "kappa", "macro_f1", "train_seconds", "wall_seconds"):
        values = [one[name] for one in found]
        spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{name:<18} {statistics.mean(values):.4f}{spread}")


def run(data: Path, preset: str, seed: int, settings: list[str]) -> dict[str, float]:
    """One training; what its test split says, and how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "outlast", "train", "plants", "--data", str(data), "--preset", preset, "--json",
            "--out", f"{folder}/run", "--no-fallback", *settings, f"data.split_seed={seed}", f"train.seed={seed}",
        ]  # fmt: skip
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        wall = time.perf_counter() - began
    stages = json.loads(done.stdout)["stages"]
    scores, train = stages["scores"], stages["train"]
    result = {
        "seed": seed, "images": scores["images"], "balanced_accuracy": scores["balanced_accuracy"],
        "accuracy": scores["accuracy"], "kappa": scores["kappa"], "macro_f1": scores["macro_f1"],
        "val": train["best_score"], "best_epoch": train["best_epoch"], "steps": train["steps"],
        "parameters": train["parameters"], "train_seconds": train["train_seconds"], "wall_seconds": wall,
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    return result


if __name__ == "__main__":
    main()
