"""Everything that a report says about a run, read from its folder into plain data.

Promises: reads only; a half-done, failed or torn run is collected as far as it goes, and what could not be read is
listed in `problems`. Raises RunError only where there is no run at all. Imports no torch and draws nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from outlast.errors import OutlastError, RunError
from outlast.report.formats import finite
from outlast.report.parts import (
    PerLabel,
    as_list,
    as_mapping,
    as_text,
    as_time,
    as_whole,
    clean,
    read_json,
    read_mistakes,
    read_rows,
    read_scores,
    read_split,
    read_text,
)
from outlast.report.records import Collected, Mistake, Scores, Session, Stage

__all__ = ["Collected", "Mistake", "Scores", "Session", "Stage", "collect", "list_runs"]


def collect(run: Path) -> Collected:
    """Read the run folder. Raises RunError if it holds no readable run.json."""
    problems: list[str] = []
    record = _run_record(run)
    stages = tuple(_stages(run, record, problems))
    scores = tuple(sorted(_all_scores(run, problems), key=lambda one: (one.split != "test", one.source)))
    split, totals, divided = read_split(run / "split.csv", problems)
    facts = {name: as_mapping(part) for name, part in as_mapping(record.get("facts")).items()}
    data = {name: as_mapping(part) for name, part in as_mapping(record.get("data")).items()}
    return Collected(
        run=run,
        task=as_text(record.get("task")) or "unknown task",
        preset=as_text(record.get("preset")),
        status=as_text(record.get("status")) or "unknown",
        reason=as_text(record.get("reason")),
        next_command=as_text(record.get("next_command")),
        command=as_text(record.get("command")),
        outlast=as_text(record.get("outlast")),
        created=as_time(record.get("created")),
        touched=_touched(run),
        config_hash=as_text(record.get("config_hash")),
        split_hash=as_text(record.get("split_hash")),
        synthetic=record.get("synthetic") is True or any(part.get("synthetic") is True for part in data.values()),
        data=data,
        rung={name: as_mapping(part) for name, part in as_mapping(record.get("rung")).items()},
        parameters=as_mapping(record.get("parameters")),
        versions=as_mapping(record.get("versions")),
        host=as_mapping(record.get("host")),
        seconds=as_mapping(record.get("seconds")),
        facts=facts,
        sessions=tuple(_session(part) for part in as_list(record.get("sessions")) if isinstance(part, dict)),
        warnings=tuple(str(warning) for warning in as_list(record.get("warnings"))),
        config=_config(run / "config.yaml", problems),
        split=_named(split, facts),
        split_totals=totals,
        divided_groups=divided,
        stages=stages,
        scores=scores,
        mistakes=tuple(_all_mistakes(run, problems)),
        problems=tuple(problems),
    )


def list_runs(folder: Path) -> list[Collected]:
    """Every run in the folder (or the folder itself), newest first; a damaged one has the status unreadable."""
    places = [folder] if (folder / "run.json").is_file() else []
    if not places and folder.is_dir():
        places = sorted(place for place in folder.iterdir() if (place / "run.json").is_file())
    runs = [_collect_or_unreadable(place) for place in places]
    return sorted(runs, key=lambda one: one.touched or datetime.min.replace(tzinfo=UTC), reverse=True)


def _run_record(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    hint = "give the folder that `outlast train` wrote (it holds run.json); `outlast status` lists the runs here"
    if not run.is_dir():
        raise RunError(f"there is no folder {str(run)!r}", hint=hint)
    if not path.is_file():
        raise RunError(f"{str(run)!r} is no run: it holds no run.json", hint=hint)
    try:
        record = clean(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}", hint="take the run from its mirror or copy") from error
    if not isinstance(record, dict):
        raise RunError(f"{str(path)!r} holds no record of a run", hint=hint)
    return record


def _collect_or_unreadable(run: Path) -> Collected:
    try:
        return collect(run)
    except OutlastError as error:
        empty: dict[str, Any] = {}
        return Collected(
            run, "unknown task", None, "unreadable", error.message, None, None, None, None, _touched(run), None, None,
            False, empty, empty, empty, empty, empty, empty, empty, (), (), None, empty, empty, (), (), (), (),
        )  # fmt: skip


def _named(split: PerLabel, facts: Mapping[str, Mapping[str, Any]]) -> PerLabel:
    """The split with class names in place of class numbers, where the run has one list of classes that fits."""
    lists = [as_list(part.get("classes")) for part in facts.values() if part.get("classes")]
    numbers = {int(label) for label in split if label.isdecimal()}
    if not lists or any(other != lists[0] for other in lists) or len(numbers) < len(split):
        return split
    if not numbers or max(numbers) >= len(lists[0]):
        return split
    return {str(lists[0][number]): split[str(number)] for number in sorted(numbers) if str(number) in split}


def _stages(run: Path, whole: Mapping[str, Any], problems: list[str]) -> Iterable[Stage]:
    rung, signed = as_mapping(whole.get("rung")), as_mapping(whole.get("score"))
    places = {path.parent for name in ("stage.json", "metrics.jsonl") for path in run.glob(f"*/{name}")}
    for place in sorted(places, key=lambda one: (one.name not in rung, one.name)):
        finished = (place / "stage.json").is_file()
        record = as_mapping(read_json(place / "stage.json", problems)) if finished else {}
        has_rows = (place / "metrics.jsonl").is_file()
        yield Stage(
            name=place.name,
            kind=as_text(record.get("kind")) or ("train" if has_rows else None),
            done=finished and bool(record),
            seconds=finite(record.get("seconds")),
            result=as_mapping(record.get("result")),
            rows=read_rows(place / "metrics.jsonl", problems) if has_rows else (),
            signed_score=as_text(signed.get(place.name)),
        )


def _all_scores(run: Path, problems: list[str]) -> Iterable[Scores]:
    for path in sorted(run.glob("*/metrics.json")):
        scores = read_scores(run, path.relative_to(run).as_posix(), problems)
        if scores is not None:
            yield scores


def _all_mistakes(run: Path, problems: list[str]) -> Iterable[Mistake]:
    for path in sorted(run.glob("*/mistakes.json")):
        yield from read_mistakes(run, path.relative_to(run).as_posix(), problems)


def _session(part: Mapping[str, Any]) -> Session:
    return Session(
        started=as_time(part.get("started")),
        ended=as_time(part.get("ended")),
        from_step=as_whole(part.get("from_step")),
        to_step=as_whole(part.get("to_step")),
        resumed_from=as_text(part.get("resumed_from")),
        why_stopped=as_text(part.get("why_stopped")),
        device=as_text(part.get("device")),
        seconds=finite(part.get("seconds")),
        stage=as_text(part.get("stage")),
        trained={
            stage: (first, last)
            for stage, stretch in as_mapping(part.get("trained")).items()
            if (first := as_whole(as_mapping(stretch).get("from_step"))) is not None
            and (last := as_whole(as_mapping(stretch).get("to_step"))) is not None
        },
        stages={
            stage: seconds
            for stage, spent in as_mapping(part.get("stages")).items()
            if (seconds := finite(spent)) is not None
        },
        quota_hours=finite(part.get("quota_hours")),
        at_once=max(_processes(part), as_whole(part.get("side_by_side")) or 1),
    )


def _processes(part: Mapping[str, Any]) -> int:
    """Of a session; run.json says it among its bounds, as text."""
    told = as_text(as_mapping(part.get("bounds")).get("processes")) or "1"
    return max(int(told), 1) if told.isdecimal() else 1


def _config(path: Path, problems: list[str]) -> str | None:
    return read_text(path, problems) if path.is_file() else None


def _touched(run: Path) -> datetime | None:
    """When the run last wrote: the youngest of its records, the only sign of life that a killed run leaves."""
    times = []
    for path in [run / "run.json", *run.glob("*/metrics.jsonl"), *run.glob("*/stage.json")]:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return datetime.fromtimestamp(max(times), tz=UTC) if times else None
