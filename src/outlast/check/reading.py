"""The data of one learner as the checks see it: its table, the headers of its files, and what its samples hold.

Samples are read once: what the checks want to know of them is noted while they are decoded into the cache that training
uses, and kept beside it, so that a later check only opens it. A damaged file stops nothing: it is one entry of
`damaged`, all others are read.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from outlast.base.files import write_text
from outlast.base.log import Progress
from outlast.check.finding import CannotCheck
from outlast.config.schema import TaskConfig
from outlast.data.look import Look, look_at
from outlast.data.table import Examples
from outlast.errors import DataError
from outlast.loop.samples import cache_key, open_cache
from outlast.task import Learner

# What a task's own code may raise at a file it did not expect; more would hide defects of ours.
RAISED = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, OSError)
_MOST_VALUES = 260  # different values that are remembered of a mask: all that 8 bits have, and a few
_TRIED_FIRST = 3  # samples whose arrays are taken as the pattern for all others: what most of them have


class Array(NamedTuple):
    """What a check wants to know of one array of one sample.

    spread: standard deviation. flat: channels (first axis of three) that are constant. not_finite: values that are NaN
    or infinite. values: of a mask, the different ones.
    """

    shape: tuple[int, ...]
    dtype: str
    spread: float
    flat: tuple[int, ...] = ()
    not_finite: int = 0
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Samples:
    """arrays: {id: {name: Array}} of what was read; damaged: {id: why not}; odd: {id: how its arrays differ}."""

    arrays: Mapping[str, Mapping[str, Array]]
    damaged: Mapping[str, str] = field(default_factory=dict)
    odd: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether training could read all of them."""
        return not self.damaged and not self.odd


@dataclass
class Reading:
    """The data of one learner."""

    learner: Learner
    config: TaskConfig
    examples: Examples
    scratch: Path
    cores: int = 1

    @cached_property
    def looks(self) -> dict[str, Look]:
        """{id: the header of its file}. Raises CannotCheck if the samples are not image files of their own."""
        table = self.examples.table
        if "path" not in table.columns:
            raise CannotCheck(f"the samples of {self.learner.name} are not files of their own (no column 'path')")
        memo = self.scratch / "checks" / f"headers-{self.examples.fingerprint[:16]}.json"
        with Progress("looking at files", len(table)) as progress:
            paths = [str(self.examples.root / path) for path in table["path"].tolist()]
            looks = look_at(paths, memo=memo, cores=self.cores, progress=progress.update)
        return dict(zip(table["id"].tolist(), looks, strict=True))

    @cached_property
    def samples(self) -> Samples:
        """Every sample, read into the cache; from what was noted before, if the same data was read before."""
        watch = _Watch(self)
        key = cache_key(self.learner, self.config, self.examples)
        notes = self.scratch / "checks" / f"samples-{key}.json"
        try:
            with open_cache(self.learner, self.config, self.examples, self.scratch, self.cores, watch.read) as cache:
                if not watch.arrays:
                    watch.arrays.update(_noted(notes))
                if not watch.arrays:
                    for position in range(cache.cached):
                        sample = {name: value[0] for name, value in cache.get(np.asarray([position])).items()}
                        watch.arrays[str(cache.rows[position]["id"])] = arrays_of(sample)
        except DataError:
            if not watch.damaged and not watch.odd:
                raise
        else:
            if not notes.is_file():
                notes.parent.mkdir(parents=True, exist_ok=True)
                write_text(notes, json.dumps(watch.arrays))
        return Samples(watch.arrays, watch.damaged, watch.odd)

    def get(self, positions: np.ndarray) -> dict[str, Any]:
        """Samples at these positions, read from their files and not from the cache."""
        rows = self.examples.table.iloc[positions].to_dict("records")
        samples = [self.learner.read(self.config, self.examples.root, row) for row in rows]  # type: ignore[arg-type]
        gathered: dict[str, Any] = {}
        for name in samples[0]:
            values = [sample[name] for sample in samples]
            alike = len({value.shape for value in values}) == 1
            gathered[name] = np.stack(values) if alike else values
        return gathered


