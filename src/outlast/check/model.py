"""Does the model build, learn and predict as it should? Tried on two real batches before anything is paid for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from outlast.check.finding import CannotCheck, Finding, error, note, unchecked, warning
from outlast.check.half import Half
from outlast.check.subject import Subject
from outlast.check.trial import Trial, replaced
from outlast.errors import OutlastError, listed
from outlast.loop import deterministic
from outlast.loop.setup import load_weights, model_hash
from outlast.save.format import read_weights
from outlast.save.resume import choose

_EQUAL = 1e-4  # relative: two ways of adding up the same numbers
_FAR = 2.5  # times the expected loss: outputs that are much too large
_SUSPICIOUS = 0.5  # of the expected loss, before anything was learned


def builds(subject: Subject) -> Iterator[Finding]:
    """A model that can't be built, or not with the weights that the configuration names; else its size."""
    for trial in subject.trials:
        try:
            model = trial.model
        except CannotCheck as reason:
            yield _problem(trial, reason, "mend the model, or choose another one of the task's")
            continue
        count = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        yield note(f"{trial.stage.name}: {trial.rung} has {count:,} parameters, of which {trained:,} are trained")
        if not trained:
            yield error(
                f"{trial.stage.name}: no parameter of {trial.rung} is trainable",
                remedy="let at least the last layer learn (requires_grad)",
            )


def learns(subject: Subject) -> Iterator[Finding]:
    """Two steps on real batches that fail, or that change no parameter."""
    for trial in _built(subject):
        try:
            steps = trial.steps
        except CannotCheck as reason:
            yield _problem(trial, reason, "mend the learner's augment or step, or the model")
            continue
        if not steps.moved and steps.losses:
            yield error(
                f"{trial.stage.name}: two steps changed no parameter",
                remedy="look whether the loss depends on the model (a detach, a no_grad)",
            )


def predicts(subject: Subject) -> Iterator[Finding]:
    """Predictions without one row per sample and one column per class."""
    for trial in _built(subject):
        try:
            outputs = trial.predicted
        except CannotCheck as reason:
            yield _problem(trial, reason, "mend the learner's predict")
            continue
        samples = len(trial.batches[0]["row"])
        for name, value in outputs.items():
            shape = tuple(value.shape)
            if not shape or shape[0] != samples:
                yield error(
                    f"{trial.stage.name}: predict gives {name!r} of shape {shape} for {samples} samples",
                    remedy="its first axis must be the samples",
                )
            elif name in ("logits", "probabilities") and trial.classes and not _fits(shape, trial.classes):
                yield error(
                    f"{trial.stage.name}: predict gives {name!r} of shape {shape} for {trial.classes} classes",
                    remedy="build the model for the classes that inputs.facts names",
                )


def loss(subject: Subject) -> Iterator[Finding]:
    """A loss that isn't finite, or far from what knowing nothing costs (ln of the number of classes)."""
    for trial in _built(subject):
        losses = trial.steps.losses
        if not all(math.isfinite(value) for value in losses):
            yield error(
                f"{trial.stage.name}: the loss is not finite in full precision",
                evidence=f"of two batches: {listed(losses)}",
                remedy="look for logarithms and divisions of zero in the step, and at the normalisation of the images",
            )
            continue
        expected = _expected_loss(trial)
        if expected is None or not losses:
            continue
        told = f"{losses[0]:.3f}; knowing nothing of {trial.classes} classes costs ln {trial.classes} = {expected:.3f}"
        if losses[0] > _FAR * expected + 0.5:
            yield warning(
                f"{trial.stage.name}: the loss begins much too high",
                evidence=told,
                remedy="make the first outputs small (initialise the last layer near zero, normalise the images)",
            )
        elif losses[0] < _SUSPICIOUS * expected and not _pretrained(trial):
            yield warning(
                f"{trial.stage.name}: the loss is low before anything was learned",
                evidence=told,
                remedy="look whether the label is among the inputs, and whether the loss is summed over samples",
            )


def gradients(subject: Subject) -> Iterator[Finding]:
    """Trainable parameters that get no gradient, or one of zero."""
    for trial in _built(subject):
        steps = trial.steps
        if steps.no_gradient:
            yield warning(
                f"{trial.stage.name}: {len(steps.no_gradient)} trainable parameters get no gradient",
                evidence=listed(steps.no_gradient),
                remedy="use them in forward, freeze them, or remove them; with several processes they are an error",
            )
        if steps.zero_gradient:
            yield warning(
                f"{trial.stage.name}: the gradient of {len(steps.zero_gradient)} parameters is zero in two steps",
                evidence=listed(steps.zero_gradient),
                remedy="look for dead units (a ReLU below zero everywhere), or a branch multiplied by zero",
            )


