"""Kernels of the loopback Kaggle: each pushed script really runs, in a process with folders that stand for /kaggle.

A session is killed (SIGKILL, with all its processes) at its limit. What it wrote to working is its output only if it
exited 0; a failed one has a log and nothing else. GPU time is counted against a quota.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_NOTEBOOK = """
import sys, nbformat, nbclient
book = nbformat.read(sys.argv[1], 4)
def show(cell, cell_index, execute_reply):
    for output in cell.get("outputs", []):
        print(output.get("text") or "\\n".join(output.get("traceback", [])), flush=True)
nbclient.NotebookClient(book, timeout=None, on_cell_executed=show, on_cell_error=show).execute()
"""


@dataclass
class Session:
    """One version of a kernel and how it went."""

    request: dict
    number: int
    status: str = "QUEUED"
    failure: str = ""
    log: list = field(default_factory=list)
    output: Path | None = None  # the folder that is kept
    seconds: float = 0.0
    pid: int | None = None
    thread: threading.Thread | None = None

    @property
    def running(self):
        return self.status in ("QUEUED", "RUNNING")

    def text(self):
        """The log as Kaggle keeps it: a JSON list of pieces."""
        return json.dumps(self.log)


class Sessions:
    """All kernels. The attributes below are there to be set by a test."""

    def __init__(self, folder, store):
        self.folder, self.store = Path(folder), store
        self.kernels: dict[str, list[Session]] = {}
        self.limit_seconds = 60.0
        self.queue_seconds = 0.0
        self.layout = "nested"  # how inputs are mounted: nested (datasets/OWNER/SLUG) or flat (SLUG)
        self.environment = {}  # for the sessions, on top of what Kaggle sets
        self.python = sys.executable
        self.address, self.token = "", ""  # of the server, and what it takes from a notebook
        self.quota_total_hours, self.quota_used_hours = 30.0, 0.0
        self.hours_per_second = 1 / 3600  # that a second of GPU session costs
        self.most_at_once = 2
        self.output_limit_bytes = 20 * 10**9
        self.planned_failures: list[tuple[str, str]] = []  # (failure message, log) of sessions that Kaggle breaks
        # How the sessions that come next end, whatever the clock of a busy machine says: ("limit" | "stop", place,
        # count) is the limit's SIGKILL, or a SIGTERM, when a training comes to that place (base.accident) so often.
        self.planned_ends: list[tuple[str, str, int]] = []
        self.lock, self.closing = threading.RLock(), threading.Event()

    def push(self, ref, request):
        """Begin a session; the answer of SaveKernel."""
        with self.lock:
            if (refusal := self._refusal(request)) is not None:
                return {"error": refusal}
            versions = self.kernels.setdefault(ref, [])
            session = Session(request, len(versions) + 1)
            versions.append(session)
        session.thread = threading.Thread(target=self._run, args=(ref, session), daemon=True)
        session.thread.start()
        return {
            "ref": f"/code/{ref}",
            "url": f"https://www.kaggle.com/code/{ref}",
            "versionNumber": session.number,
            "invalidDatasetSources": [name for name in request.get("datasetDataSources", []) if not self._has(name)],
            "invalidKernelSources": [name for name in request.get("kernelDataSources", []) if not self.output(name)],
        }

    def output(self, ref):
        """The output folder of the newest version that has one."""
        kept = [session.output for session in self.kernels.get(_plain(ref), []) if session.output is not None]
        return kept[-1] if kept else None

    def stop(self):
        """Kill what still runs, and begin nothing more."""
        self.closing.set()
        for session in [session for versions in self.kernels.values() for session in versions]:
            if session.pid is not None and session.running:
                _kill(session.pid)
            if session.thread is not None:
                session.thread.join(10)

    def _has(self, dataset):
        return _plain(dataset) in self.store.datasets and self.store.dataset(_plain(dataset)).ready() > 0

    def _refusal(self, request):
        if not request.get("enableGpu") and not request.get("machineShape"):
            return None
        if self.quota_used_hours >= self.quota_total_hours:
            return f"Maximum weekly GPU quota of {self.quota_total_hours:.2f} hours has been reached."
        busy = sum(session.running for versions in self.kernels.values() for session in versions)
        return f"Maximum batch GPU session count of {self.most_at_once} reached." if busy >= self.most_at_once else None

    def _run(self, ref, session):
        if self.closing.wait(self.queue_seconds):
            return
        if self.planned_failures:
            session.failure, text = self.planned_failures.pop(0)
            session.log = [{"stream_name": "stderr", "time": 0.1, "data": text}]
            session.status = "ERROR"
            return
        place = self.folder / f"{ref.replace('/', '-')}-{session.number}"
        kaggle = place / "kaggle"
        self._mount(session.request, kaggle / "input")
        for name in ("working", "temp"):
            (kaggle / name).mkdir(parents=True)
        limit = min(float(session.request.get("sessionTimeoutSeconds") or self.limit_seconds), self.limit_seconds)
        began = time.monotonic()
        process = subprocess.Popen(
            self._command(session.request, place), cwd=kaggle / "working", env=self._environment(session, place),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        session.pid, session.status = process.pid, "RUNNING"
        ends = self.planned_ends.pop(0) if self.planned_ends else None
        readers = [
            threading.Thread(target=_collect, args=(session, name, stream, began), daemon=True)
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        ]
        for reader in readers:
            reader.start()
        killed = self._wait(process, began + limit, ends, place / "places")
        _kill(process.pid)  # also what a session left running in the background
        process.wait()
        for reader in readers:
            reader.join(5)
        session.seconds = time.monotonic() - began
        if session.request.get("enableGpu") or session.request.get("machineShape"):
            self.quota_used_hours += session.seconds * self.hours_per_second
        self._end(session, kaggle / "working", process.returncode, killed)

    def _wait(self, process, limit, ends, places):
        """Whether the session must be killed at its limit: it is over by the clock, or the planned end has come."""
        while process.poll() is None:
            if time.monotonic() >= limit:
                return True
            if ends is not None and places.is_file() and places.read_text().split().count(ends[1]) >= ends[2]:
                if ends[0] == "limit":
                    return True
                process.terminate()
                ends = None
            time.sleep(0.02)
        return False

    def _end(self, session, working, code, killed):
        if killed:
            session.failure = "Your notebook was stopped because it exceeded the max allowed execution duration."
            session.status = "CANCEL_ACKNOWLEDGED"
        elif sum(path.stat().st_size for path in working.rglob("*") if path.is_file()) > self.output_limit_bytes:
            session.failure = "Your notebook's output was larger than 20GB."
            session.status = "ERROR"
        elif code == -signal.SIGKILL:
            session.failure = "Your notebook tried to allocate more memory than is available. It has restarted."
            session.status = "ERROR"
        elif code != 0:
            session.status = "ERROR"
        else:
            session.output, session.status = working, "COMPLETE"

    def _mount(self, request, folder):
        folder.mkdir(parents=True)
        for ref in request.get("datasetDataSources", []):
            if self._has(ref):
                target = folder / self._mounted("datasets", _plain(ref))
                for name, data in self.store.version(_plain(ref)).files.items():
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    (target / name).write_bytes(data)
        for ref in request.get("kernelDataSources", []):
            if (output := self.output(ref)) is not None:
                shutil.copytree(output, folder / self._mounted("notebooks", _plain(ref)), symlinks=True)
        for slug in request.get("competitionDataSources", []):
            target = folder / (f"competitions/{slug}" if self.layout == "nested" else slug)
            for name, data in self.store.version(f"competitions/{slug}").files.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(data)
        for path in sorted(folder.rglob("*"), reverse=True):
            path.chmod(0o555 if path.is_dir() else 0o444)

    def _mounted(self, kind, ref):
        return f"{kind}/{ref}" if self.layout == "nested" else ref.partition("/")[2]

    def _command(self, request, place):
        if request.get("kernelType") == "notebook":
            source = place / "__notebook__.ipynb"
            source.write_text(request["text"], encoding="utf-8")
            return [self.python, "-c", _NOTEBOOK, str(source)]
        source = place / "script.py"
        source.write_text(request["text"], encoding="utf-8")
        return [self.python, str(source)]

    def _environment(self, session, place):
        (place / "home").mkdir()
        (place / "token").write_text(self.token)
        inside = session.request.get("enableInternet", True)
        proxy = self.address if inside else "http://127.0.0.1:9"  # nobody listens there
        # What picks this machine's matrix kernels is part of the machine: others differ in the last bit of a sum.
        kernels = {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "MKL_"))}
        return {
            **kernels,
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(place / "home"),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_URL_BASE": "https://www.kaggle.com",
            "KAGGLE_DATA_PROXY_URL": self.address,
            "KAGGLE_API_V1_TOKEN": str(place / "token"),  # the notebook's own, as Kaggle gives it
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "OUTLAST_KAGGLE_ROOT": str(place / "kaggle"),
            "OUTLAST_SESSION_STARTED": str(time.time()),
            "OUTLAST_PLACES": str(place / "places"),
            "http_proxy": proxy,
            "https_proxy": proxy,
            **self.environment,
        }


def _plain(ref):
    """OWNER/SLUG of a reference that may name a version."""
    return "/".join(ref.split("/")[:2])


def _collect(session, name, stream, began):
    with stream:
        for line in stream:
            session.log.append(
                {"stream_name": name, "time": time.monotonic() - began, "data": line.decode("utf-8", "replace")}
            )


def _kill(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
