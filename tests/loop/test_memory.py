"""What counts as out of memory, the ladder before training, and how memory is measured."""

import numpy as np
import pytest
import torch
from torch import nn

from outlast.env import memory as host_memory
from outlast.errors import TrainingError
from outlast.loop import headroom, memory
from outlast.loop.differences import what_cutting_changes
from outlast.loop.headroom import Headroom, Thrashing, TooMuchMemoryError
from outlast.loop.memory import Fit, Portion, can_checkpoint, find_fit, is_out_of_memory, turn_on_checkpointing
from outlast.tasks.plants.models import build as build_plants
from toys import memory as toy
from toys import plan


def refuse(fits):
    """An attempt that succeeds where fits(rung, size, checkpointing) says so, and the list of what was tried."""
    tried = []

    def attempt(rung, size, checkpointing):
        tried.append((rung, size, checkpointing))
        if not fits(rung, size, checkpointing):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    return attempt, tried


def test_what_fits_at_once_is_taken_and_nothing_is_recorded():
    attempt, tried = refuse(lambda *_: True)
    assert find_fit(attempt, ("large", "small"), 16, fallback=True) == Fit("large", 16)
    assert tried == [("large", 16, False)]


def test_the_largest_micro_batch_that_fits_is_taken_and_recorded():
    attempt, _ = refuse(lambda rung, size, _: size <= 5)
    fit = find_fit(attempt, ("large", "small"), 20, fallback=True)
    assert (fit.rung, fit.micro_batch, fit.checkpointing) == ("large", 5, False)
    (event,) = fit.events
    assert (event["from"], event["to"]) == ({"micro_batch": 20}, {"micro_batch": 5})
    assert "large with micro-batch 10" in event["why"]
    assert "large with micro-batch 10" in fit.reason


def test_activations_are_computed_again_before_a_smaller_model_is_taken():
    attempt, tried = refuse(lambda rung, size, checkpointing: checkpointing and size <= 4)
    fit = find_fit(attempt, ("large", "small"), 8, fallback=False, can_checkpoint=lambda rung: rung == "large")
    assert (fit.rung, fit.micro_batch, fit.checkpointing) == ("large", 4, True)
    assert tried == [("large", size, False) for size in (8, 4, 2, 1)] + [("large", 8, True), ("large", 4, True)]


def test_a_smaller_model_is_the_last_resort():
    attempt, tried = refuse(lambda rung, size, _: rung == "small" and size <= 4)
    fit = find_fit(attempt, ("large", "small"), 16, fallback=True)
    assert (fit.rung, fit.micro_batch) == ("small", 4)
    assert fit.events[0]["to"] == {"rung": "small", "micro_batch": 4}
    assert tried == [("large", size, False) for size in (16, 8, 4, 2, 1)] + [
        ("small", size, False) for size in (16, 8, 4)
    ]


def test_without_permission_there_is_no_fallback():
    attempt, _ = refuse(lambda *_: False)
    with pytest.raises(TrainingError, match="large doesn't fit"):
        find_fit(attempt, ("large", "small"), 2, fallback=False)
    with pytest.raises(TrainingError, match="no model of the ladder"):
        find_fit(attempt, ("large", "small"), 2, fallback=True)


def test_other_failures_are_not_taken_for_memory():
    def attempt(rung, size, checkpointing):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        find_fit(attempt, ("large", "small"), 2, fallback=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_every_kind_of_out_of_memory_is_known(error):
    assert is_out_of_memory(error)


def test_errors_with_other_causes_too_count_only_while_memory_is_scarce(monkeypatch):
    error = RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if the input is not contiguous"
    )
    assert not is_out_of_memory(error)  # no GPU here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 << 30, 16 << 30))
    assert not is_out_of_memory(error)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 28, 16 << 30))
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("device-side assert triggered"))


def test_the_peak_of_a_block_counts_and_not_that_of_one_before():
    if not host_memory.reset_peak():
        pytest.skip("this system does not let a process reset the high-water mark of its memory")
    now = host_memory.resident_bytes() / 1e9
    with Headroom(torch.device("cpu"), now + 0.5).kept():
        np.ones(25_000_000)  # 0.2 GB, gone when the block ends
    with (
        pytest.raises(TooMuchMemoryError, match=r"it took \d.\d\d GB of the \d.\d\d GB"),
        Headroom(torch.device("cpu"), now + 0.1).kept(),
    ):
        np.ones(25_000_000)
    with Headroom(torch.device("cpu"), now + 0.1).kept():
        np.ones(1000)


