import pytest
import torch
from torch import nn

from outlast.config.schema import Training
from outlast.errors import TrainingError
from outlast.loop.accel import set_up
from outlast.loop.optim import Plateau, build_average, build_optimizer, learning_rate
from outlast.loop.step import LossWatch, Stepper


def batch(start, count):
    images = torch.arange(start, start + count, dtype=torch.float64)[:, None] * torch.tensor([[0.1, 0.2, 0.3]])
    return {"x": images.float(), "row": torch.arange(start, start + count)}


def stepper(model, weighted=False, clip=None):
    def step(module, parts):
        weight = parts["row"].float() + 1 if weighted else torch.ones(len(parts["row"]))
        return {"loss_sum": ((module(parts["x"]).squeeze(1) - 1) ** 2 * weight).sum(), "weight": float(weight.sum())}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Stepper(model, optimizer, step, set_up(1, 1), "fp32", clip)


def fresh():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cuts", [(10,), (3, 7), (1, 1, 8), (4, 3, 3)])
def test_unequal_micro_batches_give_the_gradient_of_the_whole_batch(cuts, weighted):
    whole, parts = fresh(), fresh()
    data = batch(0, 10)
    stepper(whole, weighted).run([data], 10, 0.1)
    pieces, start = [], 0
    for size in cuts:
        pieces.append(batch(start, size))
        start += size
    stepper(parts, weighted).run(pieces, 10, 0.1)
    # by definition: gradient of (sum of weighted losses) / (sum of weights)
    reference = fresh()
    weight = data["row"].float() + 1 if weighted else torch.ones(10)
    (((reference(data["x"]).squeeze(1) - 1) ** 2 * weight).sum() / weight.sum()).backward()
    expected = fresh().weight - 0.1 * reference.weight.grad
    torch.testing.assert_close(whole.weight, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(parts.weight, expected, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_clipped_to_the_norm():
    model = fresh()
    before = model.weight.detach().clone(), model.bias.detach().clone()
    stepper(model, clip=1e-3).run([batch(0, 10)], 10, 1.0)
    moved = torch.cat([(model.weight - before[0]).flatten(), (model.bias - before[1]).flatten()]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("immediate", [True, False])
def test_a_loss_that_is_not_finite_names_its_step_and_files(immediate):
    watch = LossWatch({}, immediate, lambda rows: [f"leaf-{int(row)}.jpg" for row in rows])
    watch.push(1, {"loss_sum": torch.tensor(2.0), "weight": 4}, [torch.tensor([1, 2])])
    with pytest.raises(TrainingError, match="nan at step 2") as caught:
        watch.push(2, {"loss_sum": torch.tensor(float("nan")), "weight": 4}, [torch.tensor([3]), torch.tensor([7])])
        watch.flush()
    assert "leaf-3.jpg, leaf-7.jpg" in str(caught.value)
    assert watch.sums == {"loss_sum": 2.0, "weight": 4.0}


def test_vectors_get_no_weight_decay():
    optimizer = build_optimizer(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), Training(weight_decay=0.1))
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, 0.1), (3, 0.0)]


def test_the_schedule_warms_up_and_falls_to_its_fraction():
    config = Training(learning_rate=1.0, warmup_fraction=0.2, final_fraction=0.1, epochs=10)
    rates = [learning_rate(step, 50, config, 1.0) for step in range(51)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[50] == pytest.approx(0.1)


def test_plateau_lowers_the_rate_and_remembers():
    config = Training(schedule="plateau", plateau_patience_epochs=1, plateau_factor=0.5)
    one = Plateau(config)
    for gain in (0.5, 0.4):
        one.step(gain)
    other = Plateau(config)
    other.load(one.state())
    for plateau in (one, other):
        plateau.step(0.3)
        assert plateau.factor == 0.5
    assert one.state() == other.state()


@pytest.mark.parametrize("gains", [[-0.5] * 6, [-0.5, -0.50001, -0.50002, -0.50003, -0.50004, -0.50005]])
def test_plateau_sees_that_a_score_below_zero_does_not_improve(gains):
    plateau = Plateau(Training(schedule="plateau", plateau_patience_epochs=1, plateau_factor=0.5))
    for gain in gains:
        plateau.step(gain)
    assert plateau.factor == 0.25  # lowered after the third and the fifth evaluation


def test_the_average_follows_weights_and_buffers_with_a_ramp():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = build_average(model, 0.9)
    average.update_parameters(model)
    first = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.add_(2.0)
    average.update_parameters(model)
    decay = 2 / 11  # the second update: (1 + 1) / (10 + 1)
    torch.testing.assert_close(average.module[0].weight, first * decay + (first + 1) * (1 - decay))
    torch.testing.assert_close(average.module[1].running_mean, torch.full((2,), 2 * (1 - decay)))
