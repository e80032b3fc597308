"""Probabilities for a whole scene from a network that sees one tile at a time, in bounded memory.

`predict_scene` cuts the scene into overlapping tiles, blends what the network says about each by a window that fades
towards the tile's border, and hands out finished rows from top to bottom. It promises: at every pixel the shares of the
tiles sum to one; the result depends neither on the batch size nor on how the budget cut the scene, beyond the rounding
of float32; the same call gives the same bits. The scene is never held: `read` brings one tile, and only one strip of
tiles is summed at a time (a part of its columns, if even that would not fit).

`tta` and `ensemble` turn forward functions into one that averages. A forward function maps images (B, C, tile, tile)
with NaN where nothing was observed to probabilities (B, K, tile, tile).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from outlast.errors import ConfigError, ModelError, listed

Forward = Callable[[Tensor], Tensor]
Read = Callable[[int, int, int, int], np.ndarray]

_FLOAT_BYTES = 4


class Rows(NamedTuple):
    """Finished rows: `probabilities` (K, rows, columns) float32, whose upper left pixel lies at (y, x) of the scene."""

    y: int
    x: int
    probabilities: np.ndarray


def predict_scene(
    forward: Forward,
    read: Read,
    height: int,
    width: int,
    channels: int,
    *,
    classes: int,
    tile: int,
    overlap: int,
    batch: int,
    budget_bytes: int,
    device: torch.device | str = "cpu",
    window: str = "hann",
    forward_bytes: int = 0,
) -> Iterator[Rows]:
    """Probabilities of every pixel of a scene, as finished rows: top to bottom, over the full width if it fits.

    read(y, x, h, w) gives float32 (channels, h, w) with NaN where nothing was observed, always inside the scene. A
    scene smaller than a tile is padded with NaN and cropped. `overlap` is the least number of pixels that neighbours
    share; the last tile of a row or column is moved back into the scene. `batch` is the most tiles at a time.
    budget_bytes bounds this machine's memory for all of it, with `forward_bytes` for what forward itself takes per
    image; first the batch gives way, then the strip is cut into blocks of columns, one after the other from left to
    right (tiles on a cut are then computed twice). Not counted: rows that the caller keeps, and up to 64 MiB of freed
    memory that the C library holds back.
    Raises ConfigError (settings, a budget too small) at once; ModelError for a forward that does not give finite
    (B, classes, tile, tile); ValueError for a `read` of another shape.
    """
    check_tiles(height, width, tile, overlap, batch, window)
    columns, fitting = fit(
        width,
        channels,
        classes=classes,
        tile=tile,
        batch=batch,
        budget_bytes=budget_bytes,
        forward_bytes=forward_bytes,
    )
    rows = _Axis.of(height, tile, overlap, window)
    scene = _Scene(forward, read, rows, _Axis.of(width, tile, overlap, window), channels, classes, fitting, device)
    return scene.blocks(columns)


def fit(
    width: int, channels: int, *, classes: int, tile: int, batch: int, budget_bytes: int, forward_bytes: int = 0
) -> tuple[int, int]:
    """How many columns and how many tiles at a time fit into the budget: (columns, batch).

    Counted: two strips (the one that is handed out and its successor), a batch with its probabilities, a tile being
    read and its window. Raises ConfigError, with the least that is needed, if a block as wide as a tile does not fit.
    """
    area = _FLOAT_BYTES * tile * tile
    per_image = area * (channels + 2 * classes) + forward_bytes
    per_column = 2 * _FLOAT_BYTES * classes * tile
    always = area * (channels + 1)
    whole = (budget_bytes - always - per_column * width) // per_image
    if whole >= 1:
        return width, min(batch, whole)
    least = always + per_image + per_column * min(tile, width)
    if budget_bytes < least:
        raise ConfigError(
            f"a memory budget of {_mib(budget_bytes)} is too small for tiles of {tile} pixels with {channels} channels "
            f"and {classes} classes: {_mib(least)} are the least",
            hint=f"give at least {least} bytes, or take smaller tiles",
        )
    most = (budget_bytes - always - per_image) // per_column
    return math.ceil(width / math.ceil(width / most)), 1


def _mib(amount: int) -> str:
    return f"{amount / 2**20:.1f} MiB"


# Profiles of a window along one axis, at the centres of the pixels: so none is ever 0 and every pixel has a sum.
WINDOWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hann": lambda centres: np.sin(np.pi * centres) ** 2,
    "cosine": lambda centres: np.sin(np.pi * centres),
    "flat": np.ones_like,
}


def check_tiles(height: int, width: int, tile: int, overlap: int, batch: int, window: str = "hann") -> None:
    """Refuse what a scene can't be cut by. Raises ConfigError that names every problem."""
    problems = []
    if min(height, width) < 1:
        problems.append(f"the scene has {height} x {width} pixels")
    if tile < 1 or not 0 <= overlap < tile:
        problems.append(f"tiles of {tile} pixels can't overlap by {overlap}: the overlap is from 0 to below the tile")
    if batch < 1:
        problems.append(f"a batch of {batch} tiles")
    if window not in WINDOWS:
        problems.append(f"there is no window {window!r}")
    if problems:
        raise ConfigError(
            "a scene can't be cut into tiles like this", details=problems, hint=f"windows are {listed(list(WINDOWS))}"
        )


