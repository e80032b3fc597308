"""What a session does with its mirror: comes from there if it is ahead, keeps it up to date, says how it stands.

Without a mirror everything here does nothing. A mirror that fails never stops the training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from outlast.base.clock import Deadline
from outlast.base.log import say, warn
from outlast.plan import record
from outlast.plan.record import RunRecord
from outlast.save import mirrors
from outlast.save.bring_back import bring_back
from outlast.save.mirror import Mirror
from outlast.save.uploads import Uploads

# An upload that is under way and the one after it.
AFTERWARDS = ("mirror", "mirror")
_LAST_SECONDS = 900.0  # how long a session without a limit waits for its last upload


def open_mirror(url: str, run: Path, resume: str) -> Mirror:
    """Open the mirror, and bring the run back from it if it has come further there (rule 2 of resuming).

    Raises UsageError, RunError, CheckpointError as save.mirror and save.bring_back do.
    """
    mirror = mirrors.open_at(url, run)
    if resume == "never":
        mirror.check_run("none yet")
    else:
        restored = bring_back(mirror, run, record.run_id(run))
        if restored is not None:
            say(restored.sentence)
    for sentence in mirror.warnings:
        warn(sentence)
    return mirror


class Copies:
    """The mirror of a session that goes on. `uploads` is None where there is no mirror."""

    def __init__(self, kept: RunRecord, uploads: Uploads | None) -> None:
        self.kept, self.uploads = kept, uploads
        self.afterwards = AFTERWARDS if uploads is not None else ()

    def offer(self) -> None:
        """Something new is durable on this disk."""
        if self.uploads is not None:
            self._note(self.uploads)
            self.uploads.offer()

    def words(self) -> str:
        """How the mirror stands, for the progress line."""
        return self.uploads.state.describe() if self.uploads is not None else ""

    def finish(self, deadline: Deadline) -> str | None:
        """Bring the run as it is now to the mirror, if there is time; what is wrong in the end, or None."""
        if self.uploads is None:
            return None
        self.uploads.offer()
        whole = self.uploads.finish(min(max(deadline.remaining(), 0.0), _LAST_SECONDS))
        self._note(self.uploads)
        state = self.uploads.state
        if whole and state.failing is None:
            return None
        held = f"it holds the run as of {state.durable_at}" if state.durable_at else "it holds nothing of this session"
        return f"the mirror {state.url} is not up to date ({state.failing or 'there was no time left'}); {held}"

    def _note(self, uploads: Uploads) -> None:
        state = uploads.state
        if state.seconds is not None:
            self.kept.durations.record("mirror", state.seconds)
        self.kept.mirrored(asdict(state))


@contextmanager
def copies(mirror: Mirror | None, kept: RunRecord) -> Iterator[Copies]:
    """Upload while the block runs."""
    if mirror is None:
        yield Copies(kept, None)
        return
    with Uploads(mirror, kept.folder, kept.values["run_id"]) as uploads:
        yield Copies(kept, uploads)
