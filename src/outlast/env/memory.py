"""This machine's memory: what is available (a container's limit included), and what this process takes of it.

Read from /proc and the control groups of Linux. What can't be read there is None, never a guess. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 2**60  # version 1 of the control groups writes "no limit" as a number near 2**63


def available_bytes() -> int:
    """Bytes that this process may still take before the machine swaps or the container's limit kills it."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def resident_bytes() -> int:
    """Bytes of memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def reset_peak(process: Path = Path("/proc/self")) -> bool:
    """Let the high-water mark of the resident memory begin anew; False where the system does not allow it."""
    try:
        (process / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(process: Path = Path("/proc/self")) -> int | None:
    """The most that was resident since `reset_peak`; None where the system does not tell."""
    try:
        lines = (process / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    marks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 if marks else None


def _left_in_groups(process: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What is left under the limit of each control group that this process is in, outer ones included."""
    try:
        lines = (process / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = mounts / controllers
        # Inside a container the path may be the host's: then only the root is there, and it is the container's own.
        inner = [root / part for part in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents)]
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        for group in inner:
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None and limit < _UNLIMITED:
                yield max(limit - used + _statistic(group / "memory.stat", names[2]), 0)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _statistic(path: Path, name: str) -> int:
    """Bytes of file contents that count as used but are given back at once when they are needed."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
