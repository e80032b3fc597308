"""Devices, processes and precision. The only importer of accelerate, which sets up and wraps; it prepares no loader.

Half precision is torch.autocast with torch's own GradScaler on every device: accelerate would run fp16 on a CPU as fp32
without saying so.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from outlast.errors import TrainingError, UsageError

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where this process computes: its device, its rank among the processes, and the CPU threads of a step."""

    accelerator: Accelerator
    device: torch.device
    rank: int
    processes: int
    threads: int

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on its device, wrapped for several processes if there are several."""
        model = model.to(self.device)
        return cast(nn.Module, self.accelerator.prepare_model(model)) if self.processes > 1 else model

    def autocast(self, precision: Precision) -> contextlib.AbstractContextManager[Any]:
        """Forward passes run under this context."""
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[precision])

    def scaler(self, precision: Precision) -> torch.amp.GradScaler | None:
        """fp16 needs its losses scaled; the others don't."""
        return torch.amp.GradScaler(self.device.type) if precision == "fp16" else None

    def put(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on this process's device."""
        if self.device.type == "cpu":
            return batch
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def sums(self, values: list[float]) -> list[float]:
        """Each value summed over the processes; all get the same answer."""
        if self.processes == 1:
            return values
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        total = self.accelerator.reduce(torch.tensor(values, dtype=dtype, device=self.device), reduction="sum")
        return [float(value) for value in total.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """One picklable value of every process, by rank, for every process."""
        return [value] if self.processes == 1 else list(gather_object([value]))

    def share(self, value: Any) -> Any:
        """The main process's value, for every process."""
        if self.processes == 1:
            return value
        return broadcast_object_list([value])[0]

    def spread(self, tensor: Tensor) -> None:
        """Overwrite the tensor with the main process's, in place."""
        if self.processes > 1:
            torch.distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()


def set_up(threads: int | None, cores: int) -> Compute:
    """Set up this process's device and its place among the processes (torchrun, `accelerate launch`, or alone).

    Raises UsageError if there are more processes than GPUs.
    """
    here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if torch.cuda.is_available() and here > devices:
        raise UsageError(
            f"{here} processes on a machine with {devices} GPU(s): each process needs a GPU of its own",
            hint=f"give --processes {devices}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to compute on the CPU",
        )
    # Without a GPU accelerate sets up several processes only if it is told that the CPU is meant.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    processes = int(accelerator.num_processes)
    compute = Compute(accelerator, accelerator.device, int(accelerator.process_index), processes, 0)
    return with_threads(compute, threads if threads is not None else max(cores // processes, 1))


def with_threads(compute: Compute, threads: int) -> Compute:
    """The same with another number of CPU threads for a step."""
    torch.set_num_threads(threads)
    return replace(compute, threads=threads)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without the wrapper for several processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse what the device can't do. Raises TrainingError."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrainingError(
            f"{torch.cuda.get_device_name(device)} has no bf16 arithmetic", hint="set train.precision=fp16 or fp32"
        )
