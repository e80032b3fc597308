"""A network that finds what was copied within an image: descriptors, self-correlation, exact matches, a decoder.

Tokens of the image are correlated with each other (`correlation`); the best matches of each are made exact
(`copy_move_matches`); how alike they are and how many neighbours agree on them are the cues that a decoder turns into
logits. The plain network's tokens are learned descriptors that begin as cosines, so that it can be trained on a CPU
from scratch; a frozen vision transformer (DINOv2) adds its own tokens and their matches.
Promises: gradient flows through the correlation into the descriptors (and into the backbone's last blocks, where they
are trained); padding is neither matched nor learned from; memory of the correlation is bounded by `budget_megabytes`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.model import copy_move_matches as matches
from outlast.model import repeatable
from outlast.model.backbone import Tokens
from outlast.model.copy_move_decoder import Decoder
from outlast.model.copy_move_matches import Found, Grid
from outlast.model.copy_move_settings import PLAIN, CopyMoveSettings
from outlast.model.correlation import Matches, self_correlation
from outlast.model.descriptors import cosine_kernels, described, whitened, windows, windows_inside
from outlast.model.repeatable import convolved

STRIDE = 4  # pixels of a position of the plain tokens
FLOW = 4  # pixels of a position of the flow
_WINDOW, _LUMA, _CHROMA = 12, 5, 3  # of the plain tokens: side in pixels, orders of their cosines at the beginning
_EXACT_WINDOW, _EXACT_LUMA, _EXACT_CHROMA = 8, 6, 3  # of the descriptors of single pixels
_DEEPEST = 8  # pixels of a position at the decoder's lowest resolution
_LEAD = 4  # positions around which the strongest offset is taken from: half of most real regions
_TOP_SHARE = 0.01  # of the pixels whose logits make the image's score
_DIFFERENCE = 0.06  # of the range of an image: how unlike copied pixels still are


class CopyMove(nn.Module):
    """Images (B, 3, H, W) in 0..255 and valid (B, H, W) bool to {"logits": (B, H, W), "score": (B,), "flow"}.

    score: a logit that anything in the image was copied, made of the highest of its pixels' logits. flow: (B, 3, h, w),
    the leading match of every fourth pixel: its offset dy and dx in pixels, and how many neighbours agree on it, 0 to 1
    (no gradient). Raises ModelError where the weights of the backbone are
    missing or do not fit.
    """

    exact: Tensor

    def __init__(self, settings: CopyMoveSettings) -> None:
        super().__init__()
        self.settings = settings
        self.search = torch.float32  # what matches are looked for in
        kernels = cosine_kernels(_WINDOW, _LUMA, _CHROMA)
        self.descriptors = nn.Conv2d(3, len(kernels), _WINDOW, stride=STRIDE, padding=(_WINDOW - STRIDE) // 2)
        self.descriptors.weight.data.copy_(kernels)
        nn.init.zeros_(self.descriptors.bias)  # type: ignore[arg-type]
        self.register_buffer("exact", cosine_kernels(_EXACT_WINDOW, _EXACT_LUMA, _EXACT_CHROMA), persistent=False)
        tokens = len(kernels) + 2 * settings.top
        self.backbone: Tokens | None = None
        if settings.backbone != PLAIN:
            self.backbone = Tokens(
                settings.backbone, pretrained=settings.pretrained, weights=settings.weights, unfrozen=settings.unfrozen
            )
            self.project = nn.Conv2d(self.backbone.channels, settings.tokens, 1)
            tokens += settings.tokens + 2 * settings.top
        self.decoder = Decoder(4 * settings.kept + 4, tokens, 3 + 3, settings.width, settings.stem)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def repeatable(self) -> CopyMove:
        """This network, with the same parameters, that finds the same in every runtime (see `repeatable`)."""
        same = copy.copy(self)
        same.search = torch.float64
        return same

    @property
    def unit(self) -> int:
        """Both sides of an image are padded to a multiple of this."""
        return math.lcm(_DEEPEST, self.backbone.patch if self.backbone is not None else 1)

    def forward(self, images: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """See the class; images may be uint8."""
        height, width = images.shape[-2:]
        beyond = (0, -width % self.unit, 0, -height % self.unit)
        valid = F.pad(valid.bool(), beyond)
        pixels = F.pad(images.to(self.search) / 255, beyond) * valid[:, None]
        tokens, offsets = self._tokens(pixels, valid)
        cues, stem, flow = self._cues(pixels, valid, offsets)
        logits = self.decoder(cues, tokens, stem, valid[:, None].float())
        score = self.scale * _highest(logits, valid) + self.bias
        flow = flow[:, :, : math.ceil(height / FLOW), : math.ceil(width / FLOW)]
        return {"logits": logits[:, :height, :width], "score": score, "flow": flow}

    def _tokens(self, pixels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """(B, t, H/4, W/4) for the decoder, and the offsets (B, K, 2, H/4, W/4) of the plain tokens' matches."""
        inside = _all_valid(valid, _WINDOW, STRIDE, (_WINDOW - STRIDE) // 2)
        described = self._described(pixels - 0.5) * inside[:, None]
        found = self._matched(described, inside, STRIDE)
        parts = [F.normalize(described, dim=1), found.values, found.found]
        parts = [part.float() for part in parts]
        if self.backbone is not None:
            seen = self.backbone(pixels.float())
            patch = self.backbone.patch
            whole = _all_valid(valid, patch, patch, 0)
            coarse = self._matched(seen, whole, patch)
            both = torch.cat((self.project(seen) * whole[:, None], coarse.values.float(), coarse.found.float()), dim=1)
            parts.append(F.interpolate(both, size=described.shape[-2:], mode="bilinear"))
        return torch.cat(parts, dim=1), found.offsets

    def _described(self, pixels: Tensor) -> Tensor:
        if self.search == torch.float32:
            described: Tensor = self.descriptors(pixels)
            return described
        padding = (_WINDOW - STRIDE) // 2
        bias = self.descriptors.bias[:, None, None]  # type: ignore[index]
        return convolved(F.pad(pixels, (padding,) * 4), self.descriptors.weight, STRIDE) + bias

    def _matched(self, tokens: Tensor, valid: Tensor, stride: int) -> Matches:
        wanted = self.settings
        if self.search == torch.float64:
            radius = math.ceil(wanted.radius / stride)
            return repeatable.self_correlation(tokens.double(), top=wanted.top, radius=radius, valid_BHW=valid)
        return self_correlation(
            tokens, top=wanted.top, radius=math.ceil(wanted.radius / stride), valid_BHW=valid,
            budget_bytes=wanted.budget_megabytes * 2**20,
        )  # fmt: skip

    @torch.no_grad()
    def _cues(self, pixels: Tensor, valid: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cues (B, c, H/2, W/2) of exact matches, the stem's input (B, 6, H, W), and the flow."""
        found, fine, norms = self._exact_matches(pixels, valid, offsets)
        near = matches.support(fine, reach=3, step=1, tolerance=1)
        wide = matches.support(found, reach=2, step=3, tolerance=2)
        leading, strongest = matches.leading(found, near, _LEAD)
        cues = [
            found.similarities.clamp(min=-1),
            fine.similarities.clamp(min=-1),
            near,
            wide,
            strongest[:, None],
            (1 + norms).log()[:, None],
        ]
        cues += [(found.similarities[:, :1] > matches.NONE).to(wide.dtype), wide.amax(dim=1, keepdim=True)]
        stem = [pixels - 0.5, *_differences(pixels, valid, leading, strongest)]
        flow = torch.cat((leading.permute(0, 3, 1, 2).to(strongest.dtype), strongest[:, None]), dim=1)
        return torch.cat(cues, dim=1).float(), torch.cat(stem, dim=1).float(), flow[:, :, ::2, ::2].float()

    def _exact_matches(self, pixels: Tensor, valid: Tensor, offsets: Tensor) -> tuple[Found, Found, Tensor]:
        """Matches at half resolution, the same by how alike their fine texture is, and the descriptors' norms there."""
        wanted = self.settings
        descriptors, norms = described(pixels, self.exact)
        texture = windows(whitened(pixels, valid), _EXACT_WINDOW)
        both = torch.cat((descriptors, texture), dim=1) * math.sqrt(0.5)
        inside = windows_inside(valid, _EXACT_WINDOW).flatten(1)
        coarse = Grid(_flat(both), inside, pixels.shape[-2], pixels.shape[-1], wanted.radius, STRIDE)
        in_pixels = offsets.permute(0, 1, 3, 4, 2) * STRIDE
        found = matches.refined(coarse, in_pixels, wanted.kept, wanted.refine)
        grid = coarse._replace(stride=2)
        found = matches.finer(grid, found, wanted.kept)
        alike = matches.similarities(grid._replace(descriptors=_flat(texture)), found.offsets)
        fine = Found(found.offsets, torch.where(found.similarities > matches.NONE, alike, matches.NONE))
        return found, fine, norms[:, 1::2, 1::2]

    def train(self, mode: bool = True) -> Any:
        """A frozen backbone stays as it is when it evaluates."""
        super().train(mode)
        if self.backbone is not None:
            self.backbone.keep_frozen()
        return self


def _flat(planes_BCHW: Tensor) -> Tensor:
    return planes_BCHW.flatten(2).transpose(1, 2).contiguous()


def _all_valid(valid: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """(B, h, w) bool: the windows of a convolution that hold valid pixels only."""
    outside = F.pad((~valid).float()[:, None], (padding,) * 4, value=1.0)
    return F.max_pool2d(outside, side, stride=stride)[:, 0] == 0


def _differences(pixels: Tensor, valid: Tensor, leading: Tensor, strongest: Tensor) -> list[Tensor]:
    """Three planes (B, 1, H, W): how alike each pixel and the one at the strongest offset around are, with and without
    its surroundings' brightness, and how strong that offset is."""
    height, width = pixels.shape[-2:]
    pixels = pixels.float()
    offsets = leading.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    y = torch.arange(height, device=pixels.device)[:, None] + offsets[..., 0]
    x = torch.arange(width, device=pixels.device) + offsets[..., 1]
    there = (y >= 0) & (y < height) & (x >= 0) & (x < width) & valid
    place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)
    there &= valid.flatten(1).gather(1, place).view_as(there)
    strength = strongest.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    there &= strength > 0
    blurred = F.avg_pool2d(pixels, 9, stride=1, padding=4)
    planes = []
    for seen in (pixels, pixels - blurred):
        other = seen.flatten(2).gather(2, place[:, None].expand(-1, 3, -1)).view_as(seen)
        alike = torch.exp(-(seen - other).abs().mean(dim=1, keepdim=True) / _DIFFERENCE) * there[:, None]
        planes.append(F.avg_pool2d(alike, 3, stride=1, padding=1))
    return [*planes, strength[:, None]]


def _highest(logits: Tensor, valid: Tensor) -> Tensor:
    """(B,): the mean of the highest logits, a share of the valid pixels of each image."""
    flat = logits.masked_fill(~valid, -math.inf).flatten(1)
    counts = (valid.flatten(1).sum(dim=1) * _TOP_SHARE).ceil().clamp(min=1)
    top = flat.topk(math.ceil(flat.shape[1] * _TOP_SHARE), dim=1).values
    counted = torch.arange(top.shape[1], device=top.device) < counts[:, None]
    return torch.where(counted, top, 0).sum(dim=1) / counts
