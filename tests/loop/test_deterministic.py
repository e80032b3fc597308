"""What does not repeat on CUDA is seen in a step on any device, named, and refused where it is forbidden."""

import os

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from outlast.errors import TrainingError
from outlast.loop.deterministic import check, for_record, prepare, watch
from outlast.tasks.plants.models import build

CLASSES = torch.zeros(2, 8, 8, dtype=torch.long)
PLACES = torch.tensor([0, 0, 1])


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()


def names(forward, exact=False):
    """The readable names of what a forward and a backward pass use."""
    with watch(exact) as seen:
        result = forward(images())
        if result.requires_grad:
            result.sum().backward()
    return for_record(sorted(seen.operations), "cuda", exact=exact)


@pytest.fixture(autouse=True)
def settings_of_torch(monkeypatch):
    """Whatever a test sets is put back."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("grid_sample", lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False)),
        ("interpolate (bilinear)", lambda x: F.interpolate(x, (5, 5), mode="bilinear")),
        ("interpolate (bicubic)", lambda x: F.interpolate(x, (5, 5), mode="bicubic")),
        ("interpolate (bilinear with antialias)", lambda x: F.interpolate(x, 5, mode="bilinear", antialias=True)),
        ("interpolate (linear)", lambda x: F.interpolate(x[0], 5, mode="linear")),
        ("interpolate (trilinear)", lambda x: F.interpolate(x[None], (5, 5, 5), mode="trilinear")),
        ("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 3)),
        ("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 3)),
        ("avg_pool3d", lambda x: F.avg_pool3d(x, 2)),
        ("max_unpool", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
        ("reflection padding", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
        ("replication padding", lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate")),
        ("cumsum", lambda x: x.cumsum(0)),
        ("cumsum", lambda x: x.detach().cumsum_(0)),
        ("index_add", lambda x: torch.zeros(2, 3, 8, 8).index_add_(1, PLACES, x)),
        ("index_add", lambda x: x.index_select(1, PLACES)),
        ("scatter_add", lambda x: x.gather(0, torch.zeros(2, 3, 8, 8, dtype=torch.long))),
        ("scatter that adds", lambda x: x.detach().scatter(1, CLASSES[:, None], 1.0, reduce="add")),
        ("embedding", lambda x: F.embedding(PLACES, x.reshape(-1, 8))),
        ("embedding_bag (max)", lambda x: F.embedding_bag(PLACES[None], x.reshape(-1, 8), mode="max")),
        ("cross_entropy or nll_loss over pixels", lambda x: F.cross_entropy(x, CLASSES)),
        ("median", lambda x: x.median(0).values),
        ("bincount", lambda x: PLACES.bincount(x.detach().flatten()[:3])),
        ("scaled_dot_product_attention", lambda x: F.scaled_dot_product_attention(x, x, x)),
        ("roi_pool", lambda x: torchvision.ops.roi_pool(x, torch.tensor([[0.0, 0, 0, 4, 4]]), 3)),
        ("deform_conv2d", lambda x: torchvision.ops.deform_conv2d(x, torch.zeros(2, 18, 6, 6), torch.ones(4, 3, 3, 3))),
    ],
)  # fmt: skip
def test_an_operation_is_found_forward_or_backward(name, forward):
    found = names(forward)
    assert any(each.startswith(name) for each in found), found


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.interpolate(x, (5, 5), mode="nearest"),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3)),
        lambda x: F.pad(x, (1, 1, 1, 1)),
        lambda x: F.cross_entropy(x, CLASSES, reduction="none"),
        lambda x: F.cross_entropy(x.mean((2, 3)), PLACES[:2]),
        lambda x: CLASSES.cumsum(0) * x.sum(),
        lambda x: PLACES.bincount() * x.sum(),
        lambda x: x.detach().median() * x.sum(),
        lambda x: x.max(0).values,
        lambda x: torch.zeros_like(x).scatter(0, CLASSES[:, None], 1.0) * x,
        lambda x: F.embedding_bag(PLACES[None], x.detach().reshape(-1, 8), mode="max"),
        lambda x: F.batch_norm(x, None, None, training=True),
    ],
)  # fmt: skip
def test_what_repeats_is_not_accused(forward):
    assert names(forward) == []


def test_without_a_gradient_sampling_repeats():
    with torch.no_grad():
        assert names(lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False)) == []


@pytest.mark.parametrize(
    ("model", "uses"),
    [
        ("tiny", []),
        ("minimal", ["adaptive_avg_pool2d (to more than 1x1)"]),
        ("sclusterformer", ["adaptive_avg_pool2d (to more than 1x1)", "grid_sample (sampling at given places)",
                            "interpolate (bilinear)", "scaled_dot_product_attention"]),
        ("resnet18", []),
    ],
)  # fmt: skip
def test_what_the_models_of_plants_use(model, uses):
    torch.manual_seed(0)
    module = build(model, 4)
    assert names(lambda x: module(torch.randn(2, 3, 64, 64))) == uses


OPERATIONS = ["aten::grid_sampler_2d_backward", "aten::upsample_bilinear2d_backward"]


def test_on_cuda_deterministic_refuses_by_name_what_has_no_algorithm_that_repeats():
    with pytest.raises(TrainingError, match=r"fit: .*refuses .*on cuda: grid_sample \(sampling.*places\)\n") as error:
        check("fit", OPERATIONS, "cuda", exact=True)
    assert "train.deterministic=false" in error.value.hint
    check("fit", OPERATIONS[1:], "cuda", exact=True)
    check("fit", OPERATIONS, "cpu", exact=True)


def test_what_torch_itself_refuses_is_named_readably(capsys):
    with pytest.raises(TrainingError, match=r"on cuda: interpolate \(bicubic\), new_kernel_cuda\n"):
        check("fit", [], "cuda", exact=True, refused={"upsample_bicubic2d_backward_out_cuda", "new_kernel_cuda"})


def test_on_cuda_the_reason_is_said_once_and_on_a_cpu_only_recorded(capsys):
    check("fit", OPERATIONS, "cuda", exact=False)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "grid_sample" in said and "interpolate (bilinear)" in said
    check("fit", OPERATIONS, "cpu", exact=False)
    check("fit", [], "cuda", exact=False)
    assert capsys.readouterr().err == ""
    assert for_record(OPERATIONS, "cpu", exact=False) == [
        "on CUDA: grid_sample (sampling at given places)", "on CUDA: interpolate (bilinear)",
    ]  # fmt: skip
    assert for_record(OPERATIONS, "cuda", exact=True) == ["grid_sample (sampling at given places)"]


def test_torchs_own_refusals_are_all_collected_and_its_mode_is_put_back():
    torch.use_deterministic_algorithms(True)
    pooled, where = F.max_pool2d(images(), 2, return_indices=True)
    with watch(True) as seen:
        F.max_unpool2d(pooled, where, 2)
    assert len(seen.refused) == 1 and "max_unpool" in next(iter(seen.refused))
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.raises(TrainingError, match=r"on cpu: max_unpool1d or max_unpool2d\n"):
        check("fit", sorted(seen.operations), "cpu", exact=True, refused=seen.refused)


def test_other_warnings_pass_through_the_watch():
    import warnings

    with pytest.warns(UserWarning, match="mine"), watch(False):
        warnings.warn("mine", stacklevel=1)


def test_a_watched_step_computes_the_same_bits():
    def gradient(watched):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(3))
        if watched:
            with watch(False):
                module(images()).sum().backward()
        else:
            module(images()).sum().backward()
        return module[0].weight.grad

    assert torch.equal(gradient(True), gradient(False))


@pytest.mark.parametrize("exact", [False, True])
def test_cudnn_always_takes_an_algorithm_that_repeats(exact, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    prepare(exact)
    assert not torch.backends.cudnn.benchmark and torch.backends.cudnn.deterministic
    assert torch.are_deterministic_algorithms_enabled() is exact
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if exact else None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    prepare(exact)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
