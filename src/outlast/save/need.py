"""What the trainings of a plan still have to write, at the moment when most of it lies there, and what room there is.

The one place where this is predicted: `outlast check` and `outlast train` both say what stands here. Counted are
checkpoints and best weights. Predictions, figures and the report are small and left out; decoded samples lie elsewhere
(OUTLAST_CACHE) and take what room there is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from outlast.env.host import Host
from outlast.save.space import Room, Sizes, bytes_in, free_bytes, in_words, room
from outlast.task import Stage, Train, topological

_SCARCE = 1.2  # times the need: with less room than that somebody else's files may end the run


@dataclass(frozen=True)
class Need:
    """most: bytes of the run at its worst moment; left: what of them is still to be written. stages: the trainings
    that are not done, with their sizes; unknown: those of whom no size is known.
    """

    run: Path
    stages: tuple[tuple[Train, Sizes], ...]
    unknown: tuple[str, ...]
    most: int
    left: int
    room: Room

    @property
    def fits(self) -> bool:
        return self.left <= self.room.free

    @property
    def scarce(self) -> bool:
        """It fits, but hardly."""
        return self.fits and self.left * _SCARCE > self.room.free

    @property
    def has_room(self) -> str:
        """What room there is, as the end of a sentence."""
        if self.room.limit is None:
            return f"its disk has {in_words(self.room.free)} free"
        limit = in_words(self.room.limit)
        return f"{in_words(self.room.free)} are free in {self.room.folder}, where all files together may take {limit}"

    @property
    def details(self) -> list[str]:
        """A line per training."""
        return [
            f"{stage.name}: {in_words(size.checkpoint)} per checkpoint, one being written beside the "
            f"{stage.config.saving.keep} that are kept, and {in_words(size.best)} for the best weights"
            for stage, size in self.stages
        ]

    @property
    def remedy(self) -> str:
        """Settings that would make the need smaller, or another place."""
        saving = [stage.config.saving for stage, _ in self.stages]
        ways = ["set saving.keep=1"] if any(each.keep > 1 for each in saving) else []
        if len(saving) > 1 and any(each.keep_when_finished != "best" for each in saving):
            ways.append("set saving.keep_when_finished=best")
        return ", or ".join([*ways, "give a folder on a larger disk with --out"])


def need(
    plan: Sequence[Stage],
    sizes: Mapping[str, Sizes],
    run: Path,
    machine: Host,
    limit_gigabytes: float | None,
    *,
    finished: Collection[str] = (),
    begun: bool = False,
    at_once: int = 1,
    free: Callable[[Path], int] = free_bytes,
) -> Need:
    """Predict it for the trainings that are not `finished`.

    sizes: of the training stages whose model could be built; another one is taken to be as large as the largest of its
    learner. limit_gigabytes: the user's limit in place of the platform's. begun: the run goes on with what is in its
    folder, which then needs no room any more. at_once: stages that train side by side. free(folder): what the disk has.
    """
    left = [stage for stage in topological(plan) if isinstance(stage, Train) and stage.name not in finished]
    known = tuple((stage, size) for stage in left if (size := _size(stage, plan, sizes)) is not None)
    named = {stage.name for stage, _ in known}
    there = sum(_there(run / name) for name in named) if begun else 0
    most = _most(known) if at_once == 1 else _most_together(known, at_once)
    return Need(
        run=run,
        stages=known,
        unknown=tuple(stage.name for stage in left if stage.name not in named),
        most=most,
        left=max(most - there, 0),
        room=room(run, limit_of(run, machine, limit_gigabytes), free),
    )


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


def _most_together(stages: Sequence[tuple[Train, Sizes]], at_once: int) -> int:
    """The same with several at a time: all are finished but those that take most while they train."""
    finished = sum(size.when_finished(stage.config.saving) for stage, size in stages)
    more = [size.at_most(stage.config.saving) - size.when_finished(stage.config.saving) for stage, size in stages]
    return finished + sum(sorted(more)[-at_once:])


def _there(stage: Path) -> int:
    return bytes_in(stage / "checkpoints") + bytes_in(stage / "best")


def limit_of(run: Path, machine: Host, gigabytes: float | None) -> tuple[Path, int] | None:
    """(folder, bytes that all in it may take): the platform's limit where it holds, or the user's in its place."""
    limited = machine.limited if machine.limited and run.resolve().is_relative_to(machine.limited.resolve()) else None
    if gigabytes is not None:
        return limited or run, round(gigabytes * 1e9)
    return (limited, machine.limit_bytes) if limited is not None else None
