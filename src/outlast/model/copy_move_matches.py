"""From coarse matches to exact ones: offsets are moved pixel by pixel and handed on to neighbours, then counted.

For: `copy_move`. What self-correlation finds on a grid of some pixels is right to within that grid; here each match is
moved to where the descriptors of single pixels agree best, and tried at its neighbours too (Barnes et al.,
"PatchMatch", 2009). A copied region then shows by neighbours that agree on one offset (Cozzolino et al., "Efficient
dense-field copy-move forgery detection", 2015): `support` counts them.
Promises: no gradient; nothing depends on what else is in the batch. Offsets are (dy, dx) in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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

    def positions(self) -> Tensor:
        """(rows, columns, 2): y and x in pixels."""
        device, first = self.descriptors.device, self.stride // 2
        y = torch.arange(self.rows, device=device) * self.stride + first
        x = torch.arange(self.columns, device=device) * self.stride + first
        return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)


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
    positions = grid.positions()
    ends = positions + offsets
    y, x = ends[..., 0], ends[..., 1]
    there = (y >= 0) & (y < grid.height) & (x >= 0) & (x < grid.width)
    there &= offsets.abs().amax(dim=-1) > grid.radius
    from_ = positions[..., 0] * grid.width + positions[..., 1]
    to = y.clamp(0, grid.height - 1) * grid.width + x.clamp(0, grid.width - 1)
    values = [
        torch.where(
            there[number] & inside[from_] & inside[to[number]],
            (descriptors[from_] * descriptors[to[number]]).sum(dim=-1),
            NONE,
        )
        for number, (descriptors, inside) in enumerate(zip(grid.descriptors, grid.inside, strict=True))
    ]
    return torch.stack(values)


@torch.no_grad()
def support(found: Found, reach: int, step: int, tolerance: int) -> Tensor:
    """(B, K, rows, columns), 0 to 1: how many neighbours have a match of the same offset, counted by its similarity.

    Neighbours are those within `reach` steps of `step` positions; `tolerance`: pixels that the offsets may differ by.
    """
    similar = found.similarities.clamp(min=0)
    total = torch.zeros_like(similar)
    moves = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1) if dy or dx]
    offsets = found.offsets.to(torch.int16)
    for dy, dx in moves:
        there = _shifted(offsets, dy * step, dx * step)
        counted = _shifted(similar, dy * step, dx * step)
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
    result = torch.zeros_like(values)
    rows, columns = values.shape[2:4]
    to, from_ = zip(_slices(down, rows), _slices(right, columns), strict=True)
    result[(slice(None), slice(None), *to)] = values[(slice(None), slice(None), *from_)]
    return result


def _slices(shift: int, size: int) -> Sequence[slice]:
    """Where to, and where from."""
    if shift >= 0:
        return slice(min(shift, size), size), slice(0, max(size - shift, 0))
    return slice(0, max(size + shift, 0)), slice(min(-shift, size), size)
