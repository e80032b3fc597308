"""The split of pairs into train, val and test: by scene, never by frame, and the account of what may still leak.

Scenes are those that the user named; else those between boundaries that the pictures show; what can't be split by
whole scenes is cut into blocks of neighbouring frames. Scenes that are named for val or test are those splits, so that
every scene can be held out in its turn. A combination of labels that occurs in fewer than three scenes is split inside
its scenes in that way. Wherever two splits meet in time, the frames of a guard gap are left out.

Promises: no scene or block on two sides; every label, and every combination that is frequent enough, on every side, or
one error with the counts; the same table, pictures and settings give the same split.
Does not do: find out that two scenes show the same place (the account of near-duplicates tells).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, model_validator

from outlast.config.schema import Settings
from outlast.data.split import check_split, split_by_group
from outlast.errors import DataError, listed
from outlast.tasks.wildfires import alike
from outlast.tasks.wildfires.labels import CLASSES, COMBINATIONS

SPLITS = ("train", "val", "test")
_PIECES = (7, 14, 21, 35, 70)  # into how many blocks a scene is cut: as few as will do, since every border costs frames
_FEW_ROWS = 30  # a combination of fewer pairs is not worth cutting scenes for
_RARE = 0.05  # of all pairs: a combination below this may be missing from a split where it can't be helped
_GUARD_SHARE = 3  # a guard gap takes at most a third of a block


class Splitting(Settings):
    """How pairs are split. Given or detected scenes stay whole, save those that hold a scarce combination of labels."""

    val_scenes: tuple[str, ...] = Field((), description="names of the scenes that are val; none: chosen")
    test_scenes: tuple[str, ...] = Field((), description="names of the scenes that are test; none: chosen")
    val_fraction: float = Field(0.15, gt=0, lt=0.5, description="of the pairs")
    test_fraction: float = Field(0.15, gt=0, lt=0.5, description="of the pairs")
    split_seed: int = Field(0, ge=0, lt=2**32)
    guard_frames: int = Field(150, ge=1, description="frames left out where two splits meet inside a scene")
    duplicate_bits: int = Field(
        4, ge=0, le=12, description="frames are near-duplicates if at most so many of 64 bits of their hashes differ"
    )

    @property
    def given(self) -> dict[str, str]:
        """{scene: its split}, of the scenes that are named."""
        return {**dict.fromkeys(self.val_scenes, "val"), **dict.fromkeys(self.test_scenes, "test")}

    @property
    def fractions(self) -> dict[str, float]:
        """{split: share} of the splits that are chosen."""
        train = 1 - self.val_fraction - self.test_fraction
        fractions = {"train": train, "val": self.val_fraction, "test": self.test_fraction}
        return {name: share for name, share in fractions.items() if name not in self.given.values()}

    def idle(self) -> dict[str, str]:
        named = {"val_fraction": self.val_scenes, "test_fraction": self.test_scenes}
        return {name: "the scenes of this split are named" for name, scenes in named.items() if scenes}

    @model_validator(mode="after")
    def _scenes_have_one_split(self) -> Self:
        both = sorted(set(self.val_scenes) & set(self.test_scenes))
        if both:
            raise ValueError(f"{', '.join(both)} can't be in val_scenes and in test_scenes; leave it out of one")
        return self


@dataclass(frozen=True)
class Split:
    """The table with the columns split and group, without the frames of guard gaps; a JSON-able account; notes."""

    table: pd.DataFrame
    account: dict[str, Any]
    notes: tuple[str, ...]


@dataclass
class _Plan:
    """A split being made: the rows with group and split, which scenes are cut, and how wide the guard is."""

    table: pd.DataFrame
    cut: list[str] = field(default_factory=list)
    guard: int = 0
    dropped: int = 0
    waived: list[int] = field(default_factory=list)


def split_pairs(table: pd.DataFrame, pictures: Sequence[Path], splitting: Splitting, *, threads: int = 2) -> Split:
    """Split pairs (columns id, fire, smoke, scene, order) by scene; pictures: their RGB images, in the same order.

    Where no scene is named, the rows must be in the order of time; scenes are then looked for in the pictures.
    Raises DataError with the counts if a label or a needed combination can't be in every split, and one that names
    every picture that can't be read.
    """
    frames = alike.thumbnails(pictures, threads=threads)
    table = table.assign(
        combination=table["fire"] + 2 * table["smoke"], picture=np.arange(len(table)), time=table["order"]
    )
    how = "named"
    if table["scene"].eq("").all():
        table, how = _detected(table, frames)
    table = table.assign(timeline=table["scene"] if how == "named" else "", split=_given(table, splitting))
    _check_labels(table[table["split"] == ""], "that are left to be split" if splitting.given else "")
    _check_labels(table[table["split"] == "val"], "of val_scenes")
    plan = _search(table, splitting)
    check_split(plan.table)
    hashes = alike.perceptual_hashes(frames[plan.table["picture"].to_numpy()])
    splits = plan.table["split"].to_numpy(dtype=object)
    duplicates = alike.near_duplicates(hashes, splits, plan.table["id"].tolist(), most_bits=splitting.duplicate_bits)
    account = {
        "scenes": {
            "how": how, "count": int(table["scene"].nunique()), "cut_into_blocks": plan.cut,
            **({"named_for_a_split": splitting.given} if splitting.given else {}),
        },
        "counts": _counts(plan.table),
        "guard_frames": plan.guard,
        "frames_left_out": plan.dropped,
        "smallest_gap_frames": _smallest_gap(plan.table),
        "may_be_missing": [COMBINATIONS[number] for number in plan.waived],
        "near_duplicates": {"most_bits": splitting.duplicate_bits, **duplicates},
    }  # fmt: skip
    notes = (*_notes(account, plan, table, splitting), alike.sentence(duplicates, splitting.duplicate_bits))
    result = plan.table.drop(columns=["combination", "picture", "time", "timeline"]).reset_index(drop=True)
    return Split(result, account, notes)


def _detected(table: pd.DataFrame, frames: npt.NDArray[np.uint8]) -> tuple[pd.DataFrame, str]:
    """The table with scenes that the pictures show; one scene for all where they show no boundary."""
    starts = alike.boundaries(frames)
    if not len(starts):
        return table.assign(scene="all"), "none"
    number = np.searchsorted(starts, np.arange(len(table)), side="right")
    return table.assign(scene=[f"scene {at + 1:02d}" for at in number.tolist()]), "detected"


def _given(table: pd.DataFrame, splitting: Splitting) -> pd.Series[str]:
    """The split of every row whose scene is named in the settings, '' of all others. Raises DataError."""
    known = sorted(set(table["scene"]))
    unknown = [scene for scene in splitting.given if scene not in known]
    if unknown:
        raise DataError(
            f"there is no scene {listed([repr(scene) for scene in unknown])} for data.val_scenes or data.test_scenes",
            hint=f"the scenes are {listed(known)}",
        )
    given = splitting.given
    return pd.Series([given.get(scene, "") for scene in table["scene"]], index=table.index, dtype=object)


def _check_labels(table: pd.DataFrame, which: str) -> None:
    for name in CLASSES if len(table) else ():
        count = int(table[name].sum())
        if count in (0, len(table)):
            raise DataError(
                f"{count} of {len(table)} pairs {which}{' ' if which else ''}have {name}: there is nothing to learn "
                "about it",
                hint=f"add pairs {'without' if count else 'with'} {name}",
            )


def _search(table: pd.DataFrame, splitting: Splitting) -> _Plan:
    """The split with the fewest cuts that has all that is needed on every chosen side. Raises DataError."""
    free = table[table["split"] == ""]
    for waived in _waivers(free, len(splitting.fractions)):
        labels = _stand_ins(free, waived)
        scarce = _scarce_scenes(free, labels, len(splitting.fractions))
        for pieces in _PIECES if scarce else (1,):
            plan = _try(table.assign(label=labels), scarce, pieces, splitting, waived)
            if plan is not None:
                return plan
    raise DataError(
        f"fire and no fire, smoke and no smoke must each be in {listed(list(splitting.fractions))}, "
        "but the scenes don't allow it",
        hint="add pairs of other scenes, or name shorter scenes in scenes.csv",
        details=[
            f"{scene}: {len(rows)} pairs; "
            + ", ".join(f"{(rows['combination'] == number).sum()} {name}" for number, name in enumerate(COMBINATIONS))
            for scene, rows in free.groupby("scene", sort=True)
        ],
    )


def _waivers(table: pd.DataFrame, sides: int) -> Iterator[list[int]]:
    """Which combinations may be missing from a split: at first those with few pairs, then one rare one after the other.

    Never those without which a label would be missing.
    """
    counts = table["combination"].value_counts()
    scenes = table.groupby("combination")["scene"].nunique()
    waived: list[int] = []
    rare = [number for number in counts.sort_values(kind="stable").index if counts[number] < _RARE * len(table)]
    hopeless = [number for number in rare if counts[number] < _FEW_ROWS and scenes[number] < sides]
    for number in hopeless:
        if _labels_whole(counts.index, [*waived, number]):
            waived.append(number)
    yield list(waived)
    for number in rare:
        if number not in waived and _labels_whole(counts.index, [*waived, number]):
            waived.append(number)
            yield list(waived)


def _labels_whole(present: Sequence[int] | pd.Index[Any], waived: Sequence[int]) -> bool:
    """Whether both values of both labels occur in combinations that are not waived."""
    kept = [int(number) for number in present if number not in waived]
    return {number & 1 for number in kept} == {0, 1} == {number >> 1 for number in kept}


def _stand_ins(table: pd.DataFrame, waived: Sequence[int]) -> pd.Series[int]:
    """The combination of each row; a waived one counts as the most frequent other one with the same fire."""
    counts = table["combination"].value_counts()
    kept = [int(number) for number in counts.index if number not in waived]
    stand_in = {number: next((other for other in kept if other & 1 == number & 1), kept[0]) for number in waived}
    return table["combination"].replace(stand_in).astype(np.int64)


def _scarce_scenes(table: pd.DataFrame, labels: pd.Series[int], sides: int) -> list[str]:
    """The scenes that hold a combination which occurs in fewer scenes than there are sides to be chosen."""
    scenes = table["scene"].groupby(labels).agg(lambda names: sorted(set(names)))
    return sorted({scene for names in scenes if len(names) < sides for scene in names})


def _try(
    table: pd.DataFrame, scarce: Sequence[str], pieces: int, splitting: Splitting, waived: list[int]
) -> _Plan | None:
    """The split with the scarce scenes cut into so many blocks; None where something would be missing."""
    plan = _Plan(table.assign(group=table["scene"]), waived=waived)
    for scene in scarce:
        for part, block in enumerate(np.array_split(np.flatnonzero(table["scene"] == scene), pieces), start=1):
            if not len(block):
                return None
            plan.table.loc[plan.table.index[block], "group"] = f"{scene} block {part:02d}"
    free = plan.table["split"] == ""
    try:
        chosen = split_by_group(plan.table[free], fractions=splitting.fractions, seed=splitting.split_seed)
    except DataError:
        return None
    plan.table.loc[free, "split"] = chosen
    sides = plan.table.groupby("scene")["split"].nunique()
    plan.cut = sides.index[sides > 1].tolist()
    plan.guard = _guard(plan.table, splitting.guard_frames)
    _leave_out(plan)
    needed = set(table["label"].dropna())
    if any(set(plan.table["label"][plan.table["split"] == split]) != needed for split in splitting.fractions):
        return None
    names = plan.table["group"].where(plan.table["scene"].isin(plan.cut), plan.table["scene"])
    plan.table = plan.table.assign(scene=names, group=names).drop(columns="label")
    return plan


def _guard(table: pd.DataFrame, wanted: int) -> int:
    """Frames of a guard gap: as wanted, but at most a third of the shortest group that has a neighbour in time."""
    shared = table[table.groupby("timeline")["group"].transform("nunique") > 1]
    times = shared.groupby("group")["time"]
    spans = (times.max() - times.min() + 1).tolist()
    return min([wanted, *(max(1, int(span) // _GUARD_SHARE) for span in spans)])


def _leave_out(plan: _Plan) -> None:
    """Drop training frames near a frame of val or test on the same timeline, then val frames near a test frame."""
    keep = np.ones(len(plan.table), dtype=bool)
    splits = plan.table["split"].to_numpy(dtype=object)
    times = plan.table["time"].to_numpy()
    for _, rows in plan.table.groupby("timeline").indices.items():
        for loses, others in (("train", ("val", "test")), ("val", ("test",))):
            mine = rows[splits[rows] == loses]
            theirs = np.sort(times[rows[np.isin(splits[rows].astype(str), others)]])
            keep[mine] &= _distance(times[mine], theirs) > plan.guard
    plan.dropped = int((~keep).sum())
    plan.table = plan.table[keep]


def _distance(times: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How far each time is from the nearest of `others` (sorted); a very large number where there are none."""
    far = np.iinfo(np.int64).max
    if not len(others):
        return np.full(len(times), far, dtype=np.int64)
    at = np.searchsorted(others, times)
    after = np.where(at < len(others), np.abs(others[np.minimum(at, len(others) - 1)] - times), far)
    before = np.where(at > 0, np.abs(times - others[np.maximum(at - 1, 0)]), far)
    return np.minimum(after, before)


