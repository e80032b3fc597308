"""The two light rungs: `minimal` (about 50 thousand parameters) and `tiny` (at most 6 thousand).

For: machines on which SClusterFormer does not fit.
Promises: float images (B, 3, H, W) of any size from 16 pixels a side to logits (B, classes); samples are independent
in evaluation mode.
Does not: normalise images or hold a loss.
"""

from torch import Tensor, nn

from outlast.model.cluster import ClusterBlock, Grid, to_tokens


class Minimal(nn.Module):
    """Inverted residual convolutions and one light block of cluster attention at stride 8."""

    def __init__(self, classes: int, *, channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = _convolution(channels, 16, stride=2)
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
            _convolution(channels, 12, stride=2),
            _convolution(12, 12, stride=2, groups=12),
            _convolution(12, 24, kernel_size=1),
            _convolution(24, 24, stride=2, groups=24),
            _convolution(24, 40, kernel_size=1),
            _convolution(40, 40, groups=40),
            _convolution(40, 56, kernel_size=1),
        )
        self.head = nn.Linear(56, classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits: Tensor = self.head(self.features(images_BCHW).mean(dim=(-2, -1)))
        return logits


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection; a residual where the shape stays (Sandler et al. 2018)."""

    def __init__(self, before: int, after: int, *, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        hidden = before * expansion
        self.layers = nn.Sequential(
            _convolution(before, hidden, kernel_size=1),
            _convolution(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.residual = stride == 1 and before == after

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        result: Tensor = self.layers(images_BCHW)
        return images_BCHW + result if self.residual else result


def _convolution(before: int, after: int, *, kernel_size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.SiLU(),
    )
