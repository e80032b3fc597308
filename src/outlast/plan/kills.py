"""Where a run is killed on purpose: drawn from a seed over the places that an uninterrupted run came to.

`draw` spreads the kills over the run and over its kinds of work; `script` says it in the words of base.accident, seen
from where a session starts. A session that finds its place no more (the kill before came a little later than drawn) is
killed at the end of its stage instead, so that every drawn kill happens. Nothing here starts a process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

# What the training thread does, in order; what is written lies in between.
_MILESTONES = {
    "batch": "data loading",
    "step": "step",
    "stepped": "step",
    "evaluate": "evaluation",
    "predict": "prediction",
    "call": "call",
    "unit": "call",
    "finish": "finishing",
}
_SAVE = ("write.", "folder.", "remove.")
SAVE = "save"
ANY_MOMENT = "any moment"


@dataclass(frozen=True)
class Standing:
    """How far a run has come: stages done, and the step of the stage in progress from which it would go on."""

    stages: int
    step: int


@dataclass(frozen=True)
class Target:
    """A kill: the `count`-th time at `place` after `step` steps of stage number `stage` (from 0).

    moment: of a kill from outside, which has no place: when in its session, from 0 to 1.
    """

    kind: str
    place: str
    count: int
    stage: int
    step: int
    moment: float | None = None


def kind_of(place: str) -> str:
    """The kind of work that is done at a place."""
    return _MILESTONES.get(place, SAVE)


def draw(places: Sequence[str], kills: int, seed: int) -> list[Target]:
    """`kills` targets in the order of the run whose `places` these are; the same for the same places and seed."""
    chance = random.Random(seed)
    milestones = _milestones(places)
    saves = sorted({place for place in places if place.startswith(_SAVE)})
    kinds = [*dict.fromkeys(target.kind for target in milestones), SAVE, ANY_MOMENT]
    chosen: list[str] = []
    while len(chosen) < kills:  # every kind about as often as every other
        chosen += chance.sample(kinds, len(kinds))
    drawn: list[tuple[int, int, Target]] = []
    for number, kind in enumerate(chosen[:kills]):
        at = chance.choice(
            [index for index, target in enumerate(milestones) if kind in (target.kind, SAVE, ANY_MOMENT)]
        )
        target = milestones[at]
        if kind == SAVE:
            # Nothing but a stage's record is sure to be written once its work is done.
            fitting = [place for place in saves if place.startswith("write.") or target.place != "finish"]
            target = Target(SAVE, chance.choice(fitting), chance.randint(1, 3), *_after(target))
        elif kind == ANY_MOMENT:
            target = Target(ANY_MOMENT, "", 0, target.stage, target.step, moment=chance.random())
        drawn.append((at, number, target))
    return [target for _, _, target in sorted(drawn, key=lambda item: item[:2])]


def script(target: Target, standing: Standing, stages: int) -> str:
    """OUTLAST_ACCIDENT for a session that starts at `standing`, in a plan of so many stages."""
    if standing.stages >= stages:
        return "write.rename:1"  # all is done: what such a session still writes is the run's record
    ahead = target.stage - standing.stages
    if ahead < 0:
        return "finish:1"
    steps = target.step - (standing.step if ahead == 0 else 0)
    route = [f"finish:{ahead}"] if ahead else []
    route += [f"stepped:{steps}"] if steps > 0 else []
    at_the_end = f"finish:{ahead + 1}"
    if target.moment is not None:
        return at_the_end
    return f"{'>'.join([*route, f'{target.place}:{target.count}'])},{at_the_end}"


def _milestones(places: Sequence[str]) -> list[Target]:
    found: list[Target] = []
    stage = step = 0
    since: dict[str, int] = {}
    for place in places:
        if place not in _MILESTONES:
            continue
        since[place] = since.get(place, 0) + 1
        found.append(Target(_MILESTONES[place], place, since[place], stage, step))
        if place == "stepped":
            step, since = step + 1, {}
        elif place == "finish":
            stage, step, since = stage + 1, 0, {}
    return found


def _after(milestone: Target) -> tuple[int, int]:
    """The stage and step once the milestone has passed: (stage, step)."""
    if milestone.place == "finish":
        return milestone.stage + 1, 0
    return milestone.stage, milestone.step + (milestone.place == "stepped")
