"""Whether the disk has room for what a run still has to write (`save.need`), said before a step is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from outlast.base.log import say
from outlast.env.host import Host
from outlast.errors import RunError
from outlast.plan import ledger
from outlast.save.need import need
from outlast.save.space import Sizes, in_words
from outlast.task import Stage


def check(
    plan: Sequence[Stage],
    sizes: Mapping[str, Sizes],
    run: Path,
    machine: Host,
    limit_gigabytes: float | None,
    *,
    begun: bool,
    only: str | None = None,
    taken: Collection[str] = (),
    at_once: int = 1,
) -> tuple[dict[str, Any], list[str]]:
    """Say what the run needs and what is free. Returns that for the run's record, and warnings.

    begun: the run goes on with what is in its folder. only: the one stage that is to be done. taken: stages that are
    taken over from another run. at_once: stages side by side. Raises RunError if the room is too small.
    """
    finished = {
        stage.name
        for stage in plan
        if only not in (None, stage.name)
        or stage.name in taken
        or (begun and (run / stage.name / ledger.RECORD).is_file())
    }
    found = need(plan, sizes, run, machine, limit_gigabytes, finished=finished, begun=begun, at_once=at_once)
    if not found.fits:
        raise RunError(
            f"the checkpoints of this run will need {in_words(found.left)} more in {run}, and {found.has_room}",
            details=found.details,
            hint=found.remedy,
        )
    warnings = []
    if found.scarce:
        warnings = [f"disk space is scarce: this run will need {in_words(found.left)} more in {run}, and "
                    f"{found.has_room}"]  # fmt: skip
    if found.stages:
        each, most = in_words(max(size.checkpoint for _, size in found.stages)), in_words(found.most)
        say(f"checkpoints of {each}, at most {most} in {run}, {in_words(found.room.free)} free")
    if found.unknown:
        say(f"what {', '.join(found.unknown)} will need on the disk is not known before the stages they need are done")
    facts = {
        "checkpoint_bytes": {stage.name: size.checkpoint for stage, size in found.stages},
        "best_bytes": {stage.name: size.best for stage, size in found.stages},
        "most_bytes": found.most,
        "needed_bytes": found.left,
        "free_bytes": found.room.free,
        "bounded_by": str(found.room.folder),
        "limit_bytes": found.room.limit,
        "unknown": list(found.unknown),
    }
    return facts, warnings
