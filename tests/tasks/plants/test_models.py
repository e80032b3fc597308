"""The three rungs: pinned shapes, independent samples, sizes, and gradients everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from outlast.errors import ModelError
from outlast.tasks.plants.models import OWN, SClusterFormer, SClusterFormerSettings, build

LIGHT = SClusterFormerSettings(stem_scales=(1.0,), stem_channels=8, dims=(8,), depths=(1,), heads=(2,))
STAGES = [
    LIGHT,
    SClusterFormerSettings(
        stem_scales=(1.0,), stem_channels=8, patches="overlap", dims=(8, 16), depths=(1, 2), heads=(2, 4),
        token_limit=256, local=True,
    ),
    SClusterFormerSettings(
        stem_scales=(1.0, 5 / 3), stem_channels=8, dims=(8, 16, 24), depths=(1, 1, 1), heads=(2, 4, 4)
    ),
]  # fmt: skip


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def models() -> list[nn.Module]:
    torch.manual_seed(0)
    return [*(SClusterFormer(4, settings) for settings in STAGES), build("minimal", 4), build("tiny", 4)]


def test_the_default_dimension_flow_is_pinned() -> None:
    torch.manual_seed(0)
    model = build("sclusterformer", 4).eval()
    assert isinstance(model, SClusterFormer)
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> object:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            shapes[f"{name} in"] = tuple(inputs[0].shape)
            shapes[name] = tuple(output.shape)

        return hook

    for name in ("stem", "patch_norm", "spectral", "spatial", "fusion", "head"):
        model.get_submodule(name).register_forward_hook(record(name))  # type: ignore[arg-type]
    model(torch.randn(2, 3, 64, 64))
    assert shapes["stem in"] == (2, 3, 64, 64)
    assert shapes["stem"] == (2, 64, 64, 64)
    assert shapes["patch_norm"] == (2, 256, 32)
    assert shapes["spectral in"] == shapes["spatial in"] == (2, 64, 32)
    assert shapes["spectral"] == shapes["spatial"] == (2, 64, 32)
    assert shapes["fusion"] == (2, 32)
    assert shapes["head"] == (2, 4)


@pytest.mark.parametrize("size", [(64, 64), (32, 80), (36, 20), (96, 16)])
@pytest.mark.parametrize("index", range(len(STAGES) + 2))
def test_any_size_square_or_not(index: int, size: tuple[int, int]) -> None:
    model = models()[index].eval()
    with torch.no_grad():
        result = model(torch.randn(2, 3, *size))
    assert result.shape == (2, 4) and result.isfinite().all()


@pytest.mark.parametrize("index", range(len(STAGES) + 2))
def test_permuting_the_batch_permutes_the_outputs_and_nothing_else(index: int) -> None:
    # Double precision: the kernels chosen for one image and for five differ in single precision.
    model = models()[index].eval().double()
    images = torch.randn(5, 3, 32, 48, dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    with torch.no_grad():
        torch.testing.assert_close(model(images[order]), model(images)[order], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(model(images[:1]), model(images)[:1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("index", range(len(STAGES) + 2))
def test_the_gradient_reaches_every_parameter(index: int) -> None:
    model = models()[index].train()
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_sclusterformer_returns_log_probabilities() -> None:
    model = SClusterFormer(4, LIGHT).eval()
    result = model(torch.randn(3, 3, 16, 16))
    torch.testing.assert_close(result.exp().sum(-1), torch.ones(3))
    torch.testing.assert_close(nn.functional.log_softmax(result, dim=-1), result)


def test_minimal_and_tiny_keep_their_size() -> None:
    for classes in (2, 3, 4, 10, 38):
        assert 45_000 <= parameter_count(build("minimal", classes)) <= 55_000
    for classes in (2, 3, 4, 10):
        assert parameter_count(build("tiny", classes)) <= 6_000


@pytest.mark.parametrize("name", OWN)
def test_every_rung_learns_two_colours(name: str) -> None:
    torch.manual_seed(0)
    model = SClusterFormer(2, LIGHT) if name == "sclusterformer" else build(name, 2)
    labels = torch.arange(16) % 2
    images = torch.randn(16, 3, 32, 32) * 0.3
    images[:, 0] += (labels * 2 - 1)[:, None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss.detach()) < 0.1


def test_other_names_are_timm_models() -> None:
    assert build("test_resnet", 3).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ModelError) as caught:
        build("sclusterfomer", 3)
    assert "did you mean sclusterformer" in (caught.value.hint or "")


def test_own_models_refuse_what_they_cannot_follow() -> None:
    with pytest.raises(ModelError, match="pretrained"):
        build("tiny", 3, pretrained=True)
    with pytest.raises(ModelError, match="settings"):
        build("minimal", 3, settings=LIGHT)
    with pytest.raises(ModelError, match="stride 4"):
        SClusterFormer(3, LIGHT)(torch.randn(1, 3, 30, 32))


@pytest.mark.parametrize(
    "options",
    [
        {"dims": (8, 16)},
        {"dims": (8,) * 4, "depths": (1,) * 4, "heads": (1,) * 4},
        {"dims": (30,), "heads": (4,)},
        {"patches": "round"},
        {"patches": "overlap", "patch_stride": 6},
    ],
)
def test_impossible_settings_are_errors(options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="sclusterformer"):
        SClusterFormerSettings(**options)  # type: ignore[arg-type]
