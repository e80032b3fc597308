"""Samples per second of training loops: a bare PyTorch loop, ours, accelerate, Lightning, Hugging Face's Trainer.

    python benchmarks/loop.py                  # everything that is installed, both sizes of step
    python benchmarks/loop.py --fetch samples  # the others fetch and stack one sample at a time, as most users let them

All: the same network, float32 data in memory, AdamW from the same function, batches of 32, gradients clipped to norm 1,
one CPU thread, no worker processes, no validation and no checkpoint inside what is timed. Ours runs
`outlast.loop.train.train` with everything safe on: check for a loss that is not finite, session limit, signals, the
question whether a checkpoint is due, progress, sums of the loss. The others run with the defaults of their trainers.

Each loop lives in its own process, and only one of them runs at a time: after every slice of steps the turn goes to the
next, so that what else a shared machine does hits all of them alike. A slice runs from the start of a forward pass to
the start of a later one, over one change of epoch. Reported are medians over rounds of (time of bare / time of the
loop) within a round, by the wall clock and by the processor time of the process; "overhead" is the processor time per
step beyond that of bare.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from outlast.base.clock import Deadline
from outlast.config.schema import Saving, TaskConfig, Training
from outlast.data.loader import Loader
from outlast.data.sampler import shuffled
from outlast.data.table import Examples
from outlast.env.signals import listen
from outlast.loop.accel import set_up
from outlast.loop.optim import build_optimizer
from outlast.loop.setup import Job
from outlast.loop.train import train
from outlast.model.metrics import Classification
from outlast.task import Learner, Rows, Train

BATCH, CLASSES, CLIP_NORM, FOREVER = 32, 10, 1.0, 100_000
TRAINING = Training(epochs=FOREVER, batch_size=BATCH, clip_norm=CLIP_NORM, evaluate_every_epochs=FOREVER, threads=1)
WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Size:
    """A network of `blocks` pairs of convolutions from `width` channels on, and the steps of an epoch."""

    width: int
    blocks: int
    pixels: int
    epoch_steps: int  # also of a slice: each holds one change of epoch


SIZES = {"large": Size(16, 3, 64, 50), "small": Size(8, 2, 32, 100)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "both"], default="both")
    parser.add_argument("--sets", type=int, default=3, help="fresh processes each: how memory falls differs by process")
    parser.add_argument("--rounds", type=int, default=15, help="of each set")
    parser.add_argument("--fetch", choices=["batches", "samples"], default="batches")
    parser.add_argument("--only", nargs="+", choices=list(LOOPS), help="these beside bare")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    loops = [name for name in LOOPS if installed(name) and (not arguments.only or name in {"bare", *arguments.only})]
    for size in SIZES if arguments.size == "both" else [arguments.size]:
        sets = [measure(loops, size, arguments.fetch == "batches", arguments.rounds) for _ in range(arguments.sets)]
        times = {name: np.concatenate([times[name] for times in sets]) for name in loops}
        report(size, times, arguments.sets, arguments.fetch, arguments.json)


def measure(loops: list[str], size: str, whole_batches: bool, rounds: int) -> dict[str, np.ndarray]:
    """{loop: (rounds, 3)} per step: seconds on the wall, seconds of processor time, page faults."""
    context = multiprocessing.get_context("spawn")
    turns: dict[str, Connection] = {}
    processes = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for name in loops:
                turns[name], theirs = context.Pipe()
                target = (name, size, whole_batches, Path(scratch) / name, theirs)
                processes.append(context.Process(target=live, args=target, daemon=True))
                processes[-1].start()
                theirs.close()
                turns[name].recv()  # it has come to its first forward pass
            taken: dict[str, list[Any]] = {name: [] for name in loops}
            for number in range(WARM_UP_ROUNDS + rounds):
                for name in loops[number % len(loops) :] + loops[: number % len(loops)]:
                    turns[name].send("go")
                    taken[name].append(turns[name].recv())
        except EOFError:
            for log in Path(scratch).glob("*/log"):
                print(f"--- {log.parent.name}\n{log.read_text()[-3000:]}", file=sys.stderr)
            raise
        finally:
            for process in processes:
                process.kill()
                process.join()
    steps = SIZES[size].epoch_steps
    return {name: np.array(values[WARM_UP_ROUNDS:]) / steps for name, values in taken.items()}


def live(name: str, size: str, whole_batches: bool, folder: Path, turn: Connection) -> None:
    """The life of a loop's process: train until it is killed."""
    folder.mkdir()
    os.chdir(folder)  # what a trainer leaves behind goes with the folder
    with (folder / "log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        Net.turn = Turn(turn, SIZES[size].epoch_steps)
        try:
            LOOPS[name](SIZES[size], Memory(SIZES[size], whole_batches))
        except BaseException:
            import traceback

            traceback.print_exc(file=log)
            raise


class Turn:
    """Counts training steps; after each slice it reports the time taken and waits for the next turn."""

    def __init__(self, connection: Connection, steps: int) -> None:
        self.connection, self.steps, self.count = connection, steps, -1
        self.began = used()

    def tick(self) -> None:
        self.count += 1
        if self.count % self.steps == 0:
            self.connection.send(used() - self.began)
            self.connection.recv()
            self.began = used()


def used() -> np.ndarray:
    """Seconds on the wall, seconds of processor time and page faults of this process, so far."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return np.array([time.perf_counter(), time.process_time(), faults])


class Net(nn.Module):
    """A plain convolutional classifier whose forward pass in training is the clock of this benchmark."""

    turn: Turn

    def __init__(self, size: Size) -> None:
        super().__init__()
        widths = [size.width * 2**k for k in range(size.blocks + 1)]
        layers = [_convolution(3, widths[0], 2)]
        for before, after in itertools.pairwise(widths):
            layers += [_convolution(before, after, 2), _convolution(after, after, 1)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.turn.tick()
        return self.layers(images)


class Memory(Dataset[Any]):
    """Images and labels in memory. With `whole_batches` a DataLoader fetches a batch by one indexing operation."""

    def __init__(self, size: Size, whole_batches: bool) -> None:
        count = size.epoch_steps * BATCH
        self.images = torch.randn(count, 3, size.pixels, size.pixels)
        self.labels = torch.randint(0, CLASSES, (count,))
        if whole_batches:
            self.__getitems__ = self._batch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def _batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]

    def loader(self) -> DataLoader[Any]:
        collate = _as_it_is if hasattr(self, "__getitems__") else None
        return DataLoader(self, BATCH, shuffle=True, collate_fn=collate)


def bare(size: Size, data: Memory) -> None:
    """What one writes by hand, without loading, logging, saving or checking anything."""
    model = Net(size)
    optimizer = build_optimizer(model, TRAINING)
    model.train()
    while True:
        order = torch.randperm(len(data))
        for start in range(0, len(data), BATCH):
            rows = order[start : start + BATCH]
            images, labels = data.images[rows], data.labels[rows]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()


def ours(size: Size, data: Memory) -> None:
    """`outlast.loop.train.train` on a task whose samples are in memory; 32 of them are the validation split."""
    count = len(data)
    table = pd.DataFrame(
        {
            "id": [f"image-{number}" for number in range(count + BATCH)],
            "hash": "",
            "label": np.concatenate([data.labels.numpy(), data.labels[:BATCH].numpy()]),
            "split": np.where(np.arange(count + BATCH) < count, "train", "val"),
        }
    )
    images = torch.cat([data.images, data.images[:BATCH]]).numpy()
    config = TaskConfig(train=TRAINING, saving=Saving(every_minutes=10))
    learner = Learner(
        name="bench",
        examples=_unused,
        read=_unused,
        reads=_unused,
        sampler=lambda config, table, seed, epoch: shuffled(len(table), seed, epoch),
        draw=_unused,
        augment=_unused,
        model=lambda config, inputs, rung: Net(size),
        rungs=lambda config: ("only",),
        step=_step,
        predict=lambda config, model, batch: {"logits": model(batch["image"])},
        metric=lambda config, facts: Classification(facts["classes"]),
        score="+accuracy",
        deploy=lambda config, model: model,
    )
    examples = Examples(table, Path(), {"classes": [str(k) for k in range(CLASSES)]}, ("label",))
    columns = {"label": table["label"].to_numpy()}
    with (
        listen() as request,
        Loader(lambda rows: {"image": images[rows]}, columns, None, None, workers=0) as loader,
    ):
        compute = set_up(1, 2)
        stage = Train("train", learner, config, Rows(values=("train",)), Rows(values=("val",)))
        deadline = Deadline.after(9 * 3600)
        train(Job(stage, Path("run"), examples, {}, loader, compute, {}, deadline, stop=lambda: request.reason))


def _step(config: Any, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
    logits = model(batch["image"])
    loss = nn.functional.cross_entropy(logits, batch["label"], reduction="sum")
    return {"loss_sum": loss, "weight": len(logits)}


def accelerate_loop(size: Size, data: Memory) -> None:
    """The loop of accelerate's quick tour: prepare model, optimizer and loader."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    plain = Net(size)
    model, optimizer, loader = accelerator.prepare(plain, build_optimizer(plain, TRAINING), data.loader())
    model.train()
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()


def lightning_loop(size: Size, data: Memory) -> None:
    """Lightning's Trainer with its defaults (progress bar, logger, summary), without validation and checkpoints."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(size)

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return build_optimizer(self.net, TRAINING)

    trainer = lightning.Trainer(
        max_epochs=FOREVER, accelerator="cpu", devices=1, gradient_clip_val=CLIP_NORM, enable_checkpointing=False
    )
    trainer.fit(Module(), data.loader())


def hugging_face_loop(size: Size, data: Memory) -> None:
    """Hugging Face's Trainer with its defaults (progress bar, logs every 500 steps), without checkpoints."""
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(size)

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(pixel_values)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def collate(samples: Any) -> dict[str, Tensor]:
        images, labels = samples if hasattr(data, "__getitems__") else torch.utils.data.default_collate(samples)
        return {"pixel_values": images, "labels": labels}

    arguments = TrainingArguments(
        "out", num_train_epochs=FOREVER, per_device_train_batch_size=BATCH, max_grad_norm=CLIP_NORM, use_cpu=True,
        save_strategy="no", report_to="none", lr_scheduler_type="constant",
    )  # fmt: skip
    model = Model()
    optimizer = build_optimizer(model, TRAINING)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=data, optimizers=(optimizer, None))
    trainer.train()


