"""Several processes on this machine for one training: started, listened to, and ended together. Imports no torch.

`launch` starts `python -m outlast train ...` once per rank, as new programs and never by fork, so that it works from a
notebook in which CUDA is initialised. The first rank is the voice: what it says on standard error goes to ours as it
comes, the JSON on its standard output is the result. What the others print is kept, and shown if they are the cause of
a failure.

It promises: one failure ends all ranks within seconds, and the error that is raised is the one that came first, not
what its peers saw of it; a stop signal reaches every rank once; no rank outlives this process, however that ends.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from outlast import errors
from outlast.base.files import read_json
from outlast.base.log import TERMINAL
from outlast.env import signals
from outlast.errors import OutlastError, RunError, TrainingError, UsageError

FAILURE = "OUTLAST_FAILURE"  # the file in which a rank that we started says why it failed
LAUNCHER = "OUTLAST_LAUNCHER"  # the process that started it

_GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL for the peers of a rank that failed
_CAUSE_SECONDS = 1.0  # a peer may notice the end of a rank before we do
_LOOK_SECONDS = 0.05
_KEPT_CHARACTERS = 20_000
_PR_SET_PDEATHSIG = 1
# What a rank says whose peer is gone: consequences, which must not hide the cause.
_OF_A_PEER = re.compile(r"gloo|nccl|Dist\w*Error|by peer|TCPStore|ProcessGroup|Broken pipe", re.IGNORECASE)


def launch(task: str, processes: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Train with `processes` processes on this machine; `asked` are the other arguments of `outlast.train`.

    Returns what `outlast.train` returns. Raises UsageError, and what the rank that failed first raised.
    """
    if processes < 1:
        raise UsageError(f"--processes {processes} is not a number of processes", hint="give 1 or more")
    if asked.get("side_by_side", 1) != 1:
        raise UsageError("--side-by-side does not go with --processes", hint="leave one of them out")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        raise UsageError(
            f"--processes {processes} inside a launcher (torchrun, accelerate launch) that has started "
            f"{os.environ['WORLD_SIZE']} processes already",
            hint="leave --processes out, or start `outlast train` without the launcher",
        )
    if asked.get("deadline") is not None:
        raise UsageError(
            "a deadline object cannot be handed to other processes", hint="give session_limit instead of deadline"
        )
    return run_ranks([sys.executable, "-m", "outlast", *arguments(task, asked)], processes)


def arguments(task: str, asked: Mapping[str, Any]) -> list[str]:
    """The command line that says what the keyword arguments of `outlast.train` say."""
    words = ["train", task, "--json"]
    for name, value in asked.items():
        option = f"--{name.replace('_', '-')}"
        if name == "overrides" or value is None:
            continue
        if name == "fallback":
            words += [] if value else ["--no-fallback"]
        elif name in ("data", "sweep"):
            words += [f"{option}={item}" for item in roots(value)]
        elif isinstance(value, bool):
            words += [option] if value else []
        else:
            words.append(f"{option}={value}")
    return [*words, *asked.get("overrides", ())]


def how_started(environ: Mapping[str, str] | None = None) -> tuple[list[str], int]:
    """What to type before `train` to start as many processes as there are now, and what to give to --processes."""
    environ = os.environ if environ is None else environ
    world = int(environ.get("WORLD_SIZE", "1"))
    here = int(environ.get("LOCAL_WORLD_SIZE", world))
    if here == world:
        return ["outlast"], world
    place = [f"--master-addr={environ.get('MASTER_ADDR')}", f"--master-port={environ.get('MASTER_PORT')}"]
    each = [f"--nnodes={world // here}", f"--nproc-per-node={here}", "--node-rank=0"]
    return ["torchrun", *each, *place, "-m", "outlast"], 1


