"""Cluster attention, fusion, pooling and the mixture head equal their definitions, written as loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from outlast.model.cluster import (
    ClusterAttention,
    ClusterBlock,
    CrossAttentionFusion,
    DropPath,
    MixtureHead,
    Similarity,
    assign,
    pool_tokens,
    pooled_grid,
)

SIMILARITIES: tuple[Similarity, ...] = ("cosine", "euclidean")


def cells(length: int, count: int) -> list[range]:
    """The adaptive pooling cells of one axis: floor(i*n/k) to ceil((i+1)*n/k)."""
    return [range(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def centres_of(tokens_ND: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    height, width = grid
    return [
        torch.stack([tokens_ND[y * width + x] for y in rows for x in columns]).mean(dim=0)
        for rows in cells(height, min(4, height))
        for columns in cells(width, min(4, width))
    ]


def naive_attention(layer: ClusterAttention, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    batch, count, _ = tokens.shape
    d = layer.head_dim
    features, values = layer.features(tokens), layer.values(tokens)
    merged = torch.zeros(batch, count, layer.heads * d, dtype=tokens.dtype)
    for b in range(batch):
        for head in range(layer.heads):
            part = slice(head * d, (head + 1) * d)
            f, v = features[b, :, part], values[b, :, part]
            f_centres, v_centres = centres_of(f, grid), centres_of(v, grid)
            similarity = torch.zeros(len(f_centres), count, dtype=tokens.dtype)
            for p, centre in enumerate(f_centres):
                for n in range(count):
                    c, token = centre / centre.norm(), f[n] / f[n].norm()
                    raw = c @ token if layer.similarity == "cosine" else torch.exp(-(c - token).norm())
                    similarity[p, n] = layer.alpha * raw + layer.beta
            best = [int(similarity[:, n].argmax()) for n in range(count)]
            gathered = []
            for p, centre in enumerate(v_centres):
                members = [n for n in range(count) if best[n] == p]
                total = centre + sum((similarity[p, n] * v[n] for n in members), torch.zeros(d, dtype=tokens.dtype))
                gathered.append(total / (1 + len(members)))
            for n in range(count):
                merged[b, n, part] = similarity[best[n], n] * gathered[best[n]]
    result: Tensor = layer.project(merged)
    return result


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (2, 9), (1, 6)])
def test_cluster_attention_equals_its_definition(similarity: Similarity, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = ClusterAttention(8, 2, similarity).double()
    with torch.no_grad():
        layer.alpha.fill_(1.3)
        layer.beta.fill_(-0.2)
    tokens = torch.randn(2, grid[0] * grid[1], 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens, grid), naive_attention(layer, tokens, grid), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradients_are_finite_where_every_token_is_its_own_centre(similarity: Similarity) -> None:
    torch.manual_seed(0)
    layer = ClusterAttention(8, 2, similarity)
    tokens = torch.randn(2, 16, 8, requires_grad=True)
    layer(tokens, (4, 4)).square().mean().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_every_token_belongs_to_exactly_its_most_similar_centre() -> None:
    similarity = torch.randn(2, 3, 5, 11, generator=torch.Generator().manual_seed(0))
    mask = assign(similarity)
    assert torch.equal(mask.sum(dim=2), torch.ones(2, 3, 11))
    assert torch.equal((similarity * mask).sum(dim=2), similarity.max(dim=2).values)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_dropout_does_not_change_the_assignment(similarity: Similarity, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = ClusterAttention(8, 2, similarity, dropout=0.5).train()
    tokens = torch.randn(2, 36, 8)
    seen: list[Tensor] = []

    def spy(scores: Tensor) -> Tensor:
        seen.append(assign(scores))
        return seen[-1]

    monkeypatch.setattr("outlast.model.cluster.assign", spy)
    dropped = layer(tokens, (6, 6))
    kept = layer.eval()(tokens, (6, 6))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(dropped, kept)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("local", [False, True])
def test_block_is_two_normalised_residuals(similarity: Similarity, local: bool) -> None:
    torch.manual_seed(0)
    block = ClusterBlock(8, 2, similarity, local=local).eval()
    tokens, grid = torch.randn(2, 15, 8), (3, 5)
    middle = tokens + block.attention(block.attention_norm(tokens), grid)
    expected = middle + block.mlp(block.mlp_norm(middle), grid)
    torch.testing.assert_close(block(tokens, grid), expected)


@pytest.mark.parametrize("local", [False, True])
def test_computing_activations_again_changes_no_bit_and_keeps_less(local: bool) -> None:
    """Not of the gradients, with dropout and dropped paths, and not of the running statistics of a local MLP."""
    results, kept = [], []
    for again in (False, True):
        torch.manual_seed(0)
        block = ClusterBlock(8, 2, "cosine", dropout=0.2, drop_path=0.3, local=local)
        block.set_grad_checkpointing(again)
        tokens = torch.randn(4, 36, 8, requires_grad=True)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: (s.append(x.numel()), x)[1], lambda x: x):
            loss = block(tokens, (6, 6)).square().sum()
        loss.backward()
        values = [tokens.grad, *(parameter.grad for parameter in block.parameters()), *block.buffers()]
        results.append([value.clone() for value in values if value is not None])
        kept.append(sum(saved))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert kept[1] < 0.7 * kept[0]


def test_fusion_equals_its_definition() -> None:
    torch.manual_seed(0)
    layer = CrossAttentionFusion(8, 2)
    spatial, spectral = torch.randn(3, 6, 8), torch.randn(3, 6, 8)
    queries, keys, values = layer.queries(spatial), layer.keys(spectral), layer.values(spectral)
    expected = torch.zeros(3, 8)
    for b in range(3):
        for n in range(6):
            parts = []
            for head in (slice(0, 4), slice(4, 8)):
                scores = torch.stack([queries[b, n, head] @ keys[b, m, head] / math.sqrt(4) for m in range(6)])
                parts.append(sum(w * values[b, m, head] for m, w in enumerate(scores.softmax(0))))
            expected[b] += layer.project(torch.cat([torch.as_tensor(part) for part in parts])) / 6
    torch.testing.assert_close(layer(spatial, spectral), expected, atol=1e-6, rtol=1e-5)


def test_mixture_head_equals_the_mixture_of_probabilities() -> None:
    torch.manual_seed(0)
    head = MixtureHead(8, 4)
    with torch.no_grad():
        head.balance.fill_(0.7)
    spectral, spatial, fused = torch.randn(3, 5, 8).unbind()
    share = torch.sigmoid(torch.tensor(0.7))
    probabilities = (
        share * head.spectral(spectral).softmax(-1)
        + (1 - share) / 2 * head.spatial(spatial).softmax(-1)
        + (1 - share) / 2 * head.fused(fused).softmax(-1)
    )
    logs = head(spectral, spatial, fused)
    torch.testing.assert_close(logs.exp(), probabilities)
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(5))
    torch.testing.assert_close(logs.log_softmax(-1), logs)


def test_mixture_head_stays_finite_for_extreme_evidence() -> None:
    head = MixtureHead(2, 3)
    vectors = torch.full((1, 2), 1e6)
    assert head(vectors, vectors, -vectors).isfinite().all()


@pytest.mark.parametrize(
    ("grid", "limit", "expected"),
    [
        ((16, 16), 64, (8, 8)),
        ((8, 8), 64, (8, 8)),
        ((24, 24), 64, (8, 8)),
        ((8, 32), 64, (4, 16)),
        ((1, 500), 64, (1, 64)),
        ((500, 1), 64, (64, 1)),
        ((3, 5), 64, (3, 5)),
        ((2, 200), 3, (1, 3)),
    ],
)
def test_pooled_grid_keeps_aspect_and_limit(grid: tuple[int, int], limit: int, expected: tuple[int, int]) -> None:
    assert pooled_grid(grid, limit) == expected


def test_pooled_grid_never_exceeds_its_limit_or_its_input() -> None:
    for height in range(1, 30):
        for width in range(1, 60):
            for limit in (1, 7, 64):
                pooled = pooled_grid((height, width), limit)
                assert 1 <= pooled[0] <= height and 1 <= pooled[1] <= width
                assert pooled[0] * pooled[1] <= limit


def test_token_pooling_averages_over_the_two_dimensional_grid() -> None:
    planes = torch.arange(32.0).reshape(4, 8)
    pooled, grid = pool_tokens(planes.reshape(1, 32, 1), (4, 8), 8)
    assert grid == (2, 4)
    expected = planes.reshape(2, 2, 4, 2).mean(dim=(1, 3))
    torch.testing.assert_close(pooled.reshape(2, 4), expected)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    result = layer(torch.ones(4000, 2, 3))
    per_sample = result.flatten(1)
    assert ((per_sample == 0).all(dim=1) | torch.isclose(per_sample, torch.tensor(4 / 3)).all(dim=1)).all()
    assert abs(float(result.mean()) - 1) < 0.05
    assert torch.equal(layer.eval()(result), result)
