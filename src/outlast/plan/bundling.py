"""`outlast export TASK|RUN --to kaggle.py`: what is asked for, resolved, as one file that trains it.

Of a run its task and configuration go along, as a preset and what differs from it; nothing of its data, its folder or
its weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from outlast.base.files import check_target
from outlast.base.log import say
from outlast.config.load import parse_yaml, read_config, resolve, to_yaml
from outlast.config.schema import Settings, TaskConfig
from outlast.errors import OutlastError, RunError, UsageError
from outlast.export import bundle, bundle_sources
from outlast.plan import preflight, record
from outlast.task import Task

KAGGLES = "t4"  # the preset that fits Kaggle's free GPU
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")


def export(
    subject: str,
    target: Path,
    preset: str | None,
    overrides: Sequence[str],
    *,
    config_file: Path | None = None,
    data: Mapping[str, str] | None = None,
    submit: bool = False,
) -> dict[str, Any]:
    """Write a bundle of a run (a folder), or of a task by its name. Returns what `bundle.write` returns.

    data: {name of a data root: OWNER/SLUG or SLUG of the input that holds it}; none: it is looked for. submit: it
    trains nothing, and predicts a test set with a finished run that is attached to it.

    Raises UsageError for settings given for a run, and what `resolve` and `bundle_sources.collect` raise.
    """
    bundle.check_target(target)
    check_target(target)
    if record.is_run(Path(subject)):
        if preset is not None or overrides:
            raise UsageError(
                f"{subject} is a run, whose settings are known",
                hint="leave --preset and KEY=VALUE out, or give the task instead",
            )
        task = preflight.find_task(record.load(Path(subject))["task"])
        config = read_config(task.config, Path(subject) / "config.yaml")
    else:
        task = _task(subject)
        if preset is None:
            preset = preset_for_kaggle(task)
            say(f"preset {preset!r}, for Kaggle's GPU; choose another with --preset")
        config, _ = resolve(task.config, task.presets, preset, file=config_file, overrides=overrides)
    if submit and task.deliver(config).submit is None:
        raise UsageError(f"the task {task.name!r} has no submission of a test set", hint="leave --submit out")
    recipe = bundle.Recipe(
        task=task.name,
        about=task.about,
        preset=config.preset,
        presets=list(task.presets),
        overrides=settings_apart(task, config),
        quick=task.quick,
        names=task.data,
        data=dict(data or {}),
        configuration=to_yaml(config),
        do="submit" if submit else "train",
    )
    contents = bundle_sources.collect(task.name)
    bundle_sources.check_secrets({"the settings": recipe.configuration.encode()})
    return bundle.write(target, recipe, contents)


def preset_for_kaggle(task: Task) -> str:
    """The preset that is made for Kaggle's free GPU, or the task's first one."""
    return KAGGLES if KAGGLES in task.presets else next(iter(task.presets))


def settings_apart(task: Task, config: TaskConfig) -> list[str]:
    """The settings (key=value) that make its preset this configuration. Raises RunError if there are none such."""
    preset = dict(_leaves(task.presets[config.preset]())) if config.preset in task.presets else {}
    apart = [
        f"{key}={_text(value)}"
        for key, value in _leaves(config)
        if key != "preset" and (key not in preset or preset[key] != value)
    ]
    if (
        config.preset not in task.presets
        or resolve(task.config, task.presets, config.preset, overrides=apart)[0] != config
    ):
        raise RunError(
            f"the configuration can't be said as the preset {config.preset!r} and settings on top of it",
            hint="export the task instead, with --preset and KEY=VALUE",
        )
    return apart


def _task(name: str) -> Task:
    try:
        return preflight.find_task(name)
    except OutlastError as error:
        if Path(name).exists():
            raise UsageError(
                f"{name} is neither a run nor a task",
                hint="give the folder that `outlast train` wrote, or a task's name",
            ) from error
        raise


def _leaves(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable key with its value as JSON has it."""
    dumped = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", dumped[name]


def _text(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, str) and _WORD.fullmatch(value) and parse_yaml(value, "a value") == value:
        return value
    return json.dumps(value, ensure_ascii=False)