def end_with_launcher() -> None:
    """In a rank that `launch` started: the kernel kills this process when the one that started it dies."""
    launcher = os.environ.pop(LAUNCHER, None)  # not for what this process starts
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def inherited() -> dict[str, str]:
    """What the environment of a program that we start says besides ours: it ends with us, and finds what we find."""
    # A task's module is found from a notebook by what was put on sys.path there.
    return {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), LAUNCHER: str(os.getpid())}


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, at once."""
    if process.poll() is None:
        for each in [*_descendants(process.pid), process]:
            each.kill()
    process.wait()


def leave(code: object) -> None:
    """End this process at once if it is a rank, whoever started it: taking down the process group can abort it."""
    if (os.environ.get(FAILURE) or "WORLD_SIZE" in os.environ) and isinstance(code, int | None):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def tell_failure(error: BaseException) -> bool:
    """In a rank that `launch` started: leave the error to the process that started it. False anywhere else."""
    path = os.environ.get(FAILURE)
    if path is None:
        return False
    said: dict[str, Any] = {"time": time.time(), "kind": type(error).__name__, "message": str(error)}
    if isinstance(error, OutlastError):
        said |= {"message": error.message, "hint": error.hint, "details": error.details}
    else:
        said["traceback"] = "".join(traceback.format_exception(error))
    unfinished = Path(f"{path}.part")
    unfinished.write_text(json.dumps(said), encoding="utf-8")
    unfinished.rename(path)
    return True


@dataclass
class _Rank:
    """One process: what it said last, and how it ended."""

    number: int
    process: subprocess.Popen[bytes]
    failure: Path
    echo: bool  # whether what it says goes to our standard error
    said: str = ""
    result: bytes = b""
    ended: float = 0.0  # when its end was noticed, seconds since the epoch
    by_us: bool = False  # it was told to end because of a peer
    readers: list[threading.Thread] = field(default_factory=list)

    def listen(self) -> None:
        """Read its output as it comes, in threads."""
        for read in (self._read_errors, self._read_result):
            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            self.readers.append(thread)

    def _read_errors(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while chunk := os.read(_stream(self.process.stderr).fileno(), 65_536):
            text = decoder.decode(chunk)
            self.said = (self.said + text)[-_KEPT_CHARACTERS:]
            if self.echo:
                sys.stderr.write(text)
                sys.stderr.flush()

    def _read_result(self) -> None:
        self.result = _stream(self.process.stdout).read()

    def failed(self) -> bool:
        """Whether it has failed: it said so, or it ended badly."""
        code = self.process.poll()
        if code is not None and not self.ended:
            self.ended = time.time()
        return code not in (None, 0) or self.failure.exists()


def run_ranks(command: Sequence[str], processes: int) -> dict[str, Any]:
    """Run the command once per rank, and return the JSON that the first one prints. Raises what failed first."""
    with tempfile.TemporaryDirectory(prefix="outlast-ranks-") as folder, signals.listen(announce=False) as request:
        port = _free_port()
        ranks: list[_Rank] = []
        with _all_ended(ranks):
            for number in range(processes):
                ranks.append(_start(command, number, processes, port, Path(folder)))
            forwarded = _wait(ranks, request)
            if not any(rank.failed() for rank in ranks):
                return _result(ranks[0])
            _await_cause(ranks)
            ranks[0].echo = False  # what it says from now on is about its peers' end
            _terminate(ranks, _GRACE_SECONDS)
        raise _cause(ranks, forwarded)


def _start(command: Sequence[str], number: int, processes: int, port: int, folder: Path) -> _Rank:
    failure = folder / f"rank-{number}.json"
    environment = {
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        FAILURE: str(failure),
        **inherited(),
    }
    # A notebook has put something else in the place of standard error.
    if number == 0 and sys.__stderr__ is not None and sys.stderr is sys.__stderr__ and sys.__stderr__.isatty():
        environment |= {TERMINAL: "1", "COLUMNS": str(os.get_terminal_size(sys.stderr.fileno()).columns)}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal reaches us alone; we pass it on, once
    )
    rank = _Rank(number, process, failure, echo=number == 0)
    rank.listen()
    return rank


def _wait(ranks: Sequence[_Rank], request: signals.StopRequest) -> str | None:
    """Wait until all have ended or one has failed; pass a stop signal on. Returns the signal's name."""
    forwarded = None
    while any(rank.process.poll() is None for rank in ranks) and not any(rank.failed() for rank in ranks):
        if request.reason is not None and forwarded is None:
            forwarded = request.reason
            for rank in ranks:
                rank.process.send_signal(signal.Signals[forwarded])
        time.sleep(_LOOK_SECONDS)
    return forwarded


def _result(first: _Rank) -> dict[str, Any]:
    for reader in first.readers:
        reader.join()
    try:
        result: dict[str, Any] = json.loads(first.result)
    except ValueError as error:
        raise TrainingError(
            f"rank 0 ended without a result; it printed {first.result[:200]!r}",
            hint="a task's module must not print on standard output while it is imported",
        ) from error
    return result


