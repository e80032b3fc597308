"""The checks of GPUs, memory and disk: each fires on the broken machine and stays silent on the healthy one."""

from dataclasses import replace

import pytest
import torch

from outlast.check import hardware
from outlast.check.finding import checks_of
from outlast.check.machine import Gpu, compute
from toys.machines import P100, T4, found, healthy, subject

A100 = Gpu("A100", (8, 0), 40_000_000_000)
B200 = Gpu("B200", (10, 0), 180_000_000_000)
NO_GPU = {"gpus": (), "gpu_files": 0}

# check, machine, settings, subject, severity, words
BROKEN = {
    "t4 on a CPU": (
        "gpu_wanted", NO_GPU, ("train.needs_gpu=true",), {}, "error", ("wants a GPU", "4 CPU cores", "needs_gpu=false")
    ),
    "a CPU build": ("gpu_out_of_reach", {"gpus": (), "cuda": None}, (), {}, "warning", ("1 GPUs", "CPU build")),
    "hidden": (
        "gpu_out_of_reach", {"gpus": (), "environ": {"CUDA_VISIBLE_DEVICES": ""}}, (), {}, "warning",
        ("CUDA_VISIBLE_DEVICES=''", "unset"),
    ),
    "P100": ("gpu_architecture", {"gpus": (P100,)}, (), {}, "error", ("Tesla P100", "sm_60", "sm_70", "T4 x2")),
    "no kernel": (
        "gpu_kernel", {"run_kernel": lambda number: "CUDA error: no kernel image is available"}, (), {}, "error",
        ("Tesla T4", "no kernel image"),
    ),
    "taken": ("gpu_memory", {"gpu_free_bytes": lambda number: 2e9}, (), {}, "warning", ("2.0 GB of 15.0 GB",)),
    "idle": (
        "idle_gpus", {"gpus": (T4, T4)}, (), {"session_limit": 32400.0}, "warning", ("1 of 2", "9h00m", "2 processes")
    ),
    "too many": ("processes", {}, (), {"processes": 2}, "error", ("2 processes", "1 GPU")),
    "batch too small": ("processes", NO_GPU, ("train.batch_size=2",), {"processes": 3}, "error", ("batch of 2",)),
    "bf16 on a T4": ("precision", {}, ("train.precision=bf16",), {}, "error", ("Tesla T4", "7.5", "fp16")),
    "fp16 on a CPU": ("precision", NO_GPU, ("train.precision=fp16",), {}, "warning", ("slower",)),
    "fp32 on a T4": ("precision", {}, ("train.precision=fp32",), {}, "note", ("half precision",)),
    "threads": ("threads", {}, ("train.threads=8",), {}, "warning", ("8 CPU threads for 4 cores", "train.threads=4")),
    "OMP": ("threads", {"environ": {"OMP_NUM_THREADS": "64"}}, (), {}, "warning", ("OMP_NUM_THREADS=64",)),
    "spinning": ("threads", {"environ": {"OMP_WAIT_POLICY": "ACTIVE"}}, (), {}, "warning", ("spin",)),
    "small /dev/shm": (
        "shared_memory", {"shared_memory_bytes": 6_000}, (), {}, "error", ("bus error", "3 workers", "--shm-size")
    ),
    "little memory": ("memory", {"memory_bytes": 2_000_000_000}, (), {}, "warning", ("2.0 GB", "3 workers")),
    "disk full": ("disk_for_run", {"free_bytes": lambda folder: 50e6}, (), {}, "warning", ("nearly full", "0.1 GB")),
    "disk nearly full": ("disk_for_run", {"free_bytes": lambda folder: 500e6}, (), {}, "warning", ("0.5 GB",)),
    "no room for the cache": (
        "disk_for_cache", {"free_bytes": lambda folder: 5e9}, (), {}, "warning", ("5.0 GB", "loading.cache_gigabytes=4")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_it_is_found(case, tmp_path):
    name, machine, settings, changes, severity, words = BROKEN[case]
    (finding,) = found(hardware, name, subject(healthy(tmp_path, **machine), *settings, **changes))
    assert finding.severity == severity
    for word in words:
        assert word in f"{finding.sentence} {finding.evidence} {finding.remedy}"


@pytest.mark.parametrize("name", [name.partition(".")[2] for name in checks_of(hardware)])
def test_a_healthy_machine_is_silent(name, tmp_path):
    assert found(hardware, name, subject(healthy(tmp_path), "train.precision=fp16")) == []


def test_every_check_has_a_case():
    assert {f"hardware.{name}" for name, *_ in BROKEN.values()} == set(checks_of(hardware))


@pytest.mark.parametrize("name", ["gpu_architecture", "gpu_kernel", "gpu_memory"])
def test_without_a_gpu_it_says_that_it_was_not_checked(name, tmp_path):
    (finding,) = found(hardware, name, subject(healthy(tmp_path, **NO_GPU)))
    assert finding.severity == "unchecked" and "no GPU" in finding.sentence


@pytest.mark.parametrize(
    ("architectures", "gpu", "right"),
    [
        (("sm_75",), T4, True),
        (("sm_70",), T4, True),  # code for 7.0 runs on 7.5
        (("sm_80",), T4, False),
        (("sm_80", "compute_70"), T4, True),  # compiled when it is first needed
        (("sm_90", "compute_90"), B200, True),
        (("sm_90a", "compute_90a"), B200, False),  # made for that one GPU only
        (("sm_80",), A100, True),
        (("sm_100",), B200, True),
        (("sm_75", "sm_80"), P100, False),
    ],
)
def test_which_kernels_a_gpu_can_run(architectures, gpu, right, tmp_path):
    about = subject(healthy(tmp_path, architectures=architectures, gpus=(gpu,)))
    assert (found(hardware, "gpu_architecture", about) == []) == right


def test_the_kernels_that_are_tried_are_right_where_torch_is_right(monkeypatch):
    assert compute("cpu") is None
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda images, kernels: images)
    assert "is right" in compute("cpu")


def test_a_device_that_is_not_there_is_a_sentence():
    assert compute("cuda:63")


def test_only_the_gpus_of_this_process_are_tried(tmp_path):
    tried = []
    about = subject(healthy(tmp_path, gpus=(T4, T4), run_kernel=tried.append), processes=2, devices=range(1, 2))
    assert found(hardware, "gpu_kernel", about) == []
    assert tried == [1]


def test_as_many_processes_as_gpus_leave_none_idle(tmp_path):
    about = subject(healthy(tmp_path, gpus=(T4, T4)), processes=2)
    assert found(hardware, "idle_gpus", about) == found(hardware, "processes", about) == []


def test_stages_side_by_side_use_a_gpu_each_and_are_no_more_than_there_are(tmp_path):
    about = subject(healthy(tmp_path, gpus=(T4, T4)), side_by_side=2)
    assert found(hardware, "idle_gpus", about) == found(hardware, "processes", about) == []
    (three,) = found(hardware, "processes", subject(healthy(tmp_path, gpus=(T4, T4)), side_by_side=3))
    assert three.severity == "error" and "--side-by-side 2" in three.remedy


def test_without_workers_shared_memory_does_not_matter(tmp_path):
    about = subject(healthy(tmp_path, shared_memory_bytes=0), "loading.workers=0")
    assert found(hardware, "shared_memory", about) == []


def test_what_workers_prepare_is_counted_by_a_real_sample(tmp_path):
    about = subject(healthy(tmp_path), "train.batch_size=8", "train.micro_batch=4")
    sample = 8 * 8 * 4 + 8 + 8  # float32 pixels, label, row
    assert about.micro_batch_bytes == 4 * sample
    assert subject(healthy(tmp_path), "train.batch_size=900").micro_batch_bytes == 30 * sample  # there are no more
    in_flight = 3 * 4 * 4 * sample
    fits = replace(about, machine=healthy(tmp_path, shared_memory_bytes=round(in_flight / 0.8) + 1))
    assert found(hardware, "shared_memory", fits) == []
    small = replace(about, machine=healthy(tmp_path, shared_memory_bytes=round(in_flight / 0.8) - 1))
    assert len(found(hardware, "shared_memory", small)) == 1
