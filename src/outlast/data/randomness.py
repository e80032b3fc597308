"""Random numbers that are a pure function of (seed, epoch, index): what makes loading and resuming exact.

Promises: the same arguments give the same bits on any machine, with any numpy, in any process and in any order; the
numbers of one index do not depend on which other indices are asked for. Threefry-2x64 with 20 rounds: Salmon, Moraes,
Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11; checked against the published Random123 vectors.
Does not do: keep state, or serve cryptography.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

_ROTATIONS = (16, 42, 12, 31, 16, 32, 24, 21)
_PARITY = 0x1BD11BDAA9FC1A22
_MASK = 2**64 - 1


def uniforms(seed: int, epoch: int, indices: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """(N, count) numbers in [0, 1), 53 random bits each; row n depends on (seed, epoch, indices[n]) alone."""
    bits = random_bits(seed, epoch, indices, count)
    return (bits >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def random_bits(seed: int, epoch: int, indices: npt.ArrayLike, count: int) -> UInt64:
    """(N, count) uint64: the raw bits behind `uniforms`. Key = (seed, epoch), counter = (index, block of two)."""
    index = np.asarray(indices, dtype=np.int64).view(np.uint64).reshape(-1)
    blocks = (count + 1) // 2
    first = np.repeat(index, blocks)
    second = np.tile(np.arange(blocks, dtype=np.uint64), len(index))
    pair = np.empty((len(index) * blocks, 2), np.uint64)
    pair[:, 0], pair[:, 1] = threefry(seed, epoch, first, second)
    return pair.reshape(len(index), 2 * blocks)[:, :count]


def threefry(key0: int, key1: int, counter0: UInt64, counter1: UInt64) -> tuple[UInt64, UInt64]:
    """Threefry-2x64-20 of counters (N,) under one key; arithmetic modulo 2**64. Returns two new arrays (N,)."""
    keys = (key0 & _MASK, key1 & _MASK, (_PARITY ^ key0 ^ key1) & _MASK)
    x0 = counter0 + np.uint64(keys[0])
    x1 = counter1 + np.uint64(keys[1])
    spill = np.empty_like(x1)
    for number in range(20):
        left = _ROTATIONS[number % 8]
        x0 += x1
        np.right_shift(x1, np.uint64(64 - left), out=spill)
        x1 <<= np.uint64(left)
        x1 |= spill
        x1 ^= x0
        if number % 4 == 3:
            injection = number // 4 + 1
            x0 += np.uint64(keys[injection % 3])
            x1 += np.uint64((keys[(injection + 1) % 3] + injection) & _MASK)
    return x0, x1
