"""What a cell shows: a progress line that is rewritten, figures, the report, a link. Only this module knows IPython."""

from __future__ import annotations

import base64
import html
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from outlast.errors import UsageError

_REDRAW_SECONDS = 0.5  # a notebook keeps every message that it is sent
_LAST = 6  # sentences that stay in sight
_EMBEDDED_BYTES = 10 * 2**20  # what a notebook may well hold
_MOST_FIGURES = 6
_PAGE_PIXELS = 900
_STYLE = "margin:0;white-space:pre-wrap;font-size:90%"


def display() -> Any:
    """IPython's module of things to show. Raises UsageError where there is none."""
    try:
        import IPython.display
    except ImportError as error:
        raise UsageError(
            "outlast.notebook shows what it does in a notebook, and IPython is not installed here",
            hint="call the function of the same name of outlast itself, or type the command",
        ) from error
    return IPython.display


class Screen:
    """The output of a cell while a command runs: its last sentences and its progress, in one place."""

    def __init__(self, title: str) -> None:
        self.title, self.sentences = title, list[str]()
        self._display = display()
        self._line, self._drawn, self._changed = "", 0.0, False
        self._handle: Any = None

    def __enter__(self) -> Self:
        self._handle = self._display.display(self._display.HTML(self._page(running=True)), display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line = ""
        self._draw(running=False)

    def say(self, sentence: str) -> None:
        """A sentence that stays."""
        self.sentences.append(sentence)
        self._changed = True
        self.redraw()

    def progress(self, line: str) -> None:
        """The progress line as it is now."""
        self._changed |= line != self._line
        self._line = line
        self.redraw()

    def redraw(self) -> None:
        """Show what has changed, not too often."""
        if self._changed and time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._draw(running=True)

    def _draw(self, *, running: bool) -> None:
        self._drawn, self._changed = time.monotonic(), False
        if self._handle is not None:  # there is none outside of a notebook
            self._handle.update(self._display.HTML(self._page(running=running)))

    def _page(self, *, running: bool) -> str:
        earlier, last = self.sentences[:-_LAST], self.sentences[-_LAST:]
        parts = [f"<b>{html.escape(self.title)}</b>"]
        if earlier:
            text = html.escape("\n".join(earlier))
            parts.append(
                f"<details><summary>{len(earlier)} earlier lines</summary><pre style='{_STYLE}'>{text}</pre></details>"
            )
        parts.append(f"<pre style='{_STYLE}'>{html.escape(chr(10).join(last))}</pre>")
        if running:
            parts.append(f"<pre style='{_STYLE};font-weight:bold'>{html.escape(self._line or '...')}</pre>")
        return f"<div>{''.join(parts)}</div>"


def note(sentence: str, command: str) -> None:
    """A sentence with a command below it."""
    shown = display()
    shown.display(shown.HTML(f"<p>{html.escape(sentence)}</p><pre style='{_STYLE}'>{html.escape(command)}</pre>"))


def figures(run: Path) -> None:
    """The figures that the run's files allow, as pictures."""
    from outlast.report import collect, page, plots
    from outlast.report.look import Look

    shown, found = display(), collect.collect(run)
    for figure in page.default_figures(found)[:_MOST_FIGURES]:
        picture = plots.draw_for(figure, found, Look(), figure.title)
        if picture is not None:
            shown.display(shown.Image(data=picture, format="png", width=720, alt=figure.title))


def page(path: Path) -> None:
    """The report, in a frame of its own; it holds all that it shows."""
    shown = display()
    text = html.escape(path.read_text(encoding="utf-8"), quote=True)
    shown.display(
        shown.HTML(
            f"<details open><summary>{html.escape(str(path))}</summary><iframe srcdoc=\"{text}\" width='100%' "
            f"height='{_PAGE_PIXELS}' style='border:1px solid #ccc' title='report'></iframe></details>"
        )
    )


def link(path: Path, *, now: bool = False) -> None:
    """A link that downloads a file, for the place where the notebook is shown; now: at once, where that is possible."""
    shown, size = display(), path.stat().st_size
    in_words = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"
    if "google.colab" in sys.modules:  # its pages can't reach the machine's files by a link
        if now:
            sys.modules["google.colab"].files.download(str(path))
            return
        note(f"{path} ({in_words}) is brought to your computer by", f"outlast.notebook.download({str(path)!r})")
        return
    name = html.escape(path.name)
    beside = os.path.relpath(path)
    links = []
    if not beside.startswith(".."):
        links.append(f"<a href='{html.escape(beside, quote=True)}' target='_blank'>{name}</a>")
    if size <= _EMBEDDED_BYTES:
        data = base64.b64encode(path.read_bytes()).decode()
        links.append(
            f"<a download='{name}' href='data:application/octet-stream;base64,{data}'>the copy in this page</a>"
        )
    where = " or ".join(links) or "too large for a link"
    shown.display(shown.HTML(f"<p>{in_words}: {where}<br><code>{html.escape(str(path))}</code></p>"))
