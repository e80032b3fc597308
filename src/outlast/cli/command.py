"""What all commands share: the application, their common options, and how a result is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train vision models that outlast the session: stops before the kill, resumes exactly.",
)

OneStage = Annotated[str | None, typer.Option("--stage", help="A training stage, not what the task delivers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]


def show(result: dict[str, Any], as_json: bool, text: str) -> None:
    """Print a result on standard output: as one JSON object, or the text for people."""
    if os.environ.get("RANK", "0") != "0":
        return  # several processes (torchrun) work on one job: the first one speaks
    if as_json:
        from outlast.base.files import plain

        print(json.dumps(plain(result), ensure_ascii=False, default=str))
    elif text:
        print(text)
