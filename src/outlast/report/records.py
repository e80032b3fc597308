"""What a report knows about a run: plain data, read by `collect`, shown by `plots`, `page` and `text`.

Promises: nothing here reads files; what the run does not say is None or empty, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from outlast.report.formats import finite


@dataclass(frozen=True)
class Session:
    """From a start to a stop. Steps are optimizer steps of `stage`, the last one trained (None: not said).

    trained: (first, last step) of every stage that was trained in it. stages: seconds that each stage took in it.
    quota_hours: what it cost of the accelerator's quota.
    """

    started: datetime | None
    ended: datetime | None
    from_step: int | None
    to_step: int | None
    resumed_from: str | None
    why_stopped: str | None
    device: str | None
    seconds: float | None
    stage: str | None
    trained: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    quota_hours: float | None = None
    at_once: int = 1  # devices that are used: one for each process of a training, or for each stage side by side


@dataclass(frozen=True)
class Stage:
    """A stage's record and, for training, one row of scalars per evaluation, by rising step."""

    name: str
    kind: str | None
    done: bool
    seconds: float | None
    result: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    signed_score: str | None = None  # "+name" or "-name", if the run says so before the stage is done

    @property
    def _signed(self) -> str | None:
        named = self.result.get("score")
        return named if isinstance(named, str) and named else self.signed_score

    @property
    def score(self) -> str | None:
        """What "best" goes by, without its sign: balanced_accuracy."""
        named = self._signed
        if named:
            return named.lstrip("+-")
        metrics = [key.removeprefix("val_") for key in (self.rows[0] if self.rows else ()) if key.startswith("val_")]
        return next((name for name in metrics if name != "loss"), "loss" if "loss" in metrics else None)

    @property
    def judged(self) -> bool:
        """Whether it has anything to be shown."""
        return bool(self.rows or self.result)

    @property
    def steps(self) -> Any:
        """Optimizer steps made: of the finished stage's record, else of its last row; None if neither says."""
        told = self.result.get("steps")
        return told if told is not None else self.rows[-1].get("step") if self.rows else None

    @property
    def rises(self) -> bool:
        """Whether more of the score is better."""
        named = self._signed
        if named and named[0] in "+-":
            return named[0] == "+"
        return not (self.score or "").endswith("loss")

    @property
    def best(self) -> Mapping[str, Any]:
        """The best evaluation: {"value", "step", "epoch"}; of the finished stage's record, else of the rows so far."""
        if finite(self.result.get("best_score")) is not None:
            keys = {"value": "best_score", "step": "best_step", "epoch": "best_epoch"}
            return {ours: self.result.get(theirs) for ours, theirs in keys.items()}
        known = [(finite(row.get(f"val_{self.score}")), row) for row in self.rows]
        scored = [(value, row) for value, row in known if value is not None]
        if not scored:
            return {}
        value, row = (max if self.rises else min)(scored, key=lambda pair: pair[0])
        return {"value": value, "step": row.get("step"), "epoch": row.get("epoch")}


@dataclass(frozen=True)
class Scores:
    """A metrics.json: what was measured on one split. `confusion` has the truth in its rows."""

    source: str
    split: str
    images: int | None
    metrics: Mapping[str, Any]
    per_class: Mapping[str, Mapping[str, Any]]
    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    unit: str = "images"  # what the confusion matrix counts; the metrics.json of a segmentation says "pixels"


@dataclass(frozen=True)
class Mistake:
    """An image that the model got wrong; `thumbnail` lies under the run folder (None: it has none)."""

    id: str
    truth: str
    predicted: str
    probability: float | None
    truth_probability: float | None
    thumbnail: Path | None


@dataclass(frozen=True)
class Collected:
    """A run as it lies on disk. Missing texts are None, missing parts are empty."""

    run: Path
    task: str
    preset: str | None
    status: str
    reason: str | None
    next_command: str | None
    command: str | None
    outlast: str | None
    created: datetime | None
    touched: datetime | None
    config_hash: str | None
    split_hash: str | None
    synthetic: bool
    data: Mapping[str, Mapping[str, Any]]
    rung: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Any]
    versions: Mapping[str, Any]
    host: Mapping[str, Any]
    seconds: Mapping[str, Any]
    facts: Mapping[str, Mapping[str, Any]]
    sessions: tuple[Session, ...]
    warnings: tuple[str, ...]
    config: str | None
    split: Mapping[str, Mapping[str, tuple[int, int]]]  # {label: {split: (images, groups)}}
    split_totals: Mapping[str, tuple[int, int]]  # {split: (images, groups)}
    divided_groups: tuple[str, ...]  # groups that stand in more than one split: a leak
    stages: tuple[Stage, ...]
    scores: tuple[Scores, ...]
    mistakes: tuple[Mistake, ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The run folder's own name."""
        return self.run.resolve().name

    @property
    def test(self) -> Scores | None:
        """The scores on the test split, if there are any."""
        return next((scores for scores in self.scores if scores.split == "test"), None)

    @property
    def trained(self) -> tuple[Stage, ...]:
        """The stages that train."""
        return tuple(stage for stage in self.stages if stage.kind == "train" or stage.rows)

    @property
    def fallbacks(self) -> Mapping[str, Mapping[str, Any]]:
        """The stages that did not train the model that was wanted: {stage: {"name", "wanted", "reason"}}."""
        return {
            stage: rung
            for stage, rung in self.rung.items()
            if rung.get("wanted") and rung.get("wanted") != rung.get("name")
        }
