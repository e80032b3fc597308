"""`outlast kaggle`: Kaggle through its own client."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outlast.cli.command import AsJson, app, show

kaggle = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Kaggle through its own client.")
app.add_typer(kaggle, name="kaggle")
Kernel = Annotated[str, typer.Argument(metavar="OWNER/SLUG", help="The kernel.")]


@kaggle.command("push")
def kaggle_push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="kernel-metadata.json and the file that it names.")],
    session_limit: Annotated[str | None, typer.Option(help="When Kaggle is to end it, such as 9h or 45m.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="NvidiaTeslaT4, ...; default: what the file says.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a kernel: a new version of it runs."""
    from outlast import api

    result = api.kaggle_push(folder, session_limit=session_limit, accelerator=accelerator)
    show(result, as_json, f"{result['kernel']} version {result['version']}: {result['url']}")


@kaggle.command("status")
def kaggle_status(kernel: Kernel, as_json: AsJson = False) -> None:
    """Say how a kernel's newest session stands."""
    from outlast import api

    result = api.kaggle_status(kernel)
    show(result, as_json, result["state"] + (f": {result['message']}" if result["message"] else ""))


@kaggle.command("logs")
def kaggle_logs(kernel: Kernel, as_json: AsJson = False) -> None:
    """Print what a kernel's newest session printed."""
    from outlast import api

    result = api.kaggle_logs(kernel)
    show(result, as_json, result["log"].rstrip("\n"))


@kaggle.command("pull")
def kaggle_pull(
    kernel: Kernel,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")],
    pattern: Annotated[
        str | None, typer.Option(help="Only files whose names this regular expression finds: '\\.csv$'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a kernel's output, and compare each file with the session's manifest."""
    from outlast import api

    result = api.kaggle_pull(kernel, to=to, pattern=pattern)
    note = "each compared with the session's manifest" if result["verified"] else "NOT VERIFIED: there is no manifest"
    show(result, as_json, f"{len(result['files'])} files in {to}, {note}")


@kaggle.command("quota")
def kaggle_quota(as_json: AsJson = False) -> None:
    """Say how many accelerator hours are left this week."""
    from outlast import api

    result = api.kaggle_quota()
    lines = [
        f"{name.upper()}: {item['remaining_hours']:.2f} h of {item['total_hours']:.2f} h left, "
        f"renewed {item['refresh_at'] or 'at a time that Kaggle does not say'}"
        for name, item in result.items()
    ]
    show(result, as_json, "\n".join(lines))
