"""Runs side by side: `outlast compare`. Read from their folders, so that no torch is needed and none is changed.

Promises: scores that do not belong side by side are not put there silently. Refused are other tasks, synthetic beside
real data, and (unless the caller says so) runs that trained another rung than was wanted or than the others. Other
examples or another split are said in capitals, because repeating a training on several splits is a good thing to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from outlast.config.load import dotted, parse_yaml
from outlast.errors import ConfigError, RunError, UsageError, listed
from outlast.report.collect import collect
from outlast.report.formats import finite
from outlast.report.parts import as_text
from outlast.report.records import Collected

ABSENT = "(absent)"


def compare(folders: Sequence[Path], *, mix_rungs: bool = False) -> dict[str, Any]:
    """Returns {"runs": a dict per run, "differences": {key: a value per run}, "warnings": sentences}.

    Raises UsageError for fewer than two runs or the same one twice, RunError if a run cannot be read or the runs do not
    belong into one table. Times are in seconds, except for the hours of GPUs and of their quota.
    """
    if len(folders) < 2:
        raise UsageError("there is nothing to compare with only one run", hint="give the folders of two or more runs")
    places = [folder.resolve() for folder in folders]
    if twice := [str(folder) for number, folder in enumerate(folders) if places[number] in places[:number]]:
        raise UsageError(f"{listed(twice)} is given twice", hint="give each run once")
    runs = [collect(folder) for folder in folders]
    _refuse_other("task", {str(run.run): run.task for run in runs}, "compare runs of one task only")
    _refuse_other(
        "kind of data",
        {str(run.run): "SYNTHETIC data" if run.synthetic else "real data" for run in runs},
        "synthetic scores say nothing about real data: compare them among themselves",
    )
    mixed = _mixed(runs)
    if mixed and not mix_rungs:
        told = "; ".join(f"{run.run} trained {_told(run)}" for run in runs)
        raise RunError(
            f"these runs did not all train the model that was wanted, or not the same one: {told}",
            hint="compare them all the same with --mix-rungs, which writes the rung in capitals; or train again with "
            "--no-fallback where there is more memory",
        )
    return {
        "runs": [_row(run, mixed) for run in runs],
        "differences": _differences(runs),
        "warnings": [*_warnings(runs, mixed)],
    }


def rungs(run: Collected) -> dict[str, tuple[str, str]]:
    """{stage: (rung used, rung wanted)} of the stages that were trained."""
    found = {}
    for stage, rung in run.rung.items():
        used = as_text(rung.get("name")) or "(unknown)"
        found[stage] = used, as_text(rung.get("wanted")) or used
    return found


def _refuse_other(what: str, values: Mapping[str, str], hint: str) -> None:
    if len(set(values.values())) > 1:
        told = ", ".join(f"{run} ({value})" for run, value in values.items())
        raise RunError(f"runs that differ in their {what} can't be compared: {told}", hint=hint)


def _mixed(runs: Sequence[Collected]) -> set[str]:
    """The stages, of any run, whose rung is not the wanted one or not that of another run; empty if all are one."""
    fell = {stage for run in runs for stage, (used, wanted) in rungs(run).items() if used != wanted}
    for one, other in combinations(map(rungs, runs), 2):
        common = one.keys() & other.keys()
        fell |= {stage for stage in common if one[stage][0] != other[stage][0]}
        # Plans without a stage in common (one split, folds) are told apart by all that they trained.
        if one and other and not common and {used for used, _ in one.values()} != {used for used, _ in other.values()}:
            fell |= one.keys() | other.keys()
    return fell


def _told(run: Collected) -> str:
    """What a run trained: 'tiny in place of sclusterformer [train]'."""
    parts = [
        f"{used}{f' in place of {wanted}' if used != wanted else ''} [{stage}]"
        for stage, (used, wanted) in rungs(run).items()
    ]
    return listed(parts) or "nothing yet"


def _row(run: Collected, mixed: set[str]) -> dict[str, Any]:
    """Everything of a run that is compared, as JSON values."""
    spent = [session for session in run.sessions if session.device != "cpu" and session.seconds is not None]
    return {
        "run": str(run.run),
        "task": run.task,
        "preset": run.preset,
        "status": run.status,
        "synthetic": run.synthetic,
        "rungs": {stage: {"used": used, "wanted": wanted} for stage, (used, wanted) in rungs(run).items()},
        "rung": {stage: _capitals(pair) if stage in mixed else pair[0] for stage, pair in rungs(run).items()},
        "scores": {
            stage.name: {"score": stage.score, "finished": stage.done, **stage.best}
            for stage in run.trained
            if stage.best
        },
        "metrics": metrics(run),
        "epochs": {stage.name: stage.rows[-1].get("epoch") for stage in run.trained if stage.rows},
        "train_seconds": {stage.name: _seconds(run, stage.name) for stage in run.trained},
        "gpu_hours": sum((session.seconds or 0.0) * session.at_once for session in spent) / 3600,
        "quota_hours": sum(session.quota_hours or 0.0 for session in run.sessions),
        "data": {learner: as_text(part.get("fingerprint")) for learner, part in run.data.items()},
        "split": run.split_hash,
    }


def _capitals(pair: tuple[str, str]) -> str:
    used, wanted = pair
    return (used if used == wanted else f"{used} (wanted {wanted})").upper()


def metrics(run: Collected) -> dict[str, float]:
    """{"test accuracy": value}; where a run scored several stages on a split, with the stage's name behind it."""
    splits = [scores.split for scores in run.scores]
    found = {}
    for scores in run.scores:
        behind = f" [{scores.source.partition('/')[0]}]" if splits.count(scores.split) > 1 else ""
        for name, value in scores.metrics.items():
            if (known := finite(value)) is not None:
                found[f"{scores.split} {name}{behind}"] = known
    return found


