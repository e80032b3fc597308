"""The signature picture of Outlast: one smooth training, and the sessions that it lived through.

Loss, score and learning rate over optimizer steps on one shared axis; every session is a band, every boundary a line.
Promises: rows with missing or non-finite values leave a gap; no rows at all give no picture (None).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from outlast.report.formats import count, duration, finite, number, title_case
from outlast.report.look import Look, Theme, new_figure, quiet_axes, save, style
from outlast.report.records import Collected, Session, Stage

Line = tuple[list[float], list[float]]  # steps, values


def curves(
    run: Collected, stage: Stage, look: Look | None = None, title: str | None = "Training curves"
) -> bytes | None:
    """Loss of training and validation, the score with its best evaluation, the learning rate, and the sessions."""
    look = look or Look()
    score = stage.score
    panels = [panel for panel in ("loss", "score", "rate") if _has(stage, panel)]
    if not panels:
        return None
    heights = {"loss": 2.2, "score": 2.2, "rate": 1.0}
    size = (4.3 if look.narrow else 9.2, sum(heights[panel] for panel in panels) + 0.35)
    with style(look) as theme:
        figure = new_figure(size, look, title, finding(run, stage), run.synthetic)
        grid = figure.subplots(
            len(panels),
            1,
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": [heights[name] for name in panels]},
        )
        axes = dict(zip(panels, grid[:, 0], strict=True))
        for panel in axes.values():
            quiet_axes(panel)
        step_axis(list(axes.values()), stage)
        if "loss" in axes:
            _loss(axes["loss"], stage, theme)
        if "score" in axes and score:
            _score(axes["score"], stage, theme)
        if "rate" in axes:
            _rate(axes["rate"], stage, theme)
        session_bands(list(axes.values()), boundaries(run, stage), theme, look)
        figure.align_ylabels()
        return save(figure, look, run)


def finding(run: Collected, stage: Stage) -> str:
    """What the picture shows, in a sentence; also its description for those who can't see it."""
    parts = []
    best = stage.best
    if best:
        place = f" at step {count(best.get('step'))}" if finite(best.get("step")) is not None else ""
        epoch = f" (epoch {count(best.get('epoch'))})" if finite(best.get("epoch")) is not None else ""
        name = (stage.score or "score").replace("_", " ")
        parts.append(f"Best validation {name} {number(best.get('value'))}{place}{epoch}")
    sessions = boundaries(run, stage)
    if sessions:
        cuts = [count(session.from_step) for session in sessions[1:]]
        lived = f"{len(sessions)} sessions" if cuts else "one session"
        after = f", resumed at step{'s' if len(cuts) > 1 else ''} {_some(cuts)}" if cuts else ""
        parts.append(f"lived through {lived}{after}" if parts else f"Lived through {lived}{after}")
    return "; ".join(parts) + "." if parts else ""


def boundaries(run: Collected, stage: Stage) -> list[Session]:
    """The sessions that made steps of this stage, in order."""
    alone = len(run.trained) == 1
    told = [
        replace(session, stage=name, from_step=first, to_step=last)
        for session in run.sessions
        for name, (first, last) in session.trained.items()
    ]
    return [
        session
        for session in told or run.sessions
        if session.from_step is not None
        and (session.to_step is None or session.to_step > session.from_step)
        and (session.stage == stage.name or (session.stage is None and alone))
    ]


def _has(stage: Stage, panel: str) -> bool:
    keys = {"loss": ("train_loss", "val_loss"), "score": (f"val_{stage.score}",), "rate": ("learning_rate",)}[panel]
    if panel == "score" and stage.score == "loss":
        return False
    return any(_line(stage, key)[0] for key in keys)


def _line(stage: Stage, key: str) -> Line:
    found = [(float(row["step"]), finite(row.get(key))) for row in stage.rows]
    known = [(step, value) for step, value in found if value is not None]
    return [step for step, _ in known], [value for _, value in known]


def _gapped(stage: Stage, key: str) -> Line:
    """As `_line`, but a row that has the key without a finite value is a gap (NaN)."""
    rows = [row for row in stage.rows if key in row]
    values = [finite(row[key]) for row in rows]
    return [float(row["step"]) for row in rows], [float("nan") if value is None else value for value in values]


def _loss(axes: Axes, stage: Stage, theme: Theme) -> None:
    lines = (("train_loss", "training", theme.train, "-", "o"), ("val_loss", "validation", theme.validation, "--", "s"))
    values: list[float] = []
    for key, label, colour, dash, mark in lines:
        steps, known = _gapped(stage, key)
        if _line(stage, key)[0]:
            values += _line(stage, key)[1]
            axes.plot(steps, known, dash, color=colour, label=label, linewidth=1.9, **marks(axes, len(steps), mark))
    axes.set_ylabel("loss")
    if min(values) > 0 and max(values) / min(values) > 100:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("loss (log scale)")
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", ncols=2, handlelength=2.2, columnspacing=1.4, borderaxespad=0.2)


