"""From coarse matches to exact ones: offsets are moved pixel by pixel and handed on to neighbours, then counted.

For: `copy_move`. What self-correlation finds on a grid of some pixels is right to within that grid; here each match is
moved to where the descriptors of single pixels agree best, and tried at its neighbours too (Barnes et al.,
"PatchMatch", 2009). A copied region then shows by neighbours that agree on one offset (Cozzolino et al., "Efficient
dense-field copy-move forgery detection", 2015): `support` counts them.
Promises: no gradient; nothing depends on what else is in the batch. Offsets are (dy, dx) in pixels of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from outlast.model.repeatable import settled

NONE = -2.0  # the similarity of a match that is none; those of matches are -1 to 1
_AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
_BESIDE = ((0, 1), (0, -1), (1, 0), (-1, 0))
_SAME = 1  # pixels that two offsets may differ by and still count as one


class Grid(NamedTuple):
    """Positions in images that matches are looked for at: every `stride` pixels, from stride // 2 on.

    descriptors (B, H * W, K) of every pixel; inside (B, H * W): whether a pixel has one; radius: no match is nearer.
    """

    descriptors: Tensor
    inside: Tensor
    height: int
    width: int
    radius: int
    stride: int

    @property
    def rows(self) -> int:
        return self.height // self.stride

    @property
    def columns(self) -> int:
        return self.width // self.stride

    def positions(self) -> tuple[Tensor, Tensor]:
        """y (rows, 1) and x (columns,), in pixels."""
        device, first = self.descriptors.device, self.stride // 2
        y = torch.arange(self.rows, device=device) * self.stride + first
        return y[:, None], torch.arange(self.columns, device=device) * self.stride + first

    def every(self, values: Tensor) -> Tensor:
        """(B, rows, columns, ...): what values (B, H * W, ...) are at the positions."""
        first, stride = self.stride // 2, self.stride
        planes = values.reshape(-1, self.height, self.width, *values.shape[2:])
        return planes[:, first : first + self.rows * stride : stride, first : first + self.columns * stride : stride]


class Found(NamedTuple):
    """offsets (B, K, rows, columns, 2) int64 and similarities (B, K, rows, columns), best first; NONE: no match."""

    offsets: Tensor
    similarities: Tensor


@torch.no_grad()
def refined(grid: Grid, offsets: Tensor, kept: int, rounds: int) -> Found:
    """The `kept` best offsets that differ, after each of `offsets` (B, K, rows, columns, 2) was moved and handed on."""
    found = Found(offsets, similarities(grid, offsets))
    for _ in range(rounds):
        for move in _AROUND:
            moved = found.offsets + torch.tensor(move, device=offsets.device)
            values = similarities(grid, moved)
            better = values > found.similarities
            found = Found(
                torch.where(better[..., None], moved, found.offsets), torch.where(better, values, found.similarities)
            )
        found = _distinct(_handed_on(grid, found), offsets.shape[1])
    return Found(found.offsets[:, :kept], found.similarities[:, :kept])


@torch.no_grad()
def finer(grid: Grid, found: Found, kept: int) -> Found:
    """Matches of a grid of twice the stride on this one: each position tries those around it."""
    offsets = found.offsets.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    offsets = offsets[:, :, : grid.rows, : grid.columns]
    return _distinct(_handed_on(grid, Found(offsets, similarities(grid, offsets)), step=2), kept)


def similarities(grid: Grid, offsets: Tensor) -> Tensor:
    """(B, K, rows, columns): inner products of the descriptors at both ends; NONE where one has none, or too near."""
    y, x = (place + offsets[..., axis] for axis, place in enumerate(grid.positions()))
    there = (y >= 0) & (y < grid.height) & (x >= 0) & (x < grid.width)
    there &= offsets.abs().amax(dim=-1) > grid.radius
    to = y.clamp(0, grid.height - 1) * grid.width + x.clamp(0, grid.width - 1)
    own, own_inside = grid.every(grid.descriptors), grid.every(grid.inside)
    # In one run of pixels, so that an image is only an offset into it: no loop over images, of which a network that is
    # traced takes any number. All matches at once would take as many times the memory.
    count, pixels = grid.inside.shape
    to = to + torch.arange(count, device=to.device)[:, None, None, None] * pixels
    descriptors, inside = grid.descriptors.flatten(0, 1), grid.inside.flatten()
    values = [
        torch.where(there[:, match] & own_inside & inside[place], settled((own * descriptors[place]).sum(dim=-1)), NONE)
        for match, place in enumerate(to.unbind(dim=1))
    ]
    return torch.stack(values, dim=1)


@torch.no_grad()
def support(found: Found, reach: int, step: int, tolerance: int) -> Tensor:
    """(B, K, rows, columns), 0 to 1: how many neighbours have a match of the same offset, counted by its similarity.

    Neighbours are those within `reach` steps of `step` positions; `tolerance`: pixels that the offsets may differ by.
    """
    similar = found.similarities.clamp(min=0)
    total = torch.zeros_like(similar)
    moves = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1) if dy or dx]
    offsets, edge = found.offsets.to(torch.int32), reach * step
    rows, columns = similar.shape[2:]
    around = F.pad(offsets, (0, 0, edge, edge, edge, edge)), F.pad(similar, (edge,) * 4)
    for dy, dx in moves:
        down, right = edge - dy * step, edge - dx * step
        there, counted = (values[:, :, down : down + rows, right : right + columns] for values in around)
        same = (offsets[:, :, None] - there[:, None]).abs().amax(dim=-1) <= tolerance
        total += (same * counted[:, None]).amax(dim=2)
    return torch.where(found.similarities > NONE, total / len(moves), 0)


@torch.no_grad()
def leading(found: Found, strength: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The offset (B, rows, columns, 2) with the most strength (B, K, rows, columns) within `reach`, and how much."""
    best, which = strength.max(dim=1)
    own = found.offsets.gather(1, which[:, None, ..., None].expand(-1, -1, -1, -1, 2))[:, 0]
    strongest, place = F.max_pool2d(best[:, None], 2 * reach + 1, stride=1, padding=reach, return_indices=True)
    flat = own.flatten(1, 2)
    offsets = flat.gather(1, place.flatten(1)[..., None].expand(-1, -1, 2)).view_as(own)
    return offsets, strongest[:, 0]


