"""Features in two dimensions, to be looked at: t-SNE (scikit-learn) and UMAP (umap-learn).

Promises: the same features, settings and seed give the same coordinates, bit for bit on the same machine, because both
run on one thread. What can't be computed is refused in one sentence before it is tried; what a library warns of comes
back as a note. Distances between far groups and the axes themselves mean nothing in either picture.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from outlast.errors import ModelError, UsageError

METRICS = ("euclidean", "manhattan", "cosine", "correlation")
FEWEST = 5  # samples; below, neither method has neighbourhoods to keep


@dataclass(frozen=True)
class Tsne:
    """t-SNE (van der Maaten, Hinton 2008). perplexity: None is 30, or less if there are too few samples for it."""

    method: ClassVar[str] = "tsne"
    title: ClassVar[str] = "t-SNE"
    needs: ClassVar[tuple[str, str]] = ("sklearn", "scikit-learn")

    seed: int = 0
    perplexity: float | None = None
    learning_rate: float = 200.0
    iterations: int = 1000


@dataclass(frozen=True)
class Umap:
    """UMAP (McInnes et al. 2018). neighbours: None is 15, or less if there are too few samples for it."""

    method: ClassVar[str] = "umap"
    title: ClassVar[str] = "UMAP"
    needs: ClassVar[tuple[str, str]] = ("umap", "umap-learn")

    seed: int = 0
    neighbours: int | None = None
    min_dist: float = 0.1
    metric: str = "euclidean"


Projection = Tsne | Umap
METHODS: dict[str, type[Projection]] = {kind.method: kind for kind in (Tsne, Umap)}


@dataclass(frozen=True)
class Projected:
    """Coordinates float64 (N, 2), the settings that made them, and what is to be said about them."""

    points: np.ndarray
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())


def projection(method: str, seed: int = 0, **given: Any) -> Projection:
    """The settings of a method; those that are None keep their default. Raises UsageError for any that can't be."""
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}", hint=f"choose one of {', '.join(METHODS)}")
    kind = METHODS[method]
    own = {each.name for each in fields(kind)}
    wanted = {name: value for name, value in given.items() if value is not None}
    foreign = [_option(name) for name in wanted if name not in own]
    if foreign:
        raise UsageError(
            f"{', '.join(foreign)}: no setting of {kind.title}",
            hint=f"{kind.title} has {', '.join(_option(name) for name in sorted(own))}",
        )
    chosen = kind(seed=seed, **wanted)
    for name, allowed, said in _LIMITS:
        value = getattr(chosen, name, None)
        if value is not None and not allowed(value):
            raise UsageError(f"{_option(name)} {value} can't be", hint=f"give {said}")
    return chosen


def check_installed(wanted: Projection) -> None:
    """Raise UsageError if the package that computes it is missing."""
    module, package = wanted.needs
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"{wanted.title} needs {package}, which is not installed", hint=f"pip install {package}")


def project(features: np.ndarray, wanted: Projection) -> Projected:
    """Features (N, F) in two dimensions. Raises UsageError if N is too small, ModelError for features without sense."""
    features = np.asarray(features, np.float32)
    _check(features, wanted)
    chosen, notes = _fitting(wanted, len(features))
    with _one_thread(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        points = _tsne(features, chosen) if isinstance(chosen, Tsne) else _umap(features, chosen)
    told = dict.fromkeys(" ".join(str(each.message).split()) for each in said)
    points = np.asarray(points, np.float64)
    if not np.isfinite(points).all():
        raise ModelError(f"{wanted.title} gave coordinates that are not finite", hint="try the other method")
    return Projected(points, {"method": wanted.method, **asdict(chosen)}, (*notes, *told))


def _tsne(features: np.ndarray, chosen: Tsne) -> Any:
    make = importlib.import_module("sklearn.manifold").TSNE
    # scikit-learn 1.5 renamed n_iter to max_iter, and 1.7 dropped the old name.
    iterations = "max_iter" if "max_iter" in inspect.signature(make).parameters else "n_iter"
    fit = make(
        n_components=2,
        perplexity=chosen.perplexity,
        learning_rate=chosen.learning_rate,
        init="pca" if features.shape[1] > 1 else "random",
        random_state=chosen.seed,
        **{iterations: chosen.iterations},
    )
    return fit.fit_transform(features)


def _umap(features: np.ndarray, chosen: Umap) -> Any:
    make = importlib.import_module("umap").UMAP
    fit = make(
        n_components=2,
        n_neighbors=chosen.neighbours,
        min_dist=chosen.min_dist,
        metric=chosen.metric,
        random_state=chosen.seed,
        n_jobs=1,
    )
    return fit.fit_transform(features)


def _check(features: np.ndarray, wanted: Projection) -> None:
    if len(features) < FEWEST:
        raise UsageError(
            f"{wanted.title} of {len(features)} samples says nothing", hint=f"give at least {FEWEST} samples"
        )
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise ModelError(
            f"the features of {bad} of {len(features)} samples are not finite", hint="the training has diverged"
        )
    if (features == features[0]).all():
        raise ModelError("all samples have the same features", hint="the model has learned nothing: train it longer")
    if getattr(wanted, "metric", None) == "correlation" and (features == features[:, :1]).all(axis=1).any():
        flat = int((features == features[:, :1]).all(axis=1).sum())
        raise UsageError(
            f"{flat} of {len(features)} samples have features that are all equal: they correlate with nothing",
            hint=f"choose another --metric: {', '.join(METRICS[:3])}",
        )


def _fitting(wanted: Projection, samples: int) -> tuple[Projection, list[str]]:
    """The settings with nothing left open; a default that is too large for so few samples is taken smaller, and told.

    Raises UsageError for one that was given and is too large.
    """
    name: str
    given: float | None
    usual: float
    most: float
    if isinstance(wanted, Tsne):
        name, given, usual, most = "perplexity", wanted.perplexity, 30.0, (samples - 1) / 3
    else:
        name, given, usual, most = "neighbours", wanted.neighbours, 15, samples - 1
    if given is not None and given >= samples:
        raise UsageError(
            f"--{name} {given:g} is too large for {samples} samples", hint=f"give less than {samples}, or more samples"
        )
    value = given if given is not None else min(usual, most)
    notes = [f"{name} {value:.4g} instead of {usual:g}: there are only {samples} samples"]
    settings = {**asdict(wanted), name: value}
    return type(wanted)(**settings), notes if given is None and value < usual else []


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over threads come in any order, and with them the last bits."""
    with importlib.import_module("threadpoolctl").threadpool_limits(1):
        yield


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


_LIMITS: tuple[tuple[str, Any, str], ...] = (
    ("seed", lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295"),
    ("perplexity", lambda value: value >= 1, "1 or more, and less than there are samples"),
    ("learning_rate", lambda value: 0 < value < float("inf"), "a number above 0"),
    ("iterations", lambda value: value >= 250, "250 or more"),
    ("neighbours", lambda value: value >= 2, "2 or more"),
    ("min_dist", lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    ("metric", METRICS.__contains__, f"one of {', '.join(METRICS)}"),
)