def _smallest_gap(table: pd.DataFrame) -> int | None:
    """Frames between the nearest two of different splits on one timeline; None where no timeline is shared."""
    gaps = []
    splits, times = table["split"].to_numpy(dtype=object), table["time"].to_numpy()
    for _, rows in table.groupby("timeline").indices.items():
        order = rows[np.argsort(times[rows], kind="stable")]
        meets = np.flatnonzero(splits[order][1:] != splits[order][:-1])
        gaps += np.diff(times[order])[meets].tolist()
    return int(min(gaps)) if gaps else None


def _counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    """{split: {pairs, scenes, fire, smoke, NN, YN, NY, YY}}."""
    counts = {}
    for split in SPLITS:
        rows = table[table["split"] == split]
        counts[split] = {
            "pairs": len(rows),
            "scenes": int(rows["group"].nunique()),
            **{name: int(rows[name].sum()) for name in CLASSES},
            **{name: int((rows["combination"] == number).sum()) for number, name in enumerate(COMBINATIONS)},
        }
    return counts


def _notes(account: dict[str, Any], plan: _Plan, table: pd.DataFrame, splitting: Splitting) -> Iterator[str]:
    how = account["scenes"]["how"]
    count = account["scenes"]["count"]
    yield {
        "named": f"the split keeps {count} named scenes apart",
        "detected": f"no scenes are named: {count} were found where the pictures change at once",
        "none": "no scenes are named and the pictures show no boundaries: the split is by blocks of frames",
    }[how]
    for split in ("val", "test"):
        if named := [scene for scene, side in splitting.given.items() if side == split]:
            yield f"named for {split}: {listed(named)}"
    if plan.cut and how != "none":
        scenes = table[table["split"] == ""].groupby("combination")["scene"].nunique().to_dict()
        sides = len(splitting.fractions)
        few = [
            name
            for number, name in enumerate(COMBINATIONS)
            if 0 < scenes.get(number, 0) < sides and number not in plan.waived
        ]
        yield (
            f"{listed(few)} occurs in fewer than {'three' if sides == len(SPLITS) else sides} scenes: "
            f"{listed(plan.cut)} "
            f"{'is' if len(plan.cut) == 1 else 'are'} split inside, by blocks"
        )
    if plan.dropped:
        yield f"{plan.dropped} frames are left out: guard gaps of {plan.guard} frames where two splits meet"
    if plan.waived:
        yield (f"too few pairs to be needed in every split: {listed([COMBINATIONS[number] for number in plan.waived])}")
    for split, counts in account["counts"].items():
        yield f"{split}: " + ", ".join(f"{number} {name}" for name, number in counts.items())
    gap = account["smallest_gap_frames"]
    yield ("no two splits meet in one scene" if gap is None else f"the smallest gap between two splits is {gap} frames")
