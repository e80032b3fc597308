"""The contract of a task, and how a task is found.

A task describes, the machinery acts. A task module has two names: `about`, a string literal that says in one line what
it is for (read without importing the module), and `TASK`, a `Task`. Everything here is plain data and functions; there
is no base class to inherit behaviour from and nothing to register: a file or folder in `outlast/tasks`, a dotted module
name, or an entry point of the group `outlast.tasks` is enough.

Order and randomness. A sampler gives the order of rows as a function of (seed, epoch). `draw` gives each sample's
random numbers as a function of (seed, epoch, index), where index is the row, plus 2**40 for each time the row was drawn
before in the same epoch. So neither workers nor prefetching nor the place in a batch can change a sample.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from outlast.base.files import read_json
from outlast.errors import TaskError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from outlast.config.schema import TaskConfig
    from outlast.data.sampler import Drawn
    from outlast.data.table import Examples

    Batch = dict[str, torch.Tensor]
    Row = Mapping[str, Any]

DATA = "data"  # the name of the data root that a plain `--data DIR` gives


@dataclass(frozen=True)
class Inputs:
    """What a model is built from: facts about the data (channels, classes) and the folders of the stages it needs."""

    facts: Mapping[str, Any]
    needs: Mapping[str, Path] = field(default_factory=dict)

    def rung(self, stage: str) -> str | None:
        """Which model of its ladder a needed training stage has trained; None if it is not done."""
        record = self.needs[stage] / "stage.json" if stage in self.needs else None
        return str(read_json(record)["result"]["rung"]) if record is not None and record.is_file() else None


@dataclass(frozen=True)
class Trained:
    """The best weights of a training stage that is done, and the facts that its model was built from."""

    weights: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """A trained model in use: its stage's configuration, and its module on the device, evaluating."""

    config: Any
    module: torch.nn.Module


class Metric(Protocol):
    """Accumulates what an evaluation needs, batch by batch; `merge` takes in what another process accumulated."""

    def update(self, outputs: Batch, batch: Batch) -> None: ...
    def merge(self, other: Any) -> None: ...
    def compute(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Learner:
    """One model to be trained: how its samples, its model, its step and its score are made.

    examples(config, roots)   every example with its split, classes and fingerprint; roots: {name: folder}
    read(config, root, row)   arrays of one row, decoded, before any augmentation; they are cached
    reads(config)             JSON: the settings that `read` depends on; the cache is keyed by them
    sampler(config, table, seed, epoch)   int64 positions into the training table: the order of one epoch; or Drawn:
                              positions, and what was drawn for each sample besides
    draw(config, seed, epoch, indices)    the random numbers of these samples, first axis = samples
    augment(config, batch, draws)   the whole batch on its way into the model; draws is None when evaluating
    model(config, inputs, rung)     an nn.Module that holds everything that is trained
    begin(config, model, inputs, trained)   once before a fresh training: brings over weights of the stages it needs,
                              {stage: Trained}; returns a JSON-able account of it, kept in begun.json
    rungs(config)             names of the ladder, the wanted model first, then smaller ones to fall back on
    step(config, model, batch)      {"loss_sum": tensor, "weight": number, extras}; extras are sums too, and logged
                              divided by the weight. batch["epochs"] (0-dim float32) tells how many epochs were
                              trained so far, for losses with a schedule.
    predict(config, model, batch)   outputs without gradient, first axis = samples
    metric(config, facts)     a fresh Metric fed with predict's outputs
    score                     "+name" (more is better) or "-name": what early stopping and "best" go by
    deploy(config, model)     the module that users of the weights get
    teacher(config, inputs, trained)   a model to learn from, made of weights of the stages it needs, {stage: Trained};
                              none: this stage has none. It is frozen, evaluates, and is no part of what is trained
    teach(config, teacher, batch)   what the teacher makes of a batch, without gradient; `step` finds it in its batch
    loss_at_start(config, facts)    the mean loss of a model that knows nothing, None if that is not known; without it,
                              ln(classes) where there is one label per sample
    rates(config, model)      {beginning of parameters' names: their learning rate as a part of the others'}
    alarms(config, facts, line)     sentences on what looks wrong after an epoch, and why; line: that of metrics.jsonl
    couples_batch             the loss is not a sum over samples: micro-batches change it; recorded, and warned of
    """

    name: str
    examples: Callable[[Any, Mapping[str, Path]], Examples]
    read: Callable[[Any, Path, Row], dict[str, np.ndarray]]
    reads: Callable[[Any], Any]
    sampler: Callable[[Any, pd.DataFrame, int, int], np.ndarray | Drawn]
    draw: Callable[[Any, int, int, np.ndarray], np.ndarray | None]
    augment: Callable[[Any, Batch, np.ndarray | None], Batch]
    model: Callable[[Any, Inputs, str], torch.nn.Module]
    rungs: Callable[[Any], tuple[str, ...]]
    step: Callable[[Any, torch.nn.Module, Batch], dict[str, Any]]
    predict: Callable[[Any, torch.nn.Module, Batch], Batch]
    metric: Callable[[Any, Mapping[str, Any]], Metric]
    score: str
    deploy: Callable[[Any, torch.nn.Module], torch.nn.Module]
    begin: Callable[[Any, torch.nn.Module, Inputs, Mapping[str, Trained]], Mapping[str, Any]] | None = None
    teacher: Callable[[Any, Inputs, Mapping[str, Trained]], torch.nn.Module | None] | None = None
    teach: Callable[[Any, torch.nn.Module, Batch], Batch] | None = None
    loss_at_start: Callable[[Any, Mapping[str, Any]], float | None] | None = None
    rates: Callable[[Any, torch.nn.Module], Mapping[str, float]] | None = None
    alarms: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Sequence[str]] | None = None
    couples_batch: bool = False


