"""What every task delivers becomes an ONNX file that gives what torch gives, on images of the run's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import outlast
from outlast import task as tasks
from outlast.config.load import resolve
from outlast.export.sidecar import path_of
from outlast.plan import onnx as exporting
from outlast.plan.deliver import Delivered
from outlast.task import Stage

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

REAL = {
    "plants": "plants/potato",
    "glaciers": "glaciers/everest",
    "lesions": "lesions/isic",
    "forgeries": "forgeries/crops256",
    "wildfires": "wildfires/flame",
}
SMALLEST = {"forgeries": ["data.samples=16"], "lesions": ["quick.epochs=1"], "wildfires": ["teacher.train.epochs=1"]}
CLOSE = 1e-4


def trained(name: str, folder: Path, data: Path | None = None) -> Path:
    """A run of the smoke preset that has trained what the task delivers, and nothing else, for an epoch."""
    task = tasks.find(name)
    settings = [*task.quick, "train.epochs=1", "train.threads=1", *SMALLEST.get(name, [])]
    given: dict[str, Any] = {"data": data} if data else {"synthetic": True}
    given |= {"preset": "smoke", "out": folder / "run", "overrides": settings}
    config, _ = resolve(task.config, task.presets, "smoke", overrides=settings)
    for stage in needed(task.stages(config), task.deliver(config).models):
        outlast.train(name, stage=stage, **given)
    return folder / "run"


def needed(stages: list[Stage], wanted: tuple[str, ...]) -> list[str]:
    """The names of these stages and of all that they need, in an order that can be trained in."""
    by_name, found = {stage.name: stage for stage in stages}, []
    for name in wanted:
        found += [*needed(stages, by_name[name].needs), name]
    return list(dict.fromkeys(found))


def exported(run: Path, file: Path) -> tuple[Any, dict[str, Any]]:
    """A session of the exported file, opened as a user would, and what the sidecar says about ONNX."""
    outlast.export_weights(run, file)
    return runtime.InferenceSession(file, providers=["CPUExecutionProvider"]), json.loads(path_of(file).read_text())


def differences(run: Path, session: Any, sidecar: dict[str, Any], count: int) -> dict[str, float]:
    """The largest difference of each output between ONNX Runtime and torch, on so many judged images of the run."""
    opened = Delivered(run)
    source = exporting._data(opened, exporting.Wish(run / "any.onnx"), exporting._shapes(sidecar))
    assert source is not None
    (inputs,) = source.inputs(source.rows("judged")[:count])
    assert {len(value) for value in inputs} == {count}
    with torch.inference_mode():
        expected = opened.module().eval()(*inputs)
    known = list(expected.values()) if isinstance(expected, dict) else [expected]
    given = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    names = [value.name for value in session.get_outputs()]
    found = session.run(names, given)
    assert [value.shape for value in found] == [tuple(value.shape) for value in known]
    return {
        name: float(np.abs(one - other.numpy()).max()) for name, one, other in zip(names, found, known, strict=True)
    }


def check(run: Path, file: Path) -> dict[str, Any]:
    """Compare the exported file with torch, one image and three at a time; returns what the sidecar says about ONNX."""
    session, sidecar = exported(run, file)
    for count in (1, 3):
        found = differences(run, session, sidecar, count)
        assert max(found.values()) <= CLOSE, (count, found)
    about = sidecar["onnx"]
    assert about["opset"]["ai.onnx"] == onnx.load(file).opset_import[0].version
    assert about["versions"]["onnxruntime"] == runtime.__version__
    compared = about["compared_with_torch"]
    assert compared["count"] == len(compared["images"]) >= 2
    assert {output["name"] for output in about["outputs"]} == set(compared["outputs"])
    assert 0 <= compared["largest_difference"] <= CLOSE
    assert all(value["shape"][0] == "batch" for value in (*about["inputs"], *about["outputs"]))
    return dict(about)


@pytest.mark.parametrize("name", sorted(tasks.names()))
def test_what_a_task_delivers_is_the_same_in_onnx(name: str, tmp_path: Path) -> None:
    check(trained(name, tmp_path), tmp_path / "best.onnx")


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(REAL))
def test_what_a_task_delivers_is_the_same_in_onnx_on_real_images(name: str, real_data: Path, tmp_path: Path) -> None:
    about = check(trained(name, tmp_path, real_data / REAL[name]), tmp_path / "best.onnx")
    assert about["compared_with_torch"]["split"] is not None
