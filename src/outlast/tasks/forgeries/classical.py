"""The classical model of forgeries: an image is matched with itself, and what agrees is verified pixel by pixel.

Two searches propose how something may have been moved: dense patches (dense.py), for copies that are only shifted, down
to a few pixels and in smooth regions; keypoints (keypoints.py), for those that are turned, scaled or mirrored. Each
proposal is compared along its edges (likeness.py). Nothing is trained.
Promises: deterministic, single-threaded; the image's score is the largest evidence, so that the same number decides
about regions and about the image. Larger images than the limit are scaled down to it, and the result up again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from outlast.config.schema import Settings
from outlast.tasks.forgeries import dense, keypoints, likeness
from outlast.tasks.forgeries.geometry import Similarity
from outlast.tasks.forgeries.likeness import Region

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class ClassicalSettings(Settings):
    """How an image is matched with itself."""

    longest_side: int = Field(1024, ge=64, description="pixels; larger images are scaled down to it")
    stride: int = Field(3, ge=1, le=16, description="pixels from one compared patch to the next")
    nearest_pixels: int = Field(12, ge=1, description="a copy is moved by at least so much")
    most_proposals: int = Field(300, ge=1, description="shifts that are verified, the best supported first")
    keypoints: bool = Field(True, description="look for turned and scaled copies too; needs OpenCV: outlast[opencv]")
    mirrored: bool = Field(True, description="and for mirrored ones")
    most_keypoints: int = Field(6000, ge=100, description="of an image, the strongest")
    least_evidence: float = Field(30.0, gt=0, description="in nats, from which a region is marked")
    least_information: float = Field(
        40.0, gt=0, description="in nats, from which a region is marked that lies on one that is marked anyway"
    )


class Detection(NamedTuple):
    """What was found in one image.

    score       the largest evidence of a region in nats, 0 if there is none
    probability float32 (H, W): evidence / (evidence + least_evidence) of the best region at each pixel; marked from 0.5
    regions     all of them, in pixels of the image as it was searched; `scale` of them make one pixel of the image
    """

    score: float
    probability: Float32
    regions: tuple[Region, ...]
    scale: float


def detect(image: UInt8, settings: ClassicalSettings) -> Detection:
    """Search an image, uint8 (H, W, 3), for what was copied within it. Raises TaskError where OpenCV lacks."""
    height, width = image.shape[:2]
    scale = min(1.0, settings.longest_side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = _resized(image @ _LUMA, size)
    regions = linked(search(small, settings), size, settings)
    best = np.zeros(size, np.float32)
    for region in regions:
        for mask, (top, left) in ((region.source, region.source_at), (region.copy, region.copy_at)):
            window = best[top : top + mask.shape[0], left : left + mask.shape[1]]
            np.maximum(window, np.where(mask, np.float32(region.evidence), 0), out=window)
    probability = _resized(best / (best + np.float32(settings.least_evidence)), (height, width))
    return Detection(max((region.evidence for region in regions), default=0.0), probability, tuple(regions), scale)


def search(grey: Float32, settings: ClassicalSettings) -> list[Region]:
    """Every region of a grey image (H, W), 0 to 255, that was found twice, with its evidence."""
    if min(grey.shape) < 2 * dense.PATCH:
        return []
    image = likeness.prefiltered(grey)
    found = []
    proposals = dense.supports(
        dense.whitened(grey), stride=settings.stride, nearest=settings.nearest_pixels, most=settings.most_proposals
    )
    for support in proposals:
        moved = Similarity(1.0 + 0j, complex(support.shift[1], support.shift[0]))
        found += likeness.compare(image, moved, support.places[:, 0], support.places[:, 1])
    if settings.keypoints:
        for moved, rows, columns in keypoints.proposals(
            grey, nearest=settings.nearest_pixels, most=settings.most_keypoints, mirrored=settings.mirrored
        ):
            found += likeness.compare(image, moved, rows, columns)
    return found


def linked(regions: list[Region], size: tuple[int, int], settings: ClassicalSettings) -> list[Region]:
    """The regions, of which those that lie on a marked one have at least the evidence to be marked themselves.

    Where something was copied once, a less certain copy of the same is no coincidence.
    """
    marked = np.zeros(size, bool)
    for region in regions:
        if region.evidence >= settings.least_evidence:
            for mask, at in ((region.source, region.source_at), (region.copy, region.copy_at)):
                marked[at[0] : at[0] + mask.shape[0], at[1] : at[1] + mask.shape[1]] |= mask

    def lies_on_a_marked_one(region: Region) -> bool:
        return any(
            2 * likeness.overlap(mask, at, marked, (0, 0)) >= np.count_nonzero(mask)
            for mask, at in ((region.source, region.source_at), (region.copy, region.copy_at))
        )

    least, enough = settings.least_evidence, settings.least_information
    return [
        region._replace(evidence=least)
        if region.evidence < least and region.information >= enough and lies_on_a_marked_one(region)
        else region
        for region in regions
    ]


def _resized(plane: npt.NDArray[np.floating], size: tuple[int, int]) -> Float32:
    """A float plane (H, W) at another size, bilinear with antialiasing."""
    from PIL import Image

    plane = np.asarray(plane, np.float32)
    if plane.shape == size:
        return plane
    return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR))
