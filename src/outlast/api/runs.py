"""Runs, looked at: how they stand, their pages, several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast.base.files import check_target, write_text
from outlast.errors import UsageError

if TYPE_CHECKING:
    pass


def status(run: str | Path | None = None) -> dict[str, Any]:
    """What there is to know about a run or a sweep, or about every run under ./runs; "text" is for people.

    Of every run: "last_7_days" says the hours and quota hours by task and stage.
    """
    from outlast.plan import hours
    from outlast.plan.hours import plan_against
    from outlast.plan.record import load
    from outlast.report import collect, sweep, text

    if run is None:
        runs = collect.list_runs(Path("runs"))
        spent = hours.spent([item.run for item in runs if item.status != "unreadable"], hours.week_ago())
        known = [
            {"run": str(item.run), "task": item.task, "status": item.status, "reason": item.reason} for item in runs
        ]
        sweeps = sweep.list_sweeps(Path("runs"))
        lines = [f"{one['folder']}: {sweep.told(one)[0]}" for one in sweeps]
        table = "\n".join(filter(None, [text.status_table(runs), *lines, hours.week_table(spent)]))
        return {"runs": known, "sweeps": sweeps, "last_7_days": [vars(one) for one in spent], "text": table}
    if sweep.is_sweep(Path(run)):
        found = sweep.read(Path(run))
        return {"run": str(run), **found, "text": sweep.status(found)}
    collected, known_run = collect.collect(Path(run)), load(Path(run))
    lines = [text.status_line(collected), *plan_against(Path(run), known_run)]
    return {"run": str(run), **known_run, "text": "\n".join(lines)}


def write_report(run: str | Path, *, figures: str | Path | None = None) -> dict[str, Any]:
    """Write report.html anew, or the table and page of a sweep. Returns {"report", "text"}: its path, and a summary.

    figures: a folder into which the figures go as PNG files too; then "figures" are their paths.
    """
    from outlast.plan import session
    from outlast.report import collect, sweep, sweep_page, text

    if sweep.is_sweep(Path(run)):
        if figures is not None:
            raise UsageError(f"{run} is a sweep, whose figure is sweep.png", hint="leave --figures out")
        return {"report": str(Path(run) / "sweep.html"), "text": sweep.text(sweep_page.write(Path(run)))}

    page = session.write_report(Path(run))
    result: dict[str, Any] = {"report": str(page), "text": text.summary(collect.collect(Path(run)))}
    if figures is not None:
        result["figures"] = [str(path) for path in session.write_figures(Path(run), Path(figures))]
    return result


def compare(runs: Sequence[str | Path], *, to: str | Path | None = None, mix_rungs: bool = False) -> dict[str, Any]:
    """Put runs of one task side by side: rungs, scores, test metrics, time, GPU hours, the settings that differ.

    `to` is a .csv file. mix_rungs: also runs that trained another rung than was wanted, or than the others; it then
    stands in capitals. Other data or another split is a warning; another task, or synthetic beside real data, is not
    compared at all. Returns {"runs": a dict per run, "differences": {key: a value per run}, "warnings", "text"}.
    Raises RunError for runs that do not belong into one table, UsageError for fewer than two.
    """
    from outlast.report import compare as side_by_side
    from outlast.report import compared

    target = Path(to) if to is not None else None
    if target is not None:
        if target.suffix != ".csv":
            raise UsageError(f"a comparison is written as .csv, not as {target.name!r}", hint="give --to FILE.csv")
        check_target(target)
    found = side_by_side.compare([Path(run) for run in runs], mix_rungs=mix_rungs)
    if target is not None:
        write_text(target, compared.as_csv(found))
    return {**found, "text": compared.table(found), "csv": str(target) if target is not None else None}
