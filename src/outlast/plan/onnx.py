"""`outlast export RUN --to model.onnx`: the images of the run that a file is compared, calibrated and measured on.

Inputs of the network are what the learner's `predict` calls the trained model with, so that they are what it was
trained for. Where the run's data are gone a file is compared with torch on made inputs, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outlast.base.files import write_json
from outlast.base.log import say, warn
from outlast.data.split import obey
from outlast.data.table import Examples
from outlast.env import device
from outlast.errors import DataError, ModelError, RunError, TaskError, UsageError
from outlast.export import onnx, onnx_int8, onnx_table
from outlast.export.onnx import Network
from outlast.export.onnx_session import Run, Session, Shapes, StandIn, enlarged
from outlast.loop.evaluate import evaluate
from outlast.loop.memory import Portion
from outlast.loop.samples import evaluation_plans, open_loader
from outlast.plan import record
from outlast.plan.deliver import Delivered
from outlast.plan.sources import DECIDED, parse_data, split_name
from outlast.task import DATA, Rows, select

_CHECKED = 4  # images that a file is compared with torch on
_CALIBRATION = 64  # images that the ranges of 8-bit integers are measured on
_BATCH = 4
_MADE_SIDE = 128  # pixels, of networks that take any size

Inputs = tuple[Tensor, ...]  # of one batch: (B, C, H, W) of each input


@dataclass(frozen=True)
class Wish:
    """What to write: half precision, 8-bit integers ('dynamic', 'static' or None), a comparison; data: where it is."""

    target: Path
    half: bool = False
    int8: str | None = None
    compare: bool = False
    data: Any = None


def check(wish: Wish) -> None:
    """Refuse what can't be written. Raises UsageError."""
    onnx.check_target(wish.target)
    if wish.int8 is not None and wish.int8 not in onnx_int8.KINDS:
        raise UsageError(f"--int8 {wish.int8!r} is not known", hint=f"choose {' or '.join(onnx_int8.KINDS)}")
    if wish.int8 is not None and wish.half:
        raise UsageError("--half and --int8 exclude each other", hint="leave one of them out")


