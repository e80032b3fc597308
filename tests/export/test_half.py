"""Weights in half precision: half the file, statistics untouched, and the same classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from outlast.export.weights import export
from outlast.model.segmenter import SegmenterSettings, build, deployed

CHANNELS, CLASSES = 5, 4
MEAN, STD = (1e5, 2e4, 300.0, 4.0, 1e-9), (1e5, 3e4, 20.0, 1e-9, 1.0)  # beyond what float16 can hold


def segmenter(encoder: str, depth: int = 5) -> torch.nn.Module:
    """A U-Net as deployed, its BatchNorm statistics moved away from where they begin."""
    torch.manual_seed(0)
    module = build(SegmenterSettings(encoder=encoder, depth=depth), CHANNELS, CLASSES, MEAN, STD)
    with torch.no_grad():
        for _ in range(3):
            module(raw(seed=1))
    return deployed(module.eval())


def raw(seed: int, side: int = 64) -> torch.Tensor:
    noise = torch.randn(4, CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))
    return noise * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


def test_a_resnet34_unet_in_half_precision_takes_less_than_50_megabytes_and_finds_the_same_classes(
    tmp_path: Path,
) -> None:
    module = segmenter("resnet34")
    path, _ = export(module, tmp_path / "model.safetensors", {}, half=True)
    assert 49e6 < path.stat().st_size < 50e6
    widened = segmenter("resnet34")
    widened.load_state_dict(load_file(path))
    assert all(parameter.dtype == torch.float32 for parameter in widened.parameters())
    with torch.inference_mode():
        expected, found = module(raw(seed=2)).argmax(dim=1), widened(raw(seed=2)).argmax(dim=1)
    assert len(expected.unique()) > 1, "one class everywhere would make any comparison pass"
    assert (expected == found).float().mean() > 0.995


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_statistics_keep_their_precision_and_the_sidecar_says_what_was_halved(tmp_path: Path, suffix: str) -> None:
    module = segmenter("resnet18", depth=3)
    with torch.no_grad():
        module.net.head[0].bias[0] = 1e6
    path, beside = export(module, tmp_path / f"model{suffix}", {"task": "glaciers"}, half=True)
    written = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    whole = module.state_dict()
    assert set(written) == set(whole)
    assert all(torch.equal(written[name], buffer) for name, buffer in module.named_buffers())
    narrow = {name for name, tensor in written.items() if tensor.dtype == torch.float16}
    assert narrow == {name for name, _ in module.named_parameters()} - {"net.head.0.bias"}
    assert torch.equal(written["net.head.0.bias"], whole["net.head.0.bias"])
    sidecar = json.loads(beside.read_text())
    assert sidecar["task"] == "glaciers"
    assert sidecar["precision"] == {
        "parameters": "float16",
        "buffers": "unchanged",
        "unchanged_parameters": ["net.head.0.bias"],
    }


def test_without_half_nothing_is_narrowed(tmp_path: Path) -> None:
    module = segmenter("resnet18", depth=3)
    path, beside = export(module, tmp_path / "model.safetensors", {})
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in load_file(path).items())
    assert "precision" not in json.loads(beside.read_text())
