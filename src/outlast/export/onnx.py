"""A trained network as an ONNX file, for whatever runs ONNX: checked against torch before it is written.

Promises: any number of images at a time; of networks that give maps, images of any height and width where that is
found to hold, else of one size, and the sidecar says why; what the file computes was compared with torch; provenance
lies in the file (metadata "sidecar") and beside it; the opset is the one that this torch writes best, and is stated.
Does not: read the data of a run (outlast.plan.onnx), make 8-bit integers (outlast.export.onnx_int8).

torch.export traces the network (torch.onnx.export with dynamo=True). The older exporter reads TorchScript, which is
deprecated, and fails where a pooling follows a dynamic shape.
"""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from outlast.base import files
from outlast.base.files import plain, write_bytes
from outlast.errors import ModelError, UsageError
from outlast.export import sidecar as sidecars
from outlast.export.onnx_library import library, quiet
from outlast.export.onnx_session import Session

SUFFIX = ".onnx"
TOLERANCE = 1e-4  # of the largest value of an output, or of 1 where all are smaller
# So many operators the exporter's patterns are tried on: each costs a look at all of them, and 4,000 take minutes. What
# they would make faster, whatever runs the file does as it loads it. Constants are folded in all networks.
_REWRITTEN = 2000
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators whose weights are large
_UNTRACEABLE = (RuntimeError, ValueError, TypeError, AssertionError, torch._dynamo.exc.TorchDynamoException)
_CONTROL = "what it computes must not depend on the values in the images, nor on how many there are"


class Difference(NamedTuple):
    """How much an output differs from torch's at most, and the largest value that torch gave."""

    most: float
    largest: float

    @property
    def small(self) -> bool:
        return self.most <= TOLERANCE * max(1.0, self.largest)


@dataclass(frozen=True)
class Network:
    """A network as an ONNX model, and as the torch module that it must equal.

    fixed: why the file takes images of one size only; '' if it takes any. differences: from torch, of each output, over
    the images that they were compared on.
    """

    model: Any
    module: Named
    fixed: str
    differences: Mapping[str, Difference]

    def describe(self) -> dict[str, Any]:
        """What a user of the file must know about it."""
        graph = self.model.graph
        return {
            "opset": {item.domain or "ai.onnx": item.version for item in self.model.opset_import},
            "inputs": [_described(value) for value in graph.input],
            "outputs": [_described(value) for value in graph.output],
            "sizes": self.fixed or "any height and width",
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime")},
        }


