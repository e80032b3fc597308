"""Whether the disk has room for what a run still has to write: predicted from its models, before a step is trained.

Counted are checkpoints and best weights, at the moment when most of them lie there. Predictions, figures and the report
are small and left out; decoded samples lie elsewhere (OUTLAST_CACHE) and take what room there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlast.base.log import say
from outlast.env.host import Host
from outlast.errors import RunError
from outlast.plan import ledger
from outlast.save.space import Room, Sizes, bytes_in, in_words, room
from outlast.task import Stage, Train, topological

_SCARCE = 1.2  # times the need: with less room than that somebody else's files may end the run


def check(
    plan: Sequence[Stage],
    sizes: Mapping[str, Sizes],
    run: Path,
    machine: Host,
    limit_gigabytes: float | None,
    *,
    begun: bool,
    only: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Say what the run needs and what is free. Returns that for the run's record, and warnings.

    sizes: of the training stages whose model could be built; another one is taken to be as large as the largest of its
    learner. begun: the run goes on with what is in its folder. only: the one stage that is to be done. Raises RunError
    if the room is too small.
    """
    left = [
        stage
        for stage in topological(plan)
        if isinstance(stage, Train)
        and only in (None, stage.name)
        and not (begun and (run / stage.name / ledger.RECORD).is_file())
    ]
    known = [(stage, size) for stage in left if (size := _size(stage, plan, sizes)) is not None]
    unknown = [stage.name for stage in left if stage.name not in {stage.name for stage, _ in known}]
    there = sum(_there(run / stage.name) for stage, _ in known) if begun else 0
    need = max(_most(known) - there, 0)
    found = room(run, _limit(run, machine, limit_gigabytes))
    if need > found.free:
        raise RunError(
            f"the checkpoints of this run will need {in_words(need)} more in {run}, and {_has_room(found)}",
            details=[
                f"{stage.name}: {in_words(size.checkpoint)} per checkpoint, one being written beside the "
                f"{stage.config.saving.keep} that are kept, and {in_words(size.best)} for the best weights"
                for stage, size in known
            ],
            hint=", or ".join([*_smaller(known), "give a folder on a larger disk with --out"]),
        )
    warnings = []
    if need * _SCARCE > found.free:
        warnings = [f"disk space is scarce: this run will need {in_words(need)} more in {run}, and {_has_room(found)}"]
    if known:
        each, most = in_words(max(size.checkpoint for _, size in known)), in_words(_most(known))
        say(f"checkpoints of {each}, at most {most} in {run}, {in_words(found.free)} free")
    if unknown:
        say(f"what {', '.join(unknown)} will need on the disk is not known before the stages they need are done")
    facts = {
        "checkpoint_bytes": {stage.name: size.checkpoint for stage, size in known},
        "best_bytes": {stage.name: size.best for stage, size in known},
        "most_bytes": _most(known),
        "needed_bytes": need,
        "free_bytes": found.free,
        "bounded_by": str(found.folder),
        "limit_bytes": found.limit,
        "unknown": unknown,
    }
    return facts, warnings


def _size(stage: Train, plan: Sequence[Stage], sizes: Mapping[str, Sizes]) -> Sizes | None:
    """The size of the stage itself, or the largest of its learner's."""
    if stage.name in sizes:
        return sizes[stage.name]
    same = [
        sizes[other.name]
        for other in plan
        if isinstance(other, Train) and other.learner.name == stage.learner.name and other.name in sizes
    ]
    return max(same, key=lambda size: size.checkpoint, default=None)


def _most(stages: Sequence[tuple[Train, Sizes]]) -> int:
    """Bytes at the worst moment: one stage trains, and those before it have left what they leave."""
    finished = most = 0
    for stage, size in stages:
        most = max(most, finished + size.at_most(stage.config.saving))
        finished += size.when_finished(stage.config.saving)
    return most


def _there(stage: Path) -> int:
    return bytes_in(stage / "checkpoints") + bytes_in(stage / "best")


def _limit(run: Path, machine: Host, gigabytes: float | None) -> tuple[Path, int] | None:
    """The platform's limit if the run lies where it holds, or the user's in its place."""
    limited = machine.limited if machine.limited and run.resolve().is_relative_to(machine.limited.resolve()) else None
    if gigabytes is not None:
        return limited or run, round(gigabytes * 1e9)
    return (limited, machine.limit_bytes) if limited is not None else None


def _has_room(found: Room) -> str:
    if found.limit is None:
        return f"its disk has {in_words(found.free)} free"
    return (
        f"{in_words(found.free)} are free in {found.folder}, where all files together may take {in_words(found.limit)}"
    )


def _smaller(stages: Sequence[tuple[Train, Sizes]]) -> list[str]:
    """Settings that would make the need smaller."""
    saving = [stage.config.saving for stage, _ in stages]
    ways = ["set saving.keep=1"] if any(each.keep > 1 for each in saving) else []
    return ways + (
        ["set saving.keep_when_finished=best"]
        if len(saving) > 1 and any(each.keep_when_finished != "best" for each in saving)
        else []
    )
