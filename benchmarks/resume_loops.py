"""The trainings that resume.py compares: one network on one made-up data set, resumed by each framework's own means.

Every process trains until it has done a number of steps and then dies without a goodbye, as a session does. The clock
is a hook on torch's optimizers, the same for all: it notes when each step was done, on which samples, and at the end
the weights. Each peer is used as its documentation says for a resume in the middle of an epoch:

    accelerate    save_state, load_state, set_epoch and skip_first_batches, with the seedable sampler
    acc-stateful  save_state and load_state with use_stateful_dataloader (torchdata), and nothing skipped by hand
    lightning     ModelCheckpoint every n steps, fit(ckpt_path=...), torchdata's StatefulDataLoader, seed_everything
    transformers  save_steps, train(resume_from_checkpoint=...), data skipped (the default)

Random augmentation draws from torch's generator in `__getitem__`, as is usual. Outlast trains the task in
resume_task.py through `outlast.train`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset

CLASSES, CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY, FOREVER, SEED = 10, 1.0, 1e-3, 0.05, 1000, 0
SETTLE_SECONDS = 2.0  # what saves in the background must be through by then


@dataclass(frozen=True)
class Case:
    """A data set of `rows` samples of `shape` and the batch size; the network follows from the shape.

    random: with dropout and random augmentation.
    """

    rows: int
    batch: int
    shape: tuple[int, ...]
    width: int
    layers: int = 1
    random: bool = True


CASES = {
    "small": Case(rows=640, batch=16, shape=(3, 16, 16), width=8),
    "small-fixed": Case(rows=640, batch=16, shape=(3, 16, 16), width=8, random=False),
    "long": Case(rows=440_000, batch=4, shape=(8,), width=8),
    "long-quick": Case(rows=12_000, batch=4, shape=(8,), width=8),
    "large": Case(rows=1600, batch=32, shape=(500,), width=2000, layers=6),  # 25.03 million parameters
}


@dataclass(frozen=True)
class Work:
    """What one process does.

    steps: after so many optimizer steps of its own it dies. began: time.monotonic() of the moment before it was
    started. settle: wait a little before dying. synchronous_saves: Outlast only, at the end, timed.
    """

    framework: str
    case: str
    folder: str
    resume: bool
    save_every: int
    steps: int
    began: float
    workers: int = 0
    threads: int = 1
    notes: str | None = None  # where to write what was noted; the weights go beside it
    settle: bool = False
    synchronous_saves: int = 0

    @property
    def data(self) -> Case:
        return CASES[self.case]


class Meter:
    """Notes each optimizer step, and ends the process after the last one."""

    def __init__(self, work: Work, at_end: Callable[[], dict[str, Any]] | None = None) -> None:
        self.work, self.at_end = work, at_end
        self.times: list[float] = []
        self.processor_times: list[float] = []  # of the thread that trains
        self.order: list[list[int]] = []
        self.samples: list[int] = []
        self.model: nn.Module | None = None
        register_optimizer_step_post_hook(self._stepped)

    def seen(self, model: nn.Module, rows: Tensor) -> None:
        """A forward pass of training on the samples `rows`."""
        self.model = model
        self.samples += rows.tolist()

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        samples, self.samples = self.samples, []
        if optimizer.param_groups[0]["lr"] == 0:
            return  # Outlast tries out a step to see whether it fits into memory; it is no step of the training
        self.times.append(time.monotonic())
        self.processor_times.append(time.thread_time())
        self.order.append(samples)
        if len(self.times) >= self.work.steps:
            self._end(optimizer)

    def _end(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.model is not None
        parameter = next(iter(optimizer.state))
        noted = {
            "first_step_seconds": self.times[0] - self.work.began,
            "times": self.times,
            "processor_times": self.processor_times,
            "order": self.order,
            "optimizer_steps": int(optimizer.state[parameter]["step"]),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }
        if self.work.notes is not None:
            torch.save(self.model.state_dict(), Path(self.work.notes).with_suffix(".pt"))
        if self.work.settle:
            time.sleep(SETTLE_SECONDS)
        if self.at_end is not None:
            noted |= self.at_end()
        if self.work.notes is not None:
            Path(self.work.notes).write_text(json.dumps(noted))
        sys.stdout.flush()
        os._exit(0)


METER: Meter


def live(work: Work) -> None:
    """The life of a process: train until the meter ends it."""
    global METER
    torch.set_num_threads(work.threads)
    Path(work.folder).mkdir(parents=True, exist_ok=True)
    os.chdir(work.folder)  # what a trainer leaves behind goes with the folder
    if work.framework == "outlast":
        from benchmarks import resume_task

        METER = Meter(work, lambda: resume_task.at_end(work))
        resume_task.train(work)
    else:
        METER = Meter(work)
        PEERS[work.framework](work)
    raise SystemExit(f"{work.framework} ended after {len(METER.times)} of {work.steps} steps")


class Net(nn.Module):
    """A small convolutional network for images, a perceptron for vectors; both with dropout."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        if len(case.shape) == 3:
            body: list[nn.Module] = [nn.Conv2d(case.shape[0], case.width, 3, 2, 1), nn.BatchNorm2d(case.width)]
            body += [nn.ReLU(), nn.Flatten()]
            width = case.width * case.shape[1] * case.shape[2] // 4
        else:
            body = [nn.Linear(case.shape[0], case.width), nn.ReLU()]
            for _ in range(case.layers):
                body += [nn.Linear(case.width, case.width), nn.ReLU()]
            width = case.width
        self.layers = nn.Sequential(*body, nn.Dropout(0.2 if case.random else 0.0), nn.Linear(width, CLASSES))

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values)