def test_a_share_of_what_is_available_is_left_free(monkeypatch):
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 10_000_000_000)
    monkeypatch.setattr(host_memory, "resident_bytes", lambda: 1_000_000_000)
    assert Headroom(torch.device("cpu"), None).bytes == 10_000_000_000
    assert Headroom(torch.device("cpu"), None, processes=2).bytes == 5_500_000_000


def test_a_container_s_limit_counts_also_that_of_an_outer_group(tmp_path):
    process, mounts = tmp_path / "proc", tmp_path / "cgroup"
    inner = mounts / "pod" / "container"
    for folder in (process, inner):
        folder.mkdir(parents=True)
    (process / "cgroup").write_text("0::/pod/container\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("100\n")
    assert list(host_memory._left_in_groups(process, mounts)) == []
    (inner.parent / "memory.max").write_text("1000\n")
    (inner.parent / "memory.current").write_text("700\n")
    (inner.parent / "memory.stat").write_text("anon 1\ninactive_file 50\n")
    assert list(host_memory._left_in_groups(process, mounts)) == [350]


def test_where_the_peak_cannot_be_measured_only_failures_count(tmp_path):
    assert not host_memory.reset_peak(tmp_path / "nothing")
    assert host_memory.peak_bytes(tmp_path / "nothing") is None


@pytest.mark.parametrize(("per_step", "thrashes"), [(0, False), (0.2, False), (1, True)])
def test_an_allocator_that_keeps_trying_again_thrashes(monkeypatch, per_step, thrashes):
    steps = [0]
    monkeypatch.setattr(headroom, "allocator_retries", lambda device: int(steps[0] * per_step))
    watch = Thrashing(torch.device("cuda"))
    seen = []
    for _ in range(60):
        seen.append(watch.seen())
        steps[0] += 1
    assert any(seen) == thrashes
    assert all("thrashing" in sentence for sentence in seen if sentence)


def test_a_step_that_fits_only_by_trying_again_does_not_fit(monkeypatch):
    retries = iter([3, 5])
    monkeypatch.setattr(headroom, "allocator_retries", lambda device: next(retries))
    with pytest.raises(TooMuchMemoryError, match="try again"), Headroom(torch.device("cpu"), 1e6).kept():
        pass


def test_models_that_can_compute_activations_again_are_found():
    own = toy.Net(4, toy.MemoryModel())
    assert can_checkpoint(own)
    assert not own.checkpointing
    assert can_checkpoint(nn.Sequential(nn.Linear(2, 2), own))
    assert can_checkpoint(build_plants("resnet18", 3, image_size=(32, 32)))
    assert can_checkpoint(build_plants("sclusterformer", 3))
    plain = plan.Net(2, 0.1)
    assert not can_checkpoint(plain)
    with pytest.raises(TrainingError, match="Net has no activation checkpointing"):
        turn_on_checkpointing(plain)


def test_what_depends_on_the_cut_of_a_batch_is_named():
    assert what_cutting_changes(nn.Linear(2, 2), plan.LEARNER) == []
    assert what_cutting_changes(plan.Net(2, 0.2), plan.LEARNER) == ["batch_norm", "dropout"]
    assert what_cutting_changes(nn.Dropout(0.0), plan.LEARNER) == []
    assert what_cutting_changes(nn.MultiheadAttention(4, 2, dropout=0.1), plan.LEARNER) == ["dropout"]
    coupled = type(plan.LEARNER)(**{**vars(plan.LEARNER), "couples_batch": True})
    assert what_cutting_changes(nn.Linear(2, 2), coupled) == ["coupled_loss"]
    dropping = build_plants("sclusterformer", 3, settings=_dropping())
    assert "drop_path" in what_cutting_changes(dropping, plan.LEARNER)


def _dropping():
    from outlast.tasks.plants.models.sclusterformer import SClusterFormerSettings

    return SClusterFormerSettings(drop_path=0.1)


def test_a_portion_halves_and_ends_at_one():
    told = []
    portion = Portion(8, lambda size, why: told.append((size, why)))
    portion.halve(5, "full")  # a batch of 5 was too many, though 8 were allowed
    portion.agree([2, 1])
    assert told == [(2, "full"), (1, "another process ran out of memory")]
    with pytest.raises(TrainingError, match="a single sample"):
        portion.halve(1, "full")


def test_memory_that_is_given_back_is_no_longer_counted():
    blocks = [np.ones(20_000) for _ in range(2000)]  # small ones, which the C library keeps when they are freed
    before = host_memory.resident_bytes()
    del blocks
    memory.release()
    assert host_memory.resident_bytes() < before - 200e6
