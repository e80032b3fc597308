"""How well `outlast plan` predicts: planned against real seconds of every stage, by the commands that a user types.

    python benchmarks/plan.py                                   # plants, preset smoke, synthetic data
    python benchmarks/plan.py --rounds 3 --data ../shared/data/plants/rice train.minimum_steps=0 train.epochs=5

A round plans, trains, and plans again from what the run recorded (`--run`). Other work on the machine in only one
of the two spoils the ratio: take several rounds. Prints each stage, then planned/real of the training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Plan, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--data")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    words = ["plants", "--preset", asked.preset, *(["--data", asked.data] if asked.data else []), *asked.overrides]
    ratios = [ratio for _ in range(asked.rounds) if (ratio := one_round(words))]
    print(f"planned/real seconds of training, median of {len(ratios)}: {statistics.median(ratios):.2f}")


def one_round(words: list[str]) -> float:
    """Planned seconds of the training over its real ones."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        before = outlast("plan", *words)
        outlast("train", *words, "--out", str(run))
        after = outlast("plan", "plants", "--run", str(run))
        [session] = json.loads((run / "run.json").read_text())["sessions"]
    real = session["stages"]
    for name in real:
        first, second = planned(before, name), planned(after, name)
        print(f"{name:<12} planned {first:8.2f} s, from the run {second:8.2f} s, real {real[name]:8.2f} s")
    startup = before["measurement"]["startup_seconds"]
    beside = session["seconds"] - sum(real.values())
    print(f"{'startup':<12} planned {startup:8.2f} s with imports, real {beside:8.2f} s without them")
    return planned(before, "train") / real["train"]


def planned(plan: dict[str, Any], name: str) -> float:
    """The planned seconds of a stage."""
    return float(next(stage["seconds"] for stage in plan["stages"] if stage["stage"] == name))


def outlast(*words: str) -> dict[str, Any]:
    """What a command prints with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "outlast", *words, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
