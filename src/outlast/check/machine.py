"""Facts about this machine and the software on it, as plain values, so that a test can make up any machine.

`look` collects them. What is slow, costs memory on a GPU or leaves the machine is a function among the facts, called
only by the check that needs it.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from urllib.request import getproxies

from packaging.requirements import Requirement

from outlast.base.clock import IMPORTED
from outlast.check.finding import CannotCheck
from outlast.data.find import KAGGLE_INPUT
from outlast.env import host
from outlast.env.host import Host

# What the checks read of the environment, and no more: it may hold secrets.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Gpu:
    """One GPU as torch sees it; capability as (major, minor)."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """The facts. Sizes in bytes, times in seconds since the epoch; None means that it can't be known here.

    packages: {distribution: version} of what Outlast requires, where installed. torchvision_requires: what its own
    metadata asks for. torchvision_error(): why it can't be imported. architectures: those that torch has kernels for,
    as "sm_90". gpu_files: GPUs that the system has, whether or not torch can use them. copies: folders of the
    module path that hold this package. changed: its modules whose file is newer than what is loaded. run_kernel(i):
    what went wrong when GPU i computed. gpu_free_bytes(i): of its memory. free_bytes(folder): on the disk on which the
    folder is or would be. fetching_weights(): why published weights can't be had from the internet, found out by one
    short connection; raises CannotCheck if that can't be told. cached_weights(name): whether those of a timm model are
    on this disk.
    """

    host: Host
    python: str
    requires_python: str
    requirements: tuple[str, ...]
    packages: Mapping[str, str]
    torchvision_requires: tuple[str, ...] = ()
    cuda: str | None = None
    architectures: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    gpu_files: int = 0
    memory_bytes: int | None = None
    shared_memory_bytes: int | None = None
    kaggle_input: Path = KAGGLE_INPUT
    environ: Mapping[str, str] = field(default_factory=dict)
    package: Path = Path("outlast")
    copies: tuple[Path, ...] = ()
    changed: tuple[Path, ...] = ()
    now: float = 0.0
    torchvision_error: Callable[[], str | None] = lambda: None
    run_kernel: Callable[[int], str | None] = lambda number: None
    gpu_free_bytes: Callable[[int], int] = lambda number: 0
    free_bytes: Callable[[Path], int] = lambda folder: 0
    fetching_weights: Callable[[], str | None] = lambda: None
    cached_weights: Callable[[str], bool] = lambda name: False


def look() -> Machine:
    """Collect the facts about this machine."""
    import torch

    about = metadata.metadata("outlast")
    requirements = tuple(metadata.requires("outlast") or ())
    package = Path(__file__).resolve().parents[1]
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return Machine(
        host=host.detect(),
        python=platform.python_version(),
        requires_python=about["Requires-Python"],
        requirements=requirements,
        packages=_versions(requirements),
        torchvision_requires=_requires("torchvision"),
        cuda=torch.version.cuda,
        architectures=tuple(torch.cuda.get_arch_list()) if gpus else (),
        gpus=tuple(_gpu(number) for number in gpus),
        gpu_files=len(list(Path("/dev").glob("nvidia[0-9]*"))),
        memory_bytes=_memory(),
        shared_memory_bytes=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
        environ={name: os.environ[name] for name in VARIABLES if name in os.environ},
        package=package,
        copies=_copies(package),
        changed=_changed(package),
        now=time.time(),
        torchvision_error=_import_torchvision,
        run_kernel=lambda number: compute(f"cuda:{number}"),
        gpu_free_bytes=lambda number: int(torch.cuda.mem_get_info(number)[0]),
        free_bytes=_free_bytes,
        fetching_weights=_fetching_weights,
        cached_weights=_cached_weights,
    )


def nearest(path: Path) -> Path:
    """The path itself or the nearest folder above it that is there (and may be looked at)."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if os.access(parent, os.F_OK))


def _versions(requirements: Iterable[str]) -> dict[str, str]:
    found = {}
    for requirement in map(Requirement, requirements):
        try:
            found[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _requires(name: str) -> tuple[str, ...]:
    try:
        return tuple(metadata.requires(name) or ())
    except metadata.PackageNotFoundError:
        return ()


def _gpu(number: int) -> Gpu:
    import torch

    about = torch.cuda.get_device_properties(number)
    return Gpu(about.name, (about.major, about.minor), int(about.total_memory))


def compute(device: str) -> str | None:
    """What goes wrong in a small product and a convolution on a device, as "cuda:0"; None if both are right."""
    import torch

    try:
        # They come from cuBLAS and cuDNN, which have their own lists of architectures.
        square = torch.ones(64, 64, device=device)
        image = torch.ones(1, 3, 16, 16, device=square.device, requires_grad=True)
        result = (square @ square).sum() + torch.nn.functional.conv2d(image, image.new_ones(4, 3, 3, 3)).sum()
        result.backward()  # type: ignore[no-untyped-call]
        value = result.item()
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        return str(error).strip().splitlines()[0]
    expected = 64.0**3 + 4 * 14 * 14 * 27
    return None if value == expected else f"it computed {value:g} where {expected:g} is right"


def _import_torchvision() -> str | None:
    try:
        operators = importlib.import_module("torchvision.ops")
        import torch

        # Its compiled part is built for one torch, and for CUDA or not.
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() and compute("cuda:0") is None else [])):
            operators.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), torch.ones(1, device=device), 0.5)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return None


def _memory() -> int | None:
    """The machine's memory, or less if a control group limits this process."""
    import psutil

    sizes = [int(psutil.virtual_memory().total)]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text().strip()
        except OSError:
            continue  # that version of control groups is not in use here
        if text.isdigit():
            sizes.append(int(text))
    return min(sizes)


def _copies(package: Path) -> tuple[Path, ...]:
    """Folders that `import outlast` could take it from, and clones of it inside or around the one in use."""
    folders = [Path(entry or os.curdir) for entry in sys.path]
    if package.parent.name == "src":
        clone = package.parents[1]
        folders += [*clone.glob("*/src"), clone.parent / "src"]
    found = {package.parent: None}
    for folder in folders:
        if os.access(folder / package.name / "errors.py", os.R_OK):
            found[folder.resolve()] = None
    return tuple(found)


def _changed(package: Path) -> tuple[Path, ...]:
    """Loaded modules of the package whose file was changed since this process began to import it."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == package.name]
    files = [Path(module.__file__) for module in modules if module.__file__ is not None]
    return tuple(sorted(file for file in files if file.is_file() and file.stat().st_mtime > IMPORTED))


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(nearest(folder)).free


def _fetching_weights() -> str | None:
    from outlast.model.backbone import weights_host

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    if getproxies():
        raise CannotCheck("the internet is behind a proxy, which may or may not let weights through")
    name, port = weights_host()
    try:
        with socket.create_connection((name, port), timeout=2):
            return None
    except OSError as error:
        return f"{name} can't be reached ({error})"


def _cached_weights(name: str) -> bool:
    from outlast.model.backbone import has_cached_weights

    return has_cached_weights(name)
