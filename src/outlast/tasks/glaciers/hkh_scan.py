"""All patches of an HKH folder measured: in threads, each read once, and remembered between runs.

The memory is one JSON file per data folder; a patch is known by the names, sizes and times of its two files. It is
saved every half minute, so that an interrupted first reading of hundreds of gigabytes goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

from outlast.base.files import write_text
from outlast.base.log import Progress
from outlast.errors import OutlastError
from outlast.tasks.glaciers.hkh_pairs import Pair, refuse
from outlast.tasks.glaciers.hkh_patch import Measured, measure

_SETTLED_SECONDS = 2.0  # a file younger than this may change again without its time stamp showing it
_SAVE_SECONDS = 30.0
_FORMAT = 1  # of the memory: raised when what is measured changes


def measure_all(
    root: Path, pairs: Sequence[Pair], channels: int, *, cache: Path | None, threads: int
) -> list[Measured]:
    """What is in each patch, in order. cache: the folder of the memory; none: all files are read.

    Raises one DataError that names every patch that can't be used.
    """
    memo = None if cache is None else cache / f"hkh-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"
    known = _load(memo)
    fresh: dict[str, Measured] = {}

    def look(pair: Pair) -> Measured | str:
        try:
            key, changed = _key(root, pair, channels)
            if key in known:
                return known[key]
            found = measure(root / pair.image, root / pair.mask, channels)
        except OutlastError as error:
            return f"{error.message}; {error.hint}"
        except OSError as error:
            return f"{pair.image}: cannot be read ({error.strerror or error}); check its permissions"
        if time.time() - changed > _SETTLED_SECONDS:
            fresh[key] = found
        return found

    answers: list[Measured | str] = []
    saved = time.monotonic()
    with ThreadPoolExecutor(threads) as pool, Progress("reading patches", len(pairs)) as progress:
        try:
            for answer in pool.map(look, pairs):
                answers.append(answer)
                progress.update(len(answers))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    _save(memo, known, fresh)
                    saved = time.monotonic()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # an interrupt need not wait for all the rest
            _save(memo, known, fresh)
    refuse(root, [answer for answer in answers if isinstance(answer, str)], len(pairs))
    return [answer for answer in answers if isinstance(answer, Measured)]


def _key(root: Path, pair: Pair, channels: int) -> tuple[str, float]:
    """What a patch is remembered by, and when the younger of its files was changed."""
    states = [(root / pair.image).stat(), (root / pair.mask).stat()]
    marks = [f"{state.st_size}|{state.st_mtime_ns}" for state in states]
    return "|".join([pair.image, pair.mask, *marks, str(channels)]), max(state.st_mtime for state in states)


def _load(memo: Path | None) -> dict[str, Measured]:
    """What is remembered; nothing if there is no memory or it is damaged (then the files are read again)."""
    if memo is None or not memo.is_file():
        return {}
    try:
        loaded = json.loads(memo.read_text(encoding="utf-8"))
        if loaded["format"] != _FORMAT:
            return {}
        return {key: _restored(values) for key, values in loaded["patches"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _restored(values: Any) -> Measured:
    text, shape, infinite, count, total, scatter, seen = values
    height, width, channels = shape
    return Measured(
        hash=str(text),
        shape=(int(height), int(width), int(channels)),
        infinite=int(infinite),
        count=tuple(int(value) for value in count),
        total=tuple(float(value) for value in total),
        scatter=tuple(float(value) for value in scatter),
        seen=tuple((int(label), int(bits), int(amount)) for label, bits, amount in seen),
    )


def _save(memo: Path | None, known: dict[str, Measured], fresh: dict[str, Measured]) -> None:
    found = dict(fresh)  # the threads may still add to it
    if memo is not None and found.keys() - known.keys():
        known.update(found)
        write_text(memo, json.dumps({"format": _FORMAT, "patches": {key: astuple(one) for key, one in known.items()}}))