@dataclass(frozen=True)
class Rows:
    """The rows of an examples table whose `column` holds one of `values`."""

    column: str = "split"
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Train:
    """A stage that trains a learner on the rows `fit`, and picks its best weights on the rows `validate`."""

    name: str
    learner: Learner
    config: TaskConfig
    fit: Rows = Rows(values=("train",))
    validate: Rows = Rows(values=("val",))
    needs: tuple[str, ...] = ()


Together = Callable[[Any, Sequence[Member], "Batch"], "Batch"]  # (config, members, batch): their outputs as one


@dataclass(frozen=True)
class Predict:
    """A stage that runs the best models of the training stages `models` over rows, sharded, atomic and resumable.

    rows: of all models together; or {model: its own rows}, where each model predicts alone, into a folder of its name.
    together: what several models give together (or one, with test-time augmentation); none: what the learner predicts
    with the only one. They are of one learner; rows, samples and facts are those of the first one's configuration.
    """

    name: str
    models: tuple[str, ...]
    rows: Rows | Mapping[str, Rows]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    together: Together | None = None


@dataclass(frozen=True)
class Work:
    """What the function of a `Call` is given: where to read, and an empty folder `out` to write into.

    Work that takes long is done in units. Each is written into the folder `kept` under a name of its own, atomically
    (base.files.write_folder, write_bytes), and then `pause()` is called, which does not return if the session must end.
    The next session calls the function again and gives it the same `kept`, where it finds its units; a kill costs the
    unit that was being done. `kept` is empty where configuration, data or inputs are other ones, and is gone once the
    stage is done: what is wanted in the end is written into `out`.
    """

    config: Any
    inputs: Mapping[str, Path]
    out: Path
    examples: Examples | None
    synthetic: bool
    kept: Path
    pause: Callable[[], None]


@dataclass(frozen=True)
class Call:
    """A stage that calls a function, which must make the files `makes`; what it returns (JSON) is recorded.

    A function that takes longer than a step of training should work in units (see `Work`): otherwise it can't be cut.
    """

    name: str
    function: Callable[[Work], Mapping[str, Any] | None]
    config: TaskConfig
    learner: Learner | None = None
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()


