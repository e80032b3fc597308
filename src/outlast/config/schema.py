"""The settings that every task shares, as pydantic models. Defaults live here and in a task's own config, nowhere else.

Each field says how it takes part in a run's identity (`config.identity`): by default a resumed run must have the same
value; `free(...)` marks what may differ between the sessions of one run, `declared(...)` what may be changed on
purpose and is then recorded. Numbers carry their unit in the name.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


def free(default: Any = ..., **constraints: Any) -> Any:
    """A field that may differ between sessions of one run: it cannot change a single number of the result."""
    return Field(default, json_schema_extra={"identity": "free"}, **constraints)


def declared(default: Any = ..., **constraints: Any) -> Any:
    """A field that a resumed run may change when the user says so; the change is recorded."""
    return Field(default, json_schema_extra={"identity": "declared"}, **constraints)


class Settings(BaseModel):
    """Base of every group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    def idle(self) -> dict[str, str]:
        """Settings of this group that have no effect as things stand: {field: reason}. Used to warn."""
        return {}

    def downloads(self) -> tuple[str, ...]:
        """The timm models whose published weights these settings ask for. Used to check that they can be had."""
        return ()


class Training(Settings):
    """How a model is trained. An epoch is cut into equal batches of at most `batch_size` samples."""

    epochs: int = Field(30, ge=1, le=100_000, description="passes over the training examples")
    minimum_steps: int = Field(0, ge=0, description="raises the number of epochs until this many steps are reached")
    batch_size: int = Field(32, ge=1, description="samples per optimizer step, over all processes and micro-batches")
    micro_batch: int | None = declared(None, ge=1, description="samples per forward pass and process; none: all")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has Nesterov momentum 0.9")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="at its highest, after the warm-up")
    weight_decay: float = Field(0.05, ge=0, le=10, description="of matrices and kernels; biases and norms get none")
    schedule: Literal["cosine", "constant", "plateau"] = Field(
        "cosine", description="plateau: lower it when the score stands still"
    )
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="of all steps, in which the learning rate rises")
    final_fraction: float = Field(0.01, ge=0, le=1, description="of the learning rate, at the end of the cosine")
    plateau_factor: float = Field(0.5, gt=0, lt=1, description="what the learning rate is multiplied with then")
    plateau_patience_epochs: int = Field(3, ge=0, description="epochs without a better score before that")
    clip_norm: float | None = Field(1.0, gt=0, description="of the gradient; null: no clipping")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="exponential moving average of the weights")
    patience_epochs: int | None = Field(None, ge=1, description="early stopping; none: off")
    evaluate_every_epochs: int = Field(1, ge=1, description="and after the last one")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the forward pass (autocast)")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order, augmentation and dropout")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of the training step; none: all cores")
    deterministic: bool = Field(False, description="refuse operations without a deterministic algorithm")
    needs_gpu: bool = free(False, description="refuse to train without a GPU, where it would take days")
    fallback: bool = declared(True, description="allow a smaller model of the task's ladder if this one does not fit")

    def idle(self) -> dict[str, str]:
        reasons: dict[str, str] = {}
        if self.schedule != "plateau":
            for name in ("plateau_factor", "plateau_patience_epochs"):
                reasons[name] = f"train.schedule is {self.schedule!r}, not 'plateau'"
        if self.schedule != "cosine":
            reasons["final_fraction"] = f"train.schedule is {self.schedule!r}, not 'cosine'"
        if self.micro_batch is not None and self.micro_batch >= self.batch_size:
            reasons["micro_batch"] = f"it is not smaller than train.batch_size={self.batch_size}"
        if self.patience_epochs is not None and self.minimum_steps == 0 and self.patience_epochs >= self.epochs:
            reasons["patience_epochs"] = f"it is not smaller than train.epochs={self.epochs}"
        return reasons


class Loading(Settings):
    """How samples reach the model. Nothing here changes a sample."""

    workers: int | None = free(None, ge=0, le=256, description="loader processes; none: chosen from cores and device")
    prefetch_batches: int = free(4, ge=1, le=64, description="batches that each worker prepares ahead")
    cache_gigabytes: float = free(8.0, ge=0, description="disk for decoded samples; 0: decode every time")

    def idle(self) -> dict[str, str]:
        if self.workers == 0:
            return {"prefetch_batches": "loading.workers is 0: batches are made in the training process"}
        return {}


class Saving(Settings):
    """When checkpoints are written and how many are kept."""

    every_minutes: float = free(10.0, gt=0, description="time between checkpoints; one is written at every stop too")
    every_steps: int | None = free(None, ge=1, description="steps between checkpoints, in addition")
    hours_between_failures: float | None = free(
        None, gt=0, description="mean time between kills; if given, checkpoints follow Young's formula instead"
    )
    keep: int = free(2, ge=1, le=1000, description="newest checkpoints kept beside the best weights")
    keep_when_finished: Literal["best", "best_and_last"] = free("best_and_last", description="of a training stage")


class TaskConfig(Settings):
    """Base of a task's configuration: it adds `data` and `model`."""

    preset: str = Field("", description="the preset that this configuration started from")
    train: Training = Training()
    loading: Loading = Loading()
    saving: Saving = Saving()

    def multiples(self) -> dict[str, dict[str, int]]:
        """{key of an image size: {what cuts the image: by how much}}: the size must be a multiple of all of them."""
        return {}

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        for key, cuts in self.multiples().items():
            size, unit = _look_up(self, key), math.lcm(*cuts.values())
            if size % unit:
                why = " and ".join(f"{name}={number}" for name, number in cuts.items())
                fitting = [str(number) for number in (size // unit * unit, (size // unit + 1) * unit) if number > 0]
                raise ValueError(f"{key}={size} is not a multiple of {unit} ({why}); take {' or '.join(fitting)}")
        return self

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        micro, batch = self.train.micro_batch, self.train.batch_size
        if micro is not None and micro > batch:
            raise ValueError(f"train.micro_batch={micro} is larger than train.batch_size={batch}; make it smaller")
        return self


def _look_up(settings: Settings, key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = getattr(found, part)
    return found
