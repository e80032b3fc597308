"""Why a session on Kaggle failed: read from its log, its state and how long it ran, with what to do.

A session that ran to its limit was ended by it. Of the rules below the one is the answer that fits last in the end of
the log: what was met earlier, such as a batch that did not fit into memory, may have been overcome. What no rule knows
is said to be unknown, with the end of the log: a guess would send people the wrong way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from outlast.base.clock import format_duration

EXCERPT_LINES = 12
_SEARCHED_LINES = 80
_ENDS = 0.97  # of the limit: a session that ran so long was ended by it
_NOISE = re.compile(r"^\s*$|^\s*(?:warnings\.warn\(|\d+%\|)")


@dataclass(frozen=True)
class Ended:
    """How a session ended: Kaggle's state and message, its log, and the seconds that it ran of those it could."""

    state: str
    message: str
    log: str
    seconds: float | None = None
    limit_seconds: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """kind: time, cancelled, check, memory, gpu_memory, import, data, disk, gpu, internet, broken, outlast or unknown.

    sentence: what happened; remedy: what to do; excerpt: the lines of the log that say so; again: whether the same
    session may end better if it is simply run again.
    """

    kind: str
    sentence: str
    remedy: str
    excerpt: tuple[str, ...]
    again: bool = False


@dataclass(frozen=True)
class _Rule:
    kind: str
    pattern: str  # in the log or in Kaggle's message
    sentence: str
    remedy: str


_TIME = r"max(?:imum)? allowed execution duration|exceeded the (?:allowed )?(?:run)?time|Notebook Timeout"
_IN_TIME = (
    "give a shorter --session-limit, so that it stops, saves and exits before Kaggle ends it; what it did since the "
    "output before is done again"
)
_RULES = (
    _Rule(
        "gpu",
        r"no kernel image is available for execution|CUDA capability sm_\d+ is not compatible",
        "the GPU that Kaggle gave can't run this build of PyTorch",
        "push with --accelerator NvidiaTeslaT4 (a P100 has no kernels in Kaggle's image)",
    ),
    _Rule(
        "gpu_memory",
        r"CUDA out of memory|torch\.OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU's memory was not enough",
        "set a smaller train.micro_batch or data.image_size, or leave train.fallback on",
    ),
    _Rule(
        "memory",
        r"tried to allocate more memory than is available|DataLoader worker .* is killed by signal: (?:Killed|Bus)|"
        r"exit status -9\b|DeadKernelError|^\s*MemoryError\b|Cannot allocate memory|Unable to allocate .* for an array",
        "the machine's memory was not enough",
        "set fewer loading.workers and a smaller data.image_size or batch; Kaggle has about 30 GB",
    ),
    _Rule(
        "disk",
        r"No space left on device|output (?:was|is) larger than|Output size exceeds",
        "the disk was full, or the output larger than the 20 GB that Kaggle keeps",
        "set saving.keep=1, and train fewer stages per session",
    ),
    _Rule(
        "import",
        r"^(?:ModuleNotFoundError|ImportError): .*|imports another copy of outlast",
        "a Python package is missing or does not fit Kaggle's image",
        "export again, which embeds what the image lacks; don't install packages in the session",
    ),
    _Rule(
        "data",
        r"no data found for|names .*, which doesn't (?:exist|look like)|FileNotFoundError: .*(?:/kaggle/)?input|"
        r"folders could be the data of",
        "the session did not find its data",
        "check --data: the slug of a data set (OWNER/SLUG) or of a competition whose rules you have accepted",
    ),
    _Rule(
        "internet",
        r"NameResolutionError|Temporary failure in name resolution|Failed to resolve|Network is unreachable",
        "the session wanted the internet, which is off",
        "attach what it wants to fetch (weights) as a data set, or set model.pretrained=false",
    ),
)  # fmt: skip
_ERRORS = "ERRORS: "  # as check.table begins that part
_CHECKED = re.compile(r"^outlast check ended with exit status 1\b", re.MULTILINE)
_OURS = re.compile(r"^error: (.+)$", re.MULTILINE)
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?::.*)?$", re.MULTILINE)