def export(opened: Delivered, wish: Wish, sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Write the delivered network. Returns {"files", "parameters"}, and "comparison" and "text" of a comparison.

    Raises ModelError for a network that can't be ONNX, RunError if data are needed that are not there.
    """
    module = opened.module()
    source = _data(opened, wish, _shapes(sidecar))
    samples, images = _samples(source) if source else (_made(sidecar), None)
    say("tracing the network …")
    network = onnx.capture(module, samples)
    calibration = source.rows("calibration") if source and (wish.compare or wish.int8 == "static") else None
    batches = source.inputs(calibration) if source and calibration is not None else []
    kind = "float16" if wish.half else f"int8 {wish.int8}" if wish.int8 else "float32"
    model, precision = _made_of(network, kind, batches)
    differences = onnx.compared(Session(model.SerializeToString()), network.module, samples)
    about: dict[str, Any] = {
        **network.describe(),
        "precision": precision,
        "compared_with_torch": {
            "images": images or "made: the data of the run were not there", "count": len(samples[0]),
            "split": source.which if source else None,
            "largest_difference": max(found.most for found in differences.values()),
            "outputs": {
                name: {"largest_difference": found.most, "largest_value": found.largest,
                       "of_float32": network.differences[name].most}
                for name, found in differences.items()
            },
            "tolerance_of_float32": onnx.TOLERANCE,
        },
    }  # fmt: skip
    if source is not None and calibration is not None and wish.int8 == "static":
        about["calibration"] = {"split": "train", "images": source.ids(calibration)}
    files = onnx.write(model, wish.target, {**sidecar, "onnx": about})
    result: dict[str, Any] = {"files": files, "parameters": sum(value.numel() for value in module.parameters())}
    if source is None or not wish.compare:
        return result
    table = _compare(source, network, batches, sidecar)
    beside = wish.target.with_suffix(".comparison.json")
    write_json(beside, table)
    return {**result, "files": [*files, beside], "comparison": table, "text": onnx_table.as_text(table)}


class _Data:
    """The run's examples, with the split that it froze; rows of them as what goes into the network."""

    def __init__(self, opened: Delivered, examples: Examples, shapes: Shapes) -> None:
        self.opened, self.examples, self.shapes = opened, examples, shapes
        self.mapping = False  # whether the trained model gives a mapping: known once `inputs` was called
        test = Rows(values=("test",))
        splits = set(examples.table["split"]) if "split" in examples.table.columns else set()
        self.which = "test" if "test" in splits else "validation"
        if self.which != "test" and len({stage.validate for stage in opened.stages}) > 1:
            self.which = "validation, seen in training by some of the models"
        self._judged = select(examples.table, test if "test" in splits else opened.stages[0].validate)
        fit = select(examples.table, opened.stages[0].fit)
        self._calibration = fit[np.unique(np.linspace(0, len(fit) - 1, _CALIBRATION).round().astype(np.int64))]

    def rows(self, which: str) -> np.ndarray:
        """Positions: 'judged' is the test split (without one, what the run was validated on), or 'calibration'."""
        return self._judged if which == "judged" else self._calibration

    def ids(self, rows: np.ndarray) -> list[str]:
        return [str(name) for name in self.examples.table["id"].iloc[rows]]

    def part(self, rows: np.ndarray) -> Examples:
        """These examples alone, so that no others are read."""
        return replace(self.examples, table=self.examples.table.iloc[rows].reset_index(drop=True))

    def inputs(self, rows: np.ndarray) -> list[Inputs]:
        """What `predict` calls the trained model with, in batches."""
        opened, found = self.opened, []
        learner, module, compute = opened.learner, opened.opened.members[0].module, opened.compute
        seen: list[tuple[tuple[Any, ...], Any]] = []
        hook = module.register_forward_hook(lambda module, given, output: seen.append((given, output)))
        try:
            with self.loader(rows) as loader, torch.inference_mode():
                for batch in loader.batches(evaluation_plans(np.arange(len(rows)), _BATCH, 0, 1), augmented=False):
                    seen.clear()
                    learner.predict(opened.config, module, compute.put(batch))
                    if not seen or not all(isinstance(value, Tensor) for value in seen[0][0]):
                        raise TaskError(
                            f"the learner {learner.name!r} does not call its model with images alone in `predict`",
                            hint="call model(images); what is not an image belongs into the model",
                        )
                    found.append(enlarged([value.cpu().float().clone() for value in seen[0][0]], self.shapes))
                    self.mapping = isinstance(seen[0][1], Mapping)
        finally:
            hook.remove()
        return found

    def loader(self, rows: np.ndarray) -> Any:
        """A loader of these rows."""
        opened = self.opened
        scratch, cores = opened.machine.scratch, opened.machine.cores
        return open_loader(opened.learner, opened.config, self.part(rows), scratch, opened.compute, cores)

    def metrics(self, run: Run, loader: Any) -> dict[str, Any]:
        """The learner's metrics of what `run` gives for the judged rows, without other views or other models."""
        opened, count = self.opened, len(self._judged)
        stand_in = StandIn(run, self.shapes, mapping=self.mapping)
        portion = Portion(min(opened.opened.portion.size, _BATCH))
        try:
            found = evaluate(
                opened.learner, opened.config, stand_in, loader, np.arange(count), opened.facts, opened.compute, portion
            )
        except KeyError as error:
            raise TaskError(
                f"what the task {opened.task.name!r} delivers lacks {error}, by which its learner judges models",
                hint="leave --compare out",
            ) from error
        assert found is not None  # nothing asks it to stop
        return found


def _data(opened: Delivered, wish: Wish, shapes: Shapes) -> _Data | None:
    """The run's data; None, with a warning, if they are not there and can be done without."""
    learner, stage, run = opened.learner, opened.stages[0], opened.run
    known = opened.record["data"]
    given = parse_data(wish.data)
    try:
        found = learner.examples(stage.config, given or {DATA: Path(known[learner.name]["path"])})
        record.check_same_data(run, {learner.name: found.fingerprint})
        path = run / split_name(learner.name, known)
        if path.is_file():
            found = replace(found, table=obey(found.table, path, decided=DECIDED, compared=found.batch_columns))
    except (DataError, RunError) as error:
        if given:
            raise
        if wish.compare or wish.int8 == "static":
            what = "--compare" if wish.compare else "--int8 static"
            raise RunError(
                f"{what} needs the data of the run, and they can't be opened: {error.message}",
                hint="say with --data where they are now",
            ) from error
        warn(f"the data of the run can't be opened ({error.message}): comparing with torch on made inputs")
        return None
    return _Data(opened, found, shapes)


def _samples(source: _Data) -> tuple[Inputs, list[str]]:
    """Some judged images, spread over all of them, and their ids."""
    judged = source.rows("judged")
    rows = judged[np.unique(np.linspace(0, len(judged) - 1, _CHECKED).round().astype(np.int64))]
    return source.inputs(rows)[0], source.ids(rows)


def _made(sidecar: Mapping[str, Any]) -> Inputs:
    """Random inputs of the shapes that the sidecar tells."""
    shapes = _shapes(sidecar)
    if not shapes:
        raise RunError(
            "the data of the run can't be opened, and the task does not say what goes into its network",
            hint="say with --data where they are now",
        )
    random = torch.Generator().manual_seed(0)
    sides = [[side if isinstance(side, int) else _MADE_SIDE for side in shape[1:]] for shape in shapes]
    return tuple(torch.randn(_CHECKED, *each_sides, generator=random) for each_sides in sides)


def _shapes(sidecar: Mapping[str, Any]) -> Shapes:
    """The shapes that the sidecar tells, of the only input, or of each by its name; none if it tells none."""
    about = sidecar.get("input", {})
    each = [about, *(value for value in about.values() if isinstance(value, Mapping))]
    return [value["shape"] for value in each if "shape" in value]


def _made_of(network: Network, kind: str, batches: list[Inputs]) -> tuple[Any, dict[str, Any]]:
    """The model in a precision, and what the sidecar says of it."""
    if kind == "float16":
        return onnx.halved(network.model)
    if kind == "int8 dynamic":
        return onnx_int8.dynamic(network.model), {"weights": "int8", "ranges": "measured in each run"}
    if kind == "int8 static":
        named = [
            {name: value.numpy() for name, value in zip(network.module.inputs, batch, strict=True)} for batch in batches
        ]
        return onnx_int8.static(network.model, named), {"weights": "int8", "ranges": "measured on calibration images"}
    return network.model, {"weights": "float32"}


def _compare(source: _Data, network: Network, batches: list[Inputs], sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """The table: score, size and latency of torch and of every ONNX precision."""
    opened = source.opened
    cores, score = opened.machine.cores, opened.learner.score
    load, rows = onnx_table.load(), source.rows("judged")
    contenders = [onnx_table.Contender("torch float32", _bytes(network.module), lambda threads: network.module.run)]
    failed = []
    for kind in ("float32", "float16", "int8 dynamic", "int8 static"):
        try:
            data = _made_of(network, kind, batches)[0].SerializeToString()
            Session(data)
        except ModelError as error:
            failed.append({"model": f"onnx {kind}", "failed": error.message})
            continue
        contenders.append(onnx_table.Contender(f"onnx {kind}", len(data), partial(Session, data)))
    with source.loader(rows) as loader:
        metrics = {each.name: source.metrics(each.open(cores), loader) for each in contenders}
    one = [value[:1].numpy() for value in source.inputs(rows[:1])[0]]
    threads = sorted({1, cores})
    times = {count: onnx_table.latencies(contenders, one, count) for count in threads}
    return {
        "task": opened.task.name,
        "run": str(opened.run),
        "synthetic": sidecar["synthetic"],
        "config_hash": sidecar["config_hash"],
        "data": sidecar["data"],
        "rows": {"which": source.which, "count": len(rows)},
        "score": score[1:],
        "more_is_better": score.startswith("+"),
        "calibration": source.ids(source.rows("calibration")),
        "machine": {"processor": device.processor(), "cores": cores, "load": load},
        "versions": network.describe()["versions"],
        "latency": {"batch": 1, "threads": threads, "input": [list(value.shape) for value in one]},
        "models": [
            *(
                {
                    "model": each.name, "score": metrics[each.name][score[1:]], "bytes": each.size_bytes,
                    "latency": {str(count): times[count][each.name] for count in threads},
                    "metrics": metrics[each.name],
                }
                for each in contenders
            ),
            *failed,
        ],
    }  # fmt: skip


def _bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())
