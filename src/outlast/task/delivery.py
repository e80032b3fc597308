"""What is done with a finished run: scores, predictions, exports, submissions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast.task.learner import Member
from outlast.task.stages import Together

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from outlast.data.table import Examples


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
