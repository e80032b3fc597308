"""Each check of the model fires at a model with that fault, and is silent at a sound one."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from outlast.check import model
from outlast.check.finding import CannotCheck, run
from outlast.check.state import attributes, changed
from outlast.save.format import write_weights
from toys import plan
from toys.machines import T4
from toys.subjects import only, severities, subject

ALL = [
    model.learns, model.predicts, model.loss, model.gradients, model.frozen, model.hidden_state,
    model.complete_weights, model.independent_samples, model.repeatable_evaluation, model.starting_weights,
    model.half_precision,
]  # fmt: skip


class Faulty(plan.Net):
    """The toy's model; what a test adds to it comes as functions."""

    def __init__(self, setup=lambda self: None, forward=lambda self, images: self.layers(images)):
        super().__init__(8, 0.2)
        setup(self)
        self.calls = [forward]

    def forward(self, images):
        return self.calls[0](self, images)


def of(tmp_path, setup=lambda self: None, forward=lambda self, images: self.layers(images), **more):
    changes = {"model": lambda config, inputs, rung: Faulty(setup, forward), **more.pop("changes", {})}
    return subject(tmp_path, changes=changes, **more)


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_a_sound_model_is_passed_over_in_silence(tmp_path, check):
    assert severities(check, subject(tmp_path)) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_sound_model_is_sound_in_half_precision_too(tmp_path, precision):
    assert severities(model.half_precision, subject(tmp_path, train={"precision": precision})) == []


def test_a_model_that_builds_is_noted_with_its_size(tmp_path):
    (finding,) = model.builds(subject(tmp_path))
    assert finding.severity == "note" and "1,635 parameters" in finding.sentence


def test_a_model_that_can_not_be_built_is_an_error_and_the_rest_is_silent(tmp_path):
    def broken(self):
        raise ValueError("dims must have one number per stage")

    findings = list(run([model], of(tmp_path, broken)))
    assert [(finding.id, finding.severity) for finding in findings] == [("model.builds", "error")]
    assert "dims must have" in findings[0].sentence and "test_model.py" in findings[0].sentence


def test_a_model_without_anything_to_train_is_an_error(tmp_path):
    findings = list(model.builds(of(tmp_path, lambda self: self.requires_grad_(False))))
    assert [finding.severity for finding in findings] == ["note", "error"]


def test_a_stage_that_waits_for_another_is_not_called_broken(tmp_path):
    def reads_its_teacher(config, inputs, rung):
        return torch.load(inputs.needs["teacher"] / "weights.pt", weights_only=True)

    made = subject(tmp_path, changes={"model": reads_its_teacher})
    made.plan = [replace(made.plan[0], needs=("teacher",))]
    findings = list(model.builds(made))
    assert [finding.severity for finding in findings] == ["unchecked"] and "teacher" in findings[0].sentence


def test_a_step_that_fails_is_an_error_and_what_needs_it_can_not_check(tmp_path):
    made = of(tmp_path, forward=lambda self, images: self.layers(images[:, :, :7]))
    finding = only(model.learns, made)
    assert finding.severity == "error" and "mat1" in finding.sentence
    with pytest.raises(CannotCheck):
        list(model.gradients(made))


def test_a_loss_that_does_not_move_the_model_is_an_error(tmp_path):
    def step(config, module, batch):
        return {"loss_sum": sum(p.sum() for p in module.parameters()) * 0.0, "weight": len(batch["row"])}

    train = {"weight_decay": 0.0}
    assert only(model.learns, subject(tmp_path, changes={"step": step}, train=train)).severity == "error"


def test_outputs_of_another_shape_are_errors(tmp_path):
    def mixed(config, module, batch):
        return {"logits": torch.zeros(2 * len(batch["row"]), 3)}

    def more_classes(config, module, batch):
        return {"logits": torch.zeros(len(batch["row"]), 4)}

    assert "first axis" in only(model.predicts, subject(tmp_path, changes={"predict": mixed})).remedy
    assert "3 classes" in only(model.predicts, subject(tmp_path, changes={"predict": more_classes})).sentence


