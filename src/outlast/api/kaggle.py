"""Kaggle through its own client, one command at a time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast.base.clock import parse_duration

if TYPE_CHECKING:
    pass


def kaggle_push(
    folder: str | Path, *, session_limit: str | float | None = None, accelerator: str | None = None
) -> dict[str, Any]:
    """Push the kernel in a folder to Kaggle, where a new version of it runs. Returns {"kernel", "version", "url"}.

    session_limit: when Kaggle is to end it, such as "9h", or seconds; accelerator: such as "NvidiaTeslaT4".
    Raises UsageError, and RunError if Kaggle refuses.
    """
    from outlast.env import kaggle_client

    seconds = parse_duration(session_limit) if isinstance(session_limit, str) else session_limit
    pushed = kaggle_client.push(
        Path(folder), seconds=int(seconds) if seconds is not None else None, accelerator=accelerator
    )
    return asdict(pushed)


def kaggle_status(kernel: str) -> dict[str, Any]:
    """How the newest session of a kernel (OWNER/SLUG) stands. Returns {"kernel", "state", "message"}.

    state: queued, running, complete, error or cancelled.
    """
    from outlast.env import kaggle_client

    return {"kernel": kernel, **asdict(kaggle_client.status(kernel))}


def kaggle_logs(kernel: str) -> dict[str, Any]:
    """What the newest session of a kernel printed. Returns {"kernel", "log"}."""
    from outlast.env import kaggle_client

    return {"kernel": kernel, "log": kaggle_client.logs(kernel).text}


def kaggle_pull(kernel: str, *, to: str | Path, pattern: str | None = None) -> dict[str, Any]:
    """Fetch the output of a kernel's newest session into a folder. Returns {"kernel", "files", "verified"}.

    pattern: a regular expression on the names. verified: whether each file was compared with the manifest that the
    session wrote; without a manifest it can't be. Raises CheckpointError if a file differs however often it is fetched.
    """
    from outlast.env import kaggle_client

    fetched = kaggle_client.output(kernel, Path(to), pattern)
    return {"kernel": kernel, "files": [str(path) for path in fetched.files], "verified": fetched.verified}


def kaggle_quota() -> dict[str, Any]:
    """Kaggle's accelerator quota of this week.

    Returns {"gpu": {"used_hours", "remaining_hours", "total_hours", "refresh_at"}, "tpu": the same}.
    """
    from outlast.env import kaggle_client

    return {name: asdict(item) for name, item in kaggle_client.quota().items()}
