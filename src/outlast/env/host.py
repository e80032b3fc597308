"""Which machine this is: Kaggle, Colab, Slurm or a plain one; when its session began; where scratch space is.

Recognised by what is there (environment variables, folders), never by what was hoped for. Imports no torch.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from outlast.base.scratch import KAGGLE, ON_KAGGLE, scratch_folder
from outlast.errors import RunError

SESSION_STARTED = "OUTLAST_SESSION_STARTED"  # seconds since the epoch, where nothing else on the machine tells
KAGGLE_WORKING = KAGGLE / "working"  # the only folder that is kept, up to this size (users' reports, 2026)
KAGGLE_BYTES = 20 * 10**9


@dataclass(frozen=True)
class Host:
    """kind: 'kaggle', 'colab', 'slurm' or 'plain'; session_started: seconds since the epoch; scratch: cache folder.

    limited: a folder that the platform keeps, and limit_bytes: how much all files in it may take.
    """

    kind: str
    session_started: float
    scratch: Path
    cores: int
    limited: Path | None = None
    limit_bytes: int = 0


def detect(environ: Mapping[str, str] | None = None) -> Host:
    """Look at this machine. A notebook's session began with its container, any other with this process.

    $OUTLAST_SESSION_STARTED says otherwise. Raises RunError if that is no number.
    """
    environ = os.environ if environ is None else environ
    kind = _kind(environ)
    return Host(
        kind=kind,
        session_started=_session_start(kind, environ),
        scratch=scratch_folder(environ),
        cores=cores(),
        limited=KAGGLE_WORKING if kind == "kaggle" else None,
        limit_bytes=KAGGLE_BYTES if kind == "kaggle" else 0,
    )


def make_scratch(machine: Host) -> Path:
    """The scratch folder, made if need be. Raises RunError if it can't be written."""
    try:
        machine.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=machine.scratch):
            return machine.scratch
    except OSError as error:
        raise RunError(
            f"the folder for decoded samples, {machine.scratch}, cannot be written: {error.strerror}",
            hint="set the environment variable OUTLAST_CACHE to a folder on a disk with space",
        ) from error


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in ("outlast", "torch", "torchvision", "timm", "accelerate", "safetensors", "numpy", "pandas", "pillow",
                 "scikit-learn", "pydantic"):  # fmt: skip
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _kind(environ: Mapping[str, str]) -> str:
    if ON_KAGGLE in environ:
        return "kaggle"
    if "COLAB_RELEASE_TAG" in environ or "COLAB_GPU" in environ:
        return "colab"
    return "slurm" if "SLURM_JOB_ID" in environ else "plain"


def _session_start(kind: str, environ: Mapping[str, str]) -> float:
    told = environ.get(SESSION_STARTED)
    if told:
        try:
            return float(told)
        except ValueError:
            raise RunError(
                f"the environment variable {SESSION_STARTED} is {told!r}",
                hint="make it seconds since 1970, or unset it",
            ) from None
    return _container_start() if kind in ("kaggle", "colab") else _process_start()


def _process_start() -> float:
    import psutil

    return float(psutil.Process().create_time())


def _container_start() -> float:
    import psutil

    try:
        return float(psutil.Process(1).create_time())
    except (psutil.Error, OSError):
        print("warning: the container's start can't be read; the session is counted from this process", file=sys.stderr)
        return _process_start()
