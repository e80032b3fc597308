import time

import numpy as np
import pytest

from outlast.data.randomness import threefry, uniforms

ONES = 2**64 - 1


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [  # Random123's kat_vectors, threefry2x64, 20 rounds
        ((0, 0), (0, 0), (0xC2B6E3A8C2C69865, 0x6F81ED42F350084D)),
        ((ONES, ONES), (ONES, ONES), (0xE02CB7C4D95D277A, 0xD06633D0893B8B68)),
        (
            (0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x243F6A8885A308D3, 0x13198A2E03707344),
            (0x263C7D30BB0F0AF1, 0x56BE8361D3311526),
        ),
    ],
)
def test_threefry_gives_the_published_answers(key, counter, answer):
    words = threefry(*key, np.array([counter[0]], np.uint64), np.array([counter[1]], np.uint64))
    assert tuple(int(word[0]) for word in words) == answer


def test_an_index_has_the_same_numbers_in_any_company_and_order():
    together = uniforms(3, 7, np.arange(50), 5)
    assert np.array_equal(uniforms(3, 7, [31, 4], 5), together[[31, 4]])
    assert np.array_equal(uniforms(3, 7, [2**40 + 4], 5), uniforms(3, 7, [9, 2**40 + 4], 5)[1:])
    assert np.array_equal(uniforms(3, 7, np.arange(50), 3), together[:, :3])


@pytest.mark.parametrize(("seed", "epoch", "index"), [(4, 7, 0), (3, 8, 0), (3, 7, 1), (3, 7, 2**40)])
def test_another_seed_epoch_or_index_gives_other_numbers(seed, epoch, index):
    assert not np.isin(uniforms(seed, epoch, [index], 16), uniforms(3, 7, [0], 16)).any()


def test_numbers_are_uniform_and_uncorrelated():
    numbers = uniforms(0, 0, np.arange(20_000), 8)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
    expected = numbers.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 100  # chi-squared with 49 degrees of freedom: 1e-5
    correlation = np.corrcoef(numbers.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.04
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.04


def test_a_batch_costs_less_than_a_third_of_a_millisecond():
    indices = np.arange(32)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        uniforms(0, 0, indices, 16)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3e-3