def frozen(subject: Subject) -> Iterator[Finding]:
    """Frozen parameters that get a gradient, and frozen layers whose statistics change."""
    for trial in _built(subject):
        steps = trial.steps
        if steps.frozen_gradient:
            yield error(
                f"{trial.stage.name}: {len(steps.frozen_gradient)} frozen parameters got a gradient",
                evidence=listed(steps.frozen_gradient),
                remedy="freeze them before the model is returned, and nowhere else",
            )
        if steps.drifting:
            yield warning(
                f"{trial.stage.name}: statistics of frozen layers change while training",
                evidence=listed(steps.drifting),
                remedy="put frozen normalisation layers into evaluation mode (override train() to keep them there)",
            )


def hidden_state(subject: Subject) -> Iterator[Finding]:
    """Values that change in a step and are in no checkpoint, so that a resumed run loses them."""
    for trial in _built(subject):
        hidden = trial.steps.hidden
        if hidden:
            yield error(
                f"{trial.stage.name}: {len(hidden)} values change in a step and are in no checkpoint: "
                "a resumed run would go on without them",
                evidence=listed(hidden),
                remedy="make them buffers: self.register_buffer(name, tensor), which are saved with the weights",
            )


def complete_weights(subject: Subject) -> Iterator[Finding]:
    """A model that, built again with the same weights, predicts something else."""
    for trial in _built(subject):
        batch = trial.batches[0]
        try:
            other = trial.build(seed=1)
            other.load_state_dict(trial.model.state_dict())
        except RuntimeError as problem:
            yield error(
                f"{trial.stage.name}: the model's own weights don't fit when it is built again",
                evidence=str(problem).splitlines()[-1].strip(),
                remedy="build the same layers each time, whatever the random numbers",
            )
            continue
        worst = _difference(trial.predicted, trial.outputs(other, batch))
        if worst > _EQUAL:
            yield error(
                f"{trial.stage.name}: a model with the same weights predicts something else",
                evidence=f"largest relative difference {worst:.2g}",
                remedy="something random is kept outside the state_dict: make it a buffer or a parameter",
            )


def independent_samples(subject: Subject) -> Iterator[Finding]:
    """Predictions that depend on the other images of the batch."""
    for trial in _built(subject):
        batch = trial.batches[0]
        if len(batch["row"]) < 2:
            continue
        whole = trial.predicted
        other = trial.outputs(trial.model, replaced(batch, 0))
        worst = _difference({n: v[1:] for n, v in whole.items()}, {n: v[1:] for n, v in other.items()})
        if worst > _EQUAL:
            yield error(
                f"{trial.stage.name}: what is predicted of an image depends on the others in its batch",
                evidence=f"largest relative difference {worst:.2g} when another image is put in place of the first",
                remedy="look for operations over the first axis in forward (concatenation, normalisation, reshape)",
            )


def repeatable_evaluation(subject: Subject) -> Iterator[Finding]:
    """Two evaluations of one batch that differ."""
    for trial in _built(subject):
        worst = _difference(trial.predicted, trial.outputs(trial.model, trial.batches[0]))
        if worst > _EQUAL:
            yield error(
                f"{trial.stage.name}: two evaluations of one batch differ",
                evidence=f"largest relative difference {worst:.2g}",
                remedy="switch noise off when not self.training: functional.dropout(x, p, self.training)",
            )


def starting_weights(subject: Subject) -> Iterator[Finding]:
    """Weights of --start-from that are missing, or don't fit by name and shape."""
    for trial in _built(subject):
        if trial.start_from is None:
            continue
        try:
            model = trial.build()
            choice = choose(trial.run / "none", "never", start_from=trial.start_from, model_hash=model_hash(model))
            if choice.weights is not None:
                load_weights(model, read_weights(choice.weights), choice.weights)
        except OutlastError as problem:
            yield error(problem.message, evidence=listed(problem.details), remedy=problem.hint or "give other weights")


