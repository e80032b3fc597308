"""Trainings that were made longer in the middle of a run (`--extend`): known again under their earlier identity.

How long to train is part of a training stage's identity, so that a longer one is not taken for done. Promises: a
training that was begun under an earlier, shorter configuration of the same run goes on from its last checkpoint; it is
neither set aside nor begun anew, and where there is nothing to go on from, that is said before anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from outlast.base.files import read_json
from outlast.data.table import Examples
from outlast.errors import RunError
from outlast.plan import ledger
from outlast.save import store
from outlast.task import Stage, Train, needed, topological

Plans = Sequence[Sequence[Stage]]


def was_begun(stage: Stage, identity: str, fingerprint: str, run: Path, earlier: Plans) -> bool:
    """Whether what lies in the stage's folder is this training as one of the `earlier` plans described it.

    `identity` is the one that it has now; False if it goes by that one already.
    """
    paths = [run / stage.name / name for name in (ledger.PROGRESS, ledger.RECORD)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None or not isinstance(stage, Train) or (known := read_json(path).get("identity")) == identity:
        return False
    former = [each for plan in earlier for each in plan if isinstance(each, Train) and each.name == stage.name]
    same_needs = [each for each in former if needed(each) == needed(stage)]
    return any(ledger.stage_identity(each, each.config, fingerprint, run) == known for each in same_needs)


def check(plan: Sequence[Stage], earlier: Plans, examples: Mapping[str, Examples], run: Path) -> None:
    """Refuse (RunError) an extension of a finished training whose checkpoints are gone; writes nothing."""
    open_stages: set[str] = set()  # what is to be done (again): nobody knows yet what those that need it start from
    for stage in topological(plan) if earlier else ():
        undone = [name for name in needed(stage) if not (run / name / ledger.RECORD).is_file()]
        if undone or open_stages & set(needed(stage)):
            open_stages.add(stage.name)
        elif isinstance(stage, Train):
            fingerprint = ledger.data_fingerprint(examples[stage.learner.name])
            identity = ledger.stage_identity(stage, stage.config, fingerprint, run)
            if was_begun(stage, identity, fingerprint, run, earlier):
                open_stages.add(stage.name)
                check_checkpoint(run / stage.name)


def check_checkpoint(folder: Path) -> None:
    """Refuse (RunError) to go on with a finished training without a checkpoint: it would begin anew."""
    problems: list[str] = []
    if not (folder / ledger.RECORD).is_file() or store.newest(folder / "checkpoints", problems) is not None:
        return
    weights = sorted((folder / "best").glob("step-*/model.safetensors"))
    raise RunError(
        f"{folder.name} is finished and has no checkpoint to go on from; with saving.keep_when_finished=best only its "
        "best weights are kept",
        details=problems,
        hint="train on from its best weights in a new run: --out NEW "
        f"--start-from {weights[-1] if weights else folder / 'best'}",
    )


def standing(plan: Sequence[Stage], run: Path) -> dict[str, int]:
    """{training stage: step of its newest verified checkpoint} of those that have one."""
    found: Mapping[str, store.Saved | None] = {
        stage.name: store.newest(run / stage.name / "checkpoints", []) for stage in plan if isinstance(stage, Train)
    }
    return {name: saved.step for name, saved in found.items() if saved is not None}
