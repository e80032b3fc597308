"""Tries on a GPU what the tests can't try without one, and prints a summary as JSON.

    scripts/gpu-check [--out summary.json] [--dry]

Mixed precision (fp16, bf16), memory that really runs out (before training and in the middle of it), bit-exact resume
(or the operations that stand in its way), and throughput: all with the task "plants" on synthetic leaves, in a few
minutes. `--dry` does the same on the CPU, to try this script itself. Exit codes: 0 all is well, 1 something is not,
2 there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Must be set before CUDA starts, or matrix products are not deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

import outlast
from outlast.base import accident
from outlast.base.files import sha256, write_json
from outlast.env import host
from outlast.env import memory as host_memory
from outlast.loop.memory import release
from outlast.loop.step import Stepper
from outlast.save.store import newest

BASE = ("train.batch_size=32", "train.epochs=2", "loading.workers=0")
MODEL = ("model.name=resnet18", "data.image_size=128")
DRY_MODEL = ("model.name=minimal", "data.image_size=64")  # what a CPU does in a few minutes


class Crash(BaseException):
    """An accident that nothing in the product catches, like a kill."""


def main() -> int:
    """Do all checks, print the summary, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the summary there")
    parser.add_argument("--dry", action="store_true", help="on the CPU, to try this script itself")
    asked = parser.parse_args()
    if not asked.dry and not torch.cuda.is_available():
        print(
            "error: there is no GPU that torch can use here; run this where there is one, or with --dry",
            file=sys.stderr,
        )
        return 2
    if asked.dry and torch.cuda.is_available():
        print("error: --dry is for machines without a GPU; set CUDA_VISIBLE_DEVICES= to hide it", file=sys.stderr)
        return 2
    summary: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "dry": asked.dry, **machine()}
    with tempfile.TemporaryDirectory(prefix="outlast-gpu-check-") as folder:
        for check in (precision, memory_before, memory_in_the_middle, exact_resume, throughput):
            summary[check.__name__] = tried(check, Path(folder))
    summary["ok"] = all(part["ok"] for part in summary.values() if isinstance(part, dict) and "ok" in part)
    print(json.dumps(summary, indent=2))
    if asked.out:
        write_json(asked.out, summary)
    return 0 if summary["ok"] else 1


def machine() -> dict[str, Any]:
    """What it runs on."""
    if not torch.cuda.is_available():
        return {"device": "cpu", "versions": host.versions()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gigabytes": round(properties.total_memory / 1e9, 1),
        "versions": {**host.versions(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
    }


def tried(check: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """A check's part of the summary; one that breaks is not ok, and the others go on."""
    began = time.monotonic()
    try:
        result = check(folder)
    except Exception as error:  # the outermost edge: the summary tells
        traceback.print_exc()
        result = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def precision(folder: Path) -> dict[str, Any]:
    """Each precision trains, with a finite score and a loss that falls."""
    wanted = ["fp32", "fp16"]
    if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False):
        wanted.append("bf16")
    losses = {}
    for name in wanted:
        run = train(folder / f"precision-{name}", f"train.precision={name}")
        losses[name] = [
            json.loads(line)["train_loss"] for line in (run / "train/metrics.jsonl").read_text().splitlines()
        ]
    return {"ok": all(loss[-1] < loss[0] for loss in losses.values()), "losses": losses}


def memory_before(folder: Path) -> dict[str, Any]:
    """The trial before training finds that the whole batch does not fit into what there is."""
    limit = needed_bytes(folder)
    rung = fit(train(folder / "before", f"train.memory_budget_gigabytes={limit / 1e9}"))
    return {"ok": rung["micro_batch"] < 32 and rung["events"][0]["step"] == 0, "limit_bytes": limit, "fit": rung}


def memory_in_the_middle(folder: Path) -> dict[str, Any]:
    """Memory becomes short after the third step: the step is rolled back, and training goes on with less."""
    limit, done = needed_bytes(folder), [0]

    def happen(place: str) -> None:
        done[0] += place == "stepped"
        if place == "stepped" and done[0] == 3 and torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)

    try:
        with hooked(happen), shortage_without_a_device(done):
            rung = fit(train(folder / "middle"))
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)
    steps = [event["step"] for event in rung["events"]]
    return {"ok": rung["micro_batch"] < 32 and bool(steps) and steps[0] >= 3, "limit_bytes": limit, "fit": rung}


