"""`outlast verify-resume`: whether a run that is killed again and again ends where an uninterrupted one ends.

It trains once uninterrupted, then the same again with kills (SIGKILL: the process has no chance to do anything), each
followed by the ordinary `outlast train` command, and compares everything. Each drawn kill happens: a session that ends
otherwise than by its kill is an error that shows what it printed. The two runs save at different steps on purpose, so
that saving, too, is shown to change nothing.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outlast import task as tasks
from outlast.base.log import say
from outlast.config.load import resolve
from outlast.errors import RunError, UsageError
from outlast.plan import child, kills, ledger, sources
from outlast.plan.child import Ended
from outlast.plan.differences import Comparison, Difference, compare_runs
from outlast.plan.kills import Standing, Target
from outlast.plan.traces import first_parting, repeated
from outlast.save import store
from outlast.task import DATA, topological

_SAVES_PER_KILL = 4  # on average, between two kills
_GETTING_READY = 0.3  # of the kills from outside come while the session is getting ready
_LINES_SHOWN = 20


@dataclass(frozen=True)
class Wish:
    """What the user asked for, as `outlast.verify_resume` takes it."""

    task: str
    data: str | Path | Mapping[str, str | Path] | Sequence[str] | None = None
    kills: int = 10
    seed: int = 0
    preset: str = "smoke"
    overrides: Sequence[str] = ()
    out: Path | None = None


@dataclass(frozen=True)
class Kill:
    """A kill that happened, after `step` steps of `stage`; the run went on from `resumed_step` of `resumed_stage`.

    seconds: from the session's start to its end.
    """

    number: int
    kind: str
    where: str
    stage: str
    step: int
    resumed_stage: str
    resumed_step: int
    seconds: float


@dataclass(frozen=True)
class _Trial:
    """Where it happens: the folder with both runs and what every session wrote down, and the plan's stages."""

    wish: Wish
    folder: Path
    stages: list[str]

    @property
    def killed(self) -> Path:
        return self.folder / "killed"

    def command(self, run: Path, every_steps: int | None = None) -> list[str]:
        wish = self.wish
        words = [sys.executable, "-m", "outlast", "train", wish.task, "--preset", wish.preset, "--out", str(run)]
        for name, folder in sources.parse_data(wish.data).items():
            words += ["--data", str(folder) if name == DATA else f"{name}={folder}"]
        # What the user says comes last, and counts. The last checkpoint is to be compared, so it must be kept.
        words += ["saving.keep_when_finished=best_and_last"]
        words += [f"saving.every_steps={every_steps}"] if every_steps is not None else []
        return [*words, *wish.overrides]


def verify(wish: Wish) -> dict[str, Any]:
    """Do it. Returns what `outlast.verify_resume` returns, and "text" for people.

    Raises UsageError (wrong numbers, a folder that is not empty), RunError (a session failed by itself), and what
    finding the task and its configuration raises.
    """
    stages = _check(wish)
    folder = wish.out or Path(tempfile.mkdtemp(prefix="outlast-verify-"))
    (folder / "sessions").mkdir(parents=True)
    trial = _Trial(wish, folder, stages)
    keep = True  # whatever goes wrong is there to be looked at
    try:
        say(f"verify-resume {wish.task}: one uninterrupted run, then one with {wish.kills} kills, in {folder}")
        run = folder / "uninterrupted"
        whole = child.run(trial.command(run), folder / "sessions", "uninterrupted")
        _check_finished(whole, "the uninterrupted run", folder)
        killed, sessions = _kill_and_resume(trial, whole)
        comparison = compare_runs(run, trial.killed, stages)
        result = _result(wish, stages, whole, sessions, killed, comparison)
        keep = wish.out is not None or result["differences"] > 0
        result["folder"] = str(folder) if keep else None
        return {**result, "text": _text(result)}
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _check(wish: Wish) -> list[str]:
    """The names of the plan's stages, in order; what can be found wrong before a process starts."""
    if wish.kills < 1:
        raise UsageError(f"--kills {wish.kills} verifies nothing", hint="give at least 1")
    if wish.out is not None and wish.out.exists() and (not wish.out.is_dir() or any(wish.out.iterdir())):
        raise UsageError(f"{wish.out} exists and is not an empty folder", hint="give another folder with --out")
    sources.parse_data(wish.data)
    task = tasks.find(wish.task)
    config, _ = resolve(task.config, task.presets, wish.preset, overrides=wish.overrides)
    return [stage.name for stage in topological(task.stages(config))]


