"""Training memory of the plants ladder on a CPU, beyond what the framework itself holds.

    python benchmarks/memory.py [--size 64] [--batch 32]

Each model runs in a process of its own: resident memory after a warm-up step of a tiny network (torch's own share) is
subtracted from the peak over three AdamW steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

LIMITS_MEGABYTES = {"sclusterformer": 2048, "minimal": 1024, "tiny": 100}
CASES = (("sclusterformer", "defaults"), ("sclusterformer", "cpu"), ("minimal", "cpu"), ("tiny", "cpu"))


def main() -> None:
    """Measure each model in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(f"{measure(*asked.one, asked.size, asked.batch):.0f}")
        return
    print(f"peak MB beyond the framework, {asked.size} px, batch {asked.batch}")
    for model, settings in CASES:
        command = [sys.executable, __file__, "--one", model, settings]
        command += ["--size", str(asked.size), "--batch", str(asked.batch)]
        megabytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{model:<16} {settings:<10} {megabytes:>6}   limit at 64 px, batch 32: {LIMITS_MEGABYTES[model]}")


def measure(name: str, settings: str, size: int, batch: int) -> float:
    """Megabytes of the peak of three training steps, less what was resident before."""
    import resource

    import psutil
    import torch

    from outlast.tasks.plants.config import PlantsConfig, cpu
    from outlast.tasks.plants.models import build

    config = cpu() if settings == "cpu" else PlantsConfig()
    warm = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    steps(warm, torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))
    before = psutil.Process().memory_info().rss
    own = config.model.sclusterformer.settings() if name == "sclusterformer" else None
    steps(build(name, 4, settings=own), torch.randn(batch, 3, size, size), torch.arange(batch) % 4)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20


def steps(model: object, images: object, labels: object) -> None:
    """Three training steps."""
    import torch

    assert isinstance(model, torch.nn.Module)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
