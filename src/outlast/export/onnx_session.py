"""An ONNX file at work: a session of ONNX Runtime, and a module in front of it that a learner can predict with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.errors import ModelError
from outlast.export.onnx_library import failures, library

Run = Callable[..., dict[str, np.ndarray]]  # arrays, one for each input, to {output: array}
Shapes = Sequence[Sequence[int | str]]  # of each input, "batch" first; words for sizes that may be any


class Session:
    """An ONNX model on the CPU; threads: of an operator, all cores if None. Raises ModelError."""

    def __init__(self, model: bytes, threads: int | None = None) -> None:
        runtime = library("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        # Threads that spin while they wait take cores from whatever else runs, another session that is compared too.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except failures() as error:
            raise ModelError(
                f"ONNX Runtime {runtime.__version__} can't run this model: {str(error).strip().splitlines()[0]}",
                hint="take a newer onnxruntime, or another precision",
            ) from error
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, *images: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name."""
        found = self._session.run(self._outputs, dict(zip(self._inputs, images, strict=True)))
        return dict(zip(self._outputs, found, strict=True))


class StandIn(nn.Module):
    """Takes the place of a trained module in a learner's `predict`, and lets `run` compute.

    shapes: what inputs are enlarged to; maps of them are cut back. mapping: whether the trained module gives a mapping;
    else it gives one tensor.
    """

    def __init__(self, run: Run, shapes: Shapes, *, mapping: bool) -> None:
        super().__init__()
        self._run, self._shapes, self._mapping = run, shapes, mapping

    def forward(self, *images: Tensor) -> Any:
        """The outputs, on the device of the images."""
        large = enlarged([value.detach().cpu().float() for value in images], self._shapes)
        found = self._run(*(value.numpy() for value in large))
        sizes, whole = images[0].shape[2:], large[0].shape[2:]
        outputs = {
            name: _cut(torch.from_numpy(value), sizes, whole).to(images[0].device) for name, value in found.items()
        }
        return outputs if self._mapping else next(iter(outputs.values()))


def enlarged(images: Sequence[Tensor], shapes: Shapes) -> tuple[Tensor, ...]:
    """Inputs with zeros below and to the right of them, up to those of the sizes in `shapes` that are numbers."""
    result = []
    for value, shape in zip(images, shapes or [()] * len(images), strict=True):
        beyond: list[int] = []
        for size, wanted in zip(value.shape[1:], shape[1:], strict=False):
            beyond = [0, max(0, wanted - size) if isinstance(wanted, int) else 0, *beyond]
        result.append(F.pad(value, beyond))
    return tuple(result)


def _cut(output: Tensor, sizes: Sequence[int], whole: Sequence[int]) -> Tensor:
    """The part of a map (of any resolution) that is no enlargement; what is no map as it is."""
    if output.ndim < 3 or tuple(sizes) == tuple(whole):
        return output
    rows, columns = (-(-size * of // most) for size, of, most in zip(sizes, output.shape[-2:], whole, strict=True))
    return output[..., :rows, :columns]
