"""Commands that look at runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlast.cli.command import AsJson, RunFolder, app, show


@app.command()
def status(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A run folder; default: all under ./runs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how a run, or every run, stands."""
    from outlast import api

    result = api.status(run)
    text = result.pop("text")
    show(result, as_json, text)


@app.command()
def report(
    run: RunFolder,
    text: Annotated[bool, typer.Option("--text", help="Print a summary to paste.")] = False,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures as PNG files into this folder too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report page of a run."""
    from outlast import api

    result = api.write_report(run, figures=figures)
    show(result, as_json, result["text"] if text else result["report"])


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders of one task.")],
    to: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Write it as CSV too, a line per run.")] = None,
    mix_rungs: Annotated[
        bool, typer.Option("--mix-rungs", help="Compare runs of other rungs too; they stand in capitals.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side: rungs, scores, time, and the settings that differ.

    Refused: other tasks; synthetic beside real data; without --mix-rungs, runs that trained another rung than was
    wanted or than the others. Other data or another split is compared with a warning in capitals: scores on different
    examples are not comparable one to one.
    """
    from outlast import api

    result = api.compare(runs, to=to, mix_rungs=mix_rungs)
    text = result.pop("text")
    show(result, as_json, text)
