"""Students: their exact size, their features, and the regressor that only the training has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from outlast.errors import ModelError
from outlast.model import distillation
from outlast.model.distillation import DistillationLoss
from outlast.model.distillation_settings import student_rung, student_rungs
from outlast.model.dual import DualBranch, DualSettings
from outlast.model.lightweight import LightweightCnn, StudentSettings, WithRegressor, student


def parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def images(side: int = 32) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def narrow(**settings: object) -> StudentSettings:
    return StudentSettings.model_validate({"width": 4, **settings})


def test_the_lightweight_cnn_has_exactly_its_parameters_and_features() -> None:
    with torch.device("meta"):
        model = student(StudentSettings())
        outputs = model(torch.empty(2, 3, 224, 224))
    assert parameters(model) == 4_821_058
    assert outputs["logits"].shape == (2, 2) and outputs["features"].shape == (2, model.features) == (2, 256)


def test_the_lightweight_cnn_is_built_as_described() -> None:
    model = LightweightCnn()
    kinds = [type(one) for one in model.blocks]
    assert kinds == 4 * [*(2 * [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]), nn.MaxPool2d]
    convolutions = [one for one in model.blocks if isinstance(one, nn.Conv2d)]
    assert [one.out_channels for one in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert all(one.kernel_size == (3, 3) and one.bias is not None for one in convolutions)
    assert isinstance(model.project[1], nn.ReLU) and model.dropout.p == 0.5


@pytest.mark.parametrize(
    ("name", "features"), [("lightweight-cnn", 16), ("test_resnet", 96), ("mobilenetv3_small_100", 1024)]
)
def test_a_student_gives_logits_and_features_and_all_of_it_learns(name: str, features: int) -> None:
    model = student(narrow(name=name), labels=3, image_size=(32, 32))
    outputs = model(images())
    assert outputs["logits"].shape == (4, 3) and outputs["features"].shape == (4, features) == (4, model.features)
    (outputs["logits"] ** 2).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", ["lightweight-cnn", "test_resnet"])
def test_the_logits_follow_from_the_features(name: str) -> None:
    """What is distilled and drawn is what the student judges by."""
    model = student(narrow(name=name)).eval()
    outputs = model(images())
    torch.testing.assert_close(model.head(outputs["features"]), outputs["logits"])


def test_the_regressor_reaches_the_teachers_features_and_is_dropped_on_delivery() -> None:
    torch.manual_seed(0)
    alone = student(narrow())
    model = WithRegressor(alone, 96)
    outputs = model(images())
    assert outputs["hint"].shape == (4, 96)
    torch.testing.assert_close(model.regressor(outputs["features"]), outputs["hint"])
    assert {key for key in model.state_dict() if key.startswith("regressor.")} == {"regressor.weight", "regressor.bias"}
    assert model.deployed() is alone and not any("regressor" in key for key in alone.state_dict())
    assert parameters(model) == parameters(alone) + 16 * 96 + 96


@pytest.mark.parametrize("loss", ["kl_bce", "kl_l2_bce", "kl_contrastive_l2_bce"])
@pytest.mark.parametrize("relation", ["rkd", "crd"])
def test_a_student_comes_nearer_to_its_teacher(loss: str, relation: str) -> None:
    torch.manual_seed(0)
    teacher = DualBranch(DualSettings(name="test_resnet"), image_size=(32, 32)).eval()
    settings = DistillationLoss.model_validate({"name": loss, "relation": relation})
    model = student(narrow(dropout=0))
    learner = WithRegressor(model, teacher.features) if settings.needs_hint else model
    ir, labels = torch.randn(4, 1, 32, 32), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    with torch.no_grad():
        taught = {**teacher(images(), ir), "logits": 8 * labels - 4}  # a teacher that knows the labels
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        made = distillation.total(settings, learner(images()), taught, labels)
        made.loss.backward()
        optimizer.step()
        values.append(float(made.loss.detach()))
    assert values[-1] < 0.5 * values[0]
    # All of the trained module takes part, as several processes need it to.
    assert [key for key, value in learner.named_parameters() if value.grad is None] == []


def test_images_that_are_too_small_are_told() -> None:
    with pytest.raises(ModelError, match="lightweight-cnn does not take images of 8x32 pixels"):
        student(StudentSettings(), image_size=(8, 32))


def test_an_unknown_student_suggests_the_closest() -> None:
    with pytest.raises(ModelError) as caught:
        student(StudentSettings(name="lightweigt-cnn"))
    assert "did you mean lightweight-cnn" in (caught.value.hint or "")


def test_the_ladder_and_settings_without_effect() -> None:
    assert student_rungs(StudentSettings()) == ("lightweight-cnn", "mobilenetv3_small_100")
    assert student_rungs(StudentSettings(name="mobilenetv3_small_100")) == ("mobilenetv3_small_100",)
    fallen = student_rung(StudentSettings(pretrained=True, dropout=0.1), "mobilenetv3_small_100")
    assert fallen == StudentSettings(name="mobilenetv3_small_100", dropout=0.1)
    assert set(StudentSettings(pretrained=True, weights="x").idle()) == {"pretrained", "weights"}
    assert set(StudentSettings(name="resnet18", pretrained=True, weights="x").idle()) == {"width", "pretrained"}
    assert StudentSettings(pretrained=True).downloads() == ()
    assert StudentSettings(name="resnet18", pretrained=True).downloads() == ("resnet18",)
