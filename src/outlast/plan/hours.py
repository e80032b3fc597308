"""The quota ledger: what sessions cost, by task and stage, read from the records of runs.

Every session in run.json says how long each stage took, on which device, and how many quota hours it cost (its hours
times the rate in force; none on a CPU). What a session spent beside its stages (getting ready) is told as such.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from outlast.base.clock import format_duration
from outlast.base.files import read_json
from outlast.plan import ledger, record
from outlast.report import planned
from outlast.report.formats import finite
from outlast.report.parts import as_list, as_mapping, as_time

PLAN = "plan.json"  # a plan that is kept in a run folder
WEEK = timedelta(days=7)
BESIDE = "getting ready"


@dataclass(frozen=True)
class Spent:
    """Hours that a stage of a task took, and what of them counted against a quota."""

    task: str
    stage: str
    hours: float
    quota_hours: float


def spent(runs: Iterable[Path], since: datetime) -> list[Spent]:
    """The hours of all sessions of these runs that began after `since`, by task and stage."""
    hours: dict[tuple[str, str], float] = defaultdict(float)
    quota: dict[tuple[str, str], float] = defaultdict(float)
    for run in runs:
        known = record.load(run)
        for session in map(as_mapping, as_list(known.get("sessions"))):
            started = as_time(session.get("started"))
            if started is None or started < since:
                continue
            for stage, seconds in _parts(session).items():
                hours[known["task"], stage] += seconds / 3600
                quota[known["task"], stage] += seconds / 3600 * _rate(session)
    return [Spent(task, stage, hours[task, stage], quota[task, stage]) for task, stage in sorted(hours)]


def week_table(found: list[Spent]) -> str:
    """The last seven days in lines, each task's stages below its sum."""
    lines = []
    for task in sorted({one.task for one in found}):
        own = [one for one in found if one.task == task]
        total, quota = sum(one.hours for one in own), sum(one.quota_hours for one in own)
        stages = ", ".join(f"{one.stage} {format_duration(3600 * one.hours)}" for one in own)
        lines.append(f"{task}: {format_duration(3600 * total)}, {quota:.2f} quota hours ({stages})")
    return "\n".join(["last 7 days:", *(f"  {line}" for line in lines)]) if lines else ""


def plan_against(run: Path, known: Mapping[str, Any]) -> list[str]:
    """Lines about the plan that is kept in a run folder beside what happened; none where none is kept."""
    path = run / PLAN
    if not path.is_file():
        return []
    plan = read_json(path)
    if not isinstance(plan, dict) or not {"sessions", "stages", "seconds"} <= set(plan):
        return [f"{path} is not a plan"]
    done = {stage["stage"] for stage in plan["stages"] if (run / stage["stage"] / ledger.RECORD).is_file()}
    return planned.against(plan, known["sessions"], done)


def week_ago() -> datetime:
    """The moment a week before now."""
    return datetime.now(UTC) - WEEK


def _parts(session: Mapping[str, Any]) -> dict[str, float]:
    seconds = finite(session.get("seconds")) or 0.0
    stages = {name: finite(value) or 0.0 for name, value in as_mapping(session.get("stages")).items()}
    beside = seconds - sum(stages.values())
    if beside < 0:  # stages side by side share the session's time, and what it costs
        return {name: value * seconds / (seconds - beside) for name, value in stages.items()}
    return {**stages, **({BESIDE: beside} if beside > 0.05 else {})}


def _rate(session: Mapping[str, Any]) -> float:
    return 0.0 if session.get("device") == "cpu" else finite(session.get("quota_rate", 1.0)) or 0.0