def scaled(factor, plus=0.0):
    def step(config, module, batch):
        result = plan.step(config, module, batch)
        return {**result, "loss_sum": result["loss_sum"] * factor + plus}

    return {"step": step}


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    assert only(model.loss, subject(tmp_path, changes=scaled(math.nan))).severity == "error"


def test_a_loss_far_from_what_knowing_nothing_costs_is_a_warning(tmp_path):
    high = only(model.loss, subject(tmp_path, changes=scaled(20.0)))
    assert high.severity == "warning" and "ln 3 = 1.099" in high.evidence
    assert "low before" in only(model.loss, subject(tmp_path, changes=scaled(0.05))).sentence


def test_a_learner_may_say_itself_what_knowing_nothing_costs(tmp_path):
    own = {**scaled(20.0), "loss_at_start": lambda config, facts: 20 * math.log(3)}
    assert severities(model.loss, subject(tmp_path, changes=own)) == []


def test_parameters_without_a_gradient_are_named(tmp_path):
    unused = only(model.gradients, of(tmp_path, lambda self: setattr(self, "spare", nn.Linear(2, 2))))
    assert unused.severity == "warning" and unused.evidence == "spare.bias, spare.weight"

    def gate(self):
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return self.layers(images) + 0 * self.gate

    assert "is zero" in only(model.gradients, of(tmp_path, gate, forward)).sentence


def test_a_branch_that_begins_at_zero_is_no_finding(tmp_path):
    """Residual branches often begin at zero: their weights get a gradient from the second step on."""

    def branch(self):
        self.branch, self.scale = nn.Linear(64, 3), nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return self.layers(images) + self.scale * self.branch(images.flatten(1))

    assert severities(model.gradients, of(tmp_path, branch, forward)) == []


def test_frozen_layers_that_change_are_named(tmp_path):
    def freeze(self):
        self.layers[1].requires_grad_(False)

    drifting = only(model.frozen, of(tmp_path, freeze))
    assert drifting.severity == "warning" and "layers.1.running_mean" in drifting.evidence

    def still(self):
        freeze(self)
        self.layers[1].train = lambda mode=True: self.layers[1]
        self.layers[1].training = False

    assert severities(model.frozen, of(tmp_path, still)) == []


def memory(self):
    self.center = torch.zeros(3)


def remember(self, images):
    logits = self.layers(images)
    if self.training:
        self.center = 0.9 * self.center + 0.1 * logits.mean(0).detach()
    return logits


def count(self):
    self.steps = {"seen": 0}


def counting(self, images):
    self.steps["seen"] += self.training
    return self.layers(images)


@pytest.mark.parametrize(
    ("setup", "forward", "name"), [(memory, remember, "center"), (count, counting, "steps['seen']")]
)
def test_state_that_no_checkpoint_has_is_an_error(tmp_path, setup, forward, name):
    finding = only(model.hidden_state, of(tmp_path, setup, forward))
    assert finding.severity == "error" and finding.evidence == name


def test_a_buffer_that_is_saved_is_no_hidden_state_and_one_that_is_not_is(tmp_path):
    def buffer(persistent):
        return lambda self: self.register_buffer("center", torch.zeros(3), persistent=persistent)

    assert severities(model.hidden_state, of(tmp_path, buffer(True), remember)) == []
    assert only(model.hidden_state, of(tmp_path, buffer(False), remember)).evidence == "center"


def test_what_a_model_computes_once_and_keeps_is_no_hidden_state(tmp_path):
    def forward(self, images):
        self.grid = torch.arange(images.shape[-1])
        return self.layers(images)

    assert severities(model.hidden_state, of(tmp_path, forward=forward)) == []


def test_hidden_state_is_found_in_lists_and_modules_inside():
    outer = nn.Sequential(nn.Linear(1, 1))
    outer[0].bank = [torch.zeros(2), torch.zeros(2)]
    before = attributes(outer)
    outer[0].bank[1] += 1
    assert changed(before, attributes(outer)) == ["0.bank[1]"]


def test_random_numbers_outside_the_weights_are_an_error(tmp_path):
    def project(self):
        self.projection = torch.randn(3, 3)

    finding = only(model.complete_weights, of(tmp_path, project, lambda self, x: self.layers(x) @ self.projection))
    assert finding.severity == "error"