def diagnose(ended: Ended) -> Diagnosis:
    """What ended the session."""
    length = f" after {format_duration(ended.seconds)}" if ended.seconds is not None else ""
    if _at_limit(ended) or re.search(_TIME, ended.message, re.IGNORECASE):
        return Diagnosis("time", f"Kaggle ended the session at its limit{length}, and kept nothing of it", _IN_TIME,
                         _end(ended.log), again=True)  # fmt: skip
    if ended.state == "cancelled":
        remedy = "type the same command again to go on"
        return Diagnosis("cancelled", f"the session was ended from outside{length}", remedy, _end(ended.log))
    if (errors := ended.log.rfind(_ERRORS)) >= 0 and _CHECKED.search(ended.log, errors):
        sentence = "`outlast check`, with which it begins, found what would make the training fail or be worthless"
        remedy = "do what stands there; `outlast check` says the same on your own computer"
        return Diagnosis("check", sentence, remedy, tuple(_lines(ended.log[errors:])[:EXCERPT_LINES]))
    fitting = [(place, rule, words) for rule in _RULES if (found := _last(rule, ended)) for place, words in [found]]
    if fitting:
        _, rule, words = max(fitting, key=lambda item: item[0])
        return Diagnosis(rule.kind, rule.sentence, rule.remedy, _around(ended, words))
    if said := _OURS.findall(ended.log):
        return Diagnosis("outlast", said[-1], _remedy_said(ended.log, said[-1]), _around(ended, said[-1]))
    if raised := _RAISED.findall(ended.log):
        remedy = "read the lines above it; run `outlast check` with the same data, and try it here with --preset smoke"
        return Diagnosis("broken", f"it failed with {raised[-1]}", remedy, _around(ended, raised[-1]))
    sentence = f"it failed, and nothing in its log says why ({ended.message or 'Kaggle gives no reason'})"
    remedy = "look at the kernel's page; run the same command again"
    # Without a word: as when a machine is lost, which the next one need not be.
    return Diagnosis("unknown", sentence, remedy, _end(ended.log), again=not ended.log.strip())


def describe(found: Diagnosis) -> str:
    """The diagnosis for people: what, the lines of the log, what to do."""
    lines = [f"  | {line}" for line in found.excerpt]
    return "\n".join([found.sentence, *lines, f"  What to do: {found.remedy}"])


def _last(rule: _Rule, ended: Ended) -> tuple[int, str] | None:
    """Where in the end of the log a rule fits last, and the words; Kaggle's own message comes after all of it."""
    tail = "\n".join(ended.log.splitlines()[-_SEARCHED_LINES:])
    found = list(re.finditer(rule.pattern, f"{tail}\n{ended.message}", re.MULTILINE | re.IGNORECASE))
    return (found[-1].start(), found[-1][0]) if found else None


def _at_limit(ended: Ended) -> bool:
    return (
        ended.seconds is not None and ended.limit_seconds is not None and ended.seconds >= _ENDS * ended.limit_seconds
    )


def _around(ended: Ended, words: str) -> tuple[str, ...]:
    """The last lines of the log up to the one that holds the words."""
    lines = _lines(ended.log)
    first = words.strip().splitlines()[0]
    at = max((number for number, line in enumerate(lines) if first in line), default=None)
    if at is None:
        return (ended.message, *lines[-EXCERPT_LINES + 1 :]) if ended.message else tuple(lines[-EXCERPT_LINES:])
    return tuple(lines[max(at + 3 - EXCERPT_LINES, 0) : at + 3])


def _end(log: str) -> tuple[str, ...]:
    return tuple(_lines(log)[-EXCERPT_LINES:])


def _lines(log: str) -> list[str]:
    """The lines of a log that say something."""
    return [line.rstrip()[:300] for line in log.splitlines() if not _NOISE.match(line)]


def _remedy_said(log: str, sentence: str) -> str:
    after = log[log.rindex(sentence) :]
    found = re.search(r"^\s*What to do: (.+)$", after, re.MULTILINE)
    return found[1] if found else "see the lines of the log"
