"""How long `outlast --help` takes, as a ratio to importing the two libraries that it needs anyway (typer and pydantic).

    python benchmarks/startup.py [--rounds 15]

Both are started in turn, as processes, and the medians are compared: other load on the machine meets both alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(*words: str) -> float:
    """How long the process takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(seconds("-c", "import typer, pydantic"))
        ours.append(seconds("-m", "outlast", "--help"))
    ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
    print(f"import typer, pydantic: {statistics.median(theirs):.3f} s, outlast --help: {statistics.median(ours):.3f} s")
    print(f"ratio: {ratio:.2f} (median of {rounds} pairs)")


if __name__ == "__main__":
    main()
