"""What bit-for-bit equality hangs on besides configuration and data: versions, code, device, threads, processes.

Promises: it is written down for every session, and what is not as it was in the session before is told, one sentence
each. Nothing here refuses anything: a run may move to another machine or be updated, and then says so.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from outlast.env import host

_PACKAGE = Path(__file__).parents[1]
_ONE_VERSION = "bit-for-bit equality is promised only within one version"
_WHY = {
    "code of outlast": "bit-for-bit equality is promised only with the same code",
    "code of the task": "bit-for-bit equality is promised only with the same code",
    "device": "kernels compute other last bits on another device",
    "CPU capability": "kernels compute other last bits with other instructions",
    "BLAS kernels": "they compute other last bits with other instructions (OPENBLAS_CORETYPE chooses them)",
    "threads": "sums are rounded in another order with another number of threads",
    "processes": "sums are rounded in another order with another number of processes, and dropout draws other numbers",
}


def bounds(task_files: Iterable[Path], device: str, threads: int, processes: int) -> dict[str, str]:
    """{what: its value} of this session; `task_files` are the task's own source files."""
    import torch

    ours = [path for path in _PACKAGE.rglob("*.py") if not path.is_relative_to(_PACKAGE / "tasks")]
    return {
        **host.versions(),
        "code of outlast": code_hash(ours),
        "code of the task": code_hash(task_files),
        "device": device,
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "BLAS kernels": blas_kernels(),
        "threads": str(threads),
        "processes": str(processes),
    }


def blas_kernels() -> str:
    """What numpy and scipy multiply matrices with: 'openblas Haswell'."""
    import numpy  # noqa: F401 (so that its library is loaded)

    info = importlib.import_module("threadpoolctl").threadpool_info()  # comes with scikit-learn
    loaded = [each for each in info if each["user_api"] == "blas"]
    return ", ".join(sorted({f"{each['internal_api']} {each.get('architecture', '')}".strip() for each in loaded}))


def code_hash(files: Iterable[Path]) -> str:
    """A short hash of source files: their names and contents, wherever they lie."""
    hashes = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:12]


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One sentence for everything that is not as it was in the session before."""
    return [
        f"{name} {before[name]} -> {value} since the last session: {_WHY.get(name, _ONE_VERSION)}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]
