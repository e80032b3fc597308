"""How lesions are sampled, learned and watched: 1:1 batches of fresh negatives, no remainder lost, alarms."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from outlast.errors import ModelError
from outlast.loop.optim import build_optimizer, set_rate
from outlast.loop.samples import epoch_order
from outlast.task import Inputs
from outlast.tasks.lesions import PRESETS, learner, network, use
from outlast.tasks.lesions.config import Backbone, LesionsConfig, LesionsLoss, Sampling, StageConfig

INPUTS = Inputs({"classes": ["benign", "malignant"]})
FACTS = {"positives": 40, "rows": 2000}
LABELS = np.arange(2000) % 50 == 0


def rows(labels=LABELS):
    return pd.DataFrame({"label": labels.astype(int)})


def test_an_epoch_shows_every_positive_and_fresh_negatives_one_to_one_in_every_batch():
    config = StageConfig(train={"batch_size": 16})
    epochs = [epoch_order(learner.LEARNER, config, rows(), np.arange(2000), number) for number in range(3)]
    negatives = []
    for epoch in epochs:
        shown = np.concatenate(epoch.rows)
        assert sorted(shown[LABELS[shown]]) == np.flatnonzero(LABELS).tolist()
        assert all(abs(2 * int(LABELS[batch].sum()) - len(batch)) <= 2 for batch in epoch.rows)
        negatives.append(set(shown[~LABELS[shown]].tolist()))
        assert len(negatives[-1]) == 40
    assert len(set.union(*negatives)) > 100
    again = epoch_order(learner.LEARNER, config, rows(), np.arange(2000), 1)
    assert all(np.array_equal(one, two) for one, two in zip(again.rows, epochs[1].rows, strict=True))


@pytest.mark.parametrize(("ratio", "samples"), [(None, 200), (0.5, 120), (1.0, 160), (3.0, 200)])
def test_the_ratio_is_a_setting_and_never_asks_for_more_negatives_than_there_are(ratio, samples):
    labels = np.arange(200) % 5 < 2
    config = StageConfig(sampling=Sampling(negatives_per_positive=ratio))
    shown = learner.order(config, rows(labels), 0, 0)
    assert len(shown) == len(set(shown.tolist())) == samples
    assert set(np.flatnonzero(labels)) <= set(shown.tolist())


def test_the_remainder_of_an_accumulation_is_stepped_and_not_dropped():
    config = StageConfig(train={"batch_size": 12, "micro_batch": 4})
    epoch = epoch_order(learner.LEARNER, config, rows(), np.arange(2000), 0)
    assert epoch.samples % 12 != 0
    plans = list(epoch.plans(0, 0, 4, 0, 1))
    assert sum(len(plan.rows) for plan in plans) == epoch.samples == 80
    assert len(epoch.rows) == math.ceil(80 / 12)


def test_two_backbones_must_differ():
    with pytest.raises(ValueError, match="both 'resnet18'"):
        LesionsConfig(first=Backbone(name="resnet18.a1_in1k"), second=Backbone(name="resnet18"))


def test_models_normalise_by_the_numbers_of_their_own_weights():
    plain = network.LesionNet(Backbone(name="test_resnet"), 32)
    assert plain.mean.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])
    other = network.LesionNet(Backbone(name="mobilenetv3_small_050"), 32)
    assert other.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    outputs = plain.eval()(torch.rand(3, 3, 32, 32))
    assert outputs["logits"].shape == (3,)
    assert outputs["features"].shape[0] == 3


def test_weights_that_are_not_there_say_how_to_attach_them(tmp_path):
    with pytest.raises(ModelError, match="there is no weights file"):
        network.LesionNet(Backbone(name="test_resnet", weights=str(tmp_path / "none.safetensors")), 32)


def test_weights_from_a_local_file_are_what_the_model_begins_with(tmp_path):
    donor = network.LesionNet(Backbone(name="test_resnet"), 32).backbone
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    # The file has no head: the head that an extractor drops is all that may be missing.
    import timm

    whole = timm.create_model("test_resnet", num_classes=1)
    whole.load_state_dict(donor.state_dict(), strict=False)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    made = network.LesionNet(Backbone(name="test_resnet", weights=str(tmp_path / "weights.pth")), 32)
    for one, two in zip(made.backbone.parameters(), donor.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_backbone_learns_at_its_own_rate():
    config = StageConfig(model=Backbone(name="test_resnet", backbone_rate=0.1))
    model = learner.model(config, INPUTS, "test_resnet")
    optimizer = build_optimizer(model, config.train, learner.rates(config, model))
    set_rate(optimizer, 0.02)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rate_of[id(parameter)] == pytest.approx(0.002 if name.startswith("backbone.") else 0.02), name


def test_positives_are_pulled_up_and_negatives_down():
    config = StageConfig(loss=LesionsLoss(label_smoothing=0.2))

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            return {"logits": self.logit.expand(len(images))}

    for label, sign in ((1, -1), (0, 1)):
        model = Constant()
        batch = {"image": torch.zeros(4, 3, 8, 8), "label": torch.full((4,), label)}
        result = learner.step(config, model, batch)
        result["loss_sum"].backward()
        assert model.logit.grad.item() == pytest.approx(sign * 4 * 0.4)  # sigmoid(0) - (1 - 0.1), four samples
        assert float(result["positives"]) == 4 * label


def line(**changed):
    return {"epoch": 3, "train_loss": 0.5, "val_pauc": 0.08, "train_positives": 0.5, **changed}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"val_pauc": 0.0199}, "which is chance"),
        ({"train_loss": 0.70}, "no less than a model loses that knows nothing"),
        ({"epoch": 2, "val_pauc": 0.01, "train_loss": 0.9}, None),
        ({"epoch": 1, "train_positives": 0.2}, "20% of the samples of an epoch are malignant, where 50%"),
        ({"epoch": 1, "train_positives": 0.47}, None),
    ],
)
def test_alarms_say_what_looks_wrong_and_why(changed, told):
    found = learner.alarms(StageConfig(), FACTS, line(**changed))
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_the_loss_of_a_model_that_knows_nothing_follows_the_sampling():
    assert learner.loss_at_start(StageConfig(), FACTS) == pytest.approx(math.log(2))
    everything = StageConfig(sampling=Sampling(negatives_per_positive=None))
    assert learner.loss_at_start(everything, FACTS) == pytest.approx(-0.02 * math.log(0.02) - 0.98 * math.log(0.98))


@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("flips", 4), ("dihedral", 8)])
def test_views_are_different_and_turning_the_image_changes_nothing_of_their_mean(kind, count):
    image = torch.rand(2, 3, 5, 5)
    views = use.turned(image, kind)
    assert len({view.numpy().tobytes() for view in views}) == count
    if kind != "none":
        config = StageConfig(views=kind)
        member = SimpleNamespace(
            module=lambda x: {"logits": (x * torch.arange(5.0)).sum((1, 2, 3)), "features": x.flatten(1)}
        )
        one, two = (use.together(config, [member], {"image": x})["logits"] for x in (image, image.rot90(2, (2, 3))))
        assert torch.allclose(one, two, atol=1e-4)


def test_several_models_meet_in_their_probabilities():
    config = StageConfig(views="none")
    members = [
        SimpleNamespace(module=lambda x, v=value: {"logits": torch.full((len(x),), v), "features": x.flatten(1)})
        for value in (-2.0, 3.0)
    ]
    outputs = use.together(config, members, {"image": torch.zeros(2, 3, 4, 4)})
    mean = (torch.tensor([-2.0, 3.0]).sigmoid()).mean()
    assert torch.allclose(outputs["logits"].sigmoid().float(), mean.expand(2))
    assert set(outputs) == {"logits"}


def test_presets_name_the_models_of_the_description():
    full = PRESETS["full"]()
    assert full.first.name == "eva02_base_patch14_224.mim_in22k"
    assert full.second.name == "convnextv2_nano.fcmae_ft_in22k_in1k"
    assert (full.data.folds, full.data.image_size, full.train.patience_epochs) == (5, 224, 5)
    assert full.train.batch_size == 3 * full.train.micro_batch
