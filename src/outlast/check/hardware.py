"""The machine: GPUs that compute, enough of them used, the precision that was chosen, memory and disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from outlast.base.clock import format_duration
from outlast.check.finding import CannotCheck, Finding, error, note, warning
from outlast.check.machine import Gpu
from outlast.check.subject import Subject

_GIGABYTE = 1e9
# A training process with torch and its libraries loaded, and a worker forked from it (it shares most pages).
_PROCESS_BYTES, _WORKER_BYTES = 1.5e9, 0.3e9
_LITTLE_DISK_BYTES = 1e9


def gpu_wanted(subject: Subject) -> Iterator[Finding]:
    """The configuration (the presets t4 and full) wants a GPU and there is none."""
    machine = subject.machine
    if subject.config.train.needs_gpu and not machine.gpus:
        build = f"torch {machine.packages.get('torch', '')} is built for CUDA {machine.cuda or '(none: a CPU build)'}"
        where = {
            "kaggle": "turn it on in the notebook's settings (Accelerator)",
            "colab": "turn it on under Runtime, Change runtime type",
        }.get(machine.host.kind, "use a machine that has one")
        yield error(
            f"the preset {subject.preset!r} wants a GPU and torch finds none",
            evidence=f"{build}; {machine.host.cores} CPU cores",
            remedy=f"{where}; or take --preset cpu; or train on the CPU all the same with train.needs_gpu=false",
        )


def gpu_out_of_reach(subject: Subject) -> Iterator[Finding]:
    """The system has a GPU and torch can't use it (a CPU build, an old driver, CUDA_VISIBLE_DEVICES)."""
    machine = subject.machine
    if machine.gpu_files > len(machine.gpus):
        visible = machine.environ.get("CUDA_VISIBLE_DEVICES")
        because = "it is a CPU build" if machine.cuda is None else f"it is built for CUDA {machine.cuda}"
        yield warning(
            f"this machine has {machine.gpu_files} GPUs and torch can use {len(machine.gpus)}",
            evidence=because if visible is None else f"CUDA_VISIBLE_DEVICES={visible!r}",
            remedy="install the torch that fits the driver (nvidia-smi names it)"
            if visible is None
            else "unset CUDA_VISIBLE_DEVICES if that was not meant",
        )


def gpu_architecture(subject: Subject) -> Iterator[Finding]:
    """torch has no kernels for a GPU's architecture (a P100 says that it is available, and can compute nothing)."""
    architectures = subject.machine.architectures
    for number, gpu in _gpus(subject):
        if not _covered(gpu.capability, architectures):
            yield error(
                f"torch has no kernels for GPU {number}, {gpu.name}",
                evidence=f"it is sm_{gpu.capability[0]}{gpu.capability[1]}; torch has {', '.join(architectures)}",
                remedy="choose another accelerator (on Kaggle: GPU T4 x2)",
            )


def gpu_kernel(subject: Subject) -> Iterator[Finding]:
    """A GPU fails to compute one small product and one convolution."""
    for number, gpu in _gpus(subject):
        problem = subject.machine.run_kernel(number)
        if problem is not None:
            yield error(
                f"GPU {number}, {gpu.name}, can't compute",
                evidence=problem,
                remedy="choose another accelerator, or restart the session",
            )


def gpu_memory(subject: Subject) -> Iterator[Finding]:
    """Something else holds a large part of a GPU's memory."""
    for number, gpu in _gpus(subject):
        free = subject.machine.gpu_free_bytes(number)
        if free < 0.7 * gpu.memory_bytes:
            yield warning(
                f"much of the memory of GPU {number}, {gpu.name}, is taken",
                evidence=f"{_gigabytes(free)} of {_gigabytes(gpu.memory_bytes)} are free",
                remedy="end the other notebooks and processes that use it (nvidia-smi lists them)",
            )


def idle_gpus(subject: Subject) -> Iterator[Finding]:
    """A GPU is paid for and does nothing."""
    gpus, limit = len(subject.machine.gpus), subject.session_limit
    idle = gpus - subject.at_once
    if subject.at_once >= 1 and idle > 0:
        cost = f"; {format_duration(limit * idle)} of GPU time in a session" if limit else ""
        yield warning(
            f"{idle} of {gpus} GPUs would be idle, and cost all the same",
            evidence=f"{subject.at_once} process{'es' * (subject.at_once > 1)}, one GPU each{cost}",
            remedy=f"train with {gpus} processes, one per GPU, or choose an accelerator with {subject.at_once}",
        )


def processes(subject: Subject) -> Iterator[Finding]:
    """More processes than GPUs, or than samples in a batch."""
    count, gpus, batch = subject.processes, len(subject.machine.gpus), subject.config.train.batch_size
    if gpus and count > gpus:
        yield error(f"{count} processes can't share {gpus} GPU{'s' * (gpus > 1)}", remedy=f"start {gpus}")
    if gpus and subject.side_by_side > gpus:
        yield error(
            f"{subject.side_by_side} stages side by side can't share {gpus} GPU{'s' * (gpus > 1)}",
            remedy=f"give --side-by-side {gpus}",
        )
    if count > batch:
        yield error(
            f"a batch of {batch} can't be shared out over {count} processes",
            remedy=f"set train.batch_size to {count} or more, or start fewer processes",
        )


