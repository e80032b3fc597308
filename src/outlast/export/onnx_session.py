"""An ONNX file at work: a session of ONNX Runtime, and a module in front of it that a learner can predict with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outlast.errors import ModelError
from outlast.export.onnx_library import failures, library

Run = Callable[..., dict[str, np.ndarray]]  # arrays, one for each input, to {output: array}


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

    mapping: whether the trained module gives a mapping; else it gives one tensor.
    """

    def __init__(self, run: Run, *, mapping: bool) -> None:
        super().__init__()
        self._run, self._mapping = run, mapping

    def forward(self, *images: Tensor) -> Any:
        """The outputs, on the device of the images."""
        found = self._run(*(value.detach().cpu().float().numpy() for value in images))
        outputs = {name: torch.from_numpy(value).to(images[0].device) for name, value in found.items()}
        return outputs if self._mapping else next(iter(outputs.values()))
