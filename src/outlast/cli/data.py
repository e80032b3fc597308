"""`outlast data`: public data sets of the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlast.cli.command import AsJson, app, show

public = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Public data sets of the tasks.")
app.add_typer(public, name="data")


@public.command("list")
def data_list(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Only those of one task.")] = None,
    as_json: AsJson = False,
) -> None:
    """List them: name, size, terms, and where they are."""
    from outlast import api

    result = api.list_data(task)
    text = result.pop("text")
    show(result, as_json, text)


@public.command("get")
def data_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `outlast data list` shows.")],
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Where it goes; default data/NAME.")] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Whose it is, for a task of your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch one, under its terms; type the same again to go on after a break."""
    from outlast import api

    result = api.get_data(name, to=to, task=task)
    show(result, as_json, result["command"] or result["folder"])