def arrays_of(sample: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """What is noted of a sample: {name: Array}."""
    return {name: _array(name, np.asarray(value)) for name, value in sample.items()}


def is_mask(name: str) -> bool:
    """Whether an array holds class numbers instead of a picture; by its name, which tasks share."""
    return name == "mask" or name.endswith("_mask")


def _array(name: str, value: np.ndarray) -> Array:
    shape, dtype = tuple(value.shape), value.dtype.name
    if value.size == 0 or not np.issubdtype(value.dtype, np.number):
        return Array(shape, dtype, 0.0)
    if is_mask(name):
        different = tuple(int(number) for number in np.unique(value)[:_MOST_VALUES])
        return Array(shape, dtype, float(value.std()), values=different)
    not_finite = 0
    if np.issubdtype(value.dtype, np.floating):
        finite = np.isfinite(value)
        not_finite = int(value.size - finite.sum())
        value = value if not not_finite else np.where(finite, value, 0)
    flat: tuple[int, ...] = ()
    if value.ndim == 3:
        channels = value.reshape(len(value), -1)
        same = channels.min(axis=1) == channels.max(axis=1)
        flat = tuple(int(number) for number in np.flatnonzero(same))
    thinned = value[..., ::2, ::2] if value.ndim >= 2 else value
    return Array(shape, dtype, float(thinned.std(dtype=np.float32)), flat, not_finite)


class _Watch:
    """Reads samples for the cache and notes what they hold; called from several threads."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.arrays: dict[str, dict[str, Array]] = {}
        self.damaged: dict[str, str] = {}
        self.odd: dict[str, str] = {}
        self._lock = threading.Lock()
        self._pattern: str | None = None

    def read(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        name = str(row["id"])
        try:
            sample = self._read(row)
        except DataError as error:
            self.damaged[name] = error.message
            raise
        arrays = arrays_of(sample)
        with self._lock:
            if self._pattern is None:
                self._pattern = self._usual()
        if (found := _pattern(arrays)) != self._pattern:
            self.odd[name] = f"{found} instead of {self._pattern}"
            raise DataError(f"{name}: {self.odd[name]}", hint="make the file like the others, or leave it out")
        self.arrays[name] = arrays
        return sample

    def _read(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        learner, root = self.reading.learner, self.reading.examples.root
        try:
            return learner.read(self.reading.config, root, row)
        except RAISED as error:
            raise DataError(f"{row['id']}: reading it raised {type(error).__name__}: {error}") from error

    def _usual(self) -> str:
        """What the arrays of most samples are like, by the first few that can be read."""
        seen: list[str] = []
        for row in self._rows():
            with contextlib.suppress(DataError):
                seen.append(_pattern(arrays_of(self._read(row))))
            if len(seen) == _TRIED_FIRST:
                break
        return Counter(seen).most_common(1)[0][0]

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        for number in range(len(self.reading.examples.table)):
            yield self.reading.examples.table.iloc[number].to_dict()  # type: ignore[misc]


def _pattern(arrays: Mapping[str, Array]) -> str:
    """What must be alike in all samples: names, types, dimensions, channels. Height and width may differ."""
    parts = []
    for name, array in arrays.items():
        channels = f" with {array.shape[0]} channels" if len(array.shape) == 3 else ""
        parts.append(f"{name}: {array.dtype} of {len(array.shape)} dimensions{channels}")
    return ", ".join(parts)


def _noted(path: Path) -> dict[str, dict[str, Array]]:
    """What was noted before; nothing if it is missing or damaged (then the cache is gone through)."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return {
            sample: {
                name: Array(tuple(shape), dtype, spread, tuple(flat), not_finite, tuple(values))
                for name, (shape, dtype, spread, flat, not_finite, values) in arrays.items()
            }
            for sample, arrays in loaded.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
