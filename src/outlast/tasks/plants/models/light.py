"""The two light rungs: `minimal` (about 50 thousand parameters) and `tiny` (at most 6 thousand).

For: machines on which SClusterFormer does not fit.
Promises: float images (B, 3, H, W) of any size from 16 pixels a side to logits (B, classes); samples are independent
in evaluation mode.
Does not: normalise images or hold a loss.
"""

from torch import Tensor, nn

from outlast.model.cluster import ClusterBlock, Grid, to_tokens
from outlast.tasks.plants.models.convolutions import InvertedResidual, convolution


class Minimal(nn.Module):
    """Inverted residual convolutions and one light block of cluster attention at stride 8."""

    def __init__(self, classes: int, *, channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = convolution(channels, 16, stride=2)
        self.stages = nn.Sequential(
            InvertedResidual(16, 24, stride=2),
            InvertedResidual(24, 24),
            InvertedResidual(24, 40, stride=2),
            InvertedResidual(40, 40),
        )
        self.attention = ClusterBlock(40, 4, "cosine", mlp_ratio=4.0)
        self.norm = nn.LayerNorm(40)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(40, classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        planes = self.stages(self.stem(images_BCHW))
        grid: Grid = (planes.shape[-2], planes.shape[-1])
        tokens = self.norm(self.attention(to_tokens(planes), grid))
        logits: Tensor = self.head(self.dropout(tokens.mean(dim=1)))
        return logits


class Tiny(nn.Module):
    """Depthwise separable convolutions down to stride 8, then the mean."""

    def __init__(self, classes: int, *, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(channels, 12, stride=2),
            convolution(12, 12, stride=2, groups=12),
            convolution(12, 24, kernel_size=1),
            convolution(24, 24, stride=2, groups=24),
            convolution(24, 40, kernel_size=1),
            convolution(40, 40, groups=40),
            convolution(40, 56, kernel_size=1),
        )
        self.head = nn.Linear(56, classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits: Tensor = self.head(self.features(images_BCHW).mean(dim=(-2, -1)))
        return logits
