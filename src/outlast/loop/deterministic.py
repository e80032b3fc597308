"""Which operations of a training step do not repeat bit for bit on CUDA, found by watching one step.

On a CPU everything here repeats. On CUDA some operations, most of them gradients, add in whatever order the threads
come; `train.deterministic=true` takes another algorithm where there is one and refuses the others by name. The list is
that of torch.use_deterministic_algorithms (documentation of torch 2.6 to 2.15), and torchvision's operations that use
atomic additions (its CUDA sources). Some of them repeat in special cases (indices that name no place twice); that
isn't looked at. Convolutions are not on the list: `prepare` makes cuDNN take an algorithm that repeats.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from outlast.base.log import say
from outlast.errors import TrainingError, listed

# {operation: (what a person knows it as, whether deterministic=true has an algorithm for it that repeats)}. Where torch
# came to have one between 2.6 and 2.15, "True" leaves the refusal to the torch that runs.
_INEXACT = {
    "aten::_adaptive_avg_pool2d_backward": ("adaptive_avg_pool2d (to more than 1x1)", False),
    "aten::_adaptive_avg_pool3d_backward": ("adaptive_avg_pool3d", False),
    "aten::adaptive_max_pool2d_backward": ("adaptive_max_pool2d", False),
    "aten::adaptive_max_pool3d_backward": ("adaptive_max_pool3d", False),
    "aten::avg_pool3d_backward": ("avg_pool3d", False),
    "aten::max_pool3d_with_indices_backward": ("max_pool3d", True),
    "aten::fractional_max_pool2d_backward": ("fractional_max_pool2d", False),
    "aten::fractional_max_pool3d_backward": ("fractional_max_pool3d", False),
    "aten::max_unpool2d": ("max_unpool1d or max_unpool2d", False),
    "aten::max_unpool3d": ("max_unpool3d", False),
    "aten::grid_sampler_2d_backward": ("grid_sample (sampling at given places)", False),
    "aten::grid_sampler_3d_backward": ("grid_sample (sampling at given places in 3d)", False),
    "aten::upsample_linear1d_backward": ("interpolate (linear)", False),
    "aten::upsample_bilinear2d_backward": ("interpolate (bilinear)", True),
    "aten::_upsample_bilinear2d_aa_backward": ("interpolate (bilinear with antialias)", False),
    "aten::upsample_bicubic2d_backward": ("interpolate (bicubic)", True),
    "aten::_upsample_bicubic2d_aa_backward": ("interpolate (bicubic with antialias)", False),
    "aten::upsample_trilinear3d_backward": ("interpolate (trilinear)", True),
    "aten::reflection_pad1d_backward": ("reflection padding", False),
    "aten::reflection_pad2d_backward": ("reflection padding", False),
    "aten::reflection_pad3d_backward": ("reflection padding", False),
    "aten::replication_pad1d_backward": ("replication padding", True),
    "aten::replication_pad2d_backward": ("replication padding", True),
    "aten::replication_pad3d_backward": ("replication padding", True),
    "aten::nll_loss2d_forward": ("cross_entropy or nll_loss over pixels (sum or mean)", False),
    "aten::_ctc_loss_backward": ("ctc_loss", False),
    "aten::_embedding_bag_backward": ("embedding_bag (max)", False),
    "aten::embedding_dense_backward": ("embedding", True),
    "aten::cumsum": ("cumsum of floats", True),
    "aten::index_add": ("index_add or the gradient of index_select", True),
    "aten::scatter_add": ("scatter_add or the gradient of gather", True),
    "aten::scatter": ("scatter that adds or multiplies", True),
    "aten::scatter_reduce": ("scatter_reduce", True),
    "aten::put": ("put_ or the gradient of take", False),
    "aten::histc": ("histc", False),
    "aten::bincount": ("bincount with weights", False),
    "aten::median": ("median along a dimension", False),
    "aten::nanmedian": ("median along a dimension", False),
    "aten::kthvalue": ("kthvalue", True),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": ("scaled_dot_product_attention", True),
    "aten::_scaled_dot_product_flash_attention_backward": ("scaled_dot_product_attention", True),
    "aten::_scaled_dot_product_efficient_attention_backward": ("scaled_dot_product_attention", True),
    "aten::_scaled_dot_product_cudnn_attention_backward": ("scaled_dot_product_attention", True),
    "torchvision::_deform_conv2d_backward": ("deform_conv2d", False),
    "torchvision::_roi_align_backward": ("roi_align", True),
    "torchvision::_roi_pool_backward": ("roi_pool", False),
    "torchvision::_ps_roi_align_backward": ("ps_roi_align", False),
    "torchvision::_ps_roi_pool_backward": ("ps_roi_pool", False),
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NO_REDUCTION, _MAX = 0, 2  # as torch numbers a loss's reductions and embedding_bag's modes
_ONLY_IF: Mapping[str, Callable[[Mapping[str, Any], str], bool]] = {
    "aten::nll_loss2d_forward": lambda given, form: given.get("reduction") != _NO_REDUCTION,
    "aten::_embedding_bag_backward": lambda given, form: given.get("mode") == _MAX,
    "aten::cumsum": lambda given, form: torch.is_floating_point(given["self"]) or given.get("dtype") in _FLOATS,
    "aten::bincount": lambda given, form: given.get("weights") is not None,
    "aten::scatter": lambda given, form: form in ("reduce", "value_reduce"),
    "aten::median": lambda given, form: form != "default",  # of the whole tensor it has no index, and repeats
    "aten::nanmedian": lambda given, form: form != "default",
}
_REFUSED = re.compile(r"(\S.*?) does not have a deterministic implementation")
_WARNED_ONLY = "defaults to a non-deterministic algorithm"  # attention: with more than a warning it does repeat


def prepare(deterministic: bool) -> None:
    """Set torch, cuDNN and cuBLAS up for a training; before CUDA's first operation, which reads the environment.

    cuDNN never measures which algorithm is fastest (the answer differs from session to session) and always takes one
    that repeats; the rest follows `deterministic` (torch's notes on reproducibility).
    """
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


@dataclass
class Seen:
    """The operations on the list that were seen, and those that torch itself has said it would refuse."""

    operations: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)


@contextlib.contextmanager
def watch(deterministic: bool) -> Iterator[Seen]:
    """Look at every operation in the block, gradients too. `deterministic`: algorithms as `prepare(True)` chooses them.

    Torch's refusals are collected, not raised, so that all of them are found.
    """
    seen = Seen()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught, _Watch(seen.operations):
            warnings.simplefilter("always")
            yield seen
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    for warning in caught:
        text = str(warning.message)
        if refusal := _REFUSED.match(text):
            seen.refused.add(refusal[1])
        elif _WARNED_ONLY not in text:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def check(stage: str, operations: Sequence[str], device: str, *, exact: bool, refused: Collection[str] = ()) -> None:
    """Say on CUDA which operations do not repeat. Raises TrainingError if `exact` (train.deterministic) forbids them.

    operations: those on the list; refused: what torch itself would refuse; device: 'cuda', 'cpu', ...
    """
    if exact:
        without = without_algorithm(operations) if device == "cuda" else []
        names = sorted({*without, *(_known(name) for name in refused)})
        if names:
            raise TrainingError(
                f"{stage}: train.deterministic=true refuses operations without an algorithm that repeats on {device}: "
                f"{listed(names)}",
                hint="use a model or loss without them, or set train.deterministic=false (run.json then names them)",
            )
    elif device == "cuda" and operations:
        say(f"{stage}: not promised bit for bit on this device, because of {listed(readable(operations), 20)}")


def readable(operations: Collection[str]) -> list[str]:
    """What people know them as."""
    return sorted({_entry(name)[0] for name in operations})


def without_algorithm(operations: Collection[str]) -> list[str]:
    """Those that train.deterministic=true refuses on CUDA, as people know them."""
    return readable([name for name in operations if not _entry(name)[1]])


def for_record(operations: Sequence[str], device: str, *, exact: bool) -> list[str]:
    """The names for a run's record; away from CUDA they say that they hold only there."""
    held = [name for name in operations if not (exact and _entry(name)[1])]
    return [name if device == "cuda" else f"on CUDA: {name}" for name in readable(held)]


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd, so also those of the backward pass and of other libraries."""

    def __init__(self, found: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        full, _, form = func.name().partition(".")
        name = full.rstrip("_")  # index_add_ is index_add in place
        if name in _INEXACT and name not in self.found:
            given = {**dict(zip((item.name for item in func._schema.arguments), args, strict=False)), **(kwargs or {})}
            if name not in _ONLY_IF or _ONLY_IF[name](given, form or "default"):
                self.found.add(name)
        return func(*args, **(kwargs or {}))


def _entry(operation: str) -> tuple[str, bool]:
    """What the list says; a checkpoint of another version may name an operation that it does not have."""
    return _INEXACT.get(operation, (operation, True))


def _known(refused: str) -> str:
    """Torch's name of a kernel (grid_sampler_2d_backward_cuda), with the readable one if the list has it."""
    kernel = refused.lstrip("_").replace("pooling", "pool")
    fitting = [name for name in _INEXACT if kernel.startswith(name.partition("::")[2].lstrip("_"))]
    return _INEXACT[max(fitting, key=len)][0] if fitting else refused
