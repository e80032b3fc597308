"""Cluster attention, its block, cross-attention fusion, token pooling and the mixture head.

For: SClusterFormer and any small model that wants global mixing at O(tokens x centres).
Promises: every sample of a batch is computed on its own; memory is O(B * heads * centres * tokens); dropout never
changes which centre a token belongs to; every grid size works, square or not.
Does not: read images or know a task.
Source: Ma et al. 2023, "Image as Set of Points" (Context Cluster), with other similarities.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Grid = tuple[int, int]
Similarity = Literal["cosine", "euclidean"]


class ClusterAttention(nn.Module):
    """Tokens gather into their most similar centre and receive back what the centre gathered.

    Centres are averages over a grid of at most `centres` x `centres` cells. Similarity is alpha * cos + beta, or
    alpha * exp(-distance) + beta between vectors of length one; alpha and beta are learned from (1, 0).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        similarity: Similarity,
        *,
        head_dim: int | None = None,
        centres: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim if head_dim is not None else max(1, dim // heads)
        self.similarity = similarity
        self.centres = centres
        self.features = nn.Linear(dim, heads * self.head_dim)
        self.values = nn.Linear(dim, heads * self.head_dim)
        self.project = nn.Linear(heads * self.head_dim, dim)
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        """Map (B, N, C) on a grid (h, w), N = h*w, to (B, N, C)."""
        features = self._heads(self.features(tokens_BNC))
        values = self._heads(self.values(tokens_BNC))
        similarity = self.scores(self._pool(features, grid), features)
        membership = assign(similarity)
        weights = self.dropout(similarity * membership)
        gathered = self._pool(values, grid) + weights @ values
        gathered = gathered / (1 + membership.sum(dim=-1, keepdim=True))
        dispatched = weights.transpose(-1, -2) @ gathered
        result: Tensor = self.project(dispatched.transpose(1, 2).flatten(2))
        return result

    def scores(self, centres_BHPD: Tensor, features_BHND: Tensor) -> Tensor:
        """Return the similarity (B, heads, P, N) of every centre to every token."""
        cosine = F.normalize(centres_BHPD, dim=-1) @ F.normalize(features_BHND, dim=-1).transpose(-1, -2)
        if self.similarity == "cosine":
            return self.alpha * cosine + self.beta
        # ||a - b||^2 = 2 - 2 cos(a, b) for unit vectors; the floor keeps the root's derivative finite at equality.
        distance = (2 - 2 * cosine).clamp(min=1e-12).sqrt()
        return self.alpha * torch.exp(-distance) + self.beta

    def _heads(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        return tokens.reshape(batch, count, self.heads, self.head_dim).transpose(1, 2)

    def _pool(self, tokens_BHND: Tensor, grid: Grid) -> Tensor:
        batch, heads, _, head_dim = tokens_BHND.shape
        height, width = grid
        planes = tokens_BHND.transpose(-1, -2).reshape(batch, heads * head_dim, height, width)
        pooled = F.adaptive_avg_pool2d(planes, (min(self.centres, height), min(self.centres, width)))
        return pooled.reshape(batch, heads, head_dim, -1).transpose(-1, -2)


def assign(similarity_BHPN: Tensor) -> Tensor:
    """Return the membership mask (B, heads, P, N): one for each token's most similar centre, else zero."""
    best = similarity_BHPN.argmax(dim=2, keepdim=True)
    return torch.zeros_like(similarity_BHPN).scatter_(2, best, 1.0)


class ClusterBlock(nn.Module):
    """x + attention(LN x), then x + MLP(LN x); with `local`, the MLP's hidden grid passes a depthwise 3x3."""

    def __init__(
        self,
        dim: int,
        heads: int,
        similarity: Similarity,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        local: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = ClusterAttention(dim, heads, similarity, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = TokenMlp(dim, int(dim * mlp_ratio), dropout=dropout, local=local)
        self.drop_path = DropPath(drop_path)
        self._recomputed: tuple[bool, bool] = (False, False)  # attention, MLP

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again when going backward, except a local MLP's: its BatchNorm would count twice."""
        self._recomputed = (enable, enable and self.mlp.local is None)

    def forward(self, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        attention, mlp = self._recomputed if torch.is_grad_enabled() else (False, False)
        tokens = tokens_BNC + self._run(self._attend, tokens_BNC, grid, attention)
        return tokens + self._run(self._mix, tokens, grid, mlp)

    def _attend(self, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        result: Tensor = self.drop_path(self.attention(self.attention_norm(tokens_BNC), grid))
        return result

    def _mix(self, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        result: Tensor = self.drop_path(self.mlp(self.mlp_norm(tokens_BNC), grid))
        return result

    def _run(self, part: Callable[[Tensor, Grid], Tensor], tokens_BNC: Tensor, grid: Grid, recomputed: bool) -> Tensor:
        if not recomputed:
            return part(tokens_BNC, grid)
        result: Tensor = checkpoint(part, tokens_BNC, grid, use_reentrant=False, preserve_rng_state=True)
        return result


class TokenMlp(nn.Module):
    """Two linear layers with GELU; with `local`, a residual depthwise 3x3 between them (PVTv2's MLP), normalised."""

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0, local: bool = False) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.local = (
            nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden))
            if local
            else None
        )
        self.contract = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        hidden = self.expand(tokens_BNC)
        if self.local is not None:
            hidden = hidden + to_tokens(self.local(to_planes(hidden, grid)))
        result: Tensor = self.dropout(self.contract(self.dropout(F.gelu(hidden))))
        return result


class DropPath(nn.Module):
    """Stochastic depth: drop a whole residual branch of a sample (Huang et al. 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Return the input, with the branch of some samples zeroed and the others scaled up while training."""
        if not self.training or self.probability == 0:
            return tokens_BNC
        keep = 1 - self.probability
        kept = torch.rand(tokens_BNC.shape[0], 1, 1, device=tokens_BNC.device) < keep
        return tokens_BNC * kept.to(tokens_BNC.dtype) / keep


class CrossAttentionFusion(nn.Module):
    """Queries from the spatial branch, keys and values from the spectral branch, then the mean over tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Linear(dim, dim)
        # A bias of the keys would cancel in the softmax.
        self.keys = nn.Linear(dim, dim, bias=False)
        self.values = nn.Linear(dim, dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, spatial_BNC: Tensor, spectral_BNC: Tensor) -> Tensor:
        """Map two streams (B, N, C) to (B, C); scale 1 / sqrt(head_dim) per head."""
        queries, keys, values = (
            layer(stream).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, stream in ((self.queries, spatial_BNC), (self.keys, spectral_BNC), (self.values, spectral_BNC))
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        result: Tensor = self.project(mixed.transpose(1, 2).flatten(2)).mean(dim=1)
        return result


class MixtureHead(nn.Module):
    """Three classifiers mixed as probabilities: l spectral + (1-l)/2 spatial + (1-l)/2 fused, l = sigmoid(learned)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.spectral = nn.Linear(dim, classes)
        self.spatial = nn.Linear(dim, classes)
        self.fused = nn.Linear(dim, classes)
        # sigmoid(-log 2) = 1/3: the three heads start with equal weights.
        self.balance = nn.Parameter(torch.tensor(-math.log(2)))

    def forward(self, spectral_BC: Tensor, spatial_BC: Tensor, fused_BC: Tensor) -> Tensor:
        """Map three vectors (B, C) to log-probabilities (B, classes), computed without leaving the log domain."""
        rest = F.logsigmoid(-self.balance) - math.log(2)
        parts = (
            F.logsigmoid(self.balance) + F.log_softmax(self.spectral(spectral_BC).float(), dim=-1),
            rest + F.log_softmax(self.spatial(spatial_BC).float(), dim=-1),
            rest + F.log_softmax(self.fused(fused_BC).float(), dim=-1),
        )
        return torch.logsumexp(torch.stack(parts), dim=0)


def pooled_grid(grid: Grid, limit: int) -> Grid:
    """Return the largest (h', w') of about the same aspect with h'w' <= limit, never larger than `grid`."""
    height, width = grid
    if height * width <= limit:
        return grid
    scale = math.sqrt(limit / (height * width))
    pooled_height = max(1, math.floor(height * scale + 1e-6))
    pooled_width = max(1, math.floor(width * scale + 1e-6))
    return min(pooled_height, limit // pooled_width or 1), min(pooled_width, limit)


def pool_tokens(tokens_BNC: Tensor, grid: Grid, limit: int) -> tuple[Tensor, Grid]:
    """Average-pool a token grid to at most `limit` tokens, aspect kept; returns the tokens and their grid."""
    pooled = pooled_grid(grid, limit)
    if pooled == grid:
        return tokens_BNC, grid
    return to_tokens(F.adaptive_avg_pool2d(to_planes(tokens_BNC, grid), pooled)), pooled


def to_planes(tokens_BNC: Tensor, grid: Grid) -> Tensor:
    """Reshape tokens (B, h*w, C) to planes (B, C, h, w)."""
    batch, _, channels = tokens_BNC.shape
    return tokens_BNC.transpose(1, 2).reshape(batch, channels, *grid)


def to_tokens(planes_BCHW: Tensor) -> Tensor:
    """Reshape planes (B, C, h, w) to tokens (B, h*w, C)."""
    return planes_BCHW.flatten(2).transpose(1, 2)
