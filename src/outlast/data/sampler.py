"""The order of an epoch, as a pure function of (seed, epoch), and how it is cut into batches.

Promises: the same order on every machine and with every numpy version (it is sorted by counter-based random bits, not
drawn from a numpy Generator, whose stream may change between versions); batch number k is found without making the
batches before it; no batch is more than one sample smaller than another.
Does not do: read data, or decide how many processes share a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from outlast.data.randomness import random_bits, uniforms
from outlast.errors import DataError

Int64 = npt.NDArray[np.int64]

OCCURRENCE = 2**40  # added to a row's key for each time it was drawn before in the same epoch
_STARTS, _FIRST_ORDER = -1, -10  # indices of random streams that belong to no sample; samples have indices >= 0


@dataclass(frozen=True)
class Drawn:
    """The order of an epoch, with what was drawn for each sample besides its row.

    positions (N,) into the training table; columns {name: (N,)}: they come into the batch under their name, such as
    the class that a crop of this sample is to show.
    """

    positions: Int64
    columns: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def shuffled(count: int, seed: int, epoch: int) -> Int64:
    """A permutation (count,) of 0..count-1."""
    return np.argsort(_stream(seed, epoch, 0, count), kind="stable").astype(np.int64)


def in_rounds(rows: int, seed: int, epoch: int, *, count: int) -> Int64:
    """Positions (count,) into `rows` rows, every row as often but for one: whole rounds, each in a new order."""
    rounds = -(-count // rows)
    return np.concatenate([shuffled(rows, seed, epoch * rounds + number) for number in range(rounds)])[:count]


def balanced(
    labels: npt.ArrayLike, seed: int, epoch: int, *, count: int | None = None, shares: Mapping[int, float] | None = None
) -> Int64:
    """Positions (count,) into `labels` (N,) in which every class has its share, also within every batch.

    count: samples of the epoch; none: N. shares: {label: share}, scaled to sum 1; none: the same for every class.
    A class with more rows than its share gives another part of itself every epoch; one with fewer is gone through in
    whole rounds, each in a new order. Classes are spread evenly, so that a batch holds the shares to within one
    sample per class. Raises DataError for a share of a class without rows.
    """
    values = np.asarray(labels)
    classes = np.unique(values)
    wanted = dict(shares) if shares is not None else {int(value): 1.0 for value in classes}
    missing = sorted(set(wanted) - set(classes.tolist()))
    if missing or not wanted or min(wanted.values()) < 0 or sum(wanted.values()) <= 0:
        raise DataError(
            f"a balanced sampler was asked for shares {wanted}, but the rows hold the classes {classes.tolist()}",
            hint="give positive shares to classes that exist",
        )
    total = len(values) if count is None else count
    amounts = _whole_numbers([share / sum(wanted.values()) for share in wanted.values()], total)
    holders = [np.flatnonzero(values == label) for label in wanted]
    return _spread(holders, amounts, seed, epoch)[0]


WANTED = "class_wanted"  # the batch column that says which class a sample was drawn for


def pixel_balanced(pixels: npt.ArrayLike, shares: Mapping[int, float], seed: int, epoch: int, *, count: int) -> Drawn:
    """`count` samples, each drawn for a class and from a row that holds it: positions, and "class_wanted" (count,).

    pixels (N, K): how many pixels of each class a row has. shares {class: share}, scaled to sum 1 over the classes that
    exist; a crop around a pixel of the wanted class then brings the mix of pixels near them. Every row that holds a
    class is as likely for it as any other, in whole rounds. Raises DataError if no class of `shares` exists.
    """
    holds = np.asarray(pixels) > 0
    wanted = {label: share for label, share in shares.items() if share > 0 and holds[:, label].any()}
    if not wanted:
        raise DataError(
            f"a pixel-balanced sampler was asked for shares {dict(shares)}, and no row holds a pixel of these classes",
            hint="give positive shares to classes that exist",
        )
    amounts = _whole_numbers([share / sum(wanted.values()) for share in wanted.values()], count)
    positions, groups = _spread([np.flatnonzero(holds[:, label]) for label in wanted], amounts, seed, epoch)
    return Drawn(positions, {WANTED: np.asarray(list(wanted), np.int64)[groups]})


def _spread(holders: list[Int64], amounts: list[int], seed: int, epoch: int) -> tuple[Int64, Int64]:
    """`amounts[k]` rows of each group, the groups evenly mixed: positions, and the number of the group of each.

    A group is gone through in whole rounds, each in a new order.
    """
    starts = uniforms(seed, epoch, [_STARTS], len(holders))[0]
    order, groups, places = [], [], []
    for number, (rows, amount) in enumerate(zip(holders, amounts, strict=True)):
        rounds = -(-amount // len(rows))
        chosen = [rows[np.argsort(_stream(seed, epoch, (number, r), len(rows)), kind="stable")] for r in range(rounds)]
        order.append(np.concatenate([*chosen, rows[:0]])[:amount])
        groups.append(np.full(amount, number, np.int64))
        places.append((np.arange(amount) + starts[number]) / max(amount, 1))
    mixed = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(order)[mixed].astype(np.int64), np.concatenate(groups)[mixed]


def occurrence_keys(rows: npt.ArrayLike) -> Int64:
    """row + 2**40 * (how often the row came before in `rows`): the index under which its randomness is drawn."""
    values = np.asarray(rows, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
    lengths = np.diff(np.append(starts, len(values)))
    before = np.arange(len(values), dtype=np.int64) - np.repeat(starts, lengths)
    keys = np.empty_like(values)
    keys[order] = ordered + OCCURRENCE * before
    return keys


def batches_in(count: int, batch_size: int) -> int:
    """How many batches of at most `batch_size` an epoch of `count` samples has."""
    return -(-count // batch_size)


def batch_bounds(count: int, batch_size: int, number: int) -> tuple[int, int]:
    """(start, stop) of batch `number` in the order of an epoch, as np.array_split would cut it."""
    batches = batches_in(count, batch_size)
    if not 0 <= number < batches:
        raise IndexError(f"batch {number} of {batches}")
    size, larger = divmod(count, batches)
    start = number * size + min(number, larger)
    return start, start + size + (number < larger)


def recut(count: int, before: int, after: int, done: int) -> tuple[int, int]:
    """Where an epoch of `count` samples goes on if its first `done` batches were of size `before` and now are `after`.

    Returns (number of the first batch to do, samples of it that were seen already): none is left out.
    """
    seen = batch_bounds(count, before, done - 1)[1] if done else 0
    if seen == count:
        return batches_in(count, after), 0
    starts = [batch_bounds(count, after, number)[0] for number in range(batches_in(count, after))]
    number = max(number for number, start in enumerate(starts) if start <= seen)
    return number, seen - starts[number]


def equal_batches(order: Int64, batch_size: int) -> list[Int64]:
    """`order` cut into ceil(N / batch_size) batches whose sizes differ by at most one: never a tiny last one."""
    bounds = (batch_bounds(len(order), batch_size, k) for k in range(batches_in(len(order), batch_size)))
    return [order[start:stop] for start, stop in bounds]


def _stream(seed: int, epoch: int, name: int | tuple[int, int], count: int) -> npt.NDArray[np.uint64]:
    first, second = (name, 0) if isinstance(name, int) else (name[0] + 1, name[1])
    return random_bits(seed, epoch, [_FIRST_ORDER - first * 2**20 - second], count).reshape(count)


def _whole_numbers(shares: list[float], total: int) -> list[int]:
    """Whole numbers in the proportion of `shares` that add up to `total` (largest remainders)."""
    exact = np.asarray(shares) * total
    amounts = np.floor(exact).astype(np.int64)
    short = total - int(amounts.sum())
    amounts[np.argsort(-(exact - amounts), kind="stable")[:short]] += 1
    return [int(amount) for amount in amounts]