def _seconds(run: Collected, stage: str) -> float | None:
    """What a stage took in all sessions, its evaluations and saves with it."""
    known = [session.stages[stage] for session in run.sessions if stage in session.stages]
    return sum(known) if known else None


def _differences(runs: Sequence[Collected]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs whose configuration can be read; None where it can't."""
    configs = [_config(run) for run in runs]
    known = [config for config in configs if config]
    keys = sorted({key for config in known for key in config} - {"preset"})  # it has a line of its own
    return {
        key: [config.get(key, ABSENT) if config else None for config in configs]
        for key in keys
        if any(config.get(key, ABSENT) != known[0].get(key, ABSENT) for config in known)
    }


def _config(run: Collected) -> dict[str, Any]:
    """The settings by dotted key; empty if they can't be read."""
    try:
        values = parse_yaml(run.config or "", "config.yaml")
    except ConfigError:
        return {}
    return dict(dotted(values)) if isinstance(values, dict) else {}


def _warnings(runs: Sequence[Collected], mixed: set[str]) -> Iterator[str]:
    if mixed:
        yield f"MIXED RUNGS [{listed(sorted(mixed))}]: the scores are of different models"
    if learners := _other_data(runs):
        yield f"OTHER DATA ({listed(learners)}): the scores are measured on different examples and are NOT COMPARABLE"
    elif len({run.split_hash for run in runs}) > 1:
        yield "OTHER SPLIT: each run was scored on examples of its own, so that differences may be the split's"
    for run in runs:
        if run.status != "finished":
            reason = f" ({run.reason})" if run.reason else ""
            yield f"{run.run} is {run.status}{reason}: what it scores is the best so far"
        if not _config(run):
            yield f"{run.run}: its config.yaml can't be read, so that its settings are not compared"
        for problem in run.problems:
            yield f"{run.run}: {problem}"


def _other_data(runs: Sequence[Collected]) -> list[str]:
    """The learners whose data is not the same in all runs, or is not known."""
    learners = sorted({learner for run in runs for learner in run.data})
    return [
        learner
        for learner in learners
        if len({as_text(run.data.get(learner, {}).get("fingerprint")) for run in runs}) > 1
    ]
