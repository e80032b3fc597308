"""Findings as people read them: grouped by severity, each with its evidence and what to do. Plain text, any width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from outlast.check.finding import Finding, Severity

ORDER: dict[Severity, str] = {
    "error": "ERRORS: training would fail, or be worthless",
    "warning": "WARNINGS: slower, dearer or worse than it could be",
    "unchecked": "NOT CHECKED HERE",
    "note": "NOTES",
}


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """{severity: how many}, every severity named."""
    found = [finding.severity for finding in findings]
    return {severity: found.count(severity) for severity in ORDER}


def table(findings: Sequence[Finding], ran: int, width: int = 100) -> str:
    """The findings, severity after severity, and one line that sums them up."""
    parts = []
    for severity, title in ORDER.items():
        chosen = [finding for finding in findings if finding.severity == severity]
        if chosen:
            lines = _gathered(chosen, width) if severity == "unchecked" else _listed(chosen, width)
            parts.append("\n".join([title, *lines]))
    return "\n\n".join([*parts, summary(findings, ran)])


def summary(findings: Sequence[Finding], ran: int) -> str:
    """'2 errors, 1 warning, 3 not checked, 0 notes; 40 checks ran'."""
    count = counts(findings)
    words = (
        _counted(count["error"], "error"),
        _counted(count["warning"], "warning"),
        f"{count['unchecked']} not checked",
    )
    return f"{', '.join(words)}, {_counted(count['note'], 'note')}; of {ran} checks"


def _listed(findings: Sequence[Finding], width: int) -> list[str]:
    lines = []
    for finding, later in zip(findings, [*findings[1:], None], strict=True):
        lines += _wrapped(f"{finding.id}: ", finding.sentence, "  ", "      ", width)
        if finding.evidence:
            lines += _wrapped("found: ", finding.evidence, "      ", "             ", width)
        if finding.remedy and (later is None or later.remedy != finding.remedy):  # once for several that share it
            lines += _wrapped("do:    ", finding.remedy, "      ", "             ", width)
    return lines


def _gathered(findings: Iterable[Finding], width: int) -> list[str]:
    """Checks that share a reason share an entry."""
    by_reason: dict[str, list[str]] = {}
    for finding in findings:
        by_reason.setdefault(finding.sentence.partition(": ")[2], []).append(finding.id)
    lines = []
    for reason, checks in by_reason.items():
        lines += _wrapped("", f"{reason}:", "  ", "      ", width)
        lines += _wrapped("", ", ".join(checks), "      ", "      ", width)
    return lines


def _wrapped(label: str, text: str, first: str, later: str, width: int) -> list[str]:
    return textwrap.wrap(
        label + " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