@dataclass(frozen=True)
class _Axis:
    """One axis of the scene: where tiles begin, and each tile's share (tiles, tile) of the pixels it covers.

    The window is separable and every combination of a row and a column of tiles exists, so a tile's share of a pixel is
    the product of its shares along both axes, and the shares of all tiles sum to one along each.
    """

    size: int
    tile: int
    begins: tuple[int, ...]
    shares: Tensor

    @staticmethod
    def of(size: int, tile: int, overlap: int, window: str) -> _Axis:
        last = max(size - tile, 0)
        begins = (*range(0, last, tile - overlap), last)
        profile = WINDOWS[window]((np.arange(tile) + 0.5) / tile)
        total = np.zeros(max(size, tile))
        for begin in begins:
            total[begin : begin + tile] += profile
        shares = np.stack([profile / total[begin : begin + tile] for begin in begins])
        return _Axis(size, tile, begins, torch.from_numpy(shares.astype(np.float32)))

    def within(self, start: int, stop: int) -> list[int]:
        """The numbers of the tiles that cover a pixel of [start, stop)."""
        return [number for number, begin in enumerate(self.begins) if begin < stop and begin + self.tile > start]


@dataclass(frozen=True)
class _Scene:
    forward: Forward
    read: Read
    rows: _Axis
    columns: _Axis
    channels: int
    classes: int
    batch: int
    device: torch.device | str

    def blocks(self, columns: int) -> Iterator[Rows]:
        for start in range(0, self.columns.size, columns):
            yield from self.block(start, min(start + columns, self.columns.size))

    def block(self, start: int, stop: int) -> Iterator[Rows]:
        """Finished rows of the columns [start, stop)."""
        tile = self.rows.tile
        strip = torch.zeros(self.classes, tile, stop - start)
        for row, y in enumerate(self.rows.begins):
            self.add(strip, row, start, stop)
            last = row + 1 == len(self.rows.begins)
            finished = min(tile, self.rows.size) if last else self.rows.begins[row + 1] - y
            yield Rows(y, start, strip[:, :finished].numpy())
            if not last:
                # A new strip, because the caller may still hold a view of the old one.
                successor = torch.zeros_like(strip)
                successor[:, : tile - finished] = strip[:, finished:]
                strip = successor

    def add(self, strip: Tensor, row: int, start: int, stop: int) -> None:
        """Add one row of tiles to the strip of the columns [start, stop), tiles from left to right."""
        tile = self.rows.tile
        numbers = self.columns.within(start, stop)
        for first in range(0, len(numbers), self.batch):
            chosen = numbers[first : first + self.batch]
            probabilities = self.predict(row, chosen)
            for place, number in enumerate(chosen):
                begin = self.columns.begins[number]
                left, right = max(begin, start), min(begin + tile, stop)
                shares = self.columns.shares[number, left - begin : right - begin]
                weights = self.rows.shares[row][:, None] * shares
                # In place and one tile after the other: the order of the sum is fixed, and nothing is held twice.
                part = probabilities[place, :, :, left - begin : right - begin]
                strip[:, :, left - start : right - start].addcmul_(part, weights)

    def predict(self, row: int, numbers: Sequence[int]) -> Tensor:
        """Probabilities (B, K, tile, tile) on the host, of the tiles of one row."""
        tile = self.rows.tile
        images = torch.full((len(numbers), self.channels, tile, tile), torch.nan)
        y, height = self.rows.begins[row], min(tile, self.rows.size)
        width = min(tile, self.columns.size)
        for image, number in zip(images.numpy(), numbers, strict=True):
            x = self.columns.begins[number]
            found = self.read(y, x, height, width)
            if found.shape != (self.channels, height, width):
                raise ValueError(
                    f"read({y}, {x}, {height}, {width}) gave {found.shape}, not {(self.channels, height, width)}"
                )
            image[:, :height, :width] = found
        with torch.inference_mode():
            probabilities = self.forward(images.to(self.device)).float().cpu()
        wanted = (len(numbers), self.classes, tile, tile)
        if probabilities.shape != wanted:
            raise ModelError(
                f"the network gave {tuple(probabilities.shape)} for tiles from row {y} of the scene, not {wanted}",
                hint="forward must map (B, C, tile, tile) to probabilities (B, classes, tile, tile)",
            )
        # The sum is finite only if all are, and takes no memory.
        if not math.isfinite(float(probabilities.sum())):
            raise ModelError(
                f"the network gave a number that is not finite for a tile in rows {y} to {y + height} of the scene",
                hint="its first layer must turn NaN into a number; infinite values in the bands must come as NaN",
            )
        return probabilities


