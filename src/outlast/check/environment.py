"""The software: is it the one that Outlast was made for, does it fit together, and is it the copy that was meant?"""

from __future__ import annotations

from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from outlast.check.finding import CannotCheck, Finding, error, warning
from outlast.check.subject import Subject
from outlast.errors import listed


def python_version(subject: Subject) -> Iterator[Finding]:
    """Python is older than Outlast needs."""
    machine = subject.machine
    if machine.python not in SpecifierSet(machine.requires_python, prereleases=True):
        yield error(
            f"Python {machine.python} is not one that Outlast runs on",
            evidence=f"it needs Python {machine.requires_python}",
            remedy="choose a newer image, or make an environment with a newer Python",
        )


def packages(subject: Subject) -> Iterator[Finding]:
    """A package that Outlast needs is missing or of a version that it doesn't work with."""
    machine = subject.machine
    needed = [
        requirement
        for requirement in map(Requirement, machine.requirements)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]
    if not any(requirement.name in machine.packages for requirement in needed):
        # This program runs, so they are there: another user's environment, whose folders may not be looked into.
        raise CannotCheck("which versions are installed can't be read")
    for requirement in needed:
        version = machine.packages.get(requirement.name)
        if version is None:
            yield error(
                f"{requirement.name} is not installed",
                evidence=f"Outlast needs {requirement}",
                remedy=_installing(requirement.name, str(requirement)),
            )
        elif not requirement.specifier.contains(version, prereleases=True):
            yield error(
                f"{requirement.name} {version} is not a version that Outlast works with",
                evidence=f"it needs {requirement}",
                remedy=_installing(requirement.name, str(requirement)),
            )


def torch_and_torchvision(subject: Subject) -> Iterator[Finding]:
    """torch was replaced and torchvision was not (or the other way round)."""
    machine = subject.machine
    torch = machine.packages.get("torch")
    if torch is None or "torchvision" not in machine.packages:
        raise CannotCheck("torch or torchvision is not installed")
    for requirement in map(Requirement, machine.torchvision_requires):
        if requirement.name == "torch" and not requirement.specifier.contains(torch, prereleases=True):
            yield error(
                f"torchvision {machine.packages['torchvision']} was not made for torch {torch}",
                evidence=f"its own metadata asks for {requirement}",
                remedy="take the image's own pair again (a fresh session), or install both together from one index",
            )


def torchvision_works(subject: Subject) -> Iterator[Finding]:
    """torchvision can't be imported, or its compiled operators can't run here."""
    problem = subject.machine.torchvision_error()
    if problem is not None:
        yield error(
            "torchvision's compiled operators don't work with this torch",
            evidence=problem,
            remedy="take the image's own pair again (a fresh session), or install both together from one index",
        )


def task_imports(subject: Subject) -> Iterator[Finding]:
    """The task's module fails while it is imported."""
    problem = subject.problems.get("task")
    if problem is not None:
        yield error(problem.message, evidence="; ".join(problem.details), remedy=problem.hint or "")


def copies(subject: Subject) -> Iterator[Finding]:
    """More than one copy of the package can be imported: a clone inside a clone, or a clone beside an installation."""
    others = [str(folder) for folder in subject.machine.copies if folder != subject.machine.package.parent]
    if others:
        yield warning(
            "there is more than one copy of Outlast, and a change to one of them is not seen by the other",
            evidence=f"in use: {subject.machine.package.parent}; also: {listed(others)}",
            remedy="remove the copies that are not meant, or take them off sys.path",
        )


def changed_modules(subject: Subject) -> Iterator[Finding]:
    """Source files changed after this process had imported them (git pull in a notebook): the old code would run."""
    changed = subject.machine.changed
    if changed:
        yield warning(
            f"{len(changed)} source file{'s' * (len(changed) > 1)} changed since this process imported Outlast: "
            "it runs the old code, or a mixture",
            evidence=listed([str(path) for path in changed], 3),
            remedy="restart the notebook's kernel, then import again",
        )


def _installing(name: str, requirement: str) -> str:
    if name in ("torch", "torchvision"):
        return "choose a newer image: torch and torchvision belong to it, and replacing them breaks their pair"
    return f'pip install "{requirement}"'