LOOPS: dict[str, Callable[[Size, Memory], None]] = {
    "bare": bare,
    "outlast": ours,
    "accelerate": accelerate_loop,
    "lightning": lightning_loop,
    "transformers": hugging_face_loop,
}


def installed(name: str) -> bool:
    return name == "bare" or importlib.util.find_spec(name) is not None


def report(size: str, times: dict[str, np.ndarray], sets: int, fetch: str, as_json: bool) -> None:
    rows = {}
    for name, taken in times.items():
        ratios = times["bare"] / taken
        rows[name] = {
            "ratio": statistics.median(ratios[:, 0]),
            "ratio_quartiles": np.quantile(ratios[:, 0], [0.25, 0.75]).tolist(),
            "ratio_processor_by_set": [float(np.median(part)) for part in np.split(ratios[:, 1], sets)],
            "page_faults_by_set": [float(np.median(part)) for part in np.split(taken[:, 2], sets)],
            "ratio_processor": statistics.median(ratios[:, 1]),
            "milliseconds_per_step": 1e3 * statistics.median(taken[:, 0]),
            "processor_milliseconds_per_step": 1e3 * statistics.median(taken[:, 1]),
            "overhead_milliseconds": 1e3 * statistics.median(taken[:, 1] - times["bare"][:, 1]),
        }
    if as_json:
        print(json.dumps({"size": size, "fetch": fetch, "rounds": len(times["bare"]), "loops": rows}))
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", *times) if name != "bare")
    steps = SIZES[size].epoch_steps
    print(f"\n{size}, fetch={fetch}, {len(times['bare'])} rounds of {steps} steps; {os.cpu_count()} cores, {versions}")
    heads = {"of bare": 9, "quartiles": 15, "processor": 11, "ms/step": 9, "processor ms": 14, "overhead ms": 13}
    print(" " * 13 + "".join(f"{head:>{width}s}" for head, width in heads.items()) + "  processor, faults by set")
    for name, row in rows.items():
        low, high = row["ratio_quartiles"]
        print(
            f"{name:13s}{row['ratio']:9.3f}{f'{low:.3f}-{high:.3f}':>15s}{row['ratio_processor']:11.3f}"
            f"{row['milliseconds_per_step']:9.2f}{row['processor_milliseconds_per_step']:14.2f}"
            f"{row['overhead_milliseconds']:13.3f}  "
            + " ".join(f"{ratio:.3f}" for ratio in row["ratio_processor_by_set"])
            + "  "
            + " ".join(f"{faults:.0f}" for faults in row["page_faults_by_set"]),
            flush=True,
        )


def _convolution(before: int, after: int, stride: int) -> nn.Module:
    layers = (nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
    return nn.Sequential(*layers)


def _as_it_is(batch: Any) -> Any:
    return batch


def _unused(*_: Any) -> Any:
    raise AssertionError("not needed: the loader gives what is in memory as it is")


if __name__ == "__main__":
    main()