Stage = Train | Predict | Call


@dataclass(frozen=True)
class Solution:
    """What a submission that stands alone must know besides the networks (export.solution).

    channels: folders of the bands in the networks' order. tile, overlap: of whole scenes, in pixels. views: kinds of
    model.mosaic. adapter: the text of a module with `prepared(bands, **options)`, which adds `adds` channels, with the
    texts of the modules that it imports; '' for none.
    """

    channels: tuple[str, ...]
    tile: int
    overlap: int
    views: tuple[str, ...]
    adapter: str = ""
    adds: int = 0
    modules: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenes:
    """What `Delivery.scenes` is given: files to predict, the folder to write into, and the models on their device.

    budget_bytes: memory that may be taken. provenance: what every file that is made should carry. run: the run folder,
    in which the stages that are done lie under their names.
    """

    config: Any
    facts: Mapping[str, Any]
    members: Sequence[Member]
    files: Sequence[Path]
    out: Path
    device: torch.device
    budget_bytes: int
    provenance: Mapping[str, Any]
    run: Path


@dataclass(frozen=True)
class Judged:
    """What `Delivery.judge` is given: labelled examples, models on their device, the run folder as in Scenes."""

    config: Any
    facts: Mapping[str, Any]
    members: Sequence[Member]
    examples: Examples
    device: torch.device
    run: Path


@dataclass(frozen=True)
class Unseen:
    """What `Delivery.submit` is given: a finished run, and where a test set lies that takes the place of the run's own.

    config: all settings of the run. root: the folder that was named; none: it is looked for as training data are.
    run: the run folder, in which the stages that are done lie under their names; it is only read. members(): the models
    that are delivered, on the device. outputs(stage, examples, together): {name: an array, first axis = examples} of
    the best weights of one training stage, by the same code in the same order as in a stage Predict. fill: a row whose
    image is missing or can't be read gets what can be said without it; else it is an error.
    """

    config: Any
    root: Path | None
    run: Path
    device: torch.device
    members: Callable[[], Sequence[Member]]
    outputs: Callable[[str, Examples, Together | None], Mapping[str, np.ndarray]]
    fill: bool


@dataclass(frozen=True)
class Submission:
    """The table of a submission as it is to be written.

    root: where the test set lies. filled: {id: why} of the rows that were predicted without their image. how: what was
    put there instead, in words.
    """

    table: pd.DataFrame
    root: Path
    filled: Mapping[str, str] = field(default_factory=dict)
    how: str = ""


@dataclass(frozen=True)
class Mark:
    """How the points of a group are drawn: a colour (#rrggbb), and a marker that report.embedding knows."""

    colour: str
    marker: str


@dataclass(frozen=True)
class Groups:
    """What colours the points of an embedding: the group of every sample, and the marks of all groups in their order.

    A group that no sample has is named as empty.
    """

    names: Sequence[str]
    marks: Mapping[str, Mark]


