"""A task as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast.task.delivery import Delivery
from outlast.task.learner import Learner
from outlast.task.stages import Stage

if TYPE_CHECKING:
    from outlast.config.schema import TaskConfig


DATA = "data"  # the name of the data root that a plain `--data DIR` gives


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
