"""Weights of one segmentation model into another one with other channels and classes, reported tensor by tensor.

For: pretraining on data with other bands or classes than the training that follows.
Promises: either every tensor is accounted for or nothing is loaded; channels and classes are taken over only as a
mapping says, never by guess; what remains as it was initialised is named.
Does not: read files (outlast.model.backbone.read_weights does) or translate the names of other architectures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from outlast.errors import ModelError, listed
from outlast.model.normalised import Normalised

Status = Literal["loaded", "remapped", "kept", "shape differs", "missing", "unexpected"]
_FITTING: tuple[Status, ...] = ("loaded", "remapped", "kept")
_ORDER: tuple[Status, ...] = (*_FITTING, "shape differs", "missing", "unexpected")
_STATISTICS = ("mean", "std")


@dataclass(frozen=True)
class TensorTransfer:
    """What happened to one tensor.

    kind: what `copied` and `fresh` count. copied: {of the module: of the weights}. fresh: entries of the module that
    stay as they were initialised. note: shapes, where they differ.
    """

    name: str
    status: Status
    kind: Literal["", "channels", "classes"] = ""
    copied: Mapping[int, int] | None = None
    fresh: tuple[int, ...] = ()
    note: str = ""

    def line(self) -> str:
        """One line for people."""
        if self.status != "remapped" or self.copied is None:
            return f"{self.name}: {self.status}{f' ({self.note})' if self.note else ''}"
        pairs = ", ".join(f"{own} from {given}" for own, given in self.copied.items())
        fresh = f"; newly initialised {', '.join(map(str, self.fresh))}" if self.fresh else ""
        return f"{self.name}: {self.kind} {pairs or 'none copied'}{fresh}"


@dataclass(frozen=True)
class TransferReport:
    """Every tensor of the module and of the weights, in the module's order, then what only the weights have."""

    tensors: tuple[TensorTransfer, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor found its counterpart, as it is or by a mapping."""
        return all(tensor.status in _FITTING for tensor in self.tensors)

    def summary(self) -> str:
        """'120 loaded, 3 remapped': how many tensors had which fate."""
        counts = Counter(tensor.status for tensor in self.tensors)
        return ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status]) or "no tensors"

    def lines(self) -> list[str]:
        """The summary, then a line for every tensor that was not simply loaded."""
        return [self.summary(), *(tensor.line() for tensor in self.tensors if tensor.status != "loaded")]

    def as_json(self) -> dict[str, Any]:
        """{"summary", "complete", "tensors": [one object for each]}, with texts as keys."""
        tensors = [asdict(tensor) for tensor in self.tensors]
        for tensor in tensors:
            tensor["copied"] = {str(own): given for own, given in (tensor["copied"] or {}).items()}
            tensor["fresh"] = list(tensor["fresh"])
        return {"summary": self.summary(), "complete": self.complete, "tensors": tensors}


def transfer(
    weights: Mapping[str, Tensor],
    module: Normalised,
    *,
    partial: bool = False,
    channels: Mapping[int, int] | None = None,
    classes: Mapping[int, int] | None = None,
    statistics: bool = True,
    source: str = "the weights",
) -> TransferReport:
    """Load what fits into the module and say what became of each tensor.

    `channels` and `classes` are {of the module: of the weights}; none: they must be as many and in the same order.
    `statistics=False` keeps the module's own mean and std, for data in another unit than that of the weights.
    `source` names the weights in messages. Raises ModelError with the report, nothing loaded, if a mapping names what
    does not exist, if no tensor fits, or if some do not and `partial` is off.
    """
    own = module.state_dict()
    _require_known(weights, module, channels, classes, source)
    fates: list[TensorTransfer] = []
    fitting: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name not in weights:
            fate = TensorTransfer(name, "missing")
        elif not statistics and name in _STATISTICS:
            fate = TensorTransfer(name, "kept", note="the module's own statistics were asked for")
        else:
            fate, loaded = _fate(name, tensor, weights[name], module, channels, classes)
            if loaded is not None:
                fitting[name] = loaded
        fates.append(fate)
    fates += [TensorTransfer(name, "unexpected") for name in weights if name not in own]
    report = TransferReport(tuple(fates))
    _require_fit(report, partial, source)
    module.load_state_dict({**own, **fitting})
    return report


def _fate(
    name: str,
    own: Tensor,
    given: Tensor,
    module: Normalised,
    channels: Mapping[int, int] | None,
    classes: Mapping[int, int] | None,
) -> tuple[TensorTransfer, Tensor | None]:
    """What becomes of a tensor that both have, and its new value if it is loaded."""
    by_channel, by_class = module.channel_tensors(), module.class_tensors()
    if channels is not None and name in by_channel:
        return _remapped(name, own, given, "channels", channels, by_channel[name])
    if classes is not None and name in by_class:
        return _remapped(name, own, given, "classes", classes, by_class[name])
    if own.shape != given.shape:
        return TensorTransfer(name, "shape differs", note=_shapes(own, given)), None
    return TensorTransfer(name, "loaded"), given


def _remapped(
    name: str, own: Tensor, given: Tensor, kind: Literal["channels", "classes"], mapping: Mapping[int, int], axis: int
) -> tuple[TensorTransfer, Tensor | None]:
    if _without(own, axis) != _without(given, axis):
        return TensorTransfer(name, "shape differs", note=_shapes(own, given)), None
    new = own.clone()
    for to, source in mapping.items():
        new.select(axis, to).copy_(given.select(axis, source))
    fresh = tuple(entry for entry in range(own.shape[axis]) if entry not in mapping)
    return TensorTransfer(name, "remapped", kind, dict(mapping), fresh), new


def _require_known(
    weights: Mapping[str, Tensor],
    module: Normalised,
    channels: Mapping[int, int] | None,
    classes: Mapping[int, int] | None,
    source: str,
) -> None:
    """A mapping names entries that both sides have."""
    problems: list[str] = []
    for kind, mapping, axes in (
        ("channels", channels, module.channel_tensors()),
        ("classes", classes, module.class_tensors()),
    ):
        problems += _strangers(kind, mapping or {}, _counts(module.state_dict(), axes), _counts(weights, axes), source)
    if problems:
        raise ModelError(
            f"the mapping into the model from {source} names what does not exist",
            hint="write it as {number in the model: number in the weights}, counted from 0",
            details=problems,
        )


def _counts(tensors: Mapping[str, Tensor], axes: Mapping[str, int]) -> int | None:
    """How many channels or classes the tensors have; None if none of them is there."""
    found = [tensors[name].shape[axis] for name, axis in axes.items() if name in tensors and tensors[name].ndim > axis]
    return min(found, default=None)


def _strangers(kind: str, mapping: Mapping[int, int], own: int | None, given: int | None, source: str) -> Iterator[str]:
    for side, numbers, count in (("the model", mapping.keys(), own), (source, mapping.values(), given)):
        bad = sorted({number for number in numbers if count is not None and not 0 <= number < count})
        if bad:
            yield f"{kind} {listed(bad)} of {side}, which has {count} (0 to {(count or 0) - 1})"


def _require_fit(report: TransferReport, partial: bool, source: str) -> None:
    nothing = not any(tensor.status in ("loaded", "remapped") for tensor in report.tensors)
    if report.complete or (partial and not nothing):
        return
    raise ModelError(
        f"{source} {'have no tensor that fits' if nothing else 'do not fit'} the model: {report.summary()}",
        hint="name the model that they were made with; where bands or classes differ, say which correspond"
        + ("" if nothing else "; to go on with the part that fits, ask for a partial transfer"),
        details=[tensor.line() for tensor in report.tensors if tensor.status not in _FITTING],
    )


def _without(tensor: Tensor, axis: int) -> tuple[int, ...]:
    return (*tensor.shape[:axis], *tensor.shape[axis + 1 :])


def _shapes(own: Tensor, given: Tensor) -> str:
    return f"the model has {tuple(own.shape)}, the weights {tuple(given.shape)}"
