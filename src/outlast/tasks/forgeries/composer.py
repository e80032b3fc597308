"""Copy-move forgeries made from any photo: a region is copied, changed a little, and put elsewhere in the same image.

Promises: the result is a function of the photo, the numbers and the settings alone; its mask is exact: 1 at the pixels
of the source and where its copies were put, and nowhere else; copies overlap neither a source nor each other nor the
border. Some images are left without a copy, and some have a region changed in place, so that an edge or a trace of
compression is no sign of a forgery; what repeats itself in the photo stays as it is, and unmarked. Single-threaded.
Does not do: look for a place where nobody would see it.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from outlast.config.schema import Settings
from outlast.data.randomness import uniforms
from outlast.tasks.forgeries import shapes
from outlast.tasks.forgeries.shapes import Shape

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

_SETS, _COPIES, _PLACES = 3, 5, 4
_OF_COPY, _OF_SET = 12, 2 + shapes.NUMBERS + 2 + _PLACES  # numbers
_OF_IMAGE = 10
_BLOCK = _OF_SET + _COPIES * _OF_COPY
NUMBERS = _OF_IMAGE + (_SETS + 1) * _BLOCK  # uniform in [0, 1), that a forgery is made of; the last block is the decoy
_GAP = 2  # pixels between regions, so that each is a component of its own
_VISIBLE = 4.0  # least deviation of the grey values of a source: a copy of plain sky can't be seen by anyone
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class Composition(Settings):
    """What forgeries are composed. Probabilities are per image (authentic, decoy, jpeg) or per copy (the others)."""

    authentic: float = Field(0.35, ge=0, le=1, description="share of images in which nothing is copied")
    most_sources: int = Field(2, ge=1, le=_SETS, description="different regions that are copied in one image")
    most_copies: int = Field(3, ge=1, le=_COPIES, description="of each of them")
    smallest_side: float = Field(12.0, ge=4, description="of a region, in pixels; sizes are log-uniform")
    largest_share: float = Field(0.333, gt=0, le=0.5, description="side of a region, of the image's shorter side")
    elongation: float = Field(2.5, ge=1, le=8, description="longer side of a region by the shorter, at most")
    rotate: float = Field(0.35, ge=0, le=1, description="probability that a copy is turned")
    rotation_degrees: float = Field(180.0, ge=0, le=180, description="at most, either way")
    scale: float = Field(0.35, ge=0, le=1, description="probability that a copy is made larger or smaller")
    scale_range: tuple[float, float] = Field((0.7, 1.4), description="of that, as a factor")
    flip: float = Field(0.2, ge=0, le=1, description="probability that a copy is mirrored")
    subpixel: float = Field(0.5, ge=0, le=1, description="probability that a copy lies between pixels")
    brightness: float = Field(0.3, ge=0, le=1, description="probability that a copy is brighter or darker")
    brightness_range: float = Field(0.15, ge=0, le=0.9, description="of that, as a factor within 1 +- this")
    soft_edge: float = Field(0.5, ge=0, le=1, description="probability that the edge of a copy is blurred")
    edge_pixels: float = Field(4.0, ge=0.5, le=32, description="width of a blurred edge, at most")
    jpeg: float = Field(0.5, ge=0, le=1, description="probability that the image is compressed once more")
    jpeg_quality: tuple[int, int] = Field((60, 95), description="of that, from the first to the second")
    decoy: float = Field(0.3, ge=0, le=1, description="probability that a region is changed in place, which is no copy")

    def model_post_init(self, _: object) -> None:
        if not 0.25 <= self.scale_range[0] <= self.scale_range[1] <= 4:
            raise ValueError(f"scale_range must be (low, high) with 0.25 <= low <= high <= 4, not {self.scale_range}")
        if not 5 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"jpeg_quality must be (low, high) with 5 <= low <= high <= 100, not {self.jpeg_quality}")


class Composed(NamedTuple):
    """image uint8 (H, W, 3); mask uint8 (H, W); instances uint8 (N, H, W): each a source with its copies; 0 and 1."""

    image: UInt8
    mask: UInt8
    instances: UInt8


class _Box(NamedTuple):
    """Pixels from (top, left) up to (bottom, right), which lie outside."""

    top: int
    left: int
    bottom: int
    right: int


class _Placed(NamedTuple):
    """A shape in the image: its middle, and the pixels that its box touches."""

    y: float
    x: float
    box: _Box


def draw(seed: int, epoch: int, indices: npt.ArrayLike) -> Float64:
    """The numbers (N, NUMBERS) of these samples; row n depends on (seed, epoch, indices[n]) alone."""
    return uniforms(seed, epoch, indices, NUMBERS)


def compose(photo: UInt8, numbers: Float64, settings: Composition) -> Composed:
    """A forgery, or an authentic image (no instance), of a photo uint8 (H, W, 3) and numbers (NUMBERS,) in [0, 1).

    An image without room for a region of the smallest side and a copy of it stays authentic.
    """
    image = photo.copy()
    taken: list[_Box] = []
    instances: list[UInt8] = []
    if numbers[0] >= settings.authentic:
        for number in range(1 + int(settings.most_sources * numbers[1])):
            block = numbers[_OF_IMAGE + number * _BLOCK :][:_BLOCK]
            instance = _copy_region(photo, image, block, settings, taken)
            if instance is not None:
                instances.append(instance)
    if numbers[2] < settings.decoy:
        _change_in_place(image, numbers[-_BLOCK:], settings, taken)
    if numbers[3] < settings.jpeg:
        image = _compressed(image, settings, float(numbers[4]))
    height, width = photo.shape[:2]
    stacked = np.stack(instances) if instances else np.zeros((0, height, width), np.uint8)
    return Composed(image, np.asarray(stacked.any(axis=0), np.uint8), stacked)


def _copy_region(photo: UInt8, image: UInt8, block: Float64, settings: Composition, taken: list[_Box]) -> UInt8 | None:
    """Copy one region of the photo into the image once or several times; its mask (H, W), or None without room."""
    shape = _shape(block, photo, settings)
    source = _visible_place(photo, shape, block, settings, taken)
    if source is None:
        return None
    places = [*taken, source.box]
    mask = np.zeros(photo.shape[:2], np.uint8)
    copies = 0
    for number in range(1 + int(settings.most_copies * block[1])):
        own = block[_OF_SET + number * _OF_COPY :][:_OF_COPY]
        target = _put_copy(photo, image, mask, own, settings, shape, source, places)
        if target is not None:
            places.append(target)
            copies += 1
    if not copies:
        return None
    taken[:] = places
    window = _window(source.box)
    mask[window] |= _depth(shape, source, source.box, np.eye(2)) >= 0
    return mask


def _shape(block: Float64, photo: UInt8, settings: Composition) -> Shape:
    """Its numbers are block[0] (the size) and those behind block[1]."""
    largest = max(settings.smallest_side, settings.largest_share * min(photo.shape[:2]))
    side = settings.smallest_side * (largest / settings.smallest_side) ** float(block[0])
    return shapes.shape_of(block[2 : 2 + shapes.NUMBERS + 2], side, settings.elongation)


def _visible_place(
    photo: UInt8, shape: Shape, block: Float64, settings: Composition, taken: list[_Box]
) -> _Placed | None:
    """The first of some free places where there is something to see, or the one with the most."""
    best: tuple[float, _Placed] | None = None
    half = shape.half_height, shape.half_width
    for number in block[_OF_SET - _PLACES : _OF_SET].tolist():
        place = _free_place(photo.shape[:2], half, (0.0, 0.0), number, taken, settings)
        if place is None:
            return None
        contrast = float((photo[_window(place.box)] @ _LUMA).std())
        if best is None or contrast > best[0]:
            best = contrast, place
        if contrast >= _VISIBLE:
            break
    return best[1] if best else None


def _put_copy(
    photo: UInt8, image: UInt8, mask: UInt8, own: Float64, settings: Composition, shape: Shape, source: _Placed,
    taken: list[_Box],
) -> _Box | None:  # fmt: skip
    """Put one copy into the image and its pixels into the mask; the box that it fills, or None without room."""
    matrix = _matrix(own, settings)
    # Half of the box of the shape's box, turned and scaled.
    half_height = abs(matrix[0, 0]) * shape.half_height + abs(matrix[0, 1]) * shape.half_width
    half_width = abs(matrix[1, 0]) * shape.half_height + abs(matrix[1, 1]) * shape.half_width
    shift = (float(own[7]), float(own[8])) if own[6] < settings.subpixel else (0.0, 0.0)
    target = _free_place(photo.shape[:2], (half_height, half_width), shift, float(own[9]), taken, settings)
    if target is None:
        return None
    inverse = np.asarray(np.linalg.inv(matrix), np.float64)
    depth = _depth(shape, target, target.box, inverse)
    pixels = _warped(photo, source, target, inverse).astype(np.float64)
    if own[5] < settings.brightness:
        pixels *= 1 + settings.brightness_range * (2 * float(own[10]) - 1)
    soft = own[4] < settings.soft_edge
    opacity = (depth / (settings.edge_pixels * max(float(own[11]), 0.1)) + 0.5).clip(0, 1) if soft else depth >= 0
    window = _window(target.box)
    image[window] = _mixed(image[window], pixels, opacity)
    mask[window] |= depth >= 0
    return target.box


def _matrix(own: Float64, settings: Composition) -> Float64:
    """From the source to the copy, for (y, x) around the middles."""
    angle = math.radians(settings.rotation_degrees) * (2 * float(own[1]) - 1) if own[0] < settings.rotate else 0.0
    low, high = (math.log(factor) for factor in settings.scale_range)
    # One number says whether and how much: the lower part of it whether, spread out again.
    scaled = own[2] < settings.scale
    scale = math.exp(low + (high - low) * float(own[2]) / settings.scale) if scaled else 1.0
    mirror = -1.0 if own[3] < settings.flip else 1.0
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[cos, sin * mirror], [-sin, cos * mirror]])


def _free_place(
    size: tuple[int, ...], half: tuple[float, float], within: tuple[float, float], number: float,
    taken: list[_Box], settings: Composition,
) -> _Placed | None:  # fmt: skip
    """One of all places for a box (half of its height and width) that touches neither the border nor what is taken.

    within: where in a pixel its middle lies, 0 to 1. None if there is no place.
    """
    margin = settings.edge_pixels / 2  # a blurred edge reaches so far beyond the outline
    half_height, half_width = half[0] + margin, half[1] + margin
    up, left = math.ceil(half_height), math.ceil(half_width)
    height, width = size
    free = np.zeros((height, width), bool)
    free[up : max(0, height - 1 - up), left : max(0, width - 1 - left)] = True
    for box in taken:
        top, first = max(0, box.top - _GAP - up - 1), max(0, box.left - _GAP - left - 1)
        free[top : box.bottom + _GAP + up, first : box.right + _GAP + left] = False
    places = np.flatnonzero(free)
    if not len(places):
        return None
    row, column = divmod(int(places[int(len(places) * number)]), width)
    y, x = row + within[0], column + within[1]
    top, bottom = math.floor(y - half_height), math.ceil(y + half_height) + 1
    return _Placed(y, x, _Box(top, math.floor(x - half_width), bottom, math.ceil(x + half_width) + 1))


def _depth(shape: Shape, place: _Placed, box: _Box, inverse: Float64) -> Float64:
    """How far inside the shape each pixel of a box is; the inverse maps it back to the source."""
    y = np.arange(box.top, box.bottom)[:, None] - place.y
    x = np.arange(box.left, box.right)[None] - place.x
    return shape.depth(inverse[0, 0] * y + inverse[0, 1] * x, inverse[1, 0] * y + inverse[1, 1] * x)


def _warped(photo: UInt8, source: _Placed, target: _Placed, inverse: Float64) -> UInt8:
    """What of the photo comes to lie in the target's box, (h, w, 3): bicubic, or the very pixels where they fit."""
    box = target.box
    down, right = target.y - source.y, target.x - source.x
    if np.array_equal(inverse, np.eye(2)) and down.is_integer() and right.is_integer():
        rows, columns = np.arange(box.top, box.bottom) - int(down), np.arange(box.left, box.right) - int(right)
        return np.asarray(photo[rows.clip(0, len(photo) - 1)[:, None], columns.clip(0, photo.shape[1] - 1)[None]])
    (yy, yx), (xy, xx) = inverse.tolist()
    reach = 3 + math.ceil((abs(yy) + abs(yx) + abs(xy) + abs(xx)) * max(box.bottom - box.top, box.right - box.left))
    y0, x0 = max(0, int(source.y) - reach), max(0, int(source.x) - reach)
    part = Image.fromarray(photo[y0 : int(source.y) + reach, x0 : int(source.x) + reach])
    # PIL maps (x, y) of the result to (x, y) of the input, and counts both from the corner of a pixel.
    top, left = box.top - target.y - 0.5, box.left - target.x - 0.5
    across = xx * left + xy * top + source.x + 0.5 - x0
    downward = yx * left + yy * top + source.y + 0.5 - y0
    moved = part.transform(
        (box.right - box.left, box.bottom - box.top), Image.Transform.AFFINE, (xx, xy, across, yx, yy, downward),
        resample=Image.Resampling.BICUBIC,
    )  # fmt: skip
    return np.asarray(moved)


