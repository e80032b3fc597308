"""What another process of ours writes for people, taken apart: sentences, and the progress line that is rewritten.

The other process is told by OUTLAST_TERMINAL (`base.log`) to write its progress as on a terminal.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

REWRITE = "\r\x1b[K"  # what a progress line begins with


@dataclass
class Listener:
    """Feed it bytes as they come; `line` is the progress line as it stands now, '' for none."""

    line: str = ""
    _unfinished: str = ""
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def feed(self, data: bytes) -> list[str]:
        """The sentences that ended in these bytes."""
        *whole, self._unfinished = (self._unfinished + self._decoder.decode(data)).split("\n")
        _, rewritten, last = self._unfinished.rpartition(REWRITE)
        self._unfinished = rewritten + last  # what stood there before is gone
        self.line = last.partition("\r")[0] if rewritten else ""
        return [sentence for text in whole if (sentence := text.rpartition(REWRITE)[2].rstrip("\r"))]


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """What comes on a pipe, as soon as it comes, until its other end is closed."""
    while data := stream.read1(65_536):  # type: ignore[attr-defined]
        yield data
