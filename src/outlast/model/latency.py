"""How long a model takes for one input on the CPU: warmed up, in turns with what it is compared with, median of many.

Promises: every contender is called once in each round, so that whatever else the machine does meets all of them alike;
the number of threads is put back as it was. A result is a measurement of this machine at this moment, and no promise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

WARM_UP = 5  # calls
FEWEST, MOST = 20, 200  # rounds
SECONDS = 30.0  # after which only the fewest rounds are done

Open = Callable[[], Callable[[], Any]]  # makes ready, and returns what is called and timed


def latencies(
    contenders: Mapping[str, Open], threads: int, *, seconds: float | None = None
) -> dict[str, dict[str, float]]:
    """{name: {"median_seconds", "quartile_1_seconds", "quartile_3_seconds", "calls"}} with so many threads of torch.

    seconds: for all rounds together; none: SECONDS.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        calls = {name: opened() for name, opened in contenders.items()}
        for call in calls.values():
            for _ in range(WARM_UP):
                call()
        taken = _rounds(calls, SECONDS if seconds is None else seconds)
    finally:
        torch.set_num_threads(before)
    return {name: _summary(durations) for name, durations in taken.items()}


def _rounds(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() > until:
            break
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - began)
    return taken


def _summary(durations: Sequence[float]) -> dict[str, float]:
    first, median, third = np.quantile(durations, [0.25, 0.5, 0.75]).tolist()
    return {
        "median_seconds": median, "quartile_1_seconds": first, "quartile_3_seconds": third, "calls": len(durations)
    }  # fmt: skip
