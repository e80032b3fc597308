"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator

_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 1.0, 60.0
# Not the global generator: a training that draws from it would depend on how often an upload was tried.
_jitter = random.SystemRandom()


def delays() -> Iterator[float]:
    """Seconds to wait before each new attempt: doubling, up to a minute, and random so that machines spread out."""
    longest = _FIRST_DELAY_SECONDS
    while True:
        yield longest * _jitter.uniform(0.5, 1.0)
        longest = min(2 * longest, _LONGEST_DELAY_SECONDS)
