"""What a plan consists of, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast.errors import TaskError
from outlast.task.learner import Learner, Member

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from outlast.config.schema import TaskConfig
    from outlast.data.table import Examples
    from outlast.task.learner import Batch


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
