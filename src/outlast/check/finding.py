"""A check is a function that looks at a subject and yields what it finds; it never stops at the first.

A family is a module of checks: every public function defined in it, in the order in which they stand. The id of a check
is FAMILY.NAME, as `environment.torch_and_torchvision`. A check that can't look here yields an `unchecked` finding with
the reason, or raises `CannotCheck`; silence means that it looked and found nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

from outlast.errors import OutlastError

Severity = Literal["error", "warning", "note", "unchecked"]
Check = Callable[[Any], Iterable["Finding"]]


class CannotCheck(Exception):
    """What a check needs to look at is not there; says why. Becomes an `unchecked` finding, never an error."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found: a sentence (what, where), the evidence for it, and what to do about it."""

    severity: Severity
    sentence: str
    evidence: str = ""
    remedy: str = ""
    id: str = ""  # of the check; filled in by `run`


def error(sentence: str, *, evidence: str = "", remedy: str = "") -> Finding:
    """Training would fail, or its result would be worthless."""
    return Finding("error", sentence, evidence, remedy)


def warning(sentence: str, *, evidence: str = "", remedy: str = "") -> Finding:
    """Training would go on, but slower, dearer or worse than it could."""
    return Finding("warning", sentence, evidence, remedy)


def note(sentence: str, *, evidence: str = "", remedy: str = "") -> Finding:
    """Something to know."""
    return Finding("note", sentence, evidence, remedy)


def unchecked(sentence: str, *, remedy: str = "") -> Finding:
    """Not checked here, and why."""
    return Finding("unchecked", f"not checked here: {sentence}", remedy=remedy)


def checks_of(family: ModuleType) -> dict[str, Check]:
    """{id: check} of a family."""
    name = family.__name__.rpartition(".")[2]
    functions = [
        function
        for label, function in vars(family).items()
        if inspect.isfunction(function) and function.__module__ == family.__name__ and not label.startswith("_")
    ]
    return {f"{name}.{function.__name__}": function for function in functions}


def run(families: Sequence[ModuleType], subject: Any) -> Iterator[Finding]:
    """The findings of all checks, in order. What a check raises on purpose is a finding as well."""
    for family in families:
        for identifier, check in checks_of(family).items():
            try:
                for found in check(subject):
                    yield replace(found, id=identifier)
            except CannotCheck as reason:
                yield replace(unchecked(str(reason)), id=identifier)
            except OutlastError as problem:
                evidence = "; ".join(problem.details)
                yield Finding("error", problem.message, evidence, problem.hint or "", identifier)
