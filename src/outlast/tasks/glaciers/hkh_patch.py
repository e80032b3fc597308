"""One HKH patch: an image (H, W, C) and its mask (H, W, 2 or 3) in two .npy files, opened safely and measured.

Promises: a file that is no plain array (a pickle, an archive, cut off) is refused with a sentence that names it, and no
code of it runs; images are memory-mapped; what `measure` finds serves any choice of channels, so that a set of hundreds
of gigabytes is read once. Does not do: find the files (hkh.py), or change them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outlast.errors import DataError

ICE, DEBRIS = 1, 2  # classes; 0 is background
_ROWS = 64  # of a patch that are worked on at a time: they fit a processor's cache


@dataclass(frozen=True)
class Measured:
    """What is known of a patch once it was read.

    hash: SHA-256 (hex) over image and mask. shape: (H, W, C). infinite: values that are infinite (they count as not
    observed). count, total: per channel, of the observed values. scatter: their squared deviations from the patch's own
    mean, which add up over patches without cancellation. seen: (class, channels, pixels): how many
    pixels of a class were observed in exactly these channels (bit c of `channels` is channel c).
    """

    hash: str
    shape: tuple[int, int, int]
    infinite: int
    count: tuple[int, ...]
    total: tuple[float, ...]
    scatter: tuple[float, ...]
    seen: tuple[tuple[int, int, int], ...]

    def pixels(self, channels: int, classes: int) -> list[int]:
        """Labelled pixels per class that were observed in at least one of `channels` (bits)."""
        found = [0] * classes
        for label, bits, amount in self.seen:
            if bits & channels:
                found[label] += amount
        return found


def open_array(path: Path) -> npt.NDArray[Any]:
    """A .npy file, memory-mapped; bool, integer or float. Raises DataError that says what it is instead."""
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
        if not start:
            raise DataError(f"{path}: the file is empty (0 bytes)", hint="copy it again")
        if start != b"\x93NUMPY":
            raise _not_plain(path, start)
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: the file doesn't exist (any more)", hint="restore it, or list the data anew"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", hint="check its permissions") from error
    except ValueError as error:
        if "Python object" in str(error) or "Object arrays" in str(error):
            raise _pickled(path) from error
        raise DataError(f"{path}: the file is damaged or cut off ({error})", hint="copy it again") from error
    if values.dtype.kind not in "buif":
        raise DataError(f"{path}: holds {values.dtype}, not numbers", hint="save it as uint8, int16 or float32")
    return np.asanyarray(values)


def open_pair(image: Path, mask: Path, channels: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Image (H, W, C), memory-mapped, and mask (H, W, 2): clean ice and debris. Raises DataError."""
    values, labels = open_array(image), open_array(mask)
    if values.ndim != 3 or values.shape[2] != channels or 0 in values.shape:
        raise DataError(
            f"{image}: its shape is {_shape(values)}, expected (height, width, {channels})",
            hint=f"save it with its {channels} channels last",
        )
    if labels.ndim != 3 or labels.shape[2] not in (2, 3):
        raise DataError(
            f"{mask}: its shape is {_shape(labels)}, expected (height, width, 2)",
            hint="save the mask as two planes, clean ice and debris, in this order",
        )
    if labels.shape[:2] != values.shape[:2]:
        raise DataError(
            f"{mask}: is {_size(labels)}, but its image {image.name} is {_size(values)}",
            hint="cut both from the same window",
        )
    return values, labels if labels.shape[2] == 2 else _of_three(mask, labels)