def half_precision(subject: Subject) -> Iterator[Finding]:
    """Values that overflow in half precision, and layers that don't compute in it."""
    for trial in _built(subject):
        precision = trial.config.train.precision
        if precision == "fp32":
            continue
        full = trial.steps.losses
        try:
            half = Half.of(trial)
        except RuntimeError as problem:
            yield unchecked(f"{precision} on this device: {str(problem).splitlines()[0]}")
            continue
        if half.overflown:
            yield error(
                f"{trial.stage.name}: values overflow in {precision}, first in {half.overflown}",
                remedy="set train.precision=bf16 or fp32, or compute that part in fp32 (tensor.float())",
            )
        elif not math.isfinite(half.loss):
            yield error(
                f"{trial.stage.name}: the loss is {half.loss} in {precision}",
                evidence=f"{full[0]:.4g} in fp32",
                remedy="compute the loss in fp32 (logits.float()), or set train.precision=bf16 or fp32",
            )
        elif full and abs(half.loss - full[0]) > 0.05 * abs(full[0]) + 0.02:
            yield warning(
                f"{trial.stage.name}: the loss is {half.loss:.4g} in {precision} and {full[0]:.4g} in fp32",
                remedy="compute what loses digits in fp32 (sums over many values, logarithms, small differences)",
            )
        if half.layers and not half.half_layers:
            yield warning(
                f"{trial.stage.name}: no layer computes in {precision}: it costs as much as fp32",
                evidence=f"{half.layers} linear and convolution layers, all fp32",
                remedy="look for an autocast that is switched off, or float() calls, inside the model",
            )


def determinism(subject: Subject) -> Iterator[Finding]:
    """Operations that don't repeat bit for bit on a GPU, by name: refused with train.deterministic, else told."""
    for trial in _built(subject):
        try:
            inexact = trial.steps.inexact
        except CannotCheck:
            continue  # `learns` tells
        refused, on_gpu = deterministic.without_algorithm(inexact), bool(subject.machine.gpus)
        if subject.config.train.deterministic and refused:
            yield (error if on_gpu else warning)(
                f"{trial.stage.name}: train.deterministic=true {'refuses' if on_gpu else 'would refuse on a GPU'} "
                f"{listed(refused, 20)}",
                evidence="they have no algorithm that repeats bit for bit on CUDA"
                f"{'' if on_gpu else '; on a CPU everything repeats'}",
                remedy="use a model or loss without them, or set train.deterministic=false (run.json then names them)",
            )
        elif on_gpu and inexact and not subject.config.train.deterministic:
            yield note(
                f"{trial.stage.name}: not bit for bit on this GPU, because of "
                f"{listed(deterministic.readable(inexact), 20)}",
                remedy=f"all but {listed(refused, 20)} repeat with train.deterministic=true, which refuses these"
                if refused
                else "set train.deterministic=true; it may be slower",
            )


def _built(subject: Subject) -> Iterator[Trial]:
    """The trials whose models can be built; of the others, `builds` tells."""
    for trial in subject.trials:
        try:
            trial.model  # noqa: B018
        except CannotCheck:
            continue
        yield trial


def _problem(trial: Trial, reason: CannotCheck, remedy: str) -> Finding:
    if not trial.problem:
        return unchecked(str(reason))
    return error(f"{trial.stage.name}: {trial.problem}", remedy=remedy)


def _fits(shape: tuple[int, ...], classes: int) -> bool:
    """(N, classes, ...), or one number for each sample where two classes need no more."""
    if len(shape) == 1:
        return classes == 2
    return len(shape) >= 2 and (shape[1] == classes or (classes == 2 and shape[1] == 1))


def _expected_loss(trial: Trial) -> float | None:
    """The learner's own, or ln(classes) for a classifier: one label per sample, and logits to answer it."""
    if trial.stage.learner.loss_at_start is not None:
        return trial.stage.learner.loss_at_start(trial.config, trial.reading.examples.facts)
    label = trial.batches[0].get("label")
    logits = trial.predicted.get("logits")
    if trial.classes is None or not isinstance(label, Tensor) or label.ndim != 1 or label.is_floating_point():
        return None
    if logits is None or logits.ndim != 2 or logits.shape[1] != trial.classes:
        return None
    return math.log(trial.classes)


def _pretrained(trial: Trial) -> bool:
    model = getattr(trial.config, "model", None)
    return trial.start_from is not None or any(getattr(model, name, None) for name in ("pretrained", "weights"))


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference of two predictions, relative to their size; infinite if they can't be compared."""
    worst = 0.0
    for name, value in one.items():
        value, second = value.double(), other[name].double()
        if value.shape != second.shape:
            return math.inf
        if value.numel() == 0 or torch.equal(value, second):
            continue
        size = max(float(value.abs().max()), 1e-12)
        gap = float((value - second).abs().max()) / size
        worst = max(worst, gap if math.isfinite(gap) else math.inf)
    return worst