def _handed_on(grid: Grid, found: Found, step: int = 1) -> Found:
    """With the two best offsets of each of the four neighbours, tried here."""
    tried: list[Tensor] = [found.offsets]
    values: list[Tensor] = [found.similarities]
    for dy, dx in _BESIDE:
        offsets = _shifted(found.offsets[:, :2], dy * step, dx * step)
        tried.append(offsets)
        values.append(similarities(grid, offsets))
    return Found(torch.cat(tried, dim=1), torch.cat(values, dim=1))


def _distinct(found: Found, kept: int) -> Found:
    """The best, then the best of those that differ from it, and so on."""
    values = found.similarities
    offsets: list[Tensor] = []
    best: list[Tensor] = []
    for _ in range(kept):
        value, which = values.max(dim=1)
        offset = found.offsets.gather(1, which[:, None, ..., None].expand(-1, -1, -1, -1, 2))
        offsets.append(offset)
        best.append(value)
        same = (found.offsets - offset).abs().amax(dim=-1) <= _SAME
        values = values.masked_fill(same, NONE)
    return Found(torch.cat(offsets, dim=1), torch.stack(best, dim=1))


def _shifted(values: Tensor, down: int, right: int) -> Tensor:
    """`values` (B, K, rows, columns, ...) of the neighbour that lies up and left by so much; 0 beyond the border."""
    rows, columns = values.shape[2:4]
    down, right = max(-rows, min(down, rows)), max(-columns, min(right, columns))
    kept = values[:, :, max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)]
    beyond = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    return F.pad(kept, (0, 0) * (values.dim() - 4) + beyond)
