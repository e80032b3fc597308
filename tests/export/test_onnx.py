"""An ONNX file gives what torch gives, says where it comes from, and its smaller forms find nearly the same."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import outlast
from outlast.errors import ModelError, RunError, UsageError
from outlast.export import onnx_int8
from outlast.export.onnx import TOLERANCE, Network, capture, compared, halved
from outlast.export.onnx_session import Session
from outlast.export.sidecar import path_of
from outlast.model import latency
from outlast.model.segmenter import SegmenterSettings, build, deployed
from outlast.plan.deliver import Delivered
from outlast.tasks.glaciers.use import Averaged

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CHANNELS, CLASSES = 5, 4
MEAN, STD = (1e5, 2e4, 300.0, 4.0, 1e-9), (1e5, 3e4, 20.0, 1e-9, 1.0)  # beyond what float16 can hold


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("onnx") / "run"
    settings = ["model.name=minimal", "train.epochs=2", "data.image_size=32", "train.threads=1"]
    outlast.train("plants", preset="smoke", synthetic=True, out=run, overrides=settings)
    return run


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    """The trained classifier as a file, alone in a folder with its sidecar."""
    folder = trained.parent / "exported"
    result = outlast.export_weights(trained, folder / "model.onnx")
    assert result["files"] == [str(folder / "model.onnx"), str(folder / "model.onnx.json")]
    return folder / "model.onnx"


@pytest.fixture
def gone(trained: Path, tmp_path: Path) -> Path:
    """The trained run, whose data are no longer where they were."""
    run = tmp_path / "gone" / "run"
    shutil.copytree(trained, run)
    record = json.loads((run / "run.json").read_text())
    record["data"]["classifier"]["path"] = str(tmp_path / "nowhere")
    (run / "run.json").write_text(json.dumps(record))
    return run


def segmenter(seed: int = 0) -> nn.Module:
    """A small U-Net as deployed, its normalisation moved away from where it begins."""
    torch.manual_seed(seed)
    module = build(SegmenterSettings(encoder="plain", width=8, depth=3), CHANNELS, CLASSES, MEAN, STD)
    with torch.no_grad():
        for number in range(3):
            module(raw(seed=number))
        module.net.head.weight *= 50  # so that pixels differ in their class
        module.net.head.bias.zero_()
    return deployed(module.eval())


@pytest.fixture(scope="module")
def network() -> Network:
    return capture(segmenter(), [raw()])


def raw(count: int = 4, side: int = 48, seed: int = 9) -> torch.Tensor:
    """Bands with gaps, in their own units."""
    noise = torch.randn(count, CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))
    images = noise * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    images[:, :, : side // 4, : side // 3] = torch.nan
    return images


def logits(model: Any, images: torch.Tensor) -> np.ndarray:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images.numpy()})
    return np.asarray(found)


def test_a_classifier_comes_back_as_it_was_with_its_provenance_inside(trained: Path, exported: Path) -> None:
    assert sorted(path.name for path in exported.parent.iterdir()) == ["model.onnx", "model.onnx.json"]
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    sidecar = json.loads(path_of(exported).read_text())
    assert json.loads(model.metadata_props[0].value) == sidecar
    record = json.loads((trained / "run.json").read_text())
    assert sidecar["synthetic"] is True
    assert (sidecar["task"], sidecar["config_hash"]) == ("plants", record["config_hash"])
    assert sidecar["data"] == {"classifier": record["data"]["classifier"]["fingerprint"]}
    assert sidecar["onnx"]["opset"] == {"ai.onnx": model.opset_import[0].version}
    assert sidecar["onnx"]["inputs"] == [{"name": "images", "type": "float32", "shape": ["batch", 3, 32, 32]}]
    split = pd.read_csv(trained / "split.csv").set_index("id")["split"]
    assert set(split[sidecar["onnx"]["compared_with_torch"]["images"]]) == {"test"}
    assert sidecar["onnx"]["compared_with_torch"]["largest_difference"] <= TOLERANCE
    module = Delivered(trained).module().eval()
    for count in (1, 7):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = module(images).numpy()
        assert np.abs(logits(exported.read_bytes(), images) - expected).max() <= 1e-4


def test_the_file_names_no_path_of_the_machine_on_which_it_was_written(exported: Path) -> None:
    data = exported.read_bytes()
    assert b".py" not in data
    assert str(Path(outlast.__file__).parent).encode() not in data


def test_a_segmenter_takes_any_number_and_size_of_images_with_gaps(network: Network) -> None:
    module = segmenter()
    assert network.fixed == ""
    assert network.describe()["inputs"][0]["shape"] == ["batch", CHANNELS, "height", "width"]
    for count, side in ((1, 48), (3, 64), (2, 37)):
        images = raw(count, side)
        with torch.inference_mode():
            expected = module(images).numpy()
        found = logits(network.model, images)
        assert len(np.unique(expected.argmax(axis=1))) > 1
        assert np.abs(found - expected).max() <= 1e-4


def test_several_members_become_one_file_of_log_probabilities() -> None:
    module = Averaged([segmenter(0), segmenter(1)])
    network = capture(module, [raw()])
    found = logits(network.model, raw(2, 40))
    assert np.allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
    with torch.inference_mode():
        assert np.abs(found - module(raw(2, 40)).numpy()).max() <= 1e-4


def test_smaller_forms_of_a_segmenter_survive_gaps_and_raw_units(network: Network) -> None:
    whole = len(network.model.SerializeToString())
    expected = logits(network.model, raw(seed=3)).argmax(axis=1)
    half, precision = halved(network.model)
    onnx.checker.check_model(half, full_check=True)
    assert precision["unchanged_weights"] == []
    forms = {
        0.6: (half, 0.998),
        0.5: (onnx_int8.dynamic(network.model), 0.95),
        0.45: (onnx_int8.static(network.model, [{"images": raw(seed=seed).numpy()} for seed in range(4)]), 0.95),
    }
    for share, (model, agree) in forms.items():
        onnx.checker.check_model(model)
        assert len(model.SerializeToString()) < share * whole
        found = logits(model, raw(seed=3))
        assert np.isfinite(found).all()
        assert (found.argmax(axis=1) == expected).mean() > agree


def test_a_weight_beyond_float16_stays_as_it_is() -> None:
    module = segmenter()
    with torch.no_grad():
        module.net.head.weight[0, 0] = 1e6
    network = capture(module, [raw()])
    half, precision = halved(network.model)
    assert precision["unchanged_weights"] == ["network.net.head.weight"]
    compared(Session(half.SerializeToString()), network.module, [raw()])


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(1, 1, 48, 48))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.nan_to_num() * 1e-6 + self.prior


class Branching(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.nan_to_num()
        return images.mean(dim=(2, 3)) if float(images.sum()) > 0 else images.amax(dim=(2, 3))


class Gaps(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * 2


class Two(nn.Module):
    def forward(self, rgb: torch.Tensor, ir: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": rgb.mean(dim=(2, 3)), "features": ir.amax(dim=(2, 3))}


def test_a_network_of_one_size_keeps_it_and_says_why() -> None:
    network = capture(OneSize(), [raw()])
    assert network.fixed.startswith("one height and width, because with others")
    assert network.describe()["inputs"][0]["shape"] == ["batch", CHANNELS, 48, 48]
    assert logits(network.model, raw(3)).shape == (3, CHANNELS, 48, 48)


def test_several_inputs_and_outputs_keep_their_names() -> None:
    network = capture(Two(), [torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)])
    facts = network.describe()
    assert [value["name"] for value in facts["inputs"]] == ["rgb", "ir"]
    assert [value["name"] for value in facts["outputs"]] == ["logits", "features"]


@pytest.mark.parametrize(("module", "says"), [(Branching(), "can't be exported to ONNX"), (Gaps(), "not finite")])
def test_what_can_not_be_exported_is_said(module: nn.Module, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        capture(module, [raw()])


def test_numbers_that_differ_from_torch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Session.__call__

    def wrong(self: Session, *images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value + 0.01 for name, value in right(self, *images).items()}

    monkeypatch.setattr(Session, "__call__", wrong)
    with pytest.raises(ModelError, match=r"differs from torch by 1\.0e-02"):
        capture(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), [torch.rand(2, 3, 8, 8)])


def test_static_integers_are_calibrated_on_training_images_which_are_named(
    trained: Path, gone: Path, exported: Path, tmp_path: Path
) -> None:
    there = json.loads((trained / "run.json").read_text())["data"]["classifier"]["path"]
    outlast.export_weights(gone, tmp_path / "small.onnx", int8="static", data=there)
    sidecar = json.loads((tmp_path / "small.onnx.json").read_text())["onnx"]
    split = pd.read_csv(trained / "split.csv").set_index("id")["split"]
    assert sidecar["precision"]["weights"] == "int8"
    assert len(sidecar["calibration"]["images"]) > 10
    assert set(split[sidecar["calibration"]["images"]]) == {"train"}
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, found = (logits(path.read_bytes(), images) for path in (exported, tmp_path / "small.onnx"))
    assert np.abs(found - expected).max() < 0.2 * np.ptp(expected)


def test_a_comparison_scores_every_form_on_the_test_split(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "FEWEST", 2)
    monkeypatch.setattr(latency, "MOST", 3)
    result = outlast.export_weights(trained, tmp_path / "model.onnx", compare=True)
    table = json.loads((tmp_path / "model.comparison.json").read_text())
    assert result["files"][-1] == str(tmp_path / "model.comparison.json")
    names = ["torch float32", "onnx float32", "onnx float16", "onnx int8 dynamic", "onnx int8 static"]
    assert [row["model"] for row in table["models"]] == names
    scores = json.loads((trained / "scores" / "metrics.json").read_text())
    expected = scores["metrics"]["balanced_accuracy"] if "metrics" in scores else scores["balanced_accuracy"]
    assert table["models"][0]["score"] == pytest.approx(expected, abs=1e-6)
    assert table["models"][1]["score"] == pytest.approx(expected, abs=1e-6)
    assert table["models"][1]["bytes"] > table["models"][2]["bytes"] > table["models"][3]["bytes"]
    assert all(row["latency"]["1"]["calls"] == 3 for row in table["models"])
    assert table["rows"]["which"] == "test"
    assert table["synthetic"] is True
    assert "SYNTHETIC" in result["text"]
    assert "FAILED" not in result["text"]


def test_without_the_data_made_inputs_serve_and_what_needs_data_is_refused(
    gone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outlast.export_weights(gone, tmp_path / "model.onnx")
    assert "made inputs" in capsys.readouterr().err
    sidecar = json.loads((tmp_path / "model.onnx.json").read_text())["onnx"]
    assert sidecar["compared_with_torch"]["images"].startswith("made")
    with pytest.raises(RunError, match="--int8 static needs the data"):
        outlast.export_weights(gone, tmp_path / "small.onnx", int8="static")
    assert not (tmp_path / "small.onnx").exists()


def test_wrong_wishes_are_refused_before_the_run_is_opened(tmp_path: Path) -> None:
    none = tmp_path / "no-run"
    with pytest.raises(UsageError, match="exclude each other"):
        outlast.export_weights(none, tmp_path / "model.onnx", half=True, int8="dynamic")
    with pytest.raises(UsageError, match="'tiny' is not known"):
        outlast.export_weights(none, tmp_path / "model.onnx", int8="tiny")
    with pytest.raises(UsageError, match=r"do not go with 'model\.pth'"):
        outlast.export_weights(none, tmp_path / "model.pth", compare=True)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match="folder"):
        outlast.export_weights(none, tmp_path / "folder.onnx")


def test_a_missing_package_is_one_sentence_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError) as caught:
        outlast.export_weights(tmp_path, tmp_path / "model.onnx")
    assert "not installed" in caught.value.message
    assert "pip install" in (caught.value.hint or "")