class Named(nn.Module):
    """A copy of a module on the CPU, in float32, evaluating, whose outputs are a tuple of tensors with names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
        self.inputs: tuple[str, ...] = ()
        self.outputs: tuple[str, ...] = ()
        self.eval()

    def name(self, samples: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Find out what goes in and comes out; returns what comes out for `samples`. Raises ModelError."""
        parameters = list(inspect.signature(self.network.forward).parameters)
        self.inputs = ("images",) if len(samples) == 1 else tuple(parameters[: len(samples)])
        try:
            with torch.inference_mode():
                found = self.network(*samples)
        except RuntimeError as error:
            raise ModelError(
                f"the network can't take images {tuple(samples[0].shape)}: {_first_line(error)}",
                hint="export it with the channels and the size that it was trained with",
            ) from error
        named = found if isinstance(found, Mapping) else {"logits": found}
        self.outputs = tuple(name for name, value in named.items() if isinstance(value, Tensor))
        return tuple(named[name] for name in self.outputs)

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        """The tensors that the module gives, in the order of `outputs`."""
        found = self.network(*images)
        return tuple(found[name] for name in self.outputs) if isinstance(found, Mapping) else (found,)

    def run(self, *images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name, as a session of the file gives them."""
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            found = self(*(torch.from_numpy(array) for array in images))
        return {name: value.numpy() for name, value in zip(self.outputs, found, strict=True)}


def check_target(target: Path) -> None:
    """Refuse what can't be written, and a machine that can't write it. Raises UsageError."""
    if target.suffix != SUFFIX:
        raise UsageError(
            f"{target.name!r} is no name of an ONNX file", hint=f"give --to a file name ending in {SUFFIX}"
        )
    files.check_target(target)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)


def capture(module: nn.Module, samples: Sequence[Tensor]) -> Network:
    """Trace a module as an ONNX model and compare it with torch on `samples`: each input's (B, C, H, W), float32.

    Networks that give maps of the images' size are also compared at another size. Raises ModelError for a network that
    can't be traced, that gives NaN, or whose ONNX model gives other numbers.
    """
    samples = [sample.detach().cpu().float() for sample in samples]
    whole = Named(module)
    expected = whole.name(samples)
    if not all(bool(torch.isfinite(value).all()) for value in expected):
        raise ModelError("what the network gives is not finite", hint="its first layer must replace NaN in images")
    fixed = "one height and width: the network does not give maps of its images alone"
    if all(value.ndim == 4 and value.shape[2:] == samples[0].shape[2:] for value in expected):
        try:
            return _captured(whole, samples, [samples, [_other_size(sample) for sample in samples]], "")
        except ModelError as error:
            fixed = f"one height and width, because with others {error.message}"
    return _captured(whole, samples, [samples], fixed)


def halved(model: Any) -> tuple[Any, dict[str, Any]]:
    """A copy with the weights of convolutions and matrix products in float16, and what the sidecar says of it.

    Inputs, outputs and computation stay float32: whatever runs the file widens the weights as it loads them. Statistics
    (of bands, of BatchNorm) stay as they are, since they easily leave the range of float16; so does a weight that does.
    """
    onnx = library("onnx")
    result = copy.deepcopy(model)
    graph = result.graph
    heavy = {name for node in graph.node if node.op_type in _PRODUCTS for name in node.input}
    casts, unchanged = [], []
    for tensor in graph.initializer:
        if tensor.name not in heavy or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        with np.errstate(over="ignore"):
            narrow = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(narrow).all():
            unchanged.append(tensor.name)
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(narrow, f"{name}.float16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.float16"], [name], f"widen.{name}", to=1))
    nodes = [*casts, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)
    return result, {"weights": "float16", "computed_in": "float32", "unchanged_weights": unchanged}


def write(model: Any, target: Path, sidecar: Mapping[str, Any]) -> list[Path]:
    """Write the file, with the sidecar in its metadata, and the sidecar beside it; both atomically."""
    onnx = library("onnx")
    whole = copy.deepcopy(model)
    onnx.helper.set_model_props(whole, {"sidecar": json.dumps(plain(dict(sidecar)), ensure_ascii=False)})
    write_bytes(target, whole.SerializeToString(deterministic=True))
    return [target, sidecars.write(target, sidecar)]


def compared(run: Any, module: Named, samples: Sequence[Tensor]) -> dict[str, Difference]:
    """How much of each output `run(*arrays)` and the module give differently.

    Raises ModelError if what `run` gives has another shape or is not finite.
    """
    images = [sample.numpy() for sample in samples]
    expected, found = module.run(*images), run(*images)
    differences = {}
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise ModelError(f"it gives {name} {found[name].shape} where torch gives {value.shape}", hint=_CONTROL)
        if not np.isfinite(found[name]).all():
            raise ModelError(f"what ONNX gives as {name} is not finite", hint="export it as float32")
        differences[name] = Difference(float(np.abs(found[name] - value).max()), float(np.abs(value).max()))
    return differences


def _captured(whole: Named, samples: Sequence[Tensor], trials: Sequence[Sequence[Tensor]], fixed: str) -> Network:
    model = _traced(whole, samples, any_size=not fixed)
    session = Session(model.SerializeToString())
    largest: dict[str, Difference] = {}
    for trial in trials:
        for count in {1, len(trial[0])}:
            part = [sample[:count] for sample in trial]
            for name, found in compared(session, whole, part).items():
                if not found.small:
                    raise ModelError(
                        f"the ONNX model differs from torch by {found.most:.1e} in {name} of images "
                        f"{tuple(part[0].shape)}, whose largest value is {found.largest:.1e}",
                        hint=_CONTROL,
                    )
                largest[name] = Difference(*map(max, found, largest.get(name, found)))
    return Network(model, whole, fixed, largest)


def _traced(whole: Named, samples: Sequence[Tensor], *, any_size: bool) -> Any:
    onnx = library("onnx")
    # Two images: torch takes a single one for a constant of the network.
    trial = tuple(sample[[0, min(1, len(sample) - 1)]] for sample in samples)
    sizes = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if any_size else {}
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                whole, trial, dynamic_shapes=(tuple({0: Dim.DYNAMIC, **sizes} for _ in trial),), strict=False
            )
            made = torch.onnx.export(
                program, input_names=list(whole.inputs), output_names=list(whole.outputs), dynamo=True, verbose=False,
                external_data=False, optimize=len(program.graph.nodes) <= _REWRITTEN,
            )  # fmt: skip
            assert made is not None
            if len(program.graph.nodes) > _REWRITTEN:
                optimizer = library("onnxscript.optimizer")
                optimizer.fold_constants(made.model)
                optimizer.remove_unused_nodes(made.model)
            model = made.model_proto
        _tidy(model, any_size)
        onnx.checker.check_model(model, full_check=True)
    except (*_UNTRACEABLE, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"this model can't be exported to ONNX: {_first_line(error)}",
            hint=f"{_CONTROL}; or export its weights: --to model.safetensors",
        ) from error
    return model


def _tidy(model: Any, any_size: bool) -> None:
    """Leave out where in whose source each node came from, and name the axes for people."""
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, graph, model):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        axes[0].dim_param = "batch"
        if any_size:
            axes[2].dim_param, axes[3].dim_param = "height", "width"
    graph.name = "network"
    model.producer_name = "outlast"
    model.producer_version = ""


def _other_size(sample: Tensor) -> Tensor:
    """The images cut to sizes that no network can halve often."""
    height, width = sample.shape[2:]
    return sample[:, :, : height - height // 3 | 1, : width - width // 4 | 1]


def _described(value: Any) -> dict[str, Any]:
    axes = value.type.tensor_type.shape.dim
    return {"name": value.name, "type": "float32", "shape": [axis.dim_param or axis.dim_value for axis in axes]}


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
