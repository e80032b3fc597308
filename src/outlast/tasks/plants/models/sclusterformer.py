"""SClusterFormer: a deformable stem, two branches of cluster attention, their fusion and a mixture of three heads.

For: leaf images of any size divisible by the patch stride, square or not.
Promises: the default settings have the pinned flow (B,3,64,64) -> (B,64,64,64) -> (B,256,32) -> (B,64,32) -> (B,32)
-> (B,4); samples never mix; other settings (one stem scale, overlapping patches, 1-3 stages) are the same model,
wider or deeper.
Does not: normalise images or hold a loss; it returns log-probabilities.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from outlast.errors import ModelError
from outlast.model.cluster import (
    ClusterBlock,
    CrossAttentionFusion,
    Grid,
    MixtureHead,
    Similarity,
    pool_tokens,
    to_planes,
    to_tokens,
)
from outlast.model.deform import MultiScaleDeformConv
from outlast.tasks.plants.models.convolutions import InvertedResidual, convolution


@dataclass(frozen=True)
class SClusterFormerSettings:
    """Hyper-parameters; `dims`, `depths` and `heads` hold one number per stage (1-3 stages).

    `patches`: "linear" is one convolution of kernel = stride; "overlap" is a chain of 3x3 convolutions of stride
    2, each followed by an inverted residual.
    `token_limit` bounds h'w' of the first stage; every further stage halves each side of the grid.
    """

    stem_scales: tuple[float, ...] = (1.0, 5 / 3, 7 / 3)
    stem_channels: int = 64
    patch_stride: int = 4
    patches: str = "linear"
    dims: tuple[int, ...] = (32,)
    depths: tuple[int, ...] = (2,)
    heads: tuple[int, ...] = (4,)
    token_limit: int = 64
    mlp_ratio: float = 4.0
    local: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.dims) == len(self.depths) == len(self.heads) or not 1 <= len(self.dims) <= 3:
            raise ModelError(
                f"sclusterformer has 1-3 stages, each with a dim, a depth and heads; got dims={self.dims}, "
                f"depths={self.depths}, heads={self.heads}",
                hint="give the three settings the same length",
            )
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise ModelError(
                    f"sclusterformer: dim {dim} is not divisible by {heads} heads", hint="choose a divisor of the dim"
                )
        if self.patches not in ("linear", "overlap"):
            raise ModelError(f"sclusterformer: patches={self.patches!r} is unknown", hint='use "linear" or "overlap"')
        if self.patches == "overlap" and (self.patch_stride < 2 or self.patch_stride & (self.patch_stride - 1)):
            raise ModelError(
                f"sclusterformer: overlapping patches need a stride of 2, 4, 8, ...; got {self.patch_stride}",
                hint='use a power of two, or patches="linear"',
            )


class SClusterFormer(nn.Module):
    """Map float images (B, 3, H, W), H and W divisible by the patch stride, to log-probabilities (B, classes)."""

    def __init__(self, classes: int, settings: SClusterFormerSettings | None = None, *, channels: int = 3) -> None:
        super().__init__()
        settings = settings or SClusterFormerSettings()
        self.settings = settings
        self.stem = DeformableStem(channels, settings)
        self.patches = _patch_embedding(settings)
        self.patch_norm = nn.LayerNorm(settings.dims[0])
        self.spectral = Branch(settings, "cosine")
        self.spatial = Branch(settings, "euclidean")
        self.fusion = CrossAttentionFusion(settings.dims[-1], settings.heads[-1])
        self.dropout = nn.Dropout(settings.head_dropout)
        self.head = MixtureHead(settings.dims[-1], classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return log-probabilities (B, classes)."""
        spectral, spatial, fused = self.embed(images_BCHW)
        result: Tensor = self.head(self.dropout(spectral), self.dropout(spatial), self.dropout(fused))
        return result

    def embed(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three vectors (B, C) that the head mixes: spectral, spatial, fused."""
        self._require_divisible(images_BCHW)
        planes = self.patches(self.stem(images_BCHW))
        grid: Grid = (planes.shape[-2], planes.shape[-1])
        tokens = self.patch_norm(to_tokens(planes))
        tokens, grid = pool_tokens(tokens, grid, self.settings.token_limit)
        spectral, spatial = self.spectral(tokens, grid), self.spatial(tokens, grid)
        return spectral.mean(dim=1), spatial.mean(dim=1), self.fusion(spatial, spectral)

    def _require_divisible(self, images_BCHW: Tensor) -> None:
        height, width = images_BCHW.shape[-2:]
        stride = self.settings.patch_stride
        if height % stride or width % stride:
            raise ModelError(
                f"sclusterformer cannot cut {height}x{width} images into patches of stride {stride}",
                hint=f"choose an image size divisible by {stride}",
            )


class DeformableStem(nn.Module):
    """Multi-scale deformable convolution, normalised and activated."""

    def __init__(self, channels: int, settings: SClusterFormerSettings) -> None:
        super().__init__()
        self.deform = MultiScaleDeformConv(channels, settings.stem_channels, settings.stem_scales)
        self.norm = nn.BatchNorm2d(settings.stem_channels)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, stem_channels, H, W)."""
        return torch.nn.functional.gelu(self.norm(self.deform(images_BCHW)))


class Branch(nn.Module):
    """One to three stages of cluster attention with one similarity."""

    def __init__(self, settings: SClusterFormerSettings, similarity: Similarity) -> None:
        super().__init__()
        drop_path = _drop_path_schedule(settings)
        before = (None, *settings.dims[:-1])
        self.stages = nn.ModuleList(
            Stage(settings, similarity, stage, before[stage], [next(drop_path) for _ in range(depth)])
            for stage, depth in enumerate(settings.depths)
        )
        self.norm = nn.LayerNorm(settings.dims[-1])

    def forward(self, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        """Map (B, N, C) to (B, N', C') of the last stage."""
        tokens = tokens_BNC
        for stage in self.stages:
            tokens, grid = stage(tokens, grid)
        result: Tensor = self.norm(tokens)
        return result


class Stage(nn.Module):
    """Blocks at one resolution; every stage but the first begins by merging patches (3x3 convolution, stride 2)."""

    def __init__(
        self,
        settings: SClusterFormerSettings,
        similarity: Similarity,
        stage: int,
        dim_before: int | None,
        drop_path: Sequence[float],
    ) -> None:
        super().__init__()
        dim = settings.dims[stage]
        self.merge = None if dim_before is None else nn.Conv2d(dim_before, dim, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            ClusterBlock(
                dim,
                settings.heads[stage],
                similarity,
                mlp_ratio=settings.mlp_ratio,
                dropout=settings.dropout,
                drop_path=probability,
                local=settings.local,
            )
            for probability in drop_path
        )

    def forward(self, tokens_BNC: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Return the tokens and the grid that they lie on now."""
        tokens = tokens_BNC
        if self.merge is not None:
            planes = self.merge(to_planes(tokens, grid))
            tokens, grid = to_tokens(planes), (planes.shape[-2], planes.shape[-1])
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens, grid


def _patch_embedding(settings: SClusterFormerSettings) -> nn.Module:
    channels, dim, stride = settings.stem_channels, settings.dims[0], settings.patch_stride
    if settings.patches == "linear":
        return nn.Conv2d(channels, dim, stride, stride)
    steps = stride.bit_length() - 1
    layers: list[nn.Module] = []
    for step in range(steps):
        width = dim if step == steps - 1 else max(channels, dim >> (steps - 1 - step))
        layers += [convolution(channels, width, stride=2), InvertedResidual(width, width)]
        channels = width
    return nn.Sequential(*layers)


def _drop_path_schedule(settings: SClusterFormerSettings) -> Iterator[float]:
    """Yield drop probabilities that rise linearly with depth to `settings.drop_path`."""
    count = sum(settings.depths)
    return (settings.drop_path * index / max(1, count - 1) for index in range(count))
