"""Public data sets of the tasks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def list_data(task: str | None = None) -> dict[str, Any]:
    """The public data sets that tasks name: {"data_sets": [{"task", "name", "what", "terms", "page", ...}], "text"}."""
    from outlast.plan import public_data

    found = public_data.catalogue(task)
    return {
        "data_sets": [{"task": owner, **asdict(each)} for owner, each in found],
        "text": public_data.table(found),
    }


def get_data(name: str, *, to: str | Path | None = None, task: str | None = None) -> dict[str, Any]:
    """Fetch a public data set into a folder (data/NAME unless given), going on where an earlier attempt broke off.

    Says its terms and size first. Returns {"name", "task", "folder", "terms", "page", "bytes", "compared", "command":
    what to type next}. Raises UsageError for a name that there is not, RunError if it can't be had or has no room.
    """
    from outlast.plan import public_data

    return public_data.get(name, Path(to) if to is not None else None, task)
