"""How numbers, times and names are written in reports, figures and on the command line.

Promises: a value that is missing, NaN or of another type reads "n/a" and never raises. Does not know about runs.
"""

from __future__ import annotations

import math
from datetime import datetime

MISSING = "n/a"
ABBREVIATIONS = {
    "f1": "F1",
    "iou": "IoU",
    "mcc": "MCC",
    "auc": "AUC",
    "pauc": "pAUC",
    "ece": "ECE",
    "id": "ID",
    "of1": "oF1",
}


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: object, digits: int = 3) -> str:
    """A metric: 0.953. Very small and very large values in scientific notation, whole numbers with thin separators."""
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    known = finite(value)
    if known is None:
        return MISSING
    if known != 0 and (abs(known) < 10 ** (-digits) or abs(known) >= 1e6):
        return f"{known:.{max(digits - 1, 0)}e}"
    return f"{known:.{digits}f}"


def count(value: object) -> str:
    """A count: 123,456."""
    known = finite(value)
    return MISSING if known is None else f"{round(known):,}"


def percent(value: object, digits: int = 0) -> str:
    """A share between 0 and 1 as 97 %."""
    known = finite(value)
    return MISSING if known is None else f"{100 * known:.{digits}f} %"


def duration(seconds: object) -> str:
    """Seconds as 33 s, 4 min 10 s, 2 h 05 min or 3 d 4 h."""
    known = finite(seconds)
    if known is None:
        return MISSING
    whole = max(0, round(known))
    if whole < 60:
        return f"{known:.1f} s" if known < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def moment(time: datetime | None, zoned: bool = True) -> str:
    """A point in time, to the minute: 2026-03-01 14:05 (in the time zone it was recorded in, UTC if none was)."""
    if time is None:
        return MISSING
    if not zoned:
        return f"{time:%Y-%m-%d %H:%M}"
    offset = time.strftime("%z")
    zone = "UTC" if offset in ("", "+0000") else f"UTC{offset[:3]}:{offset[3:5]}"
    return f"{time:%Y-%m-%d %H:%M} {zone}"


def shorten(text: str, most: int) -> str:
    """One line of at most `most` characters; the middle gives way, since file names differ at their ends."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    head = most // 2
    tail = most - 1 - head
    return f"{text[:head]}…{text[len(text) - tail :] if tail else ''}"


def title_case(name: str) -> str:
    """A metric's or stage's name for a reader: balanced_accuracy becomes Balanced accuracy."""
    words = [ABBREVIATIONS.get(word, word) for word in name.replace("_", " ").split()]
    text = " ".join(words)
    return text if words and words[0] in ABBREVIATIONS.values() else text[:1].upper() + text[1:]
