"""`outlast predict RUN --data DIR`: a finished run predicts a whole test set, and writes the submission for it.

For competitions that run a notebook once more with another, hidden test set: nothing is trained, training data are not
read, the run may lie in an input that can't be written to, and no internet is needed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outlast.base.clock import Durations
from outlast.base.files import check_target, write_json, write_text
from outlast.base.log import say, warn
from outlast.config.identity import digest
from outlast.data.shards import read_shards
from outlast.data.table import Examples
from outlast.env import host
from outlast.errors import OutlastError, RunError, UsageError, listed
from outlast.loop.evaluate import predict
from outlast.loop.samples import open_loader
from outlast.plan import arrivals, attached, carry, ledger, record
from outlast.plan.deliver import Delivered
from outlast.plan.members import open_members
from outlast.plan.sources import SYNTHETIC
from outlast.task import Call, Together, Unseen

DEFAULT = Path("submission.csv")


def submit(place: Path, data: Path | None, to: Path, *, fill: bool) -> dict[str, Any]:
    """Predict the test set under `data` (none: where training data are looked for) and write the submission to `to`.

    place: the run, or a folder that holds one finished run, such as that of all inputs. What was predicted how stands
    in a JSON file beside the submission. Returns {"submission", "rows", "run", "data", "filled", "how", ...}.
    Raises UsageError, RunError (no finished run, or several), and what is wrong with the test set as DataError.
    """
    if to.suffix != ".csv":
        raise UsageError(f"a submission is written as .csv, not as {to.name!r}", hint="give --to submission.csv")
    check_target(to)
    run = finished_run(place)
    opened = Delivered(run)
    if opened.delivery.submit is None:
        raise UsageError(
            f"the task {opened.task.name!r} has no submission of a test set", hint="name images to predict instead"
        )
    found = opened.delivery.submit(
        Unseen(
            config=opened.settings, root=data, run=run, device=opened.compute.device,
            members=lambda: opened.opened.members,
            outputs=lambda stage, examples, together: _outputs(opened, stage, examples, together), fill=fill,
        )
    )  # fmt: skip
    write_text(to, found.table.to_csv(index=False, lineterminator="\n"))
    synthetic = bool(opened.record.get("synthetic")) or (found.root / SYNTHETIC).is_file()
    told = {
        "submission": str(to), "rows": len(found.table), "task": opened.task.name, "run": str(run),
        "config_hash": opened.record["config_hash"], "data": str(found.root), "synthetic": synthetic,
        "filled": dict(found.filled), "how": found.how if found.filled else "",
    }  # fmt: skip
    write_json(to.with_suffix(".json"), told)
    _tell(told)
    return told


def finished_run(place: Path) -> Path:
    """The run or pack at a place, or the only finished one of those that lie below it. Raises RunError.

    What is a zip file is unpacked to the scratch disk, everything else is read where it lies.
    """
    runs = [_opened(one) for one in ([place] if place.is_file() else attached.among(place))]
    found = {run: _lack(run) for run in runs}
    if list(found) == [place] and found[place]:
        raise RunError(f"{place} can't predict: {found[place]}", hint="train it to its end, or bring all of it here")
    finished = [run for run, lack in found.items() if not lack]
    if len(finished) == 1:
        return finished[0]
    if finished:
        raise RunError(
            f"there are {len(finished)} finished runs below {place}",
            details=[str(run) for run in finished],
            hint="name the one to predict with",
        )
    raise RunError(
        f"there is no finished run in {place}",
        details=[f"{run}: {lack}" for run, lack in found.items()],
        hint="name the folder that `outlast train` wrote; on Kaggle, attach the output of the notebook that finished",
    )


def _opened(place: Path) -> Path:
    """The folder of a run, or what was unpacked of a pack."""
    if place.is_dir():
        return place
    status = place.stat()
    known = digest([str(place.resolve()), status.st_size, status.st_mtime_ns])
    folder = host.detect().scratch / "unpacked" / f"{place.stem}-{known[:12]}"
    if not record.is_run(folder):
        arrivals.unpack(place, folder)
    return folder


def _lack(run: Path) -> str:
    """Why a run can't predict a test set; '' if it can."""
    try:
        plan = carry.plan_of(run)[2]
        undone = [stage.name for stage in plan if not (run / stage.name / ledger.RECORD).is_file()]
        if undone:
            return f"it is not finished, {listed(undone)} {'is' if len(undone) == 1 else 'are'} not done"
        # Weights are compared with their manifests when they are read.
        calls = [stage.name for stage in plan if isinstance(stage, Call)]
        damaged = [str(path) for name in calls for path in ledger.damaged(run / name)]
        return f"{listed(damaged)} is not what was recorded" if damaged else ""
    except OutlastError as error:
        return error.message


def _outputs(opened: Delivered, stage: str, examples: Examples, together: Together | None) -> Mapping[str, np.ndarray]:
    """What one training stage's best weights predict, as a stage of the plan would: the same batches, the same bits."""
    models = open_members(
        opened.run, (opened.trains[stage],), opened.facts, opened.compute.device, together, f"the stage {stage!r}"
    )
    compute, machine, config = opened.compute, opened.machine, models.config
    with (
        open_loader(models.learner, config, examples, machine.scratch, compute, machine.cores) as loader,
        tempfile.TemporaryDirectory(dir=machine.scratch) as parent,
    ):
        folder = Path(parent) / stage
        folder.mkdir()
        predict(
            models.learner, config, models.model, loader, np.arange(len(examples.table)),
            examples.table["id"].tolist(), opened.delivery.outputs, folder, compute, models.portion, Durations(),
            time.monotonic,
        )  # fmt: skip
        return read_shards(folder)[1]


def _tell(told: Mapping[str, Any]) -> None:
    """One sentence of what was done, and one of what was filled."""
    mark = " (SYNTHETIC data)" if told["synthetic"] else ""
    say(f"{told['submission']}: {told['rows']} rows for the test set in {told['data']}, by the run {told['run']}{mark}")
    if told["filled"]:
        reasons = list(told["filled"].values())
        warn(f"{len(reasons)} of them are {told['how']}, for their images can't be read: {listed(reasons, 3)}")
