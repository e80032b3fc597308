"""Frames that look alike: thumbnails, where a video changes to another scene, near-duplicates across a split.

Promises: one small decode per frame serves both uses; results depend on the pictures alone; comparing 50,000 frames
with each other takes seconds, since only frames that share a band of bits are compared.
Does not do: decide a split (split.py).

Perceptual hash: a difference hash (dHash) of 64 bits, the sign of the change of brightness between neighbours in an
8 x 9 grid. Two hashes that differ in at most t bits agree in at least one of t + 1 bands (pigeonhole).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.data.readers import raise_damaged, read_image, resize
from outlast.errors import DataError

UInt8 = npt.NDArray[np.uint8]
UInt64 = npt.NDArray[np.uint64]

HEIGHT, WIDTH = 16, 18  # of a thumbnail: twice the grid of the hash
_PART = 256  # pictures that a thread reads at a time
_AROUND = 5  # frames before and after a possible boundary; a flash or a damaged frame is outvoted by the others
_LEAST_CHANGE = 10.0  # grey levels, on average over the thumbnail: less is motion, not another scene
_OVER_MOTION = 5.0  # a boundary must change this much more than the video does as a rule
_MOST_COMPARED = 2_000_000  # pairs of hashes at a time
_SHOWN = 5  # pairs of near-duplicates in a report


def thumbnails(paths: Sequence[Path], *, threads: int = 2) -> UInt8:
    """(N, 16, 18) grey values of pictures. Raises one DataError that names every picture that can't be read."""
    result = np.zeros((len(paths), HEIGHT, WIDTH), np.uint8)

    def fill(numbers: range) -> list[str]:
        problems = []
        for number in numbers:
            try:
                picture = read_image(paths[number], channels=1, at_least=(2 * HEIGHT, 2 * WIDTH))
            except DataError as error:
                problems.append(error.message)
            else:
                result[number] = resize(picture, (HEIGHT, WIDTH))[:, :, 0]
        return problems

    parts = [range(start, min(start + _PART, len(paths))) for start in range(0, len(paths), _PART)]
    with ThreadPoolExecutor(threads) as pool:
        problems = [problem for found in pool.map(fill, parts) for problem in found]
    raise_damaged(problems, len(paths))
    return result


