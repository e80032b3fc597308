"""The packages that read and write ONNX, which are optional: without them, what they raise, what they print."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from outlast.errors import UsageError


def library(name: str) -> Any:
    """A module of onnx or onnxruntime, which reports to nobody. Raises UsageError that says what to install."""
    # ONNX Runtime 1.29 and later report their use over the network, from the import on, unless they are told not to
    # before it. Whoever wants that sets the variable to 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"to write ONNX a package is needed that is not installed: {error}",
            hint="pip install onnx onnxscript onnxruntime",
        ) from error


def failures() -> tuple[type[Exception], ...]:
    """What onnx and onnxruntime raise: most of their exceptions have no common base."""
    state = library("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception)]
    onnx = library("onnx")
    checks = (library("onnx.checker").ValidationError, library("onnx.shape_inference").InferenceError)
    return (*own, *checks, onnx.parser.ParseError, RuntimeError, ValueError, TypeError, KeyError, IndexError)


@contextmanager
def quiet() -> Iterator[None]:
    """What torch and ONNX Runtime tell of their own insides while they convert is not for whoever exports a model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)
