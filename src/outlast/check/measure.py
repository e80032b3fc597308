"""What the measured times of a training stage come to: hours and bytes. How they are measured is in loop.measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from outlast.check.trial import Trial
from outlast.loop import measure as measuring


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes of a training stage, as it is configured, on this machine (of each process).

    step_seconds: of one optimizer step, with the wait for its samples. wait_seconds: of that wait. overlapped: whether
    samples are made while the step before computes. evaluate_seconds: of one whole evaluation. save_seconds: of one
    checkpoint, off the training path. stall_seconds: how long training stands still for it. alike: how many stages
    of the plan differ from this one only in their rows, itself included.
    """

    stage: str
    rung: str
    device: str
    micro_batch: int
    step_seconds: float
    wait_seconds: float
    overlapped: bool
    evaluate_seconds: float
    save_seconds: float
    stall_seconds: float
    checkpoint_bytes: int
    best_bytes: int
    steps_per_epoch: int
    epochs: int
    evaluate_every_epochs: int
    alike: int = 1

    @property
    def evaluations(self) -> int:
        """How often it is evaluated: every so many epochs, and after the last one."""
        return -(-self.epochs // self.evaluate_every_epochs)

    @property
    def training_seconds(self) -> float:
        return self.epochs * self.steps_per_epoch * self.step_seconds

    @property
    def evaluation_seconds(self) -> float:
        return self.evaluations * self.evaluate_seconds

    def total_seconds(self, every_minutes: float) -> float:
        """Training, evaluating, and standing still for checkpoints every so many minutes; of all stages alike."""
        seconds = self.training_seconds + self.evaluation_seconds
        return self.alike * (seconds + seconds / (60 * every_minutes) * self.stall_seconds)


def measure(trial: Trial, scratch: Path, cores: int, processes: int = 1) -> Measured:
    """Do a few steps, a part of an evaluation and one save of the stage. Nothing of it remains."""
    stage, needs = trial.stage, {name: trial.run / name for name in trial.stage.needs}
    times = measuring.measure(
        stage, trial.reading.examples, needs, trial.compute, scratch, cores,
        effort=measuring.QUICK, processes=processes, trained=trial.trained,
    )  # fmt: skip
    return Measured(
        stage=stage.name,
        rung=times.rung,
        device=trial.compute.device.type,
        micro_batch=times.micro_batch,
        step_seconds=times.step,
        wait_seconds=times.wait,
        overlapped=times.overlapped,
        evaluate_seconds=times.row * -(-times.validation_rows // processes),
        save_seconds=times.save,
        stall_seconds=times.stall,
        checkpoint_bytes=times.checkpoint_bytes,
        best_bytes=times.best_bytes,
        steps_per_epoch=times.steps_per_epoch,
        epochs=times.epochs,
        evaluate_every_epochs=stage.config.train.evaluate_every_epochs,
        alike=len(trial.alike),
    )