@dataclass(frozen=True)
class Delivery:
    """What `eval`, `predict`, `embed` and `export` use.

    models                             the training stages whose best weights are used
    together                           what they give together, as for Predict
    module(members)                    them as the one module that users of the weights get; none: the learner's deploy
                                       of the only one
    scenes(scenes)                     predicts files larger than a sample and writes what it makes: `predict` of a
                                       task that has no `unlabelled` and `table`
    judge(judged)                      metrics of labelled examples, where more than the models is delivered; none: the
                                       learner's metric
    solution(config, facts)            what a solution.zip must know, for tasks that have such a submission
    submit(unseen)                     predicts a whole test set with all that the run has made: the competition's table
    outputs                            what of the learner's predictions `predict` needs
    labelled(config, root, facts)      every labelled example under a folder, for `eval`
    unlabelled(config, images, facts)  images that were never seen, for `predict`
    table(config, facts, ids, outputs) the table that `predict` writes
    sidecar(config, facts, rung)       what a user of the bare weights must know: classes, size, normalisation. "input"
                                       has the "shape" of the only input, or of each by its name, in their order; ONNX
                                       files are made for the sizes in it that are numbers, smaller images padded with 0
    groups(config, examples)           what colours the points of `embed`; none: the class that the column "label" says
    embedded                           training stages that `embed` shows side by side; none: what is delivered
    """

    models: tuple[str, ...]
    outputs: tuple[str, ...]
    labelled: Callable[[Any, Path, Mapping[str, Any]], Examples]
    sidecar: Callable[[Any, Mapping[str, Any], str], dict[str, Any]]
    unlabelled: Callable[[Any, Sequence[Path], Mapping[str, Any]], Examples] | None = None
    table: Callable[[Any, Mapping[str, Any], Sequence[str], Mapping[str, np.ndarray]], pd.DataFrame] | None = None
    together: Together | None = None
    module: Callable[[Sequence[Member]], torch.nn.Module] | None = None
    scenes: Callable[[Scenes], pd.DataFrame] | None = None
    judge: Callable[[Judged], dict[str, Any]] | None = None
    solution: Callable[[Any, Mapping[str, Any]], Solution] | None = None
    submit: Callable[[Unseen], Submission] | None = None
    groups: Callable[[Any, Examples], Groups] | None = None
    embedded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure of the report: the `kind` (report.plots draws it) and the file under the run folder that it shows."""

    kind: str
    source: str
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Axis:
    """What a sweep calls by a short name: the `key` of the configuration, and the values that NAME=all stands for."""

    key: str
    all: tuple[Any, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A public data set that a task can use, for `outlast data`.

    name: what it is called there. what: a line on it. where: how it is fetched: "kaggle:OWNER/SLUG",
    "competition:SLUG", the https address of an archive, or "" if that can only be done by hand. page: where it is
    described, and its terms stand. terms: in a few words. bytes, unpacked: of the download, and of what is unpacked of
    it; none: not known. part: the only folder of an archive that is unpacked. train: what follows `outlast train`,
    with {} for the folder that it was fetched into. source: who says so. note: what else has to be known.
    """

    name: str
    what: str
    where: str
    page: str
    terms: str
    train: str
    source: str
    bytes: int | None = None
    unpacked: int | None = None
    part: str = ""
    sha256: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Task:
    """Everything the machinery needs to know about a task. `name` is what `find` finds it by (dotted if need be).

    presets: functions that return the typed configuration; "smoke" is the one that may use the synthetic set unasked.
    data: the names that data roots may have (--data NAME=DIR). stages(config): the plan. deliver(config): what is
    delivered. synthetic(folder): writes a small procedural data set.
    axes: short names for sweeps (`seed`, for train.seed, is there without being named). Stages of several cells of a
    sweep are done once if their own configuration, data and inputs are the same: give each stage only what it uses.
    quick: settings (key=value) that turn a training on real data into a test of some minutes, with any preset.
    data_sets: public data that it can be trained on.
    """

    name: str
    about: str
    config: type[TaskConfig]
    presets: Mapping[str, Callable[[], TaskConfig]]
    learners: Mapping[str, Learner]
    stages: Callable[[Any], Sequence[Stage]]
    deliver: Callable[[Any], Delivery]
    synthetic: Callable[[Path], None]
    figures: tuple[Figure, ...] = ()
    data: tuple[str, ...] = (DATA,)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    quick: tuple[str, ...] = ("train.epochs=2", "train.minimum_steps=0")
    data_sets: tuple[DataSet, ...] = ()


def names() -> dict[str, str]:
    """{name: about} of every task that can be found, without importing any."""
    found: dict[str, str] = {}
    spec = importlib.util.find_spec("outlast.tasks")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).iterdir()):
            source = path / "__init__.py" if path.is_dir() else path
            if source.suffix == ".py" and source.is_file() and not path.name.startswith("_"):
                found[path.stem] = _about(source)
    for point in importlib.metadata.entry_points(group="outlast.tasks"):
        found.setdefault(point.name, f"from {point.value}")
    return found