def test_a_model_that_is_built_differently_each_time_is_an_error(tmp_path):
    def dice(self):
        self.extra = nn.Linear(1, 1 + int(torch.randint(0, 1000, ())))

    assert "built again" in only(model.complete_weights, of(tmp_path, dice)).sentence


def test_a_model_that_mixes_the_samples_of_a_batch_is_an_error(tmp_path):
    def forward(self, images):
        logits = self.layers(images)
        return logits - logits.mean(0)

    assert only(model.independent_samples, of(tmp_path, forward=forward)).severity == "error"


def test_noise_while_evaluating_is_an_error(tmp_path):
    finding = only(
        model.repeatable_evaluation, of(tmp_path, forward=lambda self, x: functional.dropout(self.layers(x), 0.5))
    )
    assert finding.severity == "error" and "self.training" in finding.remedy


def test_weights_to_begin_with_must_be_there_and_fit(tmp_path):
    path = tmp_path / "start.safetensors"

    def check(state=None):
        if state is not None:
            write_weights(path, state)
        return list(model.starting_weights(subject(tmp_path, start_from={"train-one": path})))

    assert [finding.severity for finding in check()] == ["error"]
    sound = plan.Net(8, 0.2).state_dict()
    assert check(sound) == []
    (finding,) = check({name: value for name, value in sound.items() if name != "layers.0.bias"})
    assert finding.severity == "error" and "layers.0.bias" in finding.evidence


def test_numbers_too_large_for_half_precision_are_an_error_that_names_the_layer(tmp_path):
    def huge(self):
        with torch.no_grad():
            self.layers[0].weight.mul_(1e6)

    made = of(tmp_path, huge, train={"precision": "fp16"})
    finding = only(model.half_precision, made)
    assert finding.severity == "error" and "layers.0" in finding.sentence
    assert severities(model.half_precision, of(tmp_path, huge, train={"precision": "bf16"})) == []


def test_half_precision_that_is_switched_off_inside_is_a_warning(tmp_path):
    def forward(self, images):
        with torch.autocast("cpu", enabled=False):
            return self.layers(images)

    finding = only(model.half_precision, of(tmp_path, forward=forward, train={"precision": "bf16"}))
    assert finding.severity == "warning" and "no layer computes" in finding.sentence


def interpolated(self, images):
    """Bilinear interpolation has an algorithm that repeats, a reflected border has none."""
    border = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    return self.layers(functional.interpolate(border, size=images.shape[-2:], mode="bilinear"))


def learning_input(self):
    """Something before the interpolation must learn, or it has no gradient."""
    self.scale = nn.Parameter(torch.ones(1))


def inexact(tmp_path, *, gpus=(), deterministic=False):
    forward = lambda self, images: interpolated(self, images * self.scale)  # noqa: E731
    made = of(tmp_path, learning_input, forward, train={"deterministic": deterministic})
    made.machine = replace(made.machine, gpus=gpus)
    return made


def test_model_determinism_names_the_operations_that_a_gpu_would_refuse(tmp_path):
    on_gpu = only(model.determinism, inexact(tmp_path, gpus=(T4,), deterministic=True))
    assert on_gpu.severity == "error" and "refuses reflection padding" in on_gpu.sentence
    assert "interpolate" not in on_gpu.sentence  # it has an algorithm that repeats
    here = only(model.determinism, inexact(tmp_path, deterministic=True))
    assert here.severity == "warning" and "would refuse on a GPU" in here.sentence


def test_model_determinism_names_what_does_not_repeat_on_a_gpu_and_is_silent_where_all_repeats(tmp_path):
    finding = only(model.determinism, inexact(tmp_path, gpus=(T4,)))
    assert finding.severity == "note" and "all but reflection padding" in finding.remedy
    assert "interpolate (bilinear), reflection padding" in finding.sentence
    assert severities(model.determinism, inexact(tmp_path)) == []
    sound = subject(tmp_path, train={"deterministic": True})
    sound.machine = replace(sound.machine, gpus=(T4,))
    assert severities(model.determinism, sound) == []
