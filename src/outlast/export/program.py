"""A network as source text: the operators of PyTorch that it calls, in order, and the tensors that they take.

What this makes runs on every torch from 2.6 on, without the classes that defined the network. A program saved by
torch.export can't be read by an older torch (2.6 refuses what 2.15 writes), and TorchScript is deprecated; the source
that torch.export traces is plain Python over operators that stay. It is fixed to one size of image and runs with any
number of images at a time, on the CPU or a GPU.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from outlast.errors import ModelError

_TENSORS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_LARGEST_HALF = torch.finfo(torch.float16).max

_HEAD = '''"""A network as the operators of PyTorch that it calls: from images to probabilities.

Written by Outlast from a trained model. The first arguments of `forward` are its tensors, named in TENSORS; the last is
a batch of images (B, {channels}, {tile}, {tile}), raw values with NaN where nothing was observed.
"""
# ruff: noqa

import torch
from torch import inf, nan
{imports}

TENSORS = {names!r}

_device = torch.device("cpu")


def device(type, index=None):
    """Where tensors are made: where the images are, whatever the machine was on which this was written."""
    return _device


def probabilities(tensors, images):
    """Probabilities (B, classes, {tile}, {tile}) of images; tensors: a dictionary by name, on the same device."""
    global _device
    _device = images.device
    (result,) = forward(None, *(tensors[name] for name in TENSORS), images)
    return result


'''


@dataclass(frozen=True)
class Program:
    """A network's source text, with a function `probabilities(tensors, images)`, and its tensors by name."""

    source: str
    tensors: dict[str, Tensor]

    def run(self, images: Tensor) -> Tensor:
        """Probabilities of images, as whoever has only the source and the tensors computes them."""
        module = types.ModuleType("network")
        exec(compile(self.source, "network.py", "exec"), module.__dict__)
        with torch.inference_mode():
            result: Tensor = module.probabilities(self.tensors, images)
        return result

    def halved(self) -> dict[str, Tensor]:
        """The tensors, those that hold most of the numbers in float16: parameters of two axes or more.

        Biases, normalisation and every buffer stay as they are: they are small, and statistics of raw bands do not fit.
        """
        return {name: _half(tensor) for name, tensor in self.tensors.items()}


class _Probabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        logits: Tensor = output["logits"] if isinstance(output, Mapping) else output
        return logits.softmax(dim=1)


def capture(network: nn.Module, channels: int, classes: int, tile: int) -> Program:
    """Trace a network that maps images (B, channels, tile, tile) to logits (B, classes, tile, tile) as source text.

    The network gives the logits themselves or a mapping with "logits"; the program gives their softmax. It is traced in
    float32 on the CPU, in evaluation mode, from a copy, and compared with the network on images with gaps.
    Raises ModelError for a network that can't be traced, gives another shape or depends on what was traced.
    """
    whole = _Probabilities(copy.deepcopy(network).cpu().float()).eval().requires_grad_(False)
    trial, other = _trial(2, channels, tile, seed=1), _trial(3, channels, tile, seed=2)
    try:
        with torch.inference_mode():
            expected = whole(other)
    except RuntimeError as error:
        raise ModelError(
            f"the network can't take images {tuple(other.shape)}: {str(error).strip().splitlines()[0]}",
            hint="name as many channels as it was trained with, and a tile size that it accepts",
        ) from error
    if expected.shape != (3, classes, tile, tile):
        raise ModelError(
            f"the network gives {tuple(expected.shape)} for images {tuple(other.shape)}, not {classes} classes a pixel",
            hint="export a segmentation model, with its own number of channels and classes",
        )
    if not torch.isfinite(expected).all():
        raise ModelError("the network gives NaN where the bands have gaps", hint="its first layer must replace NaN")
    try:
        with torch.no_grad():
            traced = torch.export.export(
                whole, (trial,), dynamic_shapes=({0: Dim("batch", min=2, max=1024)},), strict=False
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ModelError(
            f"the network can't be traced: {str(error).strip().splitlines()[0]}",
            hint="what it computes must not depend on the values in the images nor on the size of the batch",
        ) from error
    program = Program(_source(traced, channels, tile), _tensors(traced))
    # Kernels round differently for another number of images, so each number is compared with itself.
    with torch.inference_mode():
        difference = max(float((program.run(part) - whole(part)).abs().max()) for part in (other, other[:1]))
    if not difference <= 1e-5:
        raise ModelError(
            f"the traced network differs from the network by {difference:.1e}",
            hint="what it computes must be the same at every call, and must not depend on the values in the images",
        )
    return program


def _trial(count: int, channels: int, tile: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, tile, tile, generator=random) * 200
    images[:, :, : tile // 4, : tile // 3] = torch.nan
    return images


def _tensors(traced: ExportedProgram) -> dict[str, Tensor]:
    known = {**traced.state_dict, **traced.constants}
    specs = [spec for spec in traced.graph_signature.input_specs if spec.kind in _TENSORS]
    parameters = {spec.target for spec in specs if spec.kind is InputKind.PARAMETER}
    found = {}
    for spec in specs:
        tensor = known[str(spec.target)].detach()
        # A parameter stays one, so that `halved` can tell it from a buffer.
        found[str(spec.target)] = nn.Parameter(tensor, requires_grad=False) if spec.target in parameters else tensor
    return found


def _half(tensor: Tensor) -> Tensor:
    heavy = isinstance(tensor, nn.Parameter) and tensor.ndim >= 2 and tensor.is_floating_point()
    if not heavy or not tensor.numel() or float(tensor.abs().max()) > _LARGEST_HALF:
        return tensor
    return tensor.half()


def _source(traced: ExportedProgram, channels: int, tile: int) -> str:
    graph, signature = traced.graph_module.graph, traced.graph_signature
    foreign = sorted(
        {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module", "call_method")}
        | {str(spec.target) for spec in signature.input_specs if spec.kind not in (*_TENSORS, InputKind.USER_INPUT)}
    )
    if foreign:
        raise ModelError(
            f"the network holds what is no plain operator: {', '.join(foreign)}",
            hint="leave torch.autocast, control flow and custom objects out of the deployed module's forward",
        )
    code = graph.python_code("self")
    used = {name: value for name, value in code.globals.items() if re.search(rf"\b{name}\b", code.src)}
    imports = [_import(name, value) for name, value in used.items()]
    names = tuple(str(spec.target) for spec in signature.input_specs if spec.kind in _TENSORS)
    head = _HEAD.format(channels=channels, tile=tile, names=names, imports="\n".join(filter(None, imports)))
    return "\n".join([head, str(code.src).strip(), ""])


def _import(name: str, value: Any) -> str:
    """The line that makes a name which the traced source uses known; torch's own are in the head."""
    if name in ("torch", "device", "inf", "nan"):
        return ""
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {name}"
    raise ModelError(
        f"the traced network needs {name} from {getattr(value, '__module__', 'an unknown place')}",
        hint="deploy a module that calls nothing but PyTorch",
    )
