"""Why a session on Kaggle failed: what its status and its log say, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINES = 15


@dataclass(frozen=True)
class Diagnosis:
    """kind: time, memory, disk, import, data, other. again: whether the same may work the next time."""

    kind: str
    sentence: str
    remedy: str
    excerpt: tuple[str, ...]
    again: bool = False


@dataclass(frozen=True)
class _Sign:
    kind: str
    pattern: re.Pattern[str]
    sentence: str
    remedy: str
    again: bool = False


_SIGNS = (
    _Sign(
        "time", re.compile(r"max(imum)? allowed execution (duration|time)|exceeded the .{0,20}time limit", re.I),
        "Kaggle ended it at its time limit, and such a session leaves no output",
        "give a shorter --session-limit, so that it stops in time", again=True,
    ),
    _Sign(
        "memory", re.compile(r"out of memory|OutOfMemoryError|allocate more memory|MemoryError|exit status -9\b", re.I),
        "it ran out of memory",
        "lower train.micro_batch (GPU) or loading.workers (main memory), or take a smaller preset",
    ),
    _Sign(
        "disk", re.compile(r"output was larger than|No space left on device|disk quota exceeded", re.I),
        "its files took more than Kaggle keeps",
        "set saving.keep=1 and saving.keep_when_finished=best",
    ),
    _Sign(
        "data", re.compile(r"no data found for|folders could be the data of|doesn't look like data|DataError"),
        "it did not find its data among the inputs",
        "check --data: OWNER/SLUG is a data set, a plain SLUG a competition whose rules you have accepted",
    ),
    _Sign(
        "import", re.compile(r"ModuleNotFoundError|ImportError|imports another copy|is not installed"),
        "a package is missing in Kaggle's image, or of a version that does not fit",
        "see the excerpt for its name; attach it as a data set, or take a task that does without it",
    ),
)  # fmt: skip


def diagnose(state: str, message: str, log: str) -> Diagnosis:
    """What a session that ended as `state` (error, cancelled) died of, by Kaggle's message and what it printed."""
    excerpt = _excerpt(message, log)
    for sign in _SIGNS:
        if sign.pattern.search(message) or sign.pattern.search("\n".join(excerpt)):
            return Diagnosis(sign.kind, sign.sentence, sign.remedy, excerpt, sign.again)
    if state == "cancelled":
        return Diagnosis("cancelled", "it was cancelled", "type the same again to go on", excerpt)
    if not log.strip():
        return Diagnosis("other", "it failed without a word, as when a machine is lost", "try again", excerpt, True)
    return Diagnosis("other", "it failed", "read the excerpt; `outlast kaggle logs` prints all of it", excerpt)


def _excerpt(message: str, log: str) -> tuple[str, ...]:
    """The lines that say why: from the first error on, or the last ones."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    begin = next(
        (place for place, line in enumerate(lines) if line.startswith(("error:", "ERRORS", "Traceback"))), None
    )
    chosen = lines[-_LINES:] if begin is None or len(lines) - begin > 4 * _LINES else lines[begin : begin + _LINES]
    return (*([message] if message else []), *chosen)
