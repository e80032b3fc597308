"""`outlast plan` from question to answer: the times measured, read or recorded, then the forecast, then its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast import task as tasks
from outlast.base.clock import parse_duration
from outlast.base.files import check_target, write_bytes, write_json
from outlast.base.log import say, warn
from outlast.config.load import resolve
from outlast.config.schema import TaskConfig
from outlast.env import device, host
from outlast.errors import UsageError
from outlast.plan import measurement, recorded
from outlast.plan.forecast import Allowed, forecast
from outlast.plan.measure import measure_plan
from outlast.plan.measurement import Measurement
from outlast.report import gantt, planned
from outlast.report.look import Look
from outlast.task import Task


@dataclass(frozen=True)
class Question:
    """What the user asked for, as `outlast.make_plan` takes it."""

    task: str
    data: Any = None
    preset: str | None = None
    overrides: Sequence[str] = ()
    session_limit: str | float | None = None
    quota: str | float | None = None
    quota_rate: float = 1.0
    gpus: int = 1
    measurement: Path | None = None
    run: Path | None = None
    to: Path | None = None
    synthetic: bool = False


def plan(asked: Question) -> dict[str, Any]:
    """The forecast (JSON values) with "text" for people; written to `asked.to` if that is given."""
    if asked.to is not None:
        if asked.to.suffix not in (".png", ".svg", ".json"):
            raise UsageError(f"--to {asked.to} is no picture and no JSON", hint="give FILE.png, FILE.svg or FILE.json")
        check_target(asked.to)
    given = [name for name, value in (("--measurement", asked.measurement), ("--run", asked.run)) if value is not None]
    given += ["--data"] if asked.data else []
    given += ["--synthetic"] if asked.synthetic else []
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", hint="each says where the times come from")
    allowed = Allowed(
        session_seconds=_seconds(asked.session_limit), gpus=asked.gpus, quota_seconds=_seconds(asked.quota),
        quota_rate=asked.quota_rate,
    )  # fmt: skip
    allowed.check()
    task = tasks.find(asked.task)
    measured, config, warnings = _times(task, asked)
    for sentence in warnings:
        warn(sentence)
    found = forecast(task, config, measured, allowed)
    found["notes"] = [*found["notes"], *_elsewhere(measured)]
    if asked.to is not None:
        _write(found, asked.to)
    return {**found, "text": planned.table(found)}


def _times(task: Task, asked: Question) -> tuple[Measurement, TaskConfig, list[str]]:
    """The times, and the configuration that is planned for, with warnings about it."""
    if asked.run is not None:
        if asked.preset is not None:
            raise UsageError("--preset and --run exclude each other", hint="the run says what its preset is")
        measured, own = recorded.measurement_of(asked.run, task)
        if not asked.overrides:
            return measured, own, []
        # Its file names every setting, so that warnings about those without effect would be about nothing.
        config, _ = resolve(
            task.config, task.presets, own.preset, file=asked.run / "config.yaml", overrides=asked.overrides
        )
        return measured, config, []
    if asked.measurement is not None:
        measured = measurement.load(asked.measurement, task.name)
        config, warnings = resolve(
            task.config, task.presets, asked.preset or measured.preset, overrides=asked.overrides
        )
        return measured, config, warnings
    preset = asked.preset or device.default_preset(list(task.presets))
    config, warnings = resolve(task.config, task.presets, preset, overrides=asked.overrides)
    if asked.preset is None:
        say(f"preset {preset!r}, because this machine computes with {device.detect().name}; choose another: --preset")
    return measure_plan(task, config, asked.data, synthetic=asked.synthetic), config, warnings


def _elsewhere(measured: Measurement) -> list[str]:
    """A warning if the times are of another machine than this one."""
    here = {"device_name": device.detect().name, "cores": host.cores()}
    if all(measured.machine.get(name) == value for name, value in here.items()):
        return []
    this = f"{here['device_name']}, {here['cores']} cores"
    return [f"the times are of another machine ({measured.where}); this one: {this}"]


def _write(found: dict[str, Any], path: Path) -> None:
    if path.suffix == ".json":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, gantt.draw(found, Look(form="svg" if path.suffix == ".svg" else "png")))
    say(f"written: {path}")


def _seconds(duration: str | float | None) -> float:
    if duration is None:
        return float("inf")
    return parse_duration(duration) if isinstance(duration, str) else float(duration)
