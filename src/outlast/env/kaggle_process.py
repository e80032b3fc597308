"""Calls of Kaggle's own clients: each in a process of its own (kaggle_call), tried again where that may help.

What may pass - too many requests, server errors, lost connections - is tried again with growing pauses; what Kaggle
refuses is a RunError with what to do. Credentials are read by Kaggle's clients themselves, and appear nowhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outlast.base.patience import delays
from outlast.base.secret import without_secrets
from outlast.errors import RunError

PATIENCE_SECONDS = 300.0  # from its first failure on, how long one call is tried again
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
    failing: float | None = None  # since when: a download that breaks after an hour is worth another attempt
    for delay in delays():
        try:
            return once(call, arguments, client=client, size=size)
        except CallError as error:
            failing = failing or time.monotonic()
            pause(error, delay, failing, _SENTENCES[call].format(**arguments))
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
    if error.status in (403, 404) or "cannot access" in text:
        return "check OWNER and SLUG, and that the credentials are that owner's"
    return "try again later" if error.passing else "check what is named, and try again"


def once(
    call: str, arguments: dict[str, Any], *, client: str = "kaggle", size: int | None = 0, temporary: str | None = None
) -> Any:
    """Make a call. Raises CallError.

    size: bytes that are moved, None: unknown; temporary: where the client keeps what it needs meanwhile.
    """
    if find_spec(client) is None:
        raise CallError(f"the package {client} is not installed", passing=False, kind="missing")
    limit = None if size is None else _ANSWER_SECONDS + size / _BYTES_PER_SECOND
    with _client(client) as process:
        answer = process.ask({"call": call, "arguments": arguments, "temporary": temporary}, limit)
    if "error" in answer:
        raise _error(answer["error"])
    return answer["value"]


class _Client:
    """A process in which one of Kaggle's clients waits for calls. It ends with the process that started it."""

    def __init__(self, package: str) -> None:
        self.package, self.environment = package, dict(os.environ)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        script = Path(__file__).with_name("kaggle_call.py")
        # -P: the folder of the script is not searched for modules, in which `kaggle` could mean one of ours.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script), package],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, bufsize=0,
        )  # fmt: skip

    def ask(self, request: dict[str, Any], limit_seconds: float | None) -> dict[str, Any]:
        """Its answer. Raises CallError if there is none; then the process is gone."""
        end = None if limit_seconds is None else time.monotonic() + limit_seconds
        try:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            received = bytearray()
            while not received.endswith(b"\n"):
                left = None if end is None else max(end - time.monotonic(), 0.0)
                if not select.select([self._process.stdout], [], [], left)[0]:
                    self.close()
                    raise CallError(f"no answer for {limit_seconds:.0f} seconds", passing=True, kind="lost")
                if not (piece := self._process.stdout.read(2**20)):
                    raise ValueError("it ended")
                received += piece
            return dict(json.loads(received))
        except (OSError, ValueError):
            words = self._last_words()
            self.close()
            raise CallError(
                f"Kaggle's client ended with status {self._process.returncode}: {words}", passing=False
            ) from None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                stream.close()

    @property
    def usable(self) -> bool:
        """Whether it still runs, and would see the environment as it is now."""
        return self._process.poll() is None and self.environment == dict(os.environ)

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return _shown(lines[-1]) if lines else "nothing was said"


_lock = threading.RLock()
_kept: dict[str, _Client] | None = None  # while `kept_open` runs


@contextlib.contextmanager
def kept_open() -> Iterator[None]:
    """While the block runs, calls share a process: the client takes a second to be imported."""
    global _kept
    with _lock:
        outer, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        if outer is None:
            with _lock:
                ended, _kept = _kept or {}, None
            for client in ended.values():
                client.close()


@contextlib.contextmanager
def _client(package: str) -> Iterator[_Client]:
    with _lock:
        if _kept is None:
            client = _Client(package)
            try:
                yield client
            finally:
                client.close()
            return
        found = _kept.get(package)
        if found is None or not found.usable:
            if found is not None:
                found.close()
            found = _kept[package] = _Client(package)
        yield found


def _error(said: dict[str, Any]) -> CallError:
    status = int(said.get("status", 0))
    kind = str(said["kind"])
    message = {
        "credentials": "no credentials for Kaggle were found",
        "lost": _lost(_shown(said["message"])),
        "http": f"Kaggle answers {status} ({_shown(said['message'])})",
    }.get(kind, _shown(said["message"]))
    passing = kind == "lost" or status in _PASSING
    return CallError(message, passing=passing, status=status, wait=float(said.get("wait", 0.0)), kind=kind)


def _lost(text: str) -> str:
    """What there was no connection to and why, where the client's words hold that."""
    host, reason = re.search(r"host='([^']+)'", text), re.search(r"\[Errno -?\d+\] ([^')\"]+)", text)
    if host and reason:
        return f"{host[1]} can't be reached ({reason[1]})"
    return f"the connection is lost ({text})"


def _shown(text: str) -> str:
    """One line without credentials."""
    text = without_secrets(" ".join(text.split()))
    return text if len(text) <= 300 else f"{text[:300]}..."
