"""What an exported network costs and is worth: a row for torch and for each ONNX precision.

Latency is that of one image on the CPU, as outlast.model.latency measures it: a measurement of this machine at this
moment, and no promise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlast.export.onnx_session import Run
from outlast.model import latency


@dataclass(frozen=True)
class Contender:
    """One row: its name, the bytes it takes, and run = open(threads)."""

    name: str
    size_bytes: int
    open: Callable[[int], Run]


def latencies(
    contenders: Sequence[Contender], images: Sequence[np.ndarray], threads: int
) -> dict[str, dict[str, float]]:
    """{name: {"median_seconds", "quartile_1_seconds", "quartile_3_seconds", "calls"}} of a call with `images`."""

    def opened(each: Contender) -> latency.Open:
        def ready() -> Callable[[], Any]:
            run = each.open(threads)
            return lambda: run(*images)

        return ready

    return latency.latencies({each.name: opened(each) for each in contenders}, threads)


def load() -> float | None:
    """How many processes wanted a core in the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def as_text(found: Mapping[str, Any]) -> str:
    """The table for people."""
    rows, machine = found["rows"], found["machine"]
    threads = found["latency"]["threads"]
    head = ["model", found["score"], "megabytes", *(f"ms, {count} thread{'s' * (count > 1)}" for count in threads)]
    lines = [head, *(_line(item, threads) for item in found["models"])]
    widths = [max(len(line[column]) for line in lines if column < len(line)) for column in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) for line in lines]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join(
        [
            f"{found['task']}: {rows['count']} examples ({rows['which']}); one image at a time, median (quartiles)",
            *(line.rstrip() for line in table),
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load']}; {versions}",
            *(["THE DATA ARE SYNTHETIC"] if found["synthetic"] else []),
        ]
    )


def _line(item: Mapping[str, Any], threads: Sequence[int]) -> list[str]:
    if "failed" in item:
        return [item["model"], f"FAILED: {item['failed']}"]
    cells = []
    for count in threads:
        one = {name: value * 1e3 for name, value in item["latency"][str(count)].items()}
        cells.append(f"{one['median_seconds']:.2f} ({one['quartile_1_seconds']:.2f}-{one['quartile_3_seconds']:.2f})")
    return [item["model"], f"{item['score']:.4f}", f"{item['bytes'] / 1e6:.2f}", *cells]
