"""Self-correlation within a memory budget, beside unfold + einsum and beside a plain matrix product.

    python benchmarks/correlation.py [--rounds 5] [--large-stride 4] [--json]

Original shape: 8 maps of 384 channels and 32 x 32 positions, windows of 12 x 12, the eight best matches of each. The
peer unfolds, normalises, multiplies (einsum), masks near windows and takes the best; stride 4 is that of the original.
Times: both in one process, in turn, processor time on one thread, medians. Memory: each in a process of its own, the
growth of peak resident memory over one call after a small one, less results; input not counted.

Large: one map of 288 x 288 positions (an image of 3888 pixels) within 2 GB. The yardstick is one product of a matrix
with its transpose that has as many multiplications as all pairs of positions that are needed, N^2 C / s^2; where it
would not fit it is timed on some of its rows. Above 1 is possible, for a pair need not be multiplied twice.

Fails if the goals for the original shape and stride (10 times less memory, 5 times less time) or the budget are missed.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from outlast.model.correlation import self_correlation

PATCH, TOP, RADIUS = 12, 8, 12
ORIGINAL = (8, 384, 32, 32)
LARGE = (1, 384, 288, 288)
BUDGET_BYTES = 2 * 10**9
MEMORY_GOAL, TIME_GOAL = 10, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-stride", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.peak:
        print(peak_megabytes(asked.peak[0], int(asked.peak[1])))
        return
    load = os.getloadavg()[0]
    original = {f"stride {stride}": compare(stride, asked.rounds) for stride in (4, 1)}
    large = measure_large(asked.large_stride)
    if asked.json:
        print(json.dumps({"load": load, "original": original, "large": large}))
    else:
        report(original, large, load, asked.large_stride)
    first = original["stride 4"]
    if first["memory_ratio"] < MEMORY_GOAL or first["time_ratio"] < TIME_GOAL:
        raise SystemExit("the goals for the original shape are missed")
    if large["megabytes"] * 2**20 > BUDGET_BYTES:
        raise SystemExit("the budget is exceeded")


def ours(features: Tensor, stride: int) -> Tensor:
    return self_correlation(
        features, top=TOP, patch=PATCH, stride=stride, radius=RADIUS, budget_bytes=BUDGET_BYTES
    ).values


def by_unfolding(features: Tensor, stride: int) -> Tensor:
    """The peer; (B, TOP, rows, columns)."""
    rows, columns = ((size - PATCH) // stride + 1 for size in features.shape[-2:])
    windows = functional.normalize(functional.unfold(features, PATCH, stride=stride), dim=1)
    scores = torch.einsum("bcl,bcm->blm", windows, windows)
    place = torch.arange(rows * columns)
    y, x = place // columns * stride, place % columns * stride
    near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= RADIUS
    best, _ = scores.masked_fill_(near, torch.finfo(scores.dtype).min).topk(TOP)
    return best.transpose(1, 2).reshape(-1, TOP, rows, columns)


METHODS: dict[str, Callable[[Tensor, int], Tensor]] = {"ours": ours, "unfold": by_unfolding}


def compare(stride: int, rounds: int) -> dict[str, float]:
    """Seconds, peak megabytes and the largest difference at the original shape."""
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    difference = 0.0
    for number in range(rounds + 1):
        features = smooth(ORIGINAL, seed=number)
        values = {}
        for name, method in METHODS.items():
            began = time.process_time()
            values[name] = method(features, stride)
            if number:  # the first round is for warming up
                seconds[name].append(time.process_time() - began)
        there = values["unfold"] > torch.finfo(torch.float32).min
        difference = max(difference, float((values["ours"] - values["unfold"])[there].abs().max()))
    if difference > 1e-5:
        raise SystemExit(f"the results differ by {difference}")
    megabytes = {name: in_own_process(f"{name}-original", stride) for name in METHODS}
    return {
        **{f"{name}_seconds": statistics.median(values) for name, values in seconds.items()},
        **{f"{name}_megabytes": value for name, value in megabytes.items()},
        "time_ratio": statistics.median(b / a for a, b in zip(seconds["ours"], seconds["unfold"], strict=True)),
        "memory_ratio": megabytes["unfold"] / megabytes["ours"],
        "difference": difference,
    }


def measure_large(stride: int) -> dict[str, float]:
    """Seconds of the large map and of the plain product, alternately twice, the better of each; and the memory."""
    features = smooth(LARGE)
    positions, channels = features[0, 0].numel() // stride**2, features.shape[1] * stride**2
    rows = min(positions, 5184)
    matrix = torch.randn(positions, channels)
    times: dict[str, list[float]] = {"ours": [], "product": []}
    for _ in range(2):
        began = time.process_time()
        ours(features, stride)
        times["ours"].append(time.process_time() - began)
        began = time.process_time()
        matrix[:rows] @ matrix.T
        times["product"].append((time.process_time() - began) * positions / rows)
    return {
        "seconds": min(times["ours"]),
        "product_seconds": min(times["product"]),
        "throughput": min(times["product"]) / min(times["ours"]),
        "product_gflop_per_second": 2e-9 * positions**2 * channels / min(times["product"]),
        "megabytes": in_own_process("ours-large", stride),
        "backward_megabytes": in_own_process("gradient-large", stride),
    }


def in_own_process(what: str, stride: int) -> float:
    command = [sys.executable, __file__, "--peak", what, str(stride)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_megabytes(what: str, stride: int) -> float:
    """Growth of the peak over one call, less its results."""
    method, shape = what.split("-")
    features = smooth(ORIGINAL if shape == "original" else LARGE)
    small = features[:1, :16, :24, :24].clone()
    for _ in range(2):
        run(method, small, stride)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the input itself may have needed more
    filled = fill_to_peak()
    results = run(method, features, stride)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    del filled
    return (grown - sum(tensor.numel() * tensor.element_size() for tensor in results)) / 2**20


def fill_to_peak() -> Tensor:
    """What brings resident memory up to its peak so far, so that all growth is seen."""
    import psutil

    free = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - psutil.Process().memory_info().rss
    return torch.ones(max(free, 0), dtype=torch.uint8)


def run(method: str, features: Tensor, stride: int) -> list[Tensor]:
    if method != "gradient":
        return [METHODS[method](features, stride)]
    features = features.requires_grad_()
    values = ours(features, stride)
    return [values, *torch.autograd.grad(values.sum(), features)]


def smooth(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Features that resemble their neighbours."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return functional.avg_pool2d(noise, 3, 1, 1) + 0.5 * noise


def report(original: dict[str, dict[str, float]], large: dict[str, float], load: float, stride: int) -> None:
    print(f"load {load:.1f}; {ORIGINAL}, windows of {PATCH}")
    for name, row in original.items():
        print(
            f"{name}: unfold {row['unfold_seconds']:.3f} s, {row['unfold_megabytes']:.1f} MB; "
            f"ours {row['ours_seconds']:.3f} s, {row['ours_megabytes']:.1f} MB; "
            f"{row['time_ratio']:.1f} times less time, {row['memory_ratio']:.1f} times less memory, "
            f"largest difference {row['difference']:.1e}"
        )
    print(
        f"{LARGE}, stride {stride}: {large['seconds']:.2f} s, plain product {large['product_seconds']:.2f} s "
        f"({large['product_gflop_per_second']:.0f} GFLOP/s): throughput {large['throughput']:.2f} of it; "
        f"{large['megabytes']:.0f} MB, "
        f"with backward {large['backward_megabytes']:.0f} MB, of {BUDGET_BYTES / 2**20:.0f}"
    )


if __name__ == "__main__":
    main()