def find(name: str) -> Task:
    """The task called `name`: one of ours, a dotted module name, or an entry point. Raises TaskError."""
    wanted = module_name(name)
    if "." in name and not all(part.isidentifier() for part in name.split(".")):
        raise TaskError(f"{name!r} is not the name of a module", hint="give a dotted name such as my_company.birds")
    try:
        module = importlib.import_module(wanted)
    except ModuleNotFoundError as error:
        if error.name and (wanted == error.name or wanted.startswith(f"{error.name}.")):
            raise TaskError(
                f"the module {wanted!r} cannot be imported: {error}",
                hint="run from the folder that holds it, or put that folder on PYTHONPATH",
            ) from error
        raise
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise TaskError(f"{wanted} has no TASK of type outlast.task.Task", hint="see docs/how-to/add-a-task.md")
    return task


def sources(name: str) -> list[Path]:
    """The source files of the task's own module or package; not of what they import from elsewhere."""
    module = importlib.import_module(module_name(name))
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))] or [Path(str(module.__file__))]


def module_name(name: str) -> str:
    """The module of the task called `name`: ours, that of an entry point, or the name itself. Raises TaskError."""
    if "." in name:
        return name
    known = names()
    if name not in known:
        raise TaskError(
            f"there is no task {name!r}.{did_you_mean(name, list(known))}",
            hint=f"choose one of {', '.join(known)}, or give a dotted module name such as my_company.birds",
        )
    points = {point.name: point.value for point in importlib.metadata.entry_points(group="outlast.tasks")}
    return points.get(name, f"outlast.tasks.{name}").partition(":")[0]


def select(table: pd.DataFrame, rows: Rows) -> np.ndarray:
    """Positions (int64) of the table's rows that `rows` names."""
    import numpy as np

    if rows.column not in table.columns:
        raise TaskError(f"the examples have no column {rows.column!r}", hint=f"they have: {', '.join(table.columns)}")
    return np.flatnonzero(table[rows.column].isin(rows.values).to_numpy()).astype(np.int64)


def predictions(stage: Predict) -> list[tuple[str, tuple[str, ...], Rows]]:
    """What a stage predicts: (folder below its own, models, rows), all together or model by model. Raises TaskError."""
    if isinstance(stage.rows, Rows):
        return [("", stage.models, stage.rows)]
    if set(stage.rows) != set(stage.models):
        given, models = ", ".join(stage.rows), ", ".join(stage.models)
        raise TaskError(f"the stage {stage.name!r} has rows of {given}, but its models are {models}")
    return [(model, (model,), stage.rows[model]) for model in stage.models]


def topological(stages: Iterable[Stage]) -> list[Stage]:
    """The stages in an order in which every stage comes after those it needs. Raises TaskError."""
    waiting = {stage.name: stage for stage in stages}
    done: list[Stage] = []
    while waiting:
        placed = {stage.name for stage in done}
        ready = [stage for stage in waiting.values() if placed.issuperset(needed(stage))]
        if not ready:
            missing = {need for stage in waiting.values() for need in needed(stage)} - set(waiting) - placed
            reason = (
                f"no stage is called {', '.join(sorted(missing))}" if missing else "they need each other in a circle"
            )
            raise TaskError(f"the stages {', '.join(waiting)} can't be ordered: {reason}")
        for stage in ready:
            done.append(waiting.pop(stage.name))
    return done


def needed(stage: Stage) -> tuple[str, ...]:
    """The names of the stages that a stage needs; a Predict needs its models too."""
    own = stage.models if isinstance(stage, Predict) else ()
    return tuple(dict.fromkeys((*own, *stage.needs)))


def _about(source: Path) -> str:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    for node in tree.body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == "about" and isinstance(node, ast.Assign | ast.AnnAssign):
            value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value
    return "(no `about`)"
