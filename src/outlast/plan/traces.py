"""Where two trainings part: their traces (loop.trace) compared step by step and sample by sample.

A run that was killed has done some steps several times; each time is compared, because a step that is done again must
be the same step, also where nothing of the first time was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outlast.loop.trace import TracedStep


@dataclass(frozen=True)
class Parting:
    """The first step that differs. session: counted from 1; sample: the id of its first sample that differs, if one
    does; note: what differs there."""

    stage: str
    step: int
    session: int
    sample: str | None
    note: str


def first_parting(
    expected: Sequence[TracedStep], sessions: Sequence[Sequence[TracedStep]], stages: Sequence[str]
) -> Parting | None:
    """The first difference in the order of the plan between an uninterrupted training and one done in `sessions`."""
    known = {_key(step, stages): step for step in expected}
    done = [(_key(step, stages), number, step) for number, steps in enumerate(sessions, start=1) for step in steps]
    partings = [
        (key, number, parting) for key, number, step in done if (parting := _parting(known.get(key), step, number))
    ]
    never = sorted(set(known) - {key for key, _, _ in done})
    if never:
        step = known[never[0]]
        partings.append((never[0], 0, Parting(step.stage, step.step, 0, None, "no session has done it")))
    return min(partings, key=lambda item: item[:2])[2] if partings else None


def repeated(sessions: Sequence[Sequence[TracedStep]]) -> int:
    """How many steps were done again, because a kill came between them and the next save."""
    done = [(step.stage, step.step, step.rank) for steps in sessions for step in steps]
    return len(done) - len(set(done))


def _key(step: TracedStep, stages: Sequence[str]) -> tuple[int, int, int]:
    return stages.index(step.stage), step.step, step.rank


def _parting(expected: TracedStep | None, found: TracedStep, session: int) -> Parting | None:
    if expected == found:
        return None
    if expected is None:
        return Parting(found.stage, found.step, session, None, "the uninterrupted run does not have it")
    for one, other in zip(expected.samples, found.samples, strict=False):
        if one[0] != other[0]:
            note = f"another sample stands in its place: {other[0]}"
            return Parting(found.stage, found.step, session, one[0], note)
        if one[1] != other[1]:
            return Parting(found.stage, found.step, session, one[0], "its tensors differ, as they come to the model")
    if len(expected.samples) != len(found.samples):
        note = f"{len(expected.samples)} and {len(found.samples)} samples"
    else:
        losses = [float.fromhex(step.loss) for step in (expected, found)]
        note = f"the samples are the same, the sum of losses is {losses[0]!r} and {losses[1]!r}"
    return Parting(found.stage, found.step, session, None, note)