def made_up(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """uint8 samples (rows, *shape) and labels (rows,), the same in every process; one batch more for validation."""
    generator = np.random.default_rng(SEED)
    count = case.rows + case.batch
    labels = np.arange(count, dtype=np.int64) % CLASSES
    samples = generator.integers(0, 200, (count, *case.shape), dtype=np.uint8)
    return samples + (5 * labels.astype(np.uint8)).reshape(-1, *(1 for _ in case.shape)), labels


def augmented(values: Tensor, draws: Tensor) -> Tensor:
    """float32 samples (B, ...) of uint8 ones, each with its own gain and offset from draws (B, 2) in [0, 1)."""
    gain, offset = (column.reshape(-1, *(1 for _ in values.shape[1:])) for column in draws.unbind(1))
    return values.float() / 255 * (0.8 + 0.4 * gain) + 0.1 * offset


class Samples(Dataset[Any]):
    """What the peers read: each sample is augmented with numbers from torch's generator."""

    def __init__(self, case: Case) -> None:
        samples, labels = made_up(case)
        self.samples, self.labels = torch.from_numpy(samples), torch.from_numpy(labels)
        self.case = case

    def __len__(self) -> int:
        return self.case.rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        draws = torch.rand(1, 2) if self.case.random else torch.full((1, 2), 0.5)
        values = augmented(self.samples[row : row + 1], draws)[0]
        return {"values": values, "labels": self.labels[row], "rows": row}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """The same as Outlast's: fused AdamW, no weight decay for vectors."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    METER.seen(model, batch["rows"])
    return nn.functional.cross_entropy(model(batch["values"]), batch["labels"])


def accelerate_skipping(work: Work) -> None:
    """As the guide on checkpointing and the example `by_feature/checkpointing.py` do it."""
    _accelerate(work, stateful=False)


def accelerate_stateful(work: Work) -> None:
    """The same with use_stateful_dataloader: load_state brings the loader to its place."""
    _accelerate(work, stateful=True)


def _accelerate(work: Work, stateful: bool) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed

    loading = DataLoaderConfiguration(use_stateful_dataloader=stateful, use_seedable_sampler=True)
    accelerator = Accelerator(cpu=True, dataloader_config=loading)
    set_seed(SEED)
    plain, data = Net(work.data), Samples(work.data)
    loader = DataLoader(data, work.data.batch, shuffle=True, num_workers=work.workers)
    model, optimizer, loader = accelerator.prepare(plain, optimizer_of(plain), loader)
    step, epoch_steps = 0, len(loader)
    if work.resume:
        newest = max(Path().glob("step_*"), key=lambda folder: int(folder.name.partition("_")[2]))
        accelerator.load_state(str(newest))
        step = int(newest.name.partition("_")[2])
    model.train()
    first_epoch, skipped = divmod(step, epoch_steps)
    for epoch in range(first_epoch, FOREVER):
        loader.set_epoch(epoch)
        batches = loader
        if epoch == first_epoch and skipped and not stateful:
            batches = accelerator.skip_first_batches(loader, skipped)
        for batch in batches:
            optimizer.zero_grad()
            accelerator.backward(loss_of(model, batch))
            accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            step += 1
            if step % work.save_every == 0:
                accelerator.save_state(f"step_{step}")


def lightning_trainer(work: Work) -> None:
    """ModelCheckpoint by steps, a loader that keeps its place, and fit(ckpt_path=...)."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torchdata.stateful_dataloader import StatefulDataLoader

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(work.data)

        def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.net)

    lightning.seed_everything(SEED, workers=True)
    trainer = lightning.Trainer(
        max_epochs=FOREVER, accelerator="cpu", devices=1, gradient_clip_val=CLIP_NORM, logger=False,
        callbacks=[ModelCheckpoint("checkpoints", every_n_train_steps=work.save_every)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = StatefulDataLoader(Samples(work.data), work.data.batch, shuffle=True, num_workers=work.workers)
    newest = max(Path("checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime) if work.resume else None
    trainer.fit(Module(), loader, ckpt_path=newest)


def hugging_face_trainer(work: Work) -> None:
    """Checkpoints by steps and train(resume_from_checkpoint=True), which skips the data that was seen."""
    from transformers import Trainer, TrainingArguments, set_seed

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(work.data)

        def forward(self, values: Tensor, labels: Tensor, rows: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.net, {"values": values, "labels": labels, "rows": rows})}

    set_seed(SEED)
    arguments = TrainingArguments(
        "checkpoints", num_train_epochs=FOREVER, per_device_train_batch_size=work.data.batch, max_grad_norm=CLIP_NORM,
        use_cpu=True, save_strategy="steps", save_steps=work.save_every, save_total_limit=2, report_to="none",
        lr_scheduler_type="constant", seed=SEED, disable_tqdm=True, logging_strategy="no",
        dataloader_num_workers=work.workers,
    )  # fmt: skip
    model = Model()
    optimizers = (optimizer_of(model), None)
    trainer = Trainer(model, arguments, train_dataset=Samples(work.data), optimizers=optimizers)
    trainer.train(resume_from_checkpoint=work.resume)


PEERS: dict[str, Callable[[Work], None]] = {
    "accelerate": accelerate_skipping,
    "acc-stateful": accelerate_stateful,
    "lightning": lightning_trainer,
    "transformers": hugging_face_trainer,
}
