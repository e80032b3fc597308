"""A plan of sessions as a picture: a row per GPU, time to the right, sessions side by side with their ends marked.

Promises: to scale among sessions; a stage keeps its colour; where it is cut is marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from outlast.base.clock import format_duration
from outlast.report.formats import shorten
from outlast.report.look import Look, Theme, new_figure, quiet_axes, save_as, style
from outlast.report.planned import measured_line

_ROW = 0.62  # inches
_BAR = 0.62  # of a row
_LETTERS = 12.5  # that fit into an inch


def draw(plan: Mapping[str, Any], look: Look | None = None) -> bytes:
    """The plan (JSON values of `outlast plan`) as PNG or SVG bytes."""
    look = look or Look()
    starts, total = _starts(plan)
    gpus = plan["allowed"]["gpus"]
    width = 5.2 if look.narrow else 9.6
    title = f"Plan of {plan['task']}, preset {plan['preset']}"
    finding = f"{plan['answer']}; {measured_line(plan['measurement'])}."
    names = [stage["stage"] for stage in plan["stages"]]
    letters = _LETTERS * (width - 1) / total
    with style(look) as theme:
        colours = dict(zip(names, _colours(theme, len(names)), strict=True))
        columns = 2 if look.narrow else 4
        height = 1.1 + _ROW * gpus + 0.2 * -(-len(names) // columns)
        figure = new_figure((width, height), look, title, finding, plan["synthetic"])
        axes = figure.add_subplot()
        quiet_axes(axes, grid=None)
        for session in plan["sessions"]:
            start = starts[session["session"]]
            _session(axes, session, start, gpus, theme, letters)
            for piece in session["pieces"]:
                _piece(axes, piece, start, letters, colours[piece["stage"]], theme)
        axes.set_xlim(0, total * 1.005)
        axes.set_ylim(gpus - 0.5, -0.95)
        axes.set_yticks(range(gpus), [f"GPU {number + 1}" for number in range(gpus)] if gpus > 1 else [""])
        unit, seconds = ("hours", 3600.0) if total >= 7200 else ("minutes", 60.0) if total >= 120 else ("seconds", 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(6 if look.narrow else 10, steps=[1, 2, 3, 5, 6, 10]))
        axes.set_xticks([tick * seconds for tick in axes.xaxis.get_major_locator().tick_values(0, total / seconds)
                         if tick * seconds <= total])  # fmt: skip
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / seconds:g}"))
        axes.set_xlabel(f"{unit} of computing, session after session")
        handles = [axes.barh([0], [0], color=colours[name], label=_label(plan, name)) for name in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        said = f"task {plan['task']}; preset {plan['preset']}; {plan['answer']}"
        return save_as(figure, look, said.encode("ascii", "backslashreplace").decode("ascii"))


def _starts(plan: Mapping[str, Any]) -> tuple[dict[int, float], float]:
    """Where each session begins when they are laid side by side, and where the last one ends."""
    starts, at = {}, 0.0
    for session in plan["sessions"]:
        starts[session["session"]] = at
        at += session["seconds"]
    return starts, at or 1.0


def _colours(theme: Theme, number: int) -> list[str]:
    own = [theme.train, theme.validation, theme.score, theme.rate, theme.muted]
    return [own[place % len(own)] for place in range(number)]


def _session(axes: Axes, session: Mapping[str, Any], start: float, gpus: int, theme: Theme, letters: float) -> None:
    """The session's band, its name as far as there is room (`letters` per second), and its end."""
    end = start + session["seconds"]
    if session["session"] % 2:
        axes.axvspan(start, end, color=theme.band, zorder=0)
    axes.plot([end, end], [-0.5, gpus - 0.5], color=theme.grid, linewidth=1.2, zorder=1)
    number = str(session["session"])
    named = [f"session {number}, {format_duration(session['seconds'])}", f"session {number}", number]
    text = next((text for text in named if len(text) + 1 <= session["seconds"] * letters), "")
    axes.text(start, -0.6, f" {text}", fontsize=8, color=theme.muted, va="bottom")


def _piece(axes: Axes, piece: Mapping[str, Any], start: float, letters: float, colour: str, theme: Theme) -> None:
    """A stage's bar with its name, if there is room (`letters` per second); a line where it is cut."""
    left, right = start + piece["start_seconds"], start + piece["end_seconds"]
    axes.barh(piece["gpu"], right - left, left=left, height=_BAR, color=colour, zorder=2)
    room = int((right - left) * letters) - 1
    name = shorten(piece["stage"], room) if room >= min(len(piece["stage"]), 7) else ""
    axes.text(left, piece["gpu"], f" {name}", va="center", fontsize=8.5, color=theme.surface, zorder=3, clip_on=True)
    if not piece["finished"]:
        axes.plot([right, right], [piece["gpu"] - 0.42, piece["gpu"] + 0.42], color=theme.alarm, linewidth=2, zorder=4)
        text = f"stops at {piece['last']:,} "
        if room > len(text):
            axes.text(
                right, piece["gpu"] + 0.345, text, ha="right", va="top", fontsize=7.5, color=theme.alarm, zorder=4
            )


def _label(plan: Mapping[str, Any], name: str) -> str:
    stage = next(stage for stage in plan["stages"] if stage["stage"] == name)
    return f"{shorten(name, 22)} {format_duration(stage['seconds'])}{' (guessed)' if stage['guessed'] else ''}"