# The eight ways to turn a square picture onto itself: (quarter turns counter-clockwise, then mirrored left to right).
DIHEDRAL: dict[str, tuple[int, bool]] = {
    "identity": (0, False),
    "quarter_turn": (1, False),
    "half_turn": (2, False),
    "three_quarter_turn": (3, False),
    "mirror_x": (0, True),
    "mirror_antidiagonal": (1, True),
    "mirror_y": (2, True),
    "mirror_diagonal": (3, True),
}
# Names for the usual choices of `tta`.
FLIPS = ("identity", "mirror_x", "mirror_y", "half_turn")
ALL = tuple(DIHEDRAL)


def tta(forward: Forward, kinds: Sequence[str]) -> Forward:
    """Test-time augmentation: the mean of forward's probabilities over turned and mirrored copies, turned back.

    kinds: names in DIHEDRAL, e.g. FLIPS or ALL; each is computed once and summed in the order given. Quarter turns need
    square images. Raises ConfigError for an unknown name, none or a repeated one.
    """
    unknown = [kind for kind in kinds if kind not in DIHEDRAL]
    if unknown or not kinds or len(set(kinds)) != len(kinds):
        raise ConfigError(
            f"test-time augmentation by {listed(kinds) or 'nothing'}: each kind must be known and named once",
            hint=f"choose from {', '.join(DIHEDRAL)}",
        )
    turns = [DIHEDRAL[kind] for kind in kinds]

    def averaged(images: Tensor) -> Tensor:
        return _mean(_back(forward(_turned(images, *turn)), *turn) for turn in turns)

    return averaged


def ensemble(forwards: Sequence[Forward]) -> Forward:
    """The mean of the probabilities of several networks, summed in the order given. Raises ConfigError for none."""
    if not forwards:
        raise ConfigError("an ensemble of no network", hint="give at least one")
    members = tuple(forwards)
    return lambda images: _mean(member(images) for member in members)


def _mean(parts: Iterator[Tensor]) -> Tensor:
    # The parts are made one at a time: the memory that each takes does not add up.
    total, count = next(parts).float(), 1
    for part in parts:
        total, count = total + part.float(), count + 1
    return total / count


def _turned(images: Tensor, turns: int, mirrored: bool) -> Tensor:
    turned = torch.rot90(images, turns, dims=(2, 3))
    return torch.flip(turned, dims=(3,)) if mirrored else turned


def _back(images: Tensor, turns: int, mirrored: bool) -> Tensor:
    return torch.rot90(torch.flip(images, dims=(3,)) if mirrored else images, -turns, dims=(2, 3))
