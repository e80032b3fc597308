"""An ONNX model in 8-bit integers: weights of convolutions and matrix products, and what goes into them.

Dynamic: the range of what goes in is measured in each run, so that no images are needed beforehand. Static: it is
measured once, on calibration images, and is then part of the file; convolutions are faster that way. Everything else
(normalisation of raw bands, NaN, softmax, sums) stays float32, and so do inputs and outputs. Weights have a scale for
each channel. Both are done by onnxruntime.quantization.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlast.errors import ModelError
from outlast.export.onnx_library import failures, library, quiet

KINDS = ("dynamic", "static")
_OPERATORS = ["Conv", "Gemm", "MatMul"]
_QUANTISED = {"QuantizeLinear", "DynamicQuantizeLinear"}


def dynamic(model: Any) -> Any:
    """The model with ranges measured in each run. Raises ModelError."""
    quantization = library("onnxruntime.quantization")

    def quantise(source: Path, target: Path) -> None:
        # ONNX Runtime computes convolutions of unsigned weights several times faster than of signed ones.
        quantization.quantize_dynamic(
            source, target, op_types_to_quantize=_OPERATORS, per_channel=True,
            weight_type=quantization.QuantType.QUInt8,
        )  # fmt: skip

    return _quantised(model, quantise)


def static(model: Any, calibration: Sequence[Mapping[str, np.ndarray]]) -> Any:
    """The model with ranges measured on `calibration`: {input: (B, C, H, W)} of each batch. Raises ModelError."""
    quantization = library("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.batches, None)

    def quantise(source: Path, target: Path) -> None:
        quantization.quantize_static(
            source, target, Reader(), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=_OPERATORS,
            per_channel=True, activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip

    return _quantised(model, quantise)


def _quantised(model: Any, quantise: Callable[[Path, Path], None]) -> Any:
    onnx = library("onnx")
    prepare = library("onnxruntime.quantization.shape_inference").quant_pre_process
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, prepared, result = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "result"))
        plain.write_bytes(model.SerializeToString())
        try:
            prepare(plain, prepared, skip_symbolic_shape=True)  # BatchNorm becomes part of convolutions
            _without_shapes(prepared)
            quantise(prepared, result)
            found = onnx.load(result)
        except failures() as error:
            raise ModelError(
                f"ONNX Runtime can't make 8-bit integers of this model: {str(error).strip().splitlines()[0]}",
                hint="export it with --half, or as it is",
            ) from error
    if not _QUANTISED & {node.op_type for node in found.graph.node}:
        raise ModelError("the model has no convolution and no matrix product to make 8-bit integers of")
    found.graph.ClearField("value_info")
    used = {node.domain for node in found.graph.node}
    kept = [item for item in found.opset_import if item.domain in used]
    found.ClearField("opset_import")
    found.opset_import.extend(kept)
    found.producer_name, found.producer_version = model.producer_name, model.producer_version
    return found


def _without_shapes(path: Path) -> None:
    """Forget shapes in between: the quantiser turns matrices, and then finds that they differ from what was noted."""
    onnx = library("onnx")
    model = onnx.load(path)
    model.graph.ClearField("value_info")
    onnx.save(model, path)
