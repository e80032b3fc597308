"""Choices that come out the same everywhere are those that float32 makes, wherever it has a choice at all."""

import pytest
import torch
import torch.nn.functional as F

from outlast.model import correlation, repeatable


def features(rows, columns, channels=8, seed=0):
    return torch.randn(2, channels, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pairs", [1, 1000, 2**23])
def test_matches_are_those_of_the_exact_search_however_many_are_compared_at_once(pairs, monkeypatch):
    monkeypatch.setattr(repeatable, "_PAIRS", pairs)
    values, valid = features(9, 14), torch.ones(2, 9, 14, dtype=torch.bool)
    valid[0, -3:], valid[1, :, 10:] = False, False
    found = repeatable.self_correlation(values, top=5, radius=2, valid_BHW=valid)
    exact = correlation.self_correlation(values, top=5, radius=2, valid_BHW=valid)
    assert torch.equal(found.offsets, exact.offsets)
    assert torch.equal(found.found, exact.found)
    assert torch.allclose(found.values, exact.values, atol=1e-8)


def test_a_map_with_fewer_positions_than_are_wanted_has_places_without_a_match():
    values, valid = features(2, 3), torch.ones(2, 2, 3, dtype=torch.bool)
    found = repeatable.self_correlation(values, top=8, radius=0, valid_BHW=valid)
    exact = correlation.self_correlation(values, top=8, radius=0, valid_BHW=valid)
    assert torch.equal(found.found, exact.found)
    assert torch.equal(found.offsets, exact.offsets)
    assert found.found[:, :5].all() and not found.found[:, 5:].any()


def test_of_equals_the_first_in_rows_is_taken_whatever_rounding_does_to_them():
    values = features(1, 6)[:1].expand(1, -1, 4, 6).clone()  # each row is the same: three equals for each position
    valid = torch.ones(1, 4, 6, dtype=torch.bool)
    noise = 1 + 1e-13 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for given in (values, values * noise):
        found = repeatable.self_correlation(given, top=3, radius=0, valid_BHW=valid)
        expected = [[other - row for other in range(4) if other != row] for row in range(4)]
        assert found.offsets[0, :, 0].permute(1, 2, 0).tolist() == [[each] * 6 for each in expected]
        assert not found.offsets[0, :, 1].any()


def test_a_convolution_is_the_same_as_a_product_of_matrices():
    planes, kernels = features(20, 17, channels=3), features(5, 4, channels=3, seed=1)
    for stride in (1, 3):
        expected = F.conv2d(planes, kernels, stride=stride)
        assert torch.allclose(repeatable.convolved(planes, kernels, stride), expected, atol=1e-12)
        single = repeatable.convolved(planes.float(), kernels.float(), stride)
        assert torch.equal(single, F.conv2d(planes.float(), kernels.float(), stride=stride))


def test_only_float64_is_rounded():
    values = torch.tensor([0.1, 0.1 + 1e-12, 0.2])
    assert repeatable.settled(values) is values
    wide = torch.tensor([0.1, 0.1 + 1e-12, 0.2], dtype=torch.float64)
    settled = repeatable.settled(wide)
    assert settled[0] == settled[1] != settled[2]
    assert torch.allclose(settled, wide, atol=1e-8)
