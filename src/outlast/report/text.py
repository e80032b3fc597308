"""A run in plain text: a summary to paste into an issue or a chat, and the lines of `outlast status`.

Promises: no colours, no tabs, at most about 30 lines; TEST and VALIDATION are told apart; SYNTHETIC is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outlast.report.advice import advice
from outlast.report.formats import MISSING, count, duration, finite, moment, number, shorten
from outlast.report.records import Collected, Scores
from outlast.report.timeline import length, pauses

MOST_CLASSES = 8
LABEL = 12  # columns of the labels at the left


@dataclass(frozen=True)
class Headline:
    """The one number of a run: the test score if there is one, else that out of fold, else the best of validation."""

    split: str  # TEST, OUT OF FOLD or VALIDATION
    metric: str
    value: float | None
    told: str


def headline(run: Collected) -> Headline | None:
    """The score that the run is about."""
    score = next((stage.score for stage in run.trained if stage.score), None)
    if run.test is not None:
        metrics = run.test.metrics
        metric = score if score in metrics else next(iter(metrics), None)
        if metric is not None:
            images = f"{count(run.test.images)} images that took no part in training or choosing"
            return Headline("TEST", metric, finite(metrics[metric]), images)
    for scores in run.scores:
        if score and scores.split == "out of fold" and score in scores.metrics:
            images = f"{count(scores.images)} images, each predicted by models that were trained without it"
            return Headline("OUT OF FOLD", score, finite(scores.metrics[score]), images)
    for stage in run.trained:
        if stage.best:
            place = f"best so far, step {count(stage.best.get('step'))}" if not stage.done else "best of the training"
            return Headline("VALIDATION", stage.score or "score", finite(stage.best.get("value")), place)
    return None


def summary(run: Collected) -> str:
    """15 to 30 lines about a run, to be pasted."""
    lines = [
        f"{run.task}, preset {run.preset or MISSING}: {run.status.upper()}" + (f" ({run.reason})" if run.reason else "")
    ]
    if run.synthetic:
        lines.append("SYNTHETIC DATA: these numbers say nothing about real images")
    lines += [_line("run", str(run.run)), _line("created", moment(run.created))]
    lines += [_line("data", _data(name, part)) for name, part in run.data.items()]
    lines.append(_line("split", _split(run)))
    for name, rung in run.rung.items():
        lines.append(
            _line("model", f"{rung.get('name', MISSING)}, {count(run.parameters.get(name))} parameters [{name}]")
        )
        if rung.get("reason") and name not in run.fallbacks:
            lines.append(_line("", f"micro-batches of {rung.get('micro_batch', MISSING)}: {rung['reason']}"))
        if name in run.fallbacks:
            lines.append(_line("", f"FELL BACK from {rung.get('wanted', MISSING)}: {rung.get('reason') or MISSING}"))
    for scores in run.scores:
        lines.append(_line(scores.split.upper(), f"{_metrics(scores.metrics)} on {count(scores.images)} images"))
        lines += _classes(scores)
    for stage in run.trained:
        if stage.best:
            best = f"{stage.score} {number(stage.best.get('value'))} at step {count(stage.best.get('step'))}"
            lines.append(_line("VALIDATION", f"best {best} [{stage.name}]"))
    lines.append(_line("sessions", _sessions(run)))
    lines.append(_line("machine", machine(run)))
    lines.append(_line("versions", ", ".join(f"{name} {version}" for name, version in run.versions.items()) or MISSING))
    lines.append(_line("hashes", f"config {_hash(run.config_hash)}, split {_hash(run.split_hash)}"))
    lines += [_line("warning", warning) for warning in run.warnings[:3]]
    if len(run.warnings) > 3:
        lines.append(_line("", f"and {len(run.warnings) - 3} more warnings"))
    lines += [_line("unreadable", problem) for problem in run.problems[:3]]
    lines.append(_line("command", run.command or MISSING))
    if run.next_command:
        lines.append(_line("next", run.next_command))
    return "\n".join(lines)


def status_line(run: Collected) -> str:
    """A run in one line: what it is, how far it came, its score, and what to type next."""
    parts = [f"{run.name}: {run.task}{' (SYNTHETIC)' if run.synthetic else ''} {run.status}"]
    if run.reason:
        parts[0] += f" ({run.reason})"
    if run.sessions:
        parts.append(f"step {_step(run)}, {_sessions_count(run)}")
    best = headline(run)
    if best is not None:
        parts.append(f"{best.split} {best.metric} {number(best.value)}")
    steps = [step.command for step in advice(run) if step.command]
    command = run.next_command or (steps[0] if steps else None)
    if command and run.status != "unreadable":
        parts.append(f"next: {command}")
    return "; ".join(parts)


def status_table(runs: Sequence[Collected]) -> str:
    """Runs as an aligned table, one a line."""
    head = ("run", "task", "preset", "status", "sessions", "step", "trained", "score", "last sign of life")
    rows = [head, *(_status_row(run) for run in runs)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _status_row(run: Collected) -> tuple[str, ...]:
    best = headline(run)
    return (
        shorten(run.name, 32),
        run.task + (" SYNTHETIC" if run.synthetic else ""),
        run.preset or MISSING,
        run.status,
        str(len(run.sessions)),
        _step(run),
        duration(sum(length(session) or 0.0 for session in run.sessions)),
        f"{best.split} {best.metric} {number(best.value)}" if best else MISSING,
        moment(run.touched),
    )


def _line(label: str, text: str) -> str:
    return f"{label:<{LABEL}}{' '.join(text.split())}"


def _data(name: str, part: Mapping[str, Any]) -> str:
    where = f"{part.get('path', MISSING)}, {count(part.get('examples'))} examples"
    return f"{where}, fingerprint {_hash(part.get('fingerprint'))} [{name}]"


def _hash(value: object) -> str:
    """As much of a hash as tells two apart; the page and run.json have all of it."""
    return str(value)[:16] if value else MISSING


def _split(run: Collected) -> str:
    parts = [
        f"{name} {count(images)} images in {count(groups)} groups"
        for name, (images, groups) in run.split_totals.items()
    ]
    divided = f"; GROUPS IN MORE THAN ONE SPLIT: {len(run.divided_groups)}" if run.divided_groups else ""
    return (", ".join(parts) or MISSING) + divided


def _metrics(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in metrics.items()) or MISSING


def _classes(scores: Scores) -> list[str]:
    rows = list(scores.per_class.items())
    found = [_line("", f"{shorten(name, 40)}: {_metrics(values)}") for name, values in rows[:MOST_CLASSES]]
    if len(rows) > MOST_CLASSES:
        found.append(_line("", f"and {len(rows) - MOST_CLASSES} more classes"))
    return found


def _sessions_count(run: Collected) -> str:
    return f"{len(run.sessions)} session{'' if len(run.sessions) == 1 else 's'}"


def _sessions(run: Collected) -> str:
    if not run.sessions:
        return "none yet"
    whys = ", ".join(session.why_stopped or "not ended" for session in run.sessions[-6:])
    spent = duration(sum(length(session) or 0.0 for session in run.sessions))
    paused = sum(gap or 0.0 for gap in pauses(run.sessions))
    between = f", {duration(paused)} between them" if paused else ""
    earlier = "... " if len(run.sessions) > 6 else ""
    return f"{_sessions_count(run)}, {spent}{between}; ended by: {earlier}{whys}"


def machine(run: Collected) -> str:
    """What the run ran on, in a few words."""
    host = run.host
    named = [str(host[key]) for key in ("device", "device_name", "kind") if host.get(key)]
    if host.get("cores"):
        named.append(f"{host['cores']} cores")
    return ", ".join(named) or MISSING


def _step(run: Collected) -> str:
    done = [session.to_step for session in run.sessions if session.to_step is not None]
    done += [int(stage.rows[-1]["step"]) for stage in run.trained[:1] if stage.rows]
    return count(max(done)) if done else MISSING
