"""A command of Outlast in a process of its own, listened to and interrupted from a cell."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from outlast.base.listen import Listener, pieces
from outlast.base.log import TERMINAL
from outlast.errors import OutlastError, RunError, TrainingError
from outlast.notebook.screen import Screen
from outlast.plan import launch

_COLUMNS = "140"
_LOOK_SECONDS = 0.2


def run(words: Sequence[str], shown: Screen) -> dict[str, Any]:
    """The JSON that `outlast WORDS` prints; what it says meanwhile is shown. Raises its error.

    The first KeyboardInterrupt is passed on as a request to save and stop, the second ends the process.
    """
    with _started([sys.executable, "-m", "outlast", *words]) as process:
        said: queue.Queue[bytes | None] = queue.Queue()
        printed: list[bytes] = []
        readers = [
            threading.Thread(target=_read, args=(process, said), daemon=True),
            threading.Thread(target=_keep, args=(process, printed), daemon=True),
        ]
        for reader in readers:
            reader.start()
        listener, asked = Listener(), False
        while True:
            try:
                data = said.get(timeout=_LOOK_SECONDS)
                if data is None:
                    break
                for sentence in listener.feed(data):
                    shown.say(sentence)
                shown.progress(listener.line)
            except queue.Empty:
                shown.redraw()
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                shown.say("interrupted: saving and stopping; interrupt once more to end it at once")
                process.send_signal(signal.SIGINT)
        process.wait()
        readers[1].join()
        if asked and not any(printed):
            raise RunError("interrupted before the training had begun; nothing is lost", hint="run the cell again")
        return _result(process.returncode, b"".join(printed), shown)


@contextlib.contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, env={**os.environ, **launch.inherited(), TERMINAL: "1", "COLUMNS": _COLUMNS},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,  # an interrupted kernel interrupts its children too; we pass it on, once
    )  # fmt: skip
    try:
        yield process
    finally:
        launch.kill(process)


def _read(process: subprocess.Popen[bytes], said: queue.Queue[bytes | None]) -> None:
    assert process.stderr is not None
    for data in pieces(process.stderr):
        said.put(data)
    said.put(None)


def _keep(process: subprocess.Popen[bytes], printed: list[bytes]) -> None:
    assert process.stdout is not None
    printed.append(process.stdout.read())


def _result(code: int, printed: bytes, shown: Screen) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(printed)
    except ValueError:
        result = {}
    if result and "error" not in result:
        return result
    if "error" in result:
        raise OutlastError(result["error"], hint=result.get("hint"), details=result.get("details", ()))
    name = signal.Signals(-code).name if code < 0 else None
    if name == "SIGKILL":
        raise TrainingError(
            "the training was killed (SIGKILL)",
            hint="most often the machine's memory ran out: lower train.micro_batch or loading.workers; run the cell "
            "again to go on from the last checkpoint",
        )
    how = f"died of {name}" if name else f"ended with exit status {code}"
    raise TrainingError(
        f"the training {how}", details=shown.sentences[-5:], hint="run the cell again to go on from the last checkpoint"
    )
