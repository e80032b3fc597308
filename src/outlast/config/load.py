"""Resolves a configuration: preset, then file, then key=value. All problems are reported together.

YAML is read by the rules of YAML 1.2 where they matter: `1e-4` is a number, `no` and `off` are words. What the user
set and what has no effect is returned as warnings, so that nobody tunes a knob that is not connected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from outlast.config.schema import Settings, TaskConfig
from outlast.errors import ConfigError, did_you_mean, listed

Config = TypeVar("Config", bound=TaskConfig)


class _Loader(yaml.SafeLoader):
    """SafeLoader whose floats and booleans follow YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value that `text` stands for; raises ConfigError that names `where`."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: it builds plain values only
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{where} is not valid YAML: {' '.join(str(error).split())}",
            hint="look for an open bracket or quote, a tab, or a colon without a space after it",
        ) from error


def to_yaml(config: Settings) -> str:
    """The whole configuration as YAML, as it is written to a run's config.yaml."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def resolve(
    schema: type[Config],
    presets: Mapping[str, Callable[[], Config]],
    preset: str,
    *,
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Config, list[str]]:
    """Return the configuration and the warnings about settings that have no effect.

    `overrides` are texts `key.subkey=value`. Raises ConfigError with every problem found.
    """
    if preset not in presets:
        raise ConfigError(
            f"there is no preset {preset!r}.{did_you_mean(preset, list(presets))}",
            hint=f"choose one of: {', '.join(presets)}",
        )
    values = presets[preset]().model_dump()
    values["preset"] = preset
    known = dict(keys(schema))
    problems: list[str] = []
    chosen: dict[str, Any] = {}
    if file is not None:
        chosen.update(_read_file(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(f"{override!r} is not of the form key=value")
        else:
            chosen[key] = parse_yaml(text, f"the value of {key}")
    for key, value in chosen.items():
        if key not in known:
            problems.append(_unknown(key, list(known)))
        else:
            put(values, key, value)
    config: Config | None = None
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        problems.extend(_sentences(error))
    if problems or config is None:
        raise ConfigError(
            "the configuration is wrong:" if len(problems) > 1 else f"the configuration is wrong: {problems[0]}",
            details=problems if len(problems) > 1 else (),
            hint="the keys and their ranges are listed in docs/reference/configuration.md, and in config.yaml of a run",
        )
    idle = dict(_idle(config))
    warnings = [f"{key} has no effect: {idle[key]}" for key in chosen if key in idle]
    return config, warnings


def read_config(schema: type[Config], path: Path) -> Config:
    """The configuration of a run, from its config.yaml."""
    values = parse_yaml(_text(path), str(path))
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"{path} does not fit this version of the task",
            details=_sentences(error),
            hint="use the version of Outlast that made the run (run.json names it)",
        ) from error


def keys(schema: type[Settings], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable key with its pydantic field: ('train.epochs', FieldInfo), ..."""
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            yield from keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _unknown(key: str, known: Sequence[str]) -> str:
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return f"{key!r} is a group of settings; set those inside: {listed(inside)}"
    return f"unknown key {key!r}.{did_you_mean(key, known)}"


def _idle(settings: Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, reason in settings.idle().items():
        yield f"{prefix}{name}", reason
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from _idle(value, f"{prefix}{name}.")


def _read_file(path: Path) -> dict[str, Any]:
    """The file's settings with dotted keys."""
    values = parse_yaml(_text(path), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold key: value lines, but holds a {type(values).__name__}",
            hint="write it like the config.yaml of a run, or like: train.epochs: 40",
        )
    return dict(dotted(values))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the configuration file {path} cannot be read: {error}",
            hint="check the path; it must be a text file (UTF-8)",
        ) from error


def dotted(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings with their dotted keys: ('train.epochs', 30), ..."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the leaf with this dotted key."""
    *groups, last = key.split(".")
    for group in groups:
        values = values[group]
    values[last] = value


def _sentences(error: ValidationError) -> list[str]:
    sentences = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        given = problem.get("input")
        sentences.append(f"{key}={given!r}: {message[0].lower()}{message[1:]}" if key else message)
    return sentences
