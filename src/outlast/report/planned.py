"""A plan of sessions (`outlast plan`) in plain text: the answer, a table of who runs when, what to know about it.

Takes the plan as JSON values, as it is kept beside a run; knows nothing of how it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlast.base.clock import format_duration
from outlast.report.formats import count, moment
from outlast.report.parts import as_time

_HEAD = ("session", "gpu", "stage", "from", "to", "takes", "steps or shards", "then")


def table(plan: Mapping[str, Any]) -> str:
    """The answer first, then a line per stage and session, the sessions' quota, and the notes."""
    guessed = {stage["stage"] for stage in plan["stages"] if stage["guessed"]}
    rows: list[tuple[str, ...]] = [_HEAD]
    for session in plan["sessions"]:
        rows += [_row(plan, session, piece, guessed) for piece in session["pieces"]]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
    lines = [plan["answer"], measured_line(plan["measurement"]), ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if any(session["quota_hours_left"] is not None for session in plan["sessions"]) or len(plan["sessions"]) > 1:
        lines += ["", *(_session_line(session, plan) for session in plan["sessions"])]
    lines += ["", *(f"at once: {' and '.join(pair)}" for pair in plan["at_once"])] if plan["at_once"] else []
    lines += ["", *(f"note: {sentence}" for sentence in plan["notes"])] if plan["notes"] else []
    return "\n".join(lines)


def measured_line(measurement: Mapping[str, Any]) -> str:
    """Where the times come from."""
    machine = measurement["machine"]
    where = ", ".join(str(machine[name]) for name in ("device_name", "device") if machine.get(name))
    data = " on SYNTHETIC data" if measurement["synthetic"] else ""
    source = "measured" if measurement["source"] == "measured" else f"times of {measurement['source']}"
    return f"{source}{data}, {where}, {machine.get('cores')} cores, {moment(as_time(measurement['made']))}"


def _row(
    plan: Mapping[str, Any], session: Mapping[str, Any], piece: Mapping[str, Any], guessed: set[str]
) -> tuple[str, ...]:
    stage = next(one for one in plan["stages"] if one["stage"] == piece["stage"])
    if piece["finished"]:
        then = "done"
    else:
        later = next(number for number in stage["sessions"] if number > session["session"])
        then = f"stopped, goes on in session {later}"
    took = format_duration(piece["end_seconds"] - piece["start_seconds"])
    units = f"{count(piece['first'])} to {count(piece['last'])} of {count(stage['units'])}"
    return (
        str(session["session"]),
        str(piece["gpu"] + 1),
        piece["stage"],
        format_duration(piece["start_seconds"]),
        format_duration(piece["end_seconds"]),
        f"{took}{' (guessed)' if piece['stage'] in guessed else ''}",
        units if stage["kind"] != "call" else "",
        then,
    )


def _session_line(session: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    line = f"session {session['session']}: {format_duration(session['seconds'])}"
    line += f", {session['quota_hours']:.2f} quota hours"
    if session["quota_hours_left"] is not None:
        week = f" of week {session['week']}" if plan["weeks"] > 1 else ""
        line += f", {session['quota_hours_left']:.2f} left{week}"
    if plan["allowed"]["gpus"] > 1:
        line += f", GPUs idle for {format_duration(session['idle_gpu_seconds'])}"
    return f"{line}; ended by: {session['ended_by']}"


def against(plan: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]], done: set[str]) -> list[str]:
    """Plan against reality, two lines: the sessions, and every stage with planned and real seconds.

    sessions: those of run.json; done: the names of finished stages.
    """
    parts = []
    for stage in plan["stages"]:
        name = stage["stage"]
        real = sum((session.get("stages") or {}).get(name, 0.0) for session in sessions)
        used = sum(name in (session.get("stages") or {}) for session in sessions)
        if not used:
            state = "not begun"
        else:
            state = f"{'done' if name in done else 'so far'} {format_duration(real)}"
            planned = len(stage["sessions"])
            state += f" in {_sessions(used)}, planned {planned}" if max(used, planned) > 1 else ""
        parts.append(f"{name} planned {format_duration(stage['seconds'])}{' (guessed)' if stage['guessed'] else ''}, "
                     f"{state}")  # fmt: skip
    spent = sum(session.get("seconds") or 0.0 for session in sessions)
    head = (
        f"plan: {_sessions(len(plan['sessions']))}, {format_duration(plan['seconds'])}; "
        f"used: {_sessions(len(sessions))}, {format_duration(spent)}"
    )
    return [head, "  " + "; ".join(parts)]


def _sessions(number: int) -> str:
    return f"{number} session{'' if number == 1 else 's'}"