def _score(axes: Axes, stage: Stage, theme: Theme) -> None:
    steps, values = _gapped(stage, f"val_{stage.score}")
    axes.plot(steps, values, "-", color=theme.score, linewidth=1.9, **marks(axes, len(steps), "o"))
    axes.set_ylabel(f"validation\n{(stage.score or '').replace('_', ' ')}")
    best = stage.best
    step, value = finite(best.get("step")), finite(best.get("value"))
    if step is None or value is None or step not in steps:
        return
    low, high = axes.get_ylim()
    room = 0.16 * (high - low)  # above the best point, or below where less is better, for its label
    axes.set_ylim((low, high + room) if stage.rises else (low - room, high))
    if high > 1 >= max(known for known in values if known == known):
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 1])  # the score ends at 1
    axes.plot([step], [value], "*", color=theme.score, markersize=13, markeredgecolor=theme.surface, markeredgewidth=1)
    middle = sum(axes.get_xlim()) / 2
    axes.annotate(
        f"best {number(value)}",
        (step, value),
        xytext=(0 if len(steps) < 2 else (-7 if step > middle else 7), 7 if stage.rises else -7),
        textcoords="offset points",
        ha="center" if len(steps) < 2 else ("right" if step > middle else "left"),
        va="bottom" if stage.rises else "top",
        fontsize=9,
        fontweight="bold",
        color=theme.score,
    )


def _rate(axes: Axes, stage: Stage, theme: Theme) -> None:
    steps, values = _gapped(stage, "learning_rate")
    axes.plot(steps, values, "-", color=theme.rate, linewidth=1.6, **marks(axes, len(steps), "o"))
    axes.fill_between(steps, values, 0, color=theme.rate, alpha=0.12, linewidth=0)
    axes.set_ylabel("learning\nrate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else f"{value:.0e}"))


def marks(axes: Axes, points: int, mark: str) -> dict[str, Any]:
    """Few evaluations are shown one by one; many would only thicken the line."""
    inches = axes.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    return {"marker": mark, "markersize": 3.4} if points <= 5 * inches else {}


def step_axis(panels: Sequence[Axes], stage: Stage) -> None:
    epochs = [known for row in stage.rows if (known := finite(row.get("epoch"))) is not None]
    below = panels[-1]
    below.set_xlabel(
        f"optimizer step ({count(max(epochs))} epochs)" if epochs and max(epochs) > 1 else "optimizer step"
    )
    below.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=True))
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    last = max(float(row["step"]) for row in stage.rows)
    below.set_xlim(0, max(last, 1.0) * (1.02 if len(stage.rows) > 1 else 2))


def session_bands(panels: Sequence[Axes], sessions: Sequence[Session], theme: Theme, look: Look) -> None:
    """A band for every second session, a line where one ended and the next took over, and their names on top."""
    if not sessions:
        return
    left, right = panels[0].get_xlim()
    starts = [float(session.from_step or 0) for session in sessions]
    edges = [min(left, starts[0]) if starts[0] <= 0 else starts[0], *starts[1:], right]
    for place, (start, end) in enumerate(pairwise(edges)):
        if start >= right:  # it has made no evaluation yet
            break
        end = min(end, right)
        for axes in panels:
            if place % 2 == 0:
                axes.axvspan(max(start, left), end, color=theme.band, linewidth=0, zorder=0)
            if place > 0:
                axes.axvline(start, color=theme.muted, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        name = _name(place, sessions[place], (end - max(start, left)) / (right - left), len(sessions), look)
        panels[0].annotate(
            name,
            ((max(start, left) + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=theme.muted,
        )
    panels[0].set_xlim(left, right)


def _name(place: int, session: Session, share: float, sessions: int, look: Look) -> str:
    """ "session 2 (4 min)" where it fits, "session 2", "2", or nothing where even that would overlap."""
    inches = share * (3.4 if look.narrow else 8.1)
    if inches > 1.7 and session.seconds is not None:
        return f"session {place + 1} ({duration(session.seconds)})"
    if inches > 0.75:
        return f"session {place + 1}"
    return str(place + 1) if inches > 0.2 or sessions == 1 else ""


def _some(items: Sequence[str]) -> str:
    if len(items) > 6:
        return f"{', '.join(items[:5])} and {len(items) - 5} more"
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def describe(run: Collected, stage: Stage) -> str:
    """The alternative text of the picture."""
    steps, values = _line(stage, "train_loss")
    loss = (
        f"Training loss from {number(values[0])} to {number(values[-1])} over {count(steps[-1])} steps. "
        if steps
        else ""
    )
    return f"{title_case(stage.name)}: loss, score and learning rate over steps. {loss}{finding(run, stage)}".strip()
