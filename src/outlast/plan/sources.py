"""Which data a session trains on: folders, the examples of every learner with their frozen split, every sample read.

Promises: data that changed since the run was begun is refused; every damaged file is found before the run folder is
touched; a synthetic set is taken only where it was asked for, or by the preset "smoke" where there is no other.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from outlast.base.files import write_folder
from outlast.base.log import say
from outlast.data.split import obey
from outlast.data.table import Examples
from outlast.env.host import Host
from outlast.errors import DataError, DataNotFoundError, UsageError
from outlast.loop.accel import Compute
from outlast.loop.samples import open_cache
from outlast.plan import ledger, record
from outlast.task import DATA, Predict, Stage, Task, Train

DECIDED = ("split", "fold")  # the columns of the examples that a run decides once and keeps
SYNTHETIC = "SYNTHETIC.txt"  # a data root that holds this file is synthetic, and so is all that is made from it


def parse_data(data: Any) -> dict[str, Path]:
    """{name: folder} from DIR, "NAME=DIR", a list of them, or a mapping. Raises UsageError."""
    if data is None:
        return {}
    if isinstance(data, Mapping):
        return {str(name): Path(folder) for name, folder in data.items()}
    items = [data] if isinstance(data, str | Path) else list(data)
    roots: dict[str, Path] = {}
    for item in items:
        if not str(item):
            raise UsageError("--data is empty", hint="name the folder that holds the data (is a shell variable unset?)")
        name, equals, folder = str(item).partition("=")
        if not equals or not name.isidentifier() or Path(item).exists():
            name, folder = DATA, str(item)
        if name in roots:
            raise UsageError(f"--data was given twice for {name!r}", hint="give each root once, as --data NAME=DIR")
        roots[name] = Path(folder)
    return roots


def roots(task: Task, data: Any, preset: str, machine: Host, compute: Compute, *, synthetic: bool) -> dict[str, Path]:
    """{name: folder} of the data that was given; the synthetic set if asked for, or if smoke finds no other."""
    given = parse_data(data)
    if synthetic and given:
        raise UsageError("--synthetic and --data exclude each other", hint="leave one of them out")
    if synthetic:
        return {DATA: _synthetic(task, machine, compute)}
    if not given and preset == "smoke":
        learner = next(iter(task.learners.values()))
        try:
            learner.examples(task.presets[preset](), {})
        except DataNotFoundError:
            say("no data set was given or found: the preset 'smoke' takes the synthetic one")
            return {DATA: _synthetic(task, machine, compute)}
    return given


def _synthetic(task: Task, machine: Host, compute: Compute) -> Path:
    """The task's synthetic set, written once per version of its maker into the cache."""

    maker = hashlib.sha256(Path(inspect.getfile(task.synthetic)).read_bytes()).hexdigest()[:12]
    folder = machine.scratch / "synthetic" / f"{task.name}-{maker}"
    if compute.main and not (folder / SYNTHETIC).is_file():
        say(f"making the synthetic set of {task.name} …")
        write_folder(folder, task.synthetic, {"task": task.name, "synthetic": True})
    compute.wait()
    return folder


def examples_of(plan: Sequence[Stage], roots: Mapping[str, Path], run: Path | None) -> dict[str, Examples]:
    """The examples of every learner in the plan; a run that exists keeps its frozen split."""

    learners = {stage.learner.name: stage for stage in plan if not isinstance(stage, Predict) and stage.learner}
    found = {}
    for name, stage in learners.items():
        assert stage.learner is not None
        try:
            found[name] = stage.learner.examples(stage.config, roots)
        except DataNotFoundError:
            if run is None or not _all_done(plan, name, run):
                raise
            found[name] = _remembered(name, learners, run)
        except DataError as error:
            if run is not None:
                error.hint = f"bring back the data that {run} was begun with; or, for a new run, {error.hint}"
            raise
    if run is not None:
        for name, item in found.items():
            path = run / split_name(name, found)
            if path.is_file():
                try:
                    table = obey(item.table, path, decided=DECIDED, compared=item.batch_columns)
                except DataError as error:
                    if _all_done(plan, name, run):
                        error.hint = f"{error.hint}; the run is finished: `outlast predict {run}` uses it on other data"
                    raise
                found[name] = replace(item, table=table)
        record.check_same_data(run, {name: item.fingerprint for name, item in found.items()})
    return found


def _all_done(plan: Sequence[Stage], learner: str, run: Path) -> bool:
    """Whether every stage that uses this learner's data is done."""
    own = [
        stage for stage in plan if not isinstance(stage, Predict) and stage.learner and stage.learner.name == learner
    ]
    trained = {stage.name for stage in own}
    uses = [*own, *(stage for stage in plan if isinstance(stage, Predict) and trained & set(stage.models))]
    return all((run / stage.name / ledger.RECORD).is_file() for stage in uses)


def _remembered(name: str, learners: Mapping[str, Any], run: Path) -> Examples:
    """The examples of a learner whose stages are all done, as the run knows them: its data need not be here again."""
    known = record.load(run)
    about, facts = known["data"][name], known["facts"][name]
    table = pd.read_csv(run / split_name(name, learners), dtype=str, keep_default_na=False)
    say(f"{name}: its stages are done; its data ({about['path']}) is not here and not needed")
    return Examples(table, Path(about["path"]), facts, tuple(about["batch_columns"]), tuple(about["notes"]))


def check_samples(plan: Sequence[Stage], examples: Mapping[str, Examples], machine: Host, run: Path | None) -> None:
    """Decode every sample once before the run folder is touched: what is damaged shows here.

    Not those of a learner whose stages are all done (run: the one that goes on).
    """
    decoded = set()
    for stage in plan:
        if isinstance(stage, Train) and stage.learner.name not in decoded:
            if run is not None and _all_done(plan, stage.learner.name, run):
                continue
            open_cache(
                stage.learner, stage.config, examples[stage.learner.name], machine.scratch, machine.cores
            ).close()
            decoded.add(stage.learner.name)


def split_name(learner: str, all_learners: Mapping[str, Any]) -> str:
    return "split.csv" if len(all_learners) == 1 else f"split-{learner}.csv"


def about_data(examples: Examples, made_up: bool) -> dict[str, Any]:
    table = examples.table
    counts = table["split"].value_counts().to_dict() if "split" in table.columns else {}
    return {
        "path": str(examples.root.resolve()),
        "fingerprint": examples.fingerprint,
        "synthetic": made_up,
        "examples": len(table),
        "splits": {str(name): int(count) for name, count in counts.items()},
        "batch_columns": list(examples.batch_columns),
        "notes": list(examples.notes),
    }
