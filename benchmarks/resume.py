"""Resuming and saving: Outlast beside accelerate, Lightning and Hugging Face's Trainer, on the same model and data.

    python benchmarks/resume.py            # everything; needs lightning, transformers and torchdata
    python benchmarks/resume.py --quick    # a smoke run with one round of each part; of the peers only accelerate

Four parts. For each measurement a framework has a process of its own, and they take turns; resume_loops.py says how
each is used.

exact     Three epochs in one go; and again, saved in the middle of the second epoch, killed three steps later, resumed
          in a new process. Are the samples of every step the same, and how far apart are the final weights (largest
          absolute difference of any)? Without randomness, and with dropout and random augmentation, samples made in the
          training process or by two worker processes.
first     Seconds from just before a process is started to the end of its first optimizer step: a fresh start and a
          resume in turn, for a small model and for one of 25 million parameters. Files are in the page cache, and
          Outlast's decoded samples in its cache, for both. The ratio is the median of the rounds' ratios. Bytes of one
          checkpoint.
position  The same for an epoch of 110,000 steps of tiny samples, resumed at step 10 and at step 100,000 in turn; both
          checkpoints were really trained to.
stall     25 million parameters, a save every 2 K steps. Stall: the time between the two steps around a save less the
          usual one; also as processor time of the thread that trains, which a busy machine does not disturb but which
          leaves out waiting for the disk. Cost: the K steps after a save less the K steps after those, so that what a
          writer in the background takes from the training counts. The larger of stall and cost per 60 s is the
          overhead. Beside them, how long outlast.save.store.save takes for the same state in the same process:
          written, synced, hashed, verified.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {
    "outlast": ("outlast",),
    "accelerate": ("accelerate",),
    "acc-stateful": ("accelerate", "torchdata"),
    "lightning": ("lightning", "torchdata"),
    "transformers": ("transformers", "accelerate"),
}
CHECKPOINTS = {
    "outlast": "run/train/checkpoints/step-*",
    "accelerate": "step_*",
    "acc-stateful": "step_*",
    "lightning": "checkpoints/*.ckpt",
    "transformers": "checkpoints/checkpoint-*",
}
EPOCH, SAVED, TOTAL = 40, 50, 120  # steps of the part `exact`
CADENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    frameworks: tuple[str, ...]
    variants: tuple[tuple[str, int], ...]  # (case, worker processes)
    first_cases: tuple[str, ...]
    rounds: int
    long_case: str
    far: int
    window: int
    saves: int
    stall_rounds: int


FULL = Scale(
    frameworks=tuple(NEEDS), variants=(("small-fixed", 0), ("small", 0), ("small", 2)), first_cases=("small", "large"),
    rounds=7, long_case="long", far=100_000, window=40, saves=4, stall_rounds=3,
)  # fmt: skip
QUICK = Scale(
    frameworks=("outlast", "accelerate"), variants=(("small", 0),), first_cases=("large",),
    rounds=1, long_case="long-quick", far=2_000, window=12, saves=1, stall_rounds=1,
)  # fmt: skip


class Bench:
    """Starts the processes that are measured; everything they write lies in one folder."""

    def __init__(self, scratch: Path, threads: int) -> None:
        self.scratch, self.threads, self.count = scratch, threads, 0

    def run(self, framework: str, case: str, folder: str, **work: Any) -> dict[str, Any]:
        """One process, from its start to its planned death; what it noted. `weights` is the path of its last ones."""
        self.count += 1
        notes = self.scratch / f"notes-{self.count}.json"
        log = self.scratch / "log"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OUTLAST_CACHE": str(self.scratch / "cache"),
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
        }
        work = {"resume": False, **work, "framework": framework, "case": case, "threads": self.threads}
        work |= {"folder": str(self.scratch / folder), "notes": str(notes)}
        with log.open("w") as stream:
            work["began"] = time.monotonic()
            command = [sys.executable, __file__, "--worker", json.dumps(work)]
            done = subprocess.run(command, stdout=stream, stderr=stream, env=environment, check=False)
        if done.returncode or not notes.exists():
            raise SystemExit(f"{framework} {work} ended with {done.returncode}:\n{log.read_text()[-3000:]}")
        return {**json.loads(notes.read_text()), "weights": notes.with_suffix(".pt")}

    def cut(self, framework: str, case: str, folder: str, step: int, workers: int = 0) -> None:
        """Train from the start, save at `step`, die three steps later."""
        self.run(framework, case, folder, save_every=step, steps=step + 3, workers=workers, settle=True)

    def resume(self, framework: str, case: str, folder: str, step: int, **work: Any) -> dict[str, Any]:
        """Go on from the checkpoint of `step`; that it did is checked by the optimizer's own count."""
        noted = self.run(framework, case, folder, resume=True, **work)
        if noted["optimizer_steps"] != step + work["steps"]:
            raise SystemExit(f"{framework} did not go on from step {step}: {noted['optimizer_steps']} steps at the end")
        return noted

    def fresh_folder(self) -> str:
        """The name of a folder for one use; the one before is removed."""
        shutil.rmtree(self.scratch / "once", ignore_errors=True)
        return "once"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--only", nargs="+", choices=list(NEEDS))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training, in all of them")
    parser.add_argument("--scratch", type=Path, help="where checkpoints are written; none: a temporary folder")
    parser.add_argument("--json", type=Path, help="write every single number to this file, too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        sys.path.insert(0, str(ROOT))
        from benchmarks.resume_loops import Work, live

        live(Work(**json.loads(asked.worker)))
    scale = QUICK if asked.quick else FULL
    wanted = asked.only or scale.frameworks
    frameworks = [name for name in wanted if all(importlib.util.find_spec(package) for package in NEEDS[name])]
    results: dict[str, Any] = {"about": about(frameworks, asked.threads)}
    print(json.dumps(results["about"]), flush=True)
    for absent in sorted(set(wanted) - set(frameworks)):
        print(f"{absent} is left out: it needs {', '.join(NEEDS[absent])}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        for part in asked.parts:
            measure, table = PARTS[part]
            results[part] = measure(Bench(Path(scratch), asked.threads), frameworks, scale)
            print(f"\n{part}\n{table(results[part])}", flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(results, indent=1))
            for path in Path(scratch).iterdir():  # checkpoints of 300 MB each
                if path.name != "cache":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def measure_exact(bench: Bench, frameworks: list[str], scale: Scale) -> dict[str, Any]:
    """{framework: [a variant's differences]}."""
    results: dict[str, Any] = {}
    for name in frameworks:
        results[name] = []
        for case, workers in scale.variants:
            folder = f"{name}-{case}-{workers}"
            work = {"save_every": SAVED, "workers": workers}
            whole = bench.run(name, case, f"{folder}-whole", steps=TOTAL, **work)
            bench.cut(name, case, folder, SAVED, workers=workers)
            resumed = bench.resume(name, case, folder, SAVED, steps=TOTAL - SAVED, **work)
            results[name].append(
                {
                    "case": case,
                    "workers": workers,
                    "largest_difference": difference(whole["weights"], resumed["weights"]),
                    "same_samples": whole["order"][SAVED:] == resumed["order"],
                    "same_samples_in_this_epoch": whole["order"][SAVED : 2 * EPOCH]
                    == resumed["order"][: 2 * EPOCH - SAVED],
                }
            )
    return results


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference of any weight or buffer."""
    import torch

    first, second = torch.load(one), torch.load(other)
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def measure_first(bench: Bench, frameworks: list[str], scale: Scale) -> dict[str, Any]:
    """{case: {framework: seconds of fresh starts and of resumes by round, and bytes of a checkpoint}}."""
    results: dict[str, Any] = {}
    for case in scale.first_cases:
        rows = results[case] = {name: {"fresh_seconds": [], "resumed_seconds": []} for name in frameworks}
        for name in frameworks:
            bench.cut(name, case, f"{name}-{case}", 10)
            rows[name]["checkpoint_bytes"] = checkpoint_bytes(bench.scratch / f"{name}-{case}", name)
        for number in range(scale.rounds):
            for name in turned(frameworks, number):
                fresh = bench.run(name, case, bench.fresh_folder(), save_every=1000, steps=1)
                resumed = bench.resume(name, case, f"{name}-{case}", 10, save_every=1000, steps=1)
                rows[name]["parameters"] = fresh["parameters"]
                rows[name]["fresh_seconds"].append(fresh["first_step_seconds"])
                rows[name]["resumed_seconds"].append(resumed["first_step_seconds"])
        for row in rows.values():
            row["resumed_to_fresh"] = ratio(row["resumed_seconds"], row["fresh_seconds"])
    return results


def checkpoint_bytes(folder: Path, framework: str) -> int:
    """Bytes of the newest checkpoint."""
    newest = max(folder.glob(CHECKPOINTS[framework]), key=lambda path: path.stat().st_mtime)
    files = newest.rglob("*") if newest.is_dir() else [newest]
    return sum(path.stat().st_size for path in files if path.is_file())


def measure_position(bench: Bench, frameworks: list[str], scale: Scale) -> dict[str, Any]:
    """{framework: seconds to the first step when resumed at a near and at a far step, by round}."""
    near, far = 10, scale.far
    for name in frameworks:
        for step in (near, far):
            bench.cut(name, scale.long_case, f"{name}-{step}", step)
    results: dict[str, Any] = {name: {"near": near, "far": far} for name in frameworks}
    for number in range(scale.rounds):
        for name in turned(frameworks, number):
            for label, step in (("near_seconds", near), ("far_seconds", far)):
                noted = bench.resume(name, scale.long_case, f"{name}-{step}", step, save_every=10**9, steps=1)
                results[name].setdefault(label, []).append(noted["first_step_seconds"])
    for row in results.values():
        row["far_to_near"] = ratio(row["far_seconds"], row["near_seconds"])
    return results


def measure_stall(bench: Bench, frameworks: list[str], scale: Scale) -> dict[str, Any]:
    """{framework: seconds of each save's stall and cost, of a usual step, and of synchronous saves}."""
    window = scale.window
    lists = ("stall_seconds", "processor_stall_seconds", "cost_seconds", "step_seconds", "synchronous_save_seconds")
    results: dict[str, Any] = {name: {key: [] for key in lists} for name in frameworks}
    for number in range(scale.stall_rounds):
        for name in turned(frameworks, number):
            noted = bench.run(
                name, "large", bench.fresh_folder(), save_every=2 * window, steps=2 * window * (scale.saves + 1),
                settle=True, synchronous_saves=3,
            )  # fmt: skip
            gaps, processor_gaps = between(noted["times"]), between(noted["processor_times"])
            row = results[name]
            for save in range(1, scale.saves + 1):
                first = 2 * window * save - 1  # the time between the two steps around this save
                after, later = slice(first, first + window), slice(first + window, first + 2 * window)
                row["step_seconds"].append(statistics.median(gaps[later]))
                row["stall_seconds"].append(gaps[first] - row["step_seconds"][-1])
                row["processor_stall_seconds"].append(processor_gaps[first] - statistics.median(processor_gaps[later]))
                row["cost_seconds"].append(sum(gaps[after]) - sum(gaps[later]))
            row["synchronous_save_seconds"] += noted.get("synchronous_save_seconds", [])
    return results


def between(times: list[float]) -> list[float]:
    """The time from each step to the next."""
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def table_exact(results: dict[str, Any]) -> str:
    rows = []
    for name, variants in results.items():
        for row in variants:
            kind = "no randomness" if row["case"] == "small-fixed" else "dropout, augmentation"
            same = "yes" if row["same_samples"] else "this epoch" if row["same_samples_in_this_epoch"] else "no"
            rows.append([name, kind, str(row["workers"]), f"{row['largest_difference']:.2g}", same])
    return aligned(["", "randomness", "workers", "largest difference of weights", "same samples"], rows)


def table_first(results: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['parameters']:,}",
            seconds(row["fresh_seconds"]),
            seconds(row["resumed_seconds"]),
            f"{row['resumed_to_fresh']:.3f}",
            f"{row['checkpoint_bytes'] / 1e6:.2f}",
        ]
        for frameworks in results.values()
        for name, row in frameworks.items()
    ]
    return aligned(["", "parameters", "fresh s", "resumed s", "resumed / fresh", "checkpoint MB"], rows)


def table_position(results: dict[str, Any]) -> str:
    rows = [
        [name, seconds(row["near_seconds"]), seconds(row["far_seconds"]), f"{row['far_to_near']:.3f}"]
        for name, row in results.items()
    ]
    one = next(iter(results.values()))
    return aligned(["", f"at step {one['near']} s", f"at step {one['far']} s", "far / near"], rows)


def table_stall(results: dict[str, Any]) -> str:
    synchronous = [one for row in results.values() for one in row["synchronous_save_seconds"]]
    rows = []
    for name, row in results.items():
        stall, cost = statistics.median(row["stall_seconds"]), statistics.median(row["cost_seconds"])
        share = f"{stall / statistics.median(synchronous):.1%}" if synchronous else "-"
        overhead = f"{max(cost, stall) / CADENCE_SECONDS:.2%}"
        rows.append(
            [
                name,
                *(seconds(row[f"{key}_seconds"]) for key in ("step", "stall", "processor_stall", "cost")),
                share,
                overhead,
            ]
        )
    heads = ["", "step s", "stall s", "stall, processor s", "cost s", "stall / synchronous save", "overhead every 60 s"]
    text = aligned(heads, rows)
    return text + (f"\na synchronous save of ours: {seconds(synchronous)} s" if synchronous else "")


PARTS = {
    "exact": (measure_exact, table_exact),
    "first": (measure_first, table_first),
    "position": (measure_position, table_position),
    "stall": (measure_stall, table_stall),
}


def about(frameworks: list[str], threads: int) -> dict[str, Any]:
    """Versions and machine."""
    packages = dict.fromkeys(package for name in frameworks for package in NEEDS[name])
    versions = {package: importlib.metadata.version(package) for package in ("torch", *packages)}
    python = sys.version.partition(" ")[0]
    return {"python": python, **versions, "cores": os.cpu_count(), "threads": threads, "load": os.getloadavg()}


def turned(names: list[str], number: int) -> list[str]:
    """Another one first in every round."""
    start = number % len(names)
    return names[start:] + names[:start]


def ratio(values: list[float], others: list[float]) -> float:
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def seconds(values: list[float]) -> str:
    """Median and, of several, quartiles."""
    if len(values) < 4:
        return f"{statistics.median(values):.3f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def aligned(heads: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [heads, *rows]
    )


if __name__ == "__main__":
    main()