def precision(subject: Subject) -> Iterator[Finding]:
    """The device can't compute in train.precision, or gains nothing by it."""
    wanted, gpus = subject.config.train.precision, subject.machine.gpus
    for number, gpu in enumerate(gpus):
        if wanted == "bf16" and gpu.capability < (8, 0):
            yield error(
                f"GPU {number}, {gpu.name}, has no bf16 arithmetic",
                evidence=f"it is of generation {gpu.capability[0]}.{gpu.capability[1]}; bf16 begins with 8.0",
                remedy="set train.precision=fp16 or fp32",
            )
    if wanted == "fp16" and not gpus:
        yield warning(
            "fp16 on a CPU saves little and is slower than fp32",
            evidence="train.precision=fp16, no GPU",
            remedy="set train.precision=fp32",
        )
    if wanted == "fp32" and any(gpu.capability >= (7, 0) for gpu in gpus):
        yield note("the GPU has units for half precision, which train.precision=fp32 leaves unused")


def threads(subject: Subject) -> Iterator[Finding]:
    """More threads than cores, or threads that spin while they wait."""
    cores, environ = subject.machine.host.cores, subject.machine.environ
    wanted = subject.config.train.threads
    if wanted is not None and wanted * subject.at_once > cores:
        yield warning(
            f"{wanted * subject.at_once} CPU threads for {cores} cores slow each other down",
            evidence=f"train.threads={wanted}, {subject.at_once} process{'es' * (subject.at_once > 1)}",
            remedy=f"set train.threads={max(cores // subject.at_once, 1)}",
        )
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if environ.get(name, "").isdigit() and int(environ[name]) > cores:
            yield warning(
                f"{name}={environ[name]} is more than the {cores} cores that this process may use",
                remedy=f"unset {name}: Outlast sets the threads itself (train.threads)",
            )
    if environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        yield warning(
            "OMP_WAIT_POLICY=ACTIVE makes waiting threads spin, which slows training whenever a core is shared",
            remedy="unset it",
        )


def shared_memory(subject: Subject) -> Iterator[Finding]:
    """The batches that loader workers prepare don't fit into /dev/shm: they would die with a bus error."""
    free = subject.machine.shared_memory_bytes
    if subject.workers == 0:
        return
    if free is None:
        raise CannotCheck("there is no /dev/shm")
    ahead = subject.config.loading.prefetch_batches
    bytes_ahead = subject.at_once * subject.workers * ahead * subject.micro_batch_bytes
    if bytes_ahead > 0.8 * free:
        yield error(
            "the batches that loader workers prepare don't fit into shared memory (they would die with a bus error)",
            evidence=f"{subject.at_once * subject.workers} workers x {ahead} batches x "
            f"{subject.micro_batch_bytes / 1e6:.1f} MB = {_gigabytes(bytes_ahead)}; "
            f"/dev/shm has {_gigabytes(free)} free",
            remedy="set loading.prefetch_batches=1 or fewer loading.workers (0 needs none), "
            "or start the container with more (--shm-size)",
        )


def memory(subject: Subject) -> Iterator[Finding]:
    """The training processes and their workers need more memory than the machine, or its container, has."""
    total, workers = subject.machine.memory_bytes, subject.workers
    if total is None:
        raise CannotCheck("the machine doesn't say how much memory it has")
    needed = subject.at_once * (_PROCESS_BYTES + workers * _WORKER_BYTES)
    if needed > total:
        yield warning(
            "there is hardly enough memory for the training processes",
            evidence=f"{subject.at_once} x (1 process + {workers} workers) take about {_gigabytes(needed)}; "
            f"this machine, or its container, has {_gigabytes(total)}",
            remedy="set fewer loading.workers, or start fewer processes",
        )


def disk_for_run(subject: Subject) -> Iterator[Finding]:
    """The disk of the run folder is as good as full."""
    free = subject.machine.free_bytes(subject.run)
    if free < _LITTLE_DISK_BYTES:  # whether it is too little for this run is predicted from its models
        yield warning(
            f"the disk of the run folder {subject.run} is nearly full",
            evidence=f"{_gigabytes(free)} are free",
            remedy="make room, or give a folder on another disk with --out",
        )


def disk_for_cache(subject: Subject) -> Iterator[Finding]:
    """The cache of decoded samples may grow beyond what its disk has free."""
    folder, allowed = subject.machine.host.scratch, subject.config.loading.cache_gigabytes * _GIGABYTE
    free = subject.machine.free_bytes(folder)
    if allowed > free:
        yield warning(
            "the cache of decoded samples may take more than its disk has free",
            evidence=f"loading.cache_gigabytes={subject.config.loading.cache_gigabytes:g}; "
            f"{_gigabytes(free)} are free in {folder}",
            remedy=f"set loading.cache_gigabytes={max(int(free / _GIGABYTE * 0.8), 0)}, "
            "or OUTLAST_CACHE to a folder on a larger disk",
        )


def _gpus(subject: Subject) -> Sequence[tuple[int, Gpu]]:
    """The GPUs that training would use, with their numbers."""
    if not subject.machine.gpus:
        raise CannotCheck("there is no GPU here")
    return [(number, gpu) for number, gpu in enumerate(subject.machine.gpus) if number in subject.devices]


def _covered(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Binary code runs on GPUs of the same major and at least its minor number; PTX ("compute_") on all later ones."""
    for name in architectures:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if parts is None:
            continue
        made_for = (int(parts[2]), int(parts[3]))
        same = made_for == capability
        later = capability >= made_for if parts[1] == "compute" else capability[0] == made_for[0]
        if same or (not parts[4] and later and capability >= made_for):
            return True
    return False


def _gigabytes(count: float) -> str:
    return f"{count / _GIGABYTE:.1f} GB"
