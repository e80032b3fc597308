"""What is known of a training on Kaggle, on this computer's disk: written before and after every step.

Whoever types the same command again, after the computer was off or somewhere in between, goes on from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outlast.base.files import read_json, write_json
from outlast.errors import RunError

PUSHING, RUNNING, COMPLETE, FAILED, FETCHED = "pushing", "running", "complete", "failed", "fetched"


@dataclass
class KaggleSession:
    """One session: its kernel (OWNER/SLUG), where its run came from, and how far it has come.

    state: pushing (it may or may not have arrived), running, complete (its output is there), failed, fetched.
    """

    number: int
    kernel: str
    source: str | None  # the kernel whose output it goes on with
    limit_seconds: int
    state: str = PUSHING
    version_before: int = 0
    version: int = 0
    pushed: str | None = None
    ended: str | None = None
    trouble: str | None = None  # the kind of a failure
    quota_before_hours: float | None = None
    quota_hours: float | None = None  # that the session cost, as Kaggle counts


@dataclass
class KaggleState:
    """A training on Kaggle: what was asked for, and its sessions so far."""

    path: Path
    asked: dict[str, Any]
    sessions: list[KaggleSession] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, asked: Mapping[str, Any]) -> KaggleState:
        """The state that lies there, or a new one. Raises RunError if that was asked for with other words."""
        if not path.is_file():
            return cls(path, dict(asked))
        values = read_json(path)
        try:
            known, sessions = dict(values["asked"]), [KaggleSession(**item) for item in values["sessions"]]
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{path} is not the state of a training on Kaggle: {error}", hint="give another --out"
            ) from None
        others = [f"{name}: {known.get(name)} -> {value}" for name, value in asked.items() if known.get(name) != value]
        if others:
            raise RunError(
                f"the training on Kaggle that {path} tells of was begun with other words",
                details=others,
                hint="type them as they were to go on with it, or give another --out for a new run",
            )
        return cls(path, known, sessions)

    def save(self) -> None:
        """Write it."""
        write_json(self.path, {"format": 1, "asked": self.asked, "sessions": [asdict(one) for one in self.sessions]})

    @property
    def last(self) -> KaggleSession | None:
        """The newest session."""
        return self.sessions[-1] if self.sessions else None

    @property
    def output(self) -> KaggleSession | None:
        """The newest session whose output was fetched, from which the next one goes on."""
        return next((one for one in reversed(self.sessions) if one.state == FETCHED), None)

    def failures(self) -> list[KaggleSession]:
        """The sessions that failed since the last one that brought anything."""
        found: list[KaggleSession] = []
        for one in reversed(self.sessions):
            if one.state != FAILED:
                break
            found.append(one)
        return found