def _of_three(path: Path, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Clean ice and debris of a published mask, which has three planes, in one of two orders that the values tell.

    In slices: all ice, clean ice, debris. In splits: clean ice, debris, no ice, of which each pixel has one.
    """
    planes = np.asarray(labels) != 0
    if (planes.sum(axis=2) == 1).all():
        return labels[..., :2]
    if np.array_equal(planes[..., 0], planes[..., 1] | planes[..., 2]):
        return labels[..., 1:]
    raise DataError(
        f"{path}: its three planes are neither (all ice, clean ice, debris) nor (clean ice, debris, no ice)",
        hint="save the mask as two planes, clean ice and debris, in this order",
    )


def classes_of(planes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Class (H, W) of each pixel of a mask (H, W, 2); debris wins where both are set."""
    return np.where(planes[..., 1] != 0, DEBRIS, planes[..., 0] != 0).astype(np.uint8)


def measure(image: Path, mask: Path, channels: int) -> Measured:
    """Read a patch as a whole. Raises DataError for a mask that holds other values than 0 and 1, and as `open_pair`."""
    values, labels = open_pair(image, mask, channels)
    _check_mask(mask, labels)
    count = np.zeros(channels, dtype=np.int64)
    total, scatter = np.zeros(channels), np.zeros(channels)
    seen: dict[tuple[int, int], int] = {}
    infinite = 0
    for top in range(0, values.shape[0], _ROWS):
        part = values[top : top + _ROWS].astype(np.float64)
        observed = np.isfinite(part)
        labels_here = classes_of(labels[top : top + _ROWS])
        if not observed.all():
            infinite += int(np.isinf(part).sum())
            part[~observed] = 0.0
        scatter += _scatter(part, observed, count, total)
        count += observed.sum(axis=(0, 1))
        total += part.sum(axis=(0, 1))
        _tally(seen, labels_here, observed)
    return Measured(
        hash=_digest(image, mask),
        shape=(values.shape[0], values.shape[1], channels),
        infinite=infinite,
        count=tuple(count.tolist()),
        total=tuple(total.tolist()),
        scatter=tuple(scatter.tolist()),
        seen=tuple((label, bits, amount) for (label, bits), amount in sorted(seen.items())),
    )


def bits_of(channels: Sequence[int]) -> int:
    """A set of channels as an integer: bit c stands for channel c."""
    return sum(1 << channel for channel in set(channels))


def _scatter(
    part: npt.NDArray[np.float64],
    observed: npt.NDArray[np.bool_],
    count: npt.NDArray[np.int64],
    total: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """What rows (h, W, C), 0 where not observed, add to the scatter of those before (Chan, Golub, LeVeque 1983)."""
    here = observed.sum(axis=(0, 1))
    mean = part.sum(axis=(0, 1)) / np.maximum(here, 1)
    apart = np.where(observed, part - mean, 0.0)
    between = np.where((here > 0) & (count > 0), mean - total / np.maximum(count, 1), 0.0)
    return np.asarray(np.einsum("hwc,hwc->c", apart, apart) + between**2 * here * count / np.maximum(here + count, 1))


def _tally(seen: dict[tuple[int, int], int], labels: npt.NDArray[np.uint8], observed: npt.NDArray[np.bool_]) -> None:
    """Count the pixels of each class by the channels that they were observed in; nearly all have all of them."""
    channels = observed.shape[2]
    whole = observed.all(axis=2)
    everything = (1 << channels) - 1
    codes, amounts = np.unique(labels[whole], return_counts=True)
    found = [(int(label), everything, int(amount)) for label, amount in zip(codes, amounts, strict=True)]
    if not whole.all():
        packed = np.packbits(observed[~whole], axis=1, bitorder="little")
        rows = np.concatenate([labels[~whole][:, None], packed], axis=1)
        kinds, amounts = np.unique(rows, axis=0, return_counts=True)
        for kind, amount in zip(kinds, amounts, strict=True):
            found.append((int(kind[0]), int.from_bytes(kind[1:].tobytes(), "little"), int(amount)))
    for label, bits, amount in found:
        seen[label, bits] = seen.get((label, bits), 0) + amount


def _check_mask(path: Path, labels: npt.NDArray[Any]) -> None:
    wrong = labels[~((labels == 0) | (labels == 1))]
    if wrong.size:
        kinds = ", ".join(f"{value:g}" for value in np.unique(wrong)[:5].astype(np.float64))
        raise DataError(
            f"{path}: the mask holds {kinds} besides 0 and 1",
            hint="each plane must be 1 where the class is and 0 elsewhere",
        )


def _digest(image: Path, mask: Path) -> str:
    digest = hashlib.sha256()
    for path in (image, mask):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _not_plain(path: Path, start: bytes) -> DataError:
    if start[:1] == b"\x80":
        return _pickled(path)
    kind = "a zip archive (.npz)" if start[:2] == b"PK" else "no .npy file, whatever its name says"
    return DataError(f"{path}: this is {kind}", hint="save the array with numpy.save(path, array)")


def _pickled(path: Path) -> DataError:
    return DataError(
        f"{path}: the file is a pickle, which could run code when it is read, and is refused",
        hint="save the numbers themselves: numpy.save(path, array.astype('float32'), allow_pickle=False)",
    )


def _shape(values: npt.NDArray[Any]) -> str:
    return f"({', '.join(map(str, values.shape))})"


def _size(values: npt.NDArray[Any]) -> str:
    return f"{values.shape[0]} x {values.shape[1]} pixels"
