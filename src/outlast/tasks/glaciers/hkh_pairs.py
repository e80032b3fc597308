"""Which .npy file is the image and which the mask of a patch, its split and its scene: by names alone.

Names are those of the public repository glacier_mapping: `slice_<scene>_img_<number>.npy` beside
`slice_<scene>_mask_<number>.npy`, flat or below train/, dev/ and test/. In general a path with the word img, image or
tiff belongs to the same path with the word mask or label. Where the preparation left an index.csv, that goes first.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from outlast.data.folders import SPLITS
from outlast.errors import DataError, DataNotFoundError, listed

INDEX, PLAN = "index.csv", "plan.json"
LAYOUT = "slice_<scene>_img_<number>.npy with slice_<scene>_mask_<number>.npy, flat or below train/, dev/ and test/"
_SPLITS = {**SPLITS, "dev": "val"}
_WORD = re.compile(r"(?<![a-z])(?:(imgs?|images?|tiff?s?)|(masks?|labels?))(?![a-z])", re.IGNORECASE)
_MOST_NAMED = 200


@dataclass(frozen=True)
class Pair:
    """A patch: image and mask are posix paths relative to the root; hash is what index.csv says, or ''."""

    id: str
    image: str
    mask: str
    split: str
    group: str
    hash: str = ""


def looks_like_hkh(root: Path) -> bool:
    """Whether a folder holds patches of this layout, directly or below train, dev, val or test. Reads names only."""
    folders = [root, *(root / name for name in _SPLITS)]
    return any(_WORD.search(path.stem) for folder in folders if folder.is_dir() for path in folder.glob("*.npy"))


def find_pairs(root: Path, notes: list[str]) -> list[Pair]:
    """Every patch below `root`, by id; adds what should be known to `notes`.

    Raises DataNotFoundError where there is none, DataError naming every image without a mask and mask without image.
    """
    if not root.is_dir():
        raise DataNotFoundError(f"{root} is not a folder", hint=f"give the folder that holds the patches: {LAYOUT}")
    if (root / INDEX).is_file():
        return _indexed(root)
    if (root / PLAN).is_file():
        raise DataError(f"the preparation of {root} was not finished", hint="run it again; what is done is kept")
    halves: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"image": [], "mask": []})
    other = 0
    for path in sorted(root.rglob("*.npy")):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
            continue
        words = list(_WORD.finditer(name))
        if words:
            halves[_WORD.sub("*", name)]["mask" if words[-1].group(2) else "image"].append(name)
        else:
            other += 1
    if not halves:
        raise DataNotFoundError(f"{root} holds no patches", hint=f"expected {LAYOUT}")
    if other:
        notes.append(f"{other} .npy files are named neither as image nor as mask and are not used")
    problems = [problem for half in halves.values() if (problem := _half(half))]
    refuse(root, problems, len(halves), f"expected {LAYOUT}")
    return _grouped(sorted((half["image"][0], half["mask"][0]) for half in halves.values()), notes)


def subset(pairs: Sequence[Pair], fraction: float, notes: list[str]) -> list[Pair]:
    """A fraction of each split (at least one patch): those whose ids have the smallest hashes."""
    if fraction == 1:
        return list(pairs)
    kept: set[str] = set()
    for split, amount in Counter(pair.split for pair in pairs).items():
        ids = sorted((pair.id for pair in pairs if pair.split == split), key=_hash)
        kept.update(ids[: max(1, round(fraction * amount))])
    notes.append(f"{len(kept)} of {len(pairs)} patches are used, a fraction of {fraction:g} of each split")
    return [pair for pair in pairs if pair.id in kept]


def refuse(root: Path, problems: Sequence[str], total: int, hint: str = "see the remedy in each line") -> None:
    """One DataError for all patches that can't be used; nothing if there are none."""
    if problems:
        more = [f"and {len(problems) - _MOST_NAMED} more"] if len(problems) > _MOST_NAMED else []
        raise DataError(
            f"{len(problems)} of {total} patches in {root} can't be used as they are",
            hint=hint,
            details=[*problems[:_MOST_NAMED], *more],
        )


def _half(half: Mapping[str, Sequence[str]]) -> str | None:
    images, masks = half["image"], half["mask"]
    if len(images) > 1 or len(masks) > 1:
        return f"{listed([*images, *masks])}: these go by one name; keep one image and one mask"
    if not images:
        return f"{masks[0]}: a mask without its image; restore the image or delete the mask"
    if not masks:
        return f"{images[0]}: an image without its mask; restore the mask or delete the image"
    return None


def _grouped(found: Sequence[tuple[str, str]], notes: list[str]) -> list[Pair]:
    """The split is the folder's, the group the scene in the name; a scene in several splits is several groups."""
    splits = [_split(image) for image, _ in found]
    scenes = [_scene(image) for image, _ in found]
    sides: dict[str, set[str]] = defaultdict(set)
    for scene, split in zip(scenes, splits, strict=True):
        sides[scene].add(split)
    cut = sorted(scene for scene, names in sides.items() if len(names) > 1)
    if cut:
        notes.append(
            f"the given split cuts {len(cut)} scenes ({listed(cut)}): neighbouring patches overlap by some pixels, so "
            "scores on val and test may be a little too good"
        )
    return [
        Pair(image.removesuffix(".npy"), image, mask, split, f"{split}:{scene}" if sides[scene] != {split} else scene)
        for (image, mask), split, scene in zip(found, splits, scenes, strict=True)
    ]


def _split(image: str) -> str:
    folders = [part.lower() for part in image.split("/")[:-1]]
    return next((_SPLITS[part] for part in folders if part in _SPLITS), "")


def _scene(image: str) -> str:
    """The scene that a patch was cut from: its file name without its own, the last, number and the word for image."""
    name = image.rsplit("/", 1)[-1].removesuffix(".npy")
    parts = re.split(r"[_\-. ]+", re.sub(r"\d+$", "", name))
    return "_".join(part for part in parts if part and not _WORD.fullmatch(part)) or name


def _indexed(root: Path) -> list[Pair]:
    path = root / INDEX
    columns = ["id", "image", "mask", "split", "group", "hash"]
    try:
        listing = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")[columns]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a readable index ({error})", hint="prepare the patches again") from error
    return [Pair(*map(str, row)) for row in listing.sort_values("id").to_numpy().tolist()]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
