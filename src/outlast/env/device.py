"""What this machine computes with, told without starting anything: name, memory, count. Imports torch when called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """kind: 'cuda' or 'cpu'; name as the driver tells it; bytes of one device's memory; how many there are."""

    kind: str
    name: str
    memory_bytes: int
    count: int


def detect() -> Accelerator:
    """The accelerator that training would use. A GPU that can't run a kernel is for the checks to find."""
    import psutil
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Accelerator("cuda", properties.name, int(properties.total_memory), torch.cuda.device_count())
    return Accelerator("cpu", processor(), int(psutil.virtual_memory().total), 0)


def default_preset(presets: list[str]) -> str:
    """The preset that fits this machine: 't4' for a GPU, 'cpu' without one, the first one otherwise."""
    import torch

    wanted = "t4" if torch.cuda.is_available() else "cpu"
    return wanted if wanted in presets else presets[0]


def processor() -> str:
    """The name of the CPU."""
    import platform
    from pathlib import Path

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no /proc here: the platform module's name is less telling but right
    return platform.processor() or platform.machine()
