"""What people read while a run goes on: sentences and a progress line, always on standard error.

On a terminal the progress is one line that is rewritten; elsewhere (a notebook's batch run, a log file) it is a sparse
line every half minute, because flooding standard output can cost a platform run its outputs. Standard output is left
to results, so that `--json` stays clean.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

from outlast.base.clock import format_duration

TERMINAL = "OUTLAST_TERMINAL"  # set if what this process writes to a pipe is passed on to a terminal

_SPARSE_SECONDS = 30.0
_REDRAW_SECONDS = 0.2
_line_shown = False
_quiet = False


def keep_stdout_clean() -> None:
    """From now on only Python's own prints reach standard output; what libraries write to its descriptor goes to the
    error stream. For several processes: some versions of gloo announce their connections there."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(ours, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115


def quiet(value: bool = True) -> None:
    """Turn sentences and progress off (ranks other than the first)."""
    global _quiet
    _quiet = value


def say(text: str) -> None:
    """Print one sentence."""
    if not _quiet:
        _clear()
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print one sentence that a person should act upon."""
    say(f"warning: {text}")


def redraws() -> bool:
    """Whether a line can be rewritten where this process writes to."""
    return sys.stderr.isatty() or TERMINAL in os.environ


def show_line(line: str) -> None:
    """Show a line in the place of the one before, until the next sentence."""
    global _line_shown
    sys.stderr.write(f"\r\x1b[K{line[: _columns() - 1]}")
    sys.stderr.flush()
    _line_shown = True


class Progress:
    """A progress line. `update` is cheap enough to be called at every step of a few milliseconds."""

    def __init__(self, label: str, total: int, *, start: int = 0) -> None:
        self.label, self.total, self.start, self.done = label, total, start, start
        self._began = time.monotonic()
        self._shown = self._began
        self._terminal = redraws()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _clear()

    def update(self, done: int, text: str = "", session_left: float = float("inf")) -> None:
        """Show that `done` of `total` are done; `session_left` is the time left in this session, in seconds."""
        self.done = done
        now = time.monotonic()
        if _quiet or now - self._shown < (_REDRAW_SECONDS if self._terminal else _SPARSE_SECONDS):
            return
        self._shown = now
        line = self.render(now, text, session_left)
        if self._terminal:
            show_line(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def render(self, now: float, text: str = "", session_left: float = float("inf")) -> str:
        """The line: a bar, what is done, the time left in total and in this session."""
        share = self.done / self.total if self.total else 1.0
        rate = (self.done - self.start) / max(now - self._began, 1e-9)
        left = f"{format_duration((self.total - self.done) / rate)} left" if rate > 0 else "…"
        if session_left != float("inf"):
            left += f", session {format_duration(session_left)}"
        bar = "█" * round(20 * share) + "░" * (20 - round(20 * share))
        return f"{self.label} {bar} {self.done}/{self.total} {left} {text}".rstrip()


def _clear() -> None:
    global _line_shown
    if _line_shown:
        sys.stderr.write("\r\x1b[K")
        _line_shown = False


def _columns() -> int:
    import shutil

    return max(shutil.get_terminal_size((100, 24)).columns, 40)