def exact_resume(folder: Path) -> dict[str, Any]:
    """A run that was killed and resumed ends bit for bit where the uninterrupted one ends."""
    results = {}
    for kind, settings in (("as_it_is", ()), ("deterministic", ("train.deterministic=true",))):
        try:
            whole = last_weights(train(folder / f"whole-{kind}", *settings))
            results[kind] = whole == last_weights(resumed(folder / f"cut-{kind}", *settings))
        except RuntimeError as error:  # torch names the operation that has no deterministic form
            results[kind] = str(error).splitlines()[0]
    inexact = [] if results["as_it_is"] is True else inexact_operations(folder)
    ok = results["as_it_is"] is True or results["deterministic"] is True or bool(inexact)
    return {"ok": ok, "bit_equal": results, "inexact_operations": inexact}


def throughput(folder: Path) -> dict[str, Any]:
    """Images per second of training, evaluations included."""
    precision = "fp16" if torch.cuda.is_available() else "fp32"
    run = train(folder / "throughput", "train.epochs=6", f"train.precision={precision}")
    result = json.loads((run / "train/stage.json").read_text())["result"]
    images = json.loads((run / "run.json").read_text())["data"]["classifier"]["splits"]["train"]
    rate = images * result["epochs"] / result["train_seconds"]
    return {
        "ok": rate > 0,
        "images_per_second": round(rate, 1),
        "steps": result["steps"],
        "precision": precision,
    }


def needed_bytes(folder: Path) -> int:
    """Bytes that are too few for a batch of 32, and enough for a part of it: measured by a run without limit."""
    release()
    if not torch.cuda.is_available():
        before = host_memory.resident_bytes()
        host_memory.reset_peak()
        train(folder / f"measured-{time.monotonic_ns()}", "train.epochs=1")
        return (before + (host_memory.peak_bytes() or before)) // 2
    torch.cuda.reset_peak_memory_stats()
    train(folder / f"measured-{time.monotonic_ns()}", "train.epochs=1")
    return int(0.6 * torch.cuda.max_memory_reserved())


def resumed(run: Path, *settings: str) -> Path:
    """A run that was killed at its fifth step and went on."""
    done = [0]

    def happen(place: str) -> None:
        done[0] += place == "stepped"
        if place == "stepped" and done[0] == 5:
            raise Crash

    with hooked(happen), contextlib.suppress(Crash):
        train(run, "saving.every_steps=2", *settings)
    return train(run, "saving.every_steps=2", *settings)


def inexact_operations(folder: Path) -> list[str]:
    """What torch warns of when it is asked for deterministic operations."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    build = torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms = lambda *_, **__: None  # the product would switch it off again
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(folder / "warned", "train.epochs=1")
    finally:
        torch.use_deterministic_algorithms = build
        torch.use_deterministic_algorithms(False)
    return sorted({str(one.message).splitlines()[0][:160] for one in caught if "determinis" in str(one.message)})


def train(run: Path, *settings: str) -> Path:
    """Train the task plants on synthetic leaves."""
    model = MODEL if torch.cuda.is_available() else DRY_MODEL
    overrides = dict(setting.split("=", 1) for setting in (*BASE, *model, *settings))
    outlast.train(
        "plants",
        preset="smoke",
        synthetic=True,
        out=run,
        overrides=[f"{key}={value}" for key, value in overrides.items()],
    )
    return run


def fit(run: Path) -> dict[str, Any]:
    """What fitted in the end, and how that was found."""
    return dict(json.loads((run / "run.json").read_text())["rung"]["train"])


def last_weights(run: Path) -> str:
    """The hash of the last checkpoint's weights."""
    saved = newest(run / "train" / "checkpoints", [])
    assert saved is not None
    return sha256(saved.folder / "model.safetensors")


@contextlib.contextmanager
def hooked(happen: Callable[[str], None]) -> Iterator[None]:
    """Call `happen` at the places where a run may be killed on purpose."""
    before, accident.happen = accident.happen, happen
    try:
        yield
    finally:
        accident.happen = before


@contextlib.contextmanager
def shortage_without_a_device(done: list[int]) -> Iterator[None]:
    """On a CPU a pretended limit stands in for the device's: more than 8 samples fail after the third step."""
    if torch.cuda.is_available():
        yield
        return
    run = Stepper.run

    def refuse(self: Stepper, micro_batches: Any, *rest: Any) -> Any:
        if done[0] >= 3 and len(micro_batches[0]["row"]) > 8:
            raise torch.OutOfMemoryError("pretended: out of memory")
        return run(self, micro_batches, *rest)

    Stepper.run = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stepper.run = run  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