def boundaries(frames: UInt8) -> npt.NDArray[np.int64]:
    """Positions at which a new scene begins, in frames (N, h, w) in the order of time; none in a set of stills.

    Compared are the medians of the five frames before and after each place, so that a single bad frame is no boundary;
    a change counts if it is the largest around, at least 10 grey levels and 5 times what the video changes as a rule.
    """
    count = len(frames)
    if count < 4 * _AROUND:
        return np.empty(0, dtype=np.int64)
    flat = frames.reshape(count, -1)
    windows = np.stack([flat[shift : count - _AROUND + 1 + shift] for shift in range(_AROUND)])
    middle = np.partition(windows, _AROUND // 2, axis=0)[_AROUND // 2].astype(np.int16)  # of frames n..n+4
    change = np.abs(middle[_AROUND:] - middle[:-_AROUND]).mean(axis=1)  # between n..n+4 and n+5..n+9
    usual = float(np.median(change))
    large = np.flatnonzero(change > max(_LEAST_CHANGE, _OVER_MOTION * usual))
    peaks: list[int] = []
    for place in large[np.argsort(-change[large], kind="stable")].tolist():
        if all(abs(place - other) >= 2 * _AROUND for other in peaks):
            peaks.append(place)
    steps = np.abs(np.diff(flat.astype(np.int16), axis=0)).mean(axis=1)  # steps[n]: from frame n to n + 1
    # The medians change over a few frames; the boundary is where the largest single step among them is.
    half = _AROUND // 2
    first = [place + _AROUND - 1 - half for place in sorted(peaks)]
    return np.asarray([start + int(np.argmax(steps[start : start + _AROUND])) + 1 for start in first], dtype=np.int64)


def perceptual_hashes(frames: UInt8) -> UInt64:
    """(N,) the 64 bits of the difference hash of thumbnails (N, 16, 18)."""
    grid = frames.reshape(len(frames), HEIGHT // 2, 2, WIDTH // 2, 2).sum(axis=(2, 4), dtype=np.int32)
    bits = (grid[:, :, 1:] > grid[:, :, :-1]).reshape(len(frames), 64)
    packed = np.packbits(bits, axis=1).astype(np.uint64)
    shifts = np.arange(56, -1, -8, dtype=np.uint64)
    return np.asarray(np.bitwise_or.reduce(packed << shifts, axis=1), dtype=np.uint64)


def near_duplicates(
    hashes: UInt64, splits: npt.NDArray[Any], ids: Sequence[str], *, most_bits: int
) -> dict[str, dict[str, Any]]:
    """{"train-val": {"frames", "of", "pairs"}, ...}: frames of the second split that have a look-alike in the first.

    Alike: at most `most_bits` of 64 bits differ. pairs: the first few, as [id, id, bits that differ].
    """
    names = [name for name in ("train", "val", "test") if np.any(splits == name)]
    report: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(names):
        for two in names[number + 1 :]:
            first, second = np.flatnonzero(splits == one), np.flatnonzero(splits == two)
            known, where = np.unique(hashes[first], return_index=True)
            asked, back = np.unique(hashes[second], return_inverse=True)
            nearest = _nearest(known, asked, most_bits)
            of_frame = nearest[back.reshape(-1)]
            alike = np.flatnonzero(of_frame >= 0)
            pairs = [
                [ids[first[where[of_frame[at]]]], ids[second[at]], _bits(known[of_frame[at]], hashes[second[at]])]
                for at in alike[:_SHOWN].tolist()
            ]
            report[f"{one}-{two}"] = {"frames": len(alike), "of": len(second), "pairs": pairs}
    return report


def _nearest(known: UInt64, asked: UInt64, most_bits: int) -> npt.NDArray[np.int64]:
    """For each hash asked, the position of a known one within `most_bits`; -1 where there is none."""
    found = np.full(len(asked), -1, dtype=np.int64)
    edges = [64 * band // (most_bits + 1) for band in range(most_bits + 2)]
    for low, high in itertools.pairwise(edges):
        mask = np.uint64((1 << (high - low)) - 1)
        key = (known >> np.uint64(low)) & mask
        order = np.argsort(key, kind="stable")
        sorted_key = key[order]
        open_ = np.flatnonzero(found < 0)
        wanted = (asked[open_] >> np.uint64(low)) & mask
        start = np.searchsorted(sorted_key, wanted, side="left")
        count = np.searchsorted(sorted_key, wanted, side="right") - start
        for part in _parts(count):
            _compare(known, asked, order, open_[part], start[part], count[part], most_bits, found)
    return found


def _compare(
    known: UInt64,
    asked: UInt64,
    order: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    most_bits: int,
    found: npt.NDArray[np.int64],
) -> None:
    """Compare each of `rows` with the `count` known hashes from `start` on; fill in `found`."""
    mine = np.repeat(np.arange(len(rows)), count)
    place = np.arange(len(mine)) - np.repeat(np.cumsum(count) - count, count) + start[mine]
    other = order[place]
    hit = _differing(asked[rows[mine]], known[other]) <= most_bits
    found[rows[mine[hit]]] = other[hit]


def _parts(count: npt.NDArray[np.int64]) -> list[slice]:
    """Slices with about `_MOST_COMPARED` comparisons each."""
    if not len(count):
        return []
    part = np.cumsum(count) // _MOST_COMPARED
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(count)]
    return [slice(one, two) for one, two in itertools.pairwise(edges)]


def _differing(one: UInt64, two: UInt64) -> npt.NDArray[np.int64]:
    """How many of 64 bits differ, for arrays (N,). (numpy's own bitwise_count is newer than the oldest we support.)"""
    left = one ^ two
    fives, threes, ones = (np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
    left = left - ((left >> np.uint64(1)) & fives)
    left = (left & threes) + ((left >> np.uint64(2)) & threes)
    left = (left + (left >> np.uint64(4))) & ones
    return np.asarray((left * np.uint64(0x0101010101010101)) >> np.uint64(56), dtype=np.int64)


def _bits(one: np.uint64, two: np.uint64) -> int:
    return int(_differing(np.array([one]), np.array([two]))[0])


def sentence(report: Mapping[str, Mapping[str, Any]], most_bits: int) -> str:
    """The report of near-duplicates in one sentence."""
    found = [f"{item['frames']} of {item['of']} ({name})" for name, item in report.items() if item["frames"]]
    limit = f"at most {most_bits} of 64 bits of the perceptual hash differ"
    return f"near-duplicate frames across splits ({limit}): {', '.join(found) if found else 'none'}"
