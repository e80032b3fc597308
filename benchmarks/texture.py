"""GLCM contrast and energy of a band: our kernel beside scikit-image's functions window by window.

    python benchmarks/texture.py --data ../shared/data/glaciers/everest

On tiles of a real band (`--data`: a folder in the competition's layout; without it a synthetic one of the same size),
one thread. In each round ours takes all the tiles, scikit-image the first one, and the next round is about other tiles;
what is compared is the processor time per pixel. The results are compared too: it fails if they differ by more than
1e-6. The goal is a ratio of at least 50 with the defaults.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from skimage.feature import graycomatrix, graycoprops

from outlast.data.texture import Texture, glcm, quantised

Image = npt.NDArray[np.float64]
CASES = (
    ("defaults", Texture()),
    ("32 levels", Texture(levels=32)),
    ("window 15", Texture(window=15)),
    ("window 15, distances 1 and 2, 32 levels", Texture(window=15, distances=(1, 2), levels=32)),
)
GOAL = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder that holds Band1, Band2, ...; none: a synthetic band")
    parser.add_argument("--band", default="Band4")
    parser.add_argument("--tiles", type=int, default=8, help="per round, of our kernel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    tiles = real(asked.data / asked.band) if asked.data else synthetic(asked.tiles)
    value_range = (min(float(tile.min()) for tile in tiles), max(float(tile.max()) for tile in tiles))
    found = {name: compare(tiles, settings, value_range, asked) for name, settings in CASES}
    report(found, as_json=asked.json)
    if found["defaults"]["ratio"] < GOAL:
        raise SystemExit(f"with the defaults less than {GOAL} times faster")


def compare(
    tiles: list[Image], settings: Texture, value_range: tuple[float, float], asked: argparse.Namespace
) -> dict[str, float]:
    """Microseconds of processor time per pixel, medians over rounds; the ratio is the median of the rounds' ratios."""
    ours, theirs, differences = [], [], []
    for number in range(asked.rounds):
        chosen = [tiles[(number * asked.tiles + n) % len(tiles)] for n in range(asked.tiles)]
        began = time.process_time()
        results = [glcm(tile, settings, value_range) for tile in chosen]
        ours.append((time.process_time() - began) / sum(tile.size for tile in chosen) * 1e6)
        levels = quantised(chosen[0], settings.levels, value_range).astype(np.uint8)
        began = time.process_time()
        expected = by_windows(levels, settings)
        theirs.append((time.process_time() - began) / levels.size * 1e6)
        differences.append(float(np.max(np.abs(results[0] - expected) / np.maximum(expected, 1))))
    if max(differences) > 1e-6:
        raise SystemExit(f"the results differ by {max(differences)}")
    return {
        "scikit_image": statistics.median(theirs),
        "ours": statistics.median(ours),
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "lowest": min(b / a for a, b in zip(ours, theirs, strict=True)),
        "difference": max(differences),
    }


def by_windows(levels: npt.NDArray[np.uint8], settings: Texture) -> Image:
    """Contrast and energy (2, H, W) the usual way: a matrix per window, all distances and angles in one call."""
    half, angles = settings.window // 2, np.deg2rad(settings.angles)
    result = np.empty((2, *levels.shape))
    for y in range(levels.shape[0]):
        for x in range(levels.shape[1]):
            window = levels[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
            matrix = graycomatrix(
                window, settings.distances, angles, settings.levels, symmetric=settings.symmetric, normed=True
            )
            result[0, y, x] = graycoprops(matrix, "contrast").mean()
            result[1, y, x] = graycoprops(matrix, "energy").mean()
    return result


def real(folder: Path) -> list[Image]:
    """Every tile of one band."""
    import warnings

    import rasterio

    tiles = []
    for path in sorted(folder.glob("*.tif")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                tiles.append(source.read(1).astype(np.float64))
    if not tiles:
        raise SystemExit(f"there is no .tif in {folder}")
    return tiles


def synthetic(count: int) -> list[Image]:
    """Rough and smooth ground, 64 pixels square."""
    noise = np.random.default_rng(0).normal(size=(count, 64, 64))
    return list(np.cumsum(np.cumsum(noise, axis=1), axis=2))


def report(found: dict[str, dict[str, float]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    print("| us per pixel | scikit-image, window by window | Outlast | ratio | lowest of a round |")
    print("|---|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['scikit_image']:.0f} | {row['ours']:.2f} | {row['ratio']:.0f} | {row['lowest']:.0f} |")
    print(f"largest difference: {max(row['difference'] for row in found.values()):.1e}")


if __name__ == "__main__":
    main()
