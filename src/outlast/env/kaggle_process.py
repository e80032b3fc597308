"""Calls of Kaggle's own clients: each in a process of its own (kaggle_call), tried again where that may help.

What may pass - too many requests, server errors, lost connections - is tried again with growing pauses; what Kaggle
refuses is a RunError with what to do. Credentials are read by Kaggle's clients themselves, and appear nowhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outlast.base.patience import delays
from outlast.base.secret import without_secrets
from outlast.errors import RunError

PATIENCE_SECONDS = 300.0  # how long one call is tried again
_ANSWER_SECONDS = 600.0  # of a call that moves no files
_BYTES_PER_SECOND = 100_000  # the slowest connection that is waited for
_PASSING = {408, 429, 500, 502, 503, 504}


class CallError(Exception):
    """A call that failed. passing: it may work the next time."""

    def __init__(self, message: str, *, passing: bool, status: int = 0, wait: float = 0.0, kind: str = "") -> None:
        super().__init__(message)
        self.message, self.passing, self.status, self.wait, self.kind = message, passing, status, wait, kind


def patiently(
    call: str, arguments: dict[str, Any], *, client: str = "kaggle", size: int | None = 0
) -> Any:  # fmt: skip
    began = time.monotonic()
    for delay in delays():
        try:
            return once(call, arguments, client=client, size=size)
        except CallError as error:
            pause(error, delay, began, _SENTENCES[call].format(**arguments))
    raise AssertionError("delays never end")


_SENTENCES = {
    "kernel_version": "Kaggle does not answer about {kernel}",
    "status": "the status of {kernel} can't be had",
    "logs": "the log of {kernel} can't be had",
    "output": "the output of {kernel} can't be had",
    "quota": "the accelerator quota can't be had",
    "dataset_state": "the status of the data set {ref} can't be had",
    "dataset_file": "{file} of version {version} of {ref} can't be had",
    "dataset_files": "version {version} of {ref} can't be had",
}


def pause(error: CallError, delay: float, began: float, sentence: str) -> None:
    """Wait before the next attempt. Raises RunError if there is to be none."""
    wait = max(delay, error.wait)
    if error.passing and time.monotonic() - began + wait <= PATIENCE_SECONDS:
        time.sleep(wait)
        return
    raise RunError(f"{sentence}: {error.message}", hint=_hint(error)) from None


def _hint(error: CallError) -> str:
    text = error.message.lower()
    if error.kind == "missing":
        return 'pip install "outlast[kaggle]"'
    if error.kind == "credentials" or error.status == 401:
        return (
            "run `kaggle auth login`, or set KAGGLE_API_TOKEN (kaggle.com/settings), or KAGGLE_USERNAME and KAGGLE_KEY"
        )
    if "quota" in text:
        return "wait until the week's quota is renewed (`outlast kaggle quota` says when), or leave the accelerator out"
    if "session count" in text:
        return "wait until a session has ended, or end one on kaggle.com"
    if error.status in (403, 404):
        return "check OWNER and SLUG, and that the credentials are that owner's"
    return "try again later" if error.passing else "check what is named, and try again"


def once(
    call: str, arguments: dict[str, Any], *, client: str = "kaggle", size: int | None = 0,
    environment: dict[str, str] | None = None,
) -> Any:  # fmt: skip
    """Make a call. size: bytes that are moved, None: unknown. Raises CallError."""
    if find_spec(client) is None:
        raise CallError(f"the package {client} is not installed", passing=False, kind="missing")
    limit = None if size is None else _ANSWER_SECONDS + size / _BYTES_PER_SECOND
    asked = json.dumps({"call": call, "client": client, "arguments": arguments})
    script = Path(__file__).with_name("kaggle_call.py")
    # -P: the folder of the script is not searched for modules, in which `kaggle` could mean one of ours.
    with _running([sys.executable, "-P", str(script)], {**os.environ, **(environment or {})}) as process:
        try:
            out, err = process.communicate(asked, limit)
        except subprocess.TimeoutExpired:
            raise CallError(f"no answer for {limit:.0f} seconds", passing=True, kind="lost") from None
    try:
        answer = json.loads(out.rstrip().rpartition("\n")[2])
    except ValueError:
        last = (err.strip().splitlines() or ["nothing was said"])[-1]
        raise CallError(
            f"Kaggle's client ended with status {process.returncode}: {_shown(last)}", passing=False
        ) from None
    if "error" in answer:
        raise _error(answer["error"])
    return answer["value"]


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _error(said: dict[str, Any]) -> CallError:
    status = int(said.get("status", 0))
    kind = str(said["kind"])
    message = {
        "credentials": "no credentials for Kaggle were found",
        "lost": f"the connection is lost ({_shown(said['message'])})",
        "http": f"Kaggle answers {status} ({_shown(said['message'])})",
    }.get(kind, _shown(said["message"]))
    passing = kind == "lost" or status in _PASSING
    return CallError(message, passing=passing, status=status, wait=float(said.get("wait", 0.0)), kind=kind)


def _shown(text: str) -> str:
    """One line without credentials."""
    text = without_secrets(" ".join(text.split()))
    return text if len(text) <= 300 else f"{text[:300]}..."