def _change_in_place(image: UInt8, block: Float64, settings: Composition, taken: list[_Box]) -> None:
    """Make a free region brighter or darker: edges as a copy has them, but nothing is copied."""
    shape = _shape(block, image, settings)
    half = shape.half_height, shape.half_width
    place = _free_place(image.shape[:2], half, (0.0, 0.0), float(block[-1]), taken, settings)
    if place is None:
        return
    depth = _depth(shape, place, place.box, np.eye(2))
    opacity = (depth / (settings.edge_pixels * float(block[-2])) + 0.5).clip(0, 1) if block[-3] < 0.5 else depth >= 0
    change = 0.4 * (2 * float(block[-4]) - 1)
    window = _window(place.box)
    image[window] = _mixed(image[window], (1 + change) * image[window].astype(np.float64), opacity)


def _mixed(below: UInt8, above: Float64, opacity: npt.NDArray[np.generic]) -> UInt8:
    share = opacity.astype(np.float64)[:, :, None]
    return np.asarray((below + share * (above - below) + 0.5).clip(0, 255).astype(np.uint8))


def _compressed(image: UInt8, settings: Composition, number: float) -> UInt8:
    low, high = settings.jpeg_quality
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=low + int((high - low + 1) * number))
    with Image.open(buffer) as stored:
        return np.asarray(stored.convert("RGB"))


def _window(box: _Box) -> tuple[slice, slice]:
    return slice(box.top, box.bottom), slice(box.left, box.right)
