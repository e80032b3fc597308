"""Data sets on Kaggle: published as versions, waited for until they are processed, downloaded by version.

Where the `kaggle` package is not installed, and in a Kaggle notebook, whose own token it can use, all of this goes
through `kagglehub`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from outlast.base.files import write_json
from outlast.base.log import warn
from outlast.base.patience import delays
from outlast.base.scratch import ON_KAGGLE
from outlast.env.kaggle_process import CallError, once, patiently, pause
from outlast.errors import RunError, UsageError

READY_SECONDS = 3600.0  # how long a version may be processed
_POLLS = (0.2, 15.0)  # seconds between two looks at what is being processed: the first, the longest
_METADATA = "dataset-metadata.json"


@dataclass(frozen=True)
class DatasetState:
    """state: ready, processing, failed or missing; version: the newest that can be downloaded, 0 if there is none."""

    state: str
    version: int


def state_of(ref: str) -> DatasetState:
    """How a data set (OWNER/SLUG) stands. Raises RunError."""
    answer = patiently("dataset_state", {"ref": ref}, client=_client())
    known = {"READY": "ready", "FAILED": "failed", "missing": "missing", "DELETED": "missing"}
    return DatasetState(known.get(answer["state"], "processing"), answer["version"])


def publish(folder: Path, ref: str, title: str, notes: str) -> int:
    """Make the files in a folder the newest version of a private data set, which is made if need be; its number.

    Waits until the version before, and then this one, is processed. Older versions stay. Kaggle may take a version
    whose answer gets lost, so that whoever needs certainty reads the number that is returned and compares.
    Raises RunError: Kaggle refuses, or can't process the files.
    """
    before = wait_until_ready(ref)
    call, arguments = ("dataset_version", {"notes": notes}) if before.state != "missing" else ("dataset_create", {})
    with tempfile.TemporaryDirectory(prefix="outlast-kaggle-") as own:  # the clients remember half uploads by path
        staged = Path(own) / "files"
        _stage(folder, staged)
        write_json(staged / _METADATA, {"title": title[:50].ljust(6, "-"), "id": ref, "licenses": [{"name": "other"}]})
        size = sum(path.stat().st_size for path in staged.iterdir())
        began = time.monotonic()
        for delay in delays():
            try:
                once(
                    call, {"folder": str(staged), "ref": ref, **arguments}, client=_client(), size=size,
                    temporary=own,
                )  # fmt: skip
                break
            except CallError as error:
                if (error.passing or error.status == 403) and _is_newer(ref, before.version):
                    break  # it was taken, only the answer is lost
                pause(error, delay, began, f"Kaggle does not take a version of {ref}")
    after = wait_until_ready(ref, newer_than=before.version)
    return after.version


def wait_until_ready(ref: str, newer_than: int | None = None) -> DatasetState:
    """Wait until Kaggle has processed what was uploaded. Raises RunError if it can't, or takes too long."""
    wait, longest = _POLLS
    end = time.monotonic() + READY_SECONDS
    while True:
        state = state_of(ref)
        there = newer_than is None or state.version > newer_than
        if state.state in ("ready", "missing") and there:
            return state
        if state.state == "failed" and newer_than is None:
            return state  # what was uploaded before; a new version takes its place
        if state.state == "failed":
            raise RunError(f"Kaggle could not process what was uploaded to {ref}", hint="upload it again")
        if time.monotonic() > end:
            raise RunError(
                f"{ref} is not ready after {READY_SECONDS / 60:.0f} minutes",
                hint="look at its page, and try again later",
            )
        time.sleep(wait)
        wait = min(2 * wait, longest)


def fetch_file(ref: str, version: int, file: str, to: Path) -> Path:
    """Download one file of one version of a data set into a folder; what is there gives way. Raises RunError."""
    arguments = {"ref": ref, "version": version, "file": file, "to": str(to)}
    (to / file).unlink(missing_ok=True)
    patiently("dataset_file", arguments, client=_client(), size=None)
    if not (to / file).is_file():
        raise RunError(f"Kaggle did not give {file} of version {version} of {ref}", hint="try again later")
    return to / file


def fetch_files(ref: str, version: int, to: Path) -> None:
    """Download all files of one version of a data set into a new or empty folder. Raises RunError, UsageError."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is not an empty folder", hint="name one that does not exist yet")
    arguments = {"ref": ref, "version": version, "to": str(to)}
    patiently("dataset_files", arguments, client=_client(), size=None)


def fetch_public(ref: str, page: str, to: Path, *, competition: bool, arrived: Callable[[int], None]) -> Path:
    """Download a public data set (OWNER/SLUG) or the files of a competition (SLUG); the folder that they are in.

    It lies below `to`, as does what has arrived of a download that breaks: the next one goes on from there. arrived:
    is told how many bytes are there, twice a second. Raises RunError.
    """
    call = "public_competition" if competition else "public_dataset"
    to.mkdir(parents=True, exist_ok=True)
    began, before, told = time.monotonic(), bytes_below(to), False
    with _watched(to, arrived):
        for delay in delays():
            try:
                arguments = {"ref": ref, "to": str(to)}
                return Path(once(call, arguments, client="kagglehub", size=None, temporary=str(to)))
            except CallError as error:
                if error.status == 403 and competition:
                    raise RunError(
                        f"Kaggle does not give the files of {ref}: their rules have to be accepted first",
                        hint=f"sign in, accept them on {page}/rules, and type the same again",
                    ) from None
                if (here := bytes_below(to)) > before:
                    began, before = time.monotonic(), here
                if error.passing and not told:
                    told = True
                    warn(f"{error.message}; it is tried again for some minutes")
                pause(error, delay, began, f"{ref} can't be downloaded")
    raise AssertionError("delays never end")


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder, which somebody else may be changing."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found += Path(place, name).lstat().st_size
    return found


@contextlib.contextmanager
def _watched(folder: Path, arrived: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, `arrived` is told what is in the folder."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            arrived(bytes_below(folder))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_newer(ref: str, version: int) -> bool:
    """Whether a version that is newer is there or being processed."""
    state = state_of(ref)
    return state.state == "processing" or state.version > version


def _stage(folder: Path, target: Path) -> None:
    """The folder's files under names of their own: links where that can be, else copies."""
    target.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            raise UsageError(f"{path} is no file: a data set's version is made of files", hint="pack folders first")
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)


def _client() -> str:
    return "kagglehub" if ON_KAGGLE in os.environ or find_spec("kaggle") is None else "kaggle"
