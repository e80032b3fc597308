"""Kernels on Kaggle: pushed, watched, their logs and outputs fetched; and the accelerator quota.

Each function is one call of the `kaggle` package (2.2.1 or later), in a process of its own (kaggle_process). A push
whose answer is lost is not repeated before it was looked whether it arrived: two sessions would spend the quota twice.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from outlast.base.files import MANIFEST, sha256, verify_folder
from outlast.base.patience import delays
from outlast.base.secret import without_secrets
from outlast.env.kaggle_process import CallError, once, patiently, pause
from outlast.errors import CheckpointError, RunError, UsageError, listed

_FETCHES = 3  # of a file whose hash is wrong
_KERNEL = "kernel-metadata.json"
_STATES = {
    "QUEUED": "queued", "NEW_SCRIPT": "queued", "RUNNING": "running", "COMPLETE": "complete", "ERROR": "error",
    "CANCEL_REQUESTED": "cancelled", "CANCEL_ACKNOWLEDGED": "cancelled",
}  # fmt: skip


@dataclass(frozen=True)
class Pushed:
    """A kernel that was pushed: its name (OWNER/SLUG), version and address."""

    kernel: str
    version: int
    url: str


@dataclass(frozen=True)
class KernelStatus:
    """state: queued, running, complete, error or cancelled; message: what Kaggle says of a failure."""

    state: str
    message: str

    @property
    def ended(self) -> bool:
        """Whether nothing runs any more."""
        return self.state not in ("queued", "running")


@dataclass(frozen=True)
class Log:
    """What a session printed; seconds: how long after its start it printed last, None if Kaggle does not say."""

    text: str
    seconds: float | None


@dataclass(frozen=True)
class Output:
    """Files that were fetched; verified: each was compared with the manifest that lies among them."""

    files: tuple[Path, ...]
    verified: bool


@dataclass(frozen=True)
class Quota:
    """Hours of an accelerator in this week. refresh_at: ISO 8601, when the next one begins."""

    used_hours: float
    remaining_hours: float
    total_hours: float
    refresh_at: str | None


def push(folder: Path, *, seconds: int | None = None, accelerator: str | None = None) -> Pushed:
    """Push the kernel in a folder (kernel-metadata.json and the file that it names): a new version, which runs.

    seconds: when Kaggle is to end it; accelerator: such as NvidiaTeslaT4. Raises UsageError for a folder that can't be
    pushed, RunError if Kaggle refuses, or did not attach an input that the kernel names.
    """
    kernel = _kernel_of(folder)
    arguments = {"folder": str(folder), "seconds": seconds, "accelerator": accelerator}
    before = int(patiently("kernel_version", {"kernel": kernel}))
    began = time.monotonic()
    for delay in delays():
        try:
            answer = once("push", arguments)
        except CallError as error:
            arrived = int(patiently("kernel_version", {"kernel": kernel})) if error.passing else before
            if arrived > before:
                return Pushed(kernel, arrived, f"https://www.kaggle.com/code/{kernel}")
            pause(error, delay, began, f"Kaggle does not take {kernel}")
            continue
        if answer["unknown"]:
            raise RunError(
                f"Kaggle runs {kernel} without {listed(answer['unknown'])}: it knows no such input, or it is not ready",
                hint="stop the session on the kernel's page, check the names, and push again",
            )
        return Pushed(kernel, int(answer["version"] or before + 1), str(answer["url"]))
    raise AssertionError("delays never end")


def status(kernel: str) -> KernelStatus:
    """How the newest session of a kernel (OWNER/SLUG) stands. Raises RunError."""
    answer = patiently("status", {"kernel": kernel})
    return KernelStatus(_STATES.get(answer["state"], answer["state"].lower()), answer["message"])


def logs(kernel: str) -> Log:
    """What the newest session of a kernel printed so far, credentials taken out. Raises RunError."""
    kept = str(patiently("logs", {"kernel": kernel}))
    try:  # a JSON list of {stream_name, time, data}
        pieces = json.loads(kept)
        text = "".join(str(piece["data"]) for piece in pieces)
        return Log(without_secrets(text), max((float(piece["time"]) for piece in pieces), default=None))
    except (ValueError, TypeError, KeyError):
        return Log(without_secrets(kept), None)


def output(kernel: str, to: Path, pattern: str | None = None) -> Output:
    """Fetch the output of a kernel's newest session into a folder; `pattern` is a regular expression on the names.

    If there is a manifest at its root (base.files.write_manifest), each file is compared with it, and fetched again
    if it differs. Raises CheckpointError if it still does or is missing, RunError if Kaggle refuses.
    """
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(
                f"{pattern!r} is no regular expression: {error}", hint=r"for files that end in .csv: '\.csv$'"
            ) from None
        pattern = f"(?:{pattern})|^{re.escape(MANIFEST)}$"
    to.mkdir(parents=True, exist_ok=True)
    files = _fetch(kernel, to, None, pattern)
    paths = tuple(to / name for name in files)
    if MANIFEST not in files:
        return Output(paths, verified=False)
    only = None if pattern is None else set(files)
    wrong = _wrong(to, only)
    for _ in range(_FETCHES):
        if not wrong:
            break
        _fetch(kernel, to, wrong, None)
        wrong = _wrong(to, only)
    if not wrong:
        return Output(paths, verified=True)
    raise CheckpointError(
        f"{kernel}: {listed(wrong)} did not arrive as the session wrote it",
        hint="fetch it again; if it stays so, the session's output is damaged: go on from the one before",
    )


def quota() -> dict[str, Quota]:
    """{"gpu": ..., "tpu": ...}: what is left of this week. Raises RunError."""
    return {
        name: Quota(
            item["used"] / 3600, max(item["total"] - item["used"], 0.0) / 3600, item["total"] / 3600, item["refresh_at"]
        )
        for name, item in patiently("quota", {}).items()
    }


def _kernel_of(folder: Path) -> str:
    try:
        values = json.loads((folder / _KERNEL).read_text(encoding="utf-8"))
        kernel, code = str(values["id"]), folder / str(values["code_file"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder} holds no kernel: {_KERNEL} can't be read ({type(error).__name__}: {error})",
            hint="give the folder that `outlast export TASK --to kaggle.py` made, or write that file",
        ) from None
    if not code.is_file():
        raise UsageError(f"{folder / _KERNEL} names the file {code.name}, which is not there", hint="correct code_file")
    if not re.fullmatch(r"[\w-]+/[\w-]{5,}", kernel):
        raise UsageError(
            f"{folder / _KERNEL}: {kernel!r} is no kernel's name",
            hint="write OWNER/SLUG, the slug of 5 letters or more",
        )
    return kernel


def _fetch(kernel: str, to: Path, names: list[str] | None, pattern: str | None) -> list[str]:
    arguments = {"kernel": kernel, "to": str(to), "names": names, "pattern": pattern}
    return list(patiently("output", arguments, size=None))


def _wrong(folder: Path, only: set[str] | None) -> list[str]:
    """The files that are not what the manifest says. With `only`, of these."""
    try:
        verify_folder(folder)
        return []
    except CheckpointError:
        pass
    try:
        named = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: item["sha256"] for name, item in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [MANIFEST]
    names = [name for name in expected if only is None or name in only]
    return [name for name in names if not (folder / name).is_file() or sha256(folder / name) != expected[name]]