def _kill_and_resume(trial: _Trial, whole: Ended) -> tuple[list[Kill], list[Ended]]:
    """Train with kills until all of them have happened, then to the end."""
    wish, files = trial.wish, trial.folder / "sessions"
    command = trial.command(trial.killed, max(len(whole.steps) // (_SAVES_PER_KILL * (wish.kills + 1)), 1))
    killed: list[Kill] = []
    sessions: list[Ended] = []
    standing = _standing(trial)
    for number, target in enumerate(kills.draw(whole.places, wish.kills, wish.seed), start=1):
        script = kills.script(target, standing, len(trial.stages))
        moment = _moment(target, standing, whole)
        ended = child.run(command, files, f"{number:03d}", script=script, moment=moment)
        if ended.status != -signal.SIGKILL:
            raise _failure(ended, f"session {number} was to be killed, but ended by itself", trial.folder)
        sessions.append(ended)
        before, standing = standing, _standing(trial)
        killed.append(_kill(trial, number, ended, before, standing))
        say(_sentence(killed[-1], wish.kills))
    sessions.append(child.run(command, files, "last"))
    _check_finished(sessions[-1], "the session after the last kill", trial.folder)
    return killed, sessions


def _moment(target: Target, standing: Standing, whole: Ended) -> child.Moment | None:
    """When to kill from outside: while the session gets ready, or on the way from its first step to the target's."""
    if target.moment is None:
        return None
    ready = whole.ready_seconds
    if target.moment < _GETTING_READY:
        wait = target.moment / _GETTING_READY * ready
        return lambda seconds, training: seconds >= wait
    steps = max(target.step - (standing.step if target.stage == standing.stages else 0), 1)
    share = (target.moment - _GETTING_READY) / (1 - _GETTING_READY)
    wait = share * steps * (whole.seconds - ready) / max(len(whole.steps), 1)
    trains_since: list[float] = []

    def due(seconds: float, training: bool) -> bool:
        # A session that has no step left to do is as far after the time that getting ready takes.
        if not trains_since and (training or seconds >= ready):
            trains_since.append(seconds)
        return bool(trains_since) and seconds >= trains_since[0] + wait

    return due


def _standing(trial: _Trial) -> Standing:
    """From where the killed run would go on now."""
    for number, stage in enumerate(trial.stages):
        if not (trial.killed / stage / ledger.RECORD).is_file():
            saved = store.newest(trial.killed / stage / "checkpoints", [])
            return Standing(number, saved.step if saved is not None else 0)
    return Standing(len(trial.stages), 0)


def _kill(trial: _Trial, number: int, ended: Ended, before: Standing, after: Standing) -> Kill:
    place = ended.places[-1] if ended.places else "the start"
    stage = max(after.stages, before.stages)  # a stage counts as done once its record is there
    steps = [step.step for step in ended.steps if step.stage == _stage(trial, stage)]
    return Kill(
        number=number,
        kind=kills.ANY_MOMENT if ended.from_outside else kills.kind_of(place),
        where=f"after {place}" if ended.from_outside else place,
        stage=_stage(trial, stage),
        step=steps[-1] if steps else (before.step if stage == before.stages else 0),
        resumed_stage=_stage(trial, after.stages),
        resumed_step=after.step,
        seconds=round(ended.seconds, 2),
    )


def _stage(trial: _Trial, number: int) -> str:
    return trial.stages[number] if number < len(trial.stages) else "(all done)"


def _check_finished(ended: Ended, what: str, folder: Path) -> None:
    if ended.status != 0:
        raise _failure(ended, f"{what} failed", folder)


def _failure(ended: Ended, sentence: str, folder: Path) -> RunError:
    how = signal.Signals(-ended.status).name if ended.status < 0 else f"exit status {ended.status}"
    return RunError(
        f"{sentence} ({how}); it printed:",
        details=ended.printed[-_LINES_SHOWN:],
        hint=f"mend what it says; the runs and all that was printed are in {folder}",
    )


def _result(
    wish: Wish, stages: list[str], whole: Ended, sessions: list[Ended], killed: list[Kill], comparison: Comparison
) -> dict[str, Any]:
    traces = [session.steps for session in sessions]
    parting = first_parting(whole.steps, traces, stages)
    different = [*comparison.differences]
    if parting is not None:
        sample = f", sample {parting.sample}" if parting.sample is not None else ""
        different.append(Difference(parting.stage, f"step {parting.step}{sample}", parting.note))
    tensor = next((item for item in comparison.differences if item.elements is not None), None)
    return {
        "status": "different" if different else "equal",
        "task": wish.task,
        "preset": wish.preset,
        "seed": wish.seed,
        "kills": len(killed),
        "differences": len(different),
        "compared": {"files": comparison.files, "tensors": comparison.tensors, "steps": len(whole.steps)},
        "steps_done_again": repeated(traces),
        "first": {
            "tensor": asdict(tensor) if tensor is not None else None,
            "step": asdict(parting) if parting is not None else None,
        },
        "killed": [asdict(kill) for kill in killed],
        "different": [asdict(item) for item in different],
    }


def _sentence(kill: Kill, of: int) -> str:
    return (
        f"kill {kill.number}/{of}: {kill.kind} ({kill.where}) at {kill.stage} {kill.step}; "
        f"goes on from {kill.resumed_stage} {kill.resumed_step}"
    )


def _text(result: Mapping[str, Any]) -> str:
    """The table of kills, and what differs."""
    head = ("kill", "kind", "where", "struck at", "went on from", "seconds")
    rows = [
        (
            str(kill["number"]), kill["kind"], kill["where"], f"{kill['stage']} {kill['step']}",
            f"{kill['resumed_stage']} {kill['resumed_step']}", f"{kill['seconds']:.1f}",
        )
        for kill in result["killed"]
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
    compared = result["compared"]
    lines += [
        "",
        f"{result['kills']} kills, {result['differences']} differences: {compared['files']} files, "
        f"{compared['tensors']} tensors and {compared['steps']} steps compared bit for bit; "
        f"{result['steps_done_again']} steps were done again",
    ]
    tensor, parting = result["first"]["tensor"], result["first"]["step"]
    if parting is not None:
        lines += [
            f"first step that differs: step {parting['step']} of {parting['stage']}, in session {parting['session']}",
            f"first sample that differs: {parting['sample'] or 'none'} ({parting['note']})",
        ]
    if tensor is not None:
        lines.append(f"first tensor that differs: {tensor['what']} in {tensor['file']}: {tensor['note']}")
    shown = result["different"][:_LINES_SHOWN]
    lines += [f"  {item['file']}: {item['what']}: {item['note']}" for item in shown]
    more = len(result["different"]) - len(shown)
    lines += [f"  and {more} more (--json lists all)"] if more else []
    lines += [f"both runs are in {result['folder']}"] if result["folder"] else []
    return "\n".join(lines)