@contextlib.contextmanager
def _all_ended(ranks: Sequence[_Rank]) -> Iterator[None]:
    """However the block is left, no rank lives on."""
    try:
        yield
    finally:
        _terminate(ranks, 0.0)
        for rank in ranks:
            for reader in rank.readers:
                reader.join(timeout=1.0)  # a grandchild may hold the pipe open; it is not waited for
            if not any(reader.is_alive() for reader in rank.readers):
                _stream(rank.process.stdout).close()
                _stream(rank.process.stderr).close()


def _terminate(ranks: Sequence[_Rank], grace_seconds: float) -> None:
    """End the ranks that still live: SIGTERM, and after the grace SIGKILL with all their children."""
    alive = [rank for rank in ranks if rank.process.poll() is None]
    if not alive:
        return
    for rank in alive:
        rank.by_us = not rank.failure.exists()
        rank.process.terminate()
    last = time.monotonic() + grace_seconds
    while time.monotonic() < last and any(rank.process.poll() is None for rank in alive):
        time.sleep(_LOOK_SECONDS)
    for rank in alive:
        kill(rank.process)


def _descendants(pid: int) -> list[Any]:
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@dataclass(order=True)
class _Failure:
    """How a rank failed; the least of them is the cause of the others."""

    consequence: bool  # of a peer's failure
    seconds: float  # since the epoch
    rank: int
    said: dict[str, Any] | None = field(compare=False)


def _failures(ranks: Sequence[_Rank]) -> list[_Failure]:
    found = []
    for rank in ranks:
        said = read_json(rank.failure) if rank.failure.exists() else None
        if said is not None:
            consequence = "traceback" in said and bool(_OF_A_PEER.search(f"{said['kind']}: {said['message']}"))
            found.append(_Failure(consequence, said["time"], rank.number, said))
        elif rank.failed() and not rank.by_us:
            aborted = rank.process.returncode == -signal.SIGABRT  # NCCL's watchdog ends a rank so when a peer is gone
            found.append(_Failure(aborted, rank.ended, rank.number, None))
    return found


def _await_cause(ranks: Sequence[_Rank]) -> None:
    """As long as all that is known are consequences, the cause may be about to come."""
    last = time.monotonic() + _CAUSE_SECONDS
    while time.monotonic() < last and all(failure.consequence for failure in _failures(ranks)):
        time.sleep(_LOOK_SECONDS)


def _cause(ranks: Sequence[_Rank], forwarded: str | None) -> OutlastError:
    """The error of the rank that failed first. What a rank says of a peer that is gone comes last."""
    first = min(_failures(ranks))
    number, said = first.rank, first.said
    if said is None:
        return _death(ranks[number], len(ranks), forwarded)
    if "traceback" in said:
        sys.stderr.write(f"{said['traceback']}\n")
        return TrainingError(
            f"rank {number} of {len(ranks)} failed: {said['kind']}: {said['message'].strip()}",
            hint="its traceback stands above; the last checkpoint is intact",
        )
    kind = getattr(errors, said["kind"], OutlastError)
    error: OutlastError = kind(said["message"], hint=said["hint"], details=said["details"])
    return error


def _death(rank: _Rank, processes: int, forwarded: str | None) -> OutlastError:
    """A rank that ended without a word of its own."""
    code = rank.process.returncode
    name = signal.Signals(-code).name if code < 0 else None
    if name is not None and name == forwarded:
        return RunError(f"{name} came before the training had begun; nothing was changed", hint="type the same again")
    if rank.said.strip() and rank.number != 0:
        sys.stderr.write(f"rank {rank.number} said last:\n{rank.said}\n")
    if name == "SIGKILL":
        return TrainingError(
            f"rank {rank.number} of {processes} was killed (SIGKILL)",
            hint="most often the machine's memory ran out: lower train.micro_batch, loading.workers or --processes; "
            "type the same again to go on from the last checkpoint",
        )
    how = f"died of {name}" if name else f"ended with exit status {code} and no error of its own"
    return TrainingError(
        f"rank {rank.number} of {processes} {how}", hint="what it said last stands above; the last checkpoint is intact"
    )


def roots(data: Any) -> list[str]:
    """What to give to --data, each for itself."""
    if isinstance(data, Mapping):
        return [f"{name}={folder}" for name, folder in data.items()]
    return [str(data)] if isinstance(data, str | Path) else [str(item) for item in data]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _stream(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("a rank was started without a pipe")
    return pipe
