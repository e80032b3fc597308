"""Files per second of looking at images before training: PIL's verify beside what `outlast check` does.

    python benchmarks/scan.py --data ../shared/data/plants/potato --files 40000

All on the same files, in the page cache, on two cores, in turns. PIL's verify runs in two processes, its fastest way
here (threads are slower than one thread: opening is Python code). Note what it does: of a JPEG it reads the header
only, of a PNG all chunks with their checksums; it decodes nothing, so that a truncated JPEG passes.

    headers       our look at every file: format, mode, size, animation; the files are listed `--files` times over
    headers again the same with what was remembered from the first time: a stat for each file
    decode        our first scan: every file decoded and resized into the cache that training uses (damage shows here)
    decode again  our later scans: the cache is opened, and the notes beside it are read
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from outlast.check.reading import Reading
from outlast.data.look import look_at
from outlast.data.readers import hash_files, list_images
from outlast.tasks.plants import TASK

CORES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one sub-folder of images per class")
    parser.add_argument("--files", type=int, default=40_000, help="the images are taken again and again up to this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    images = [str(path) for path in list_images(arguments.data)]
    hash_files(images)  # so that all read from the page cache
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        many = _linked(images, arguments.files, Path(folder))
        for number in range(arguments.rounds):
            scratch = Path(folder) / f"scratch-{number}"
            scratch.mkdir()
            memo = scratch / "memo.json"
            for name, count, work in (
                ("verify", len(many), lambda: verified(many)),
                ("headers", len(many), lambda memo=memo: look_at(many, memo=memo, cores=CORES)),
                ("headers again", len(many), lambda memo=memo: look_at(many, memo=memo, cores=CORES)),
                ("decode", len(images), lambda scratch=scratch: scanned(arguments.data, scratch)),
                ("decode again", len(images), lambda scratch=scratch: scanned(arguments.data, scratch)),
            ):
                rates.setdefault(name, []).append(count / seconds(work))
    report(rates, arguments.json)


def verified(paths: list[str]) -> None:
    """PIL's verify over all files in two processes."""
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_verify, [paths[start::CORES] for start in range(CORES)]))


def scanned(data: Path, scratch: Path) -> float:
    """What the checks read of the data of the task plants, preset cpu; seconds without listing and hashing."""
    config, learner = TASK.presets["cpu"](), TASK.learners["classifier"]
    reading = Reading(learner, config, learner.examples(config, {"data": data}), scratch, CORES)
    began = time.perf_counter()
    if not reading.samples.whole:
        raise SystemExit("some files are damaged; take whole ones for a benchmark")
    return time.perf_counter() - began


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes; or what it says itself, if it measures."""
    began = time.perf_counter()
    told = work()
    return told if isinstance(told, float) else time.perf_counter() - began


def report(rates: dict[str, list[float]], as_json: bool) -> None:
    """Medians, and their ratio to verify in the same round."""
    result: dict[str, Any] = {
        name: {
            "files_per_second": round(statistics.median(values)),
            "of_verify": round(statistics.median([a / b for a, b in zip(values, rates["verify"], strict=True)]), 2),
            "range": [round(min(values)), round(max(values))],
        }
        for name, values in rates.items()
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{'':<14} {'files/s':>9} {'of verify':>9}   range")
    for name, row in result.items():
        low, high = row["range"]
        print(f"{name:<14} {row['files_per_second']:>9,} {row['of_verify']:>9.2f}   {low:,}-{high:,}")


def _linked(images: list[str], count: int, folder: Path) -> list[str]:
    """`count` names, each a link to one of the images, so that each has to be opened by a name of its own."""
    names = []
    for number in range(count):
        source = images[number % len(images)]
        name = folder / f"{number:06d}{Path(source).suffix}"
        name.symlink_to(Path(source).absolute())
        names.append(str(name))
    return names


def _verify(paths: list[str]) -> int:
    for path in paths:
        with Image.open(path) as image:
            image.verify()
    return len(paths)


if __name__ == "__main__":
    main()
