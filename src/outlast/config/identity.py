"""What makes two configurations the same run: a hash of the fields that decide the result, and readable differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from outlast.config.schema import Settings

Changes = dict[str, list[Any]]  # {dotted key: [value before, value after]}

_ABSENT = "(absent)"


def digest(value: Any) -> str:
    """SHA-256 (hex) of any JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(settings: Settings, kinds: tuple[str, ...] = ("must", "extendable", "declared")) -> dict[str, Any]:
    """The fields, nested, whose identity kind is one of `kinds` ('must', 'extendable', 'declared', 'free')."""
    kept: dict[str, Any] = {}
    dumped = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            inner = identity(value, kinds)
            if inner:
                kept[name] = inner
        else:
            extra = field.json_schema_extra
            kind = extra.get("identity", "must") if isinstance(extra, dict) else "must"
            if kind in kinds:
                kept[name] = dumped[name]
    return kept


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Changes:
    """The keys whose value differs, sorted: {'train.epochs': [30, 40]}."""
    found: Changes = {}
    for key in sorted({*before, *after}):
        old, new = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found[f"{prefix}{key}"] = [old, new]
    return found


def lines(changed: Changes) -> list[str]:
    """One line per key: 'train.epochs: 30 -> 40'."""
    return [f"{key}: {old} -> {new}" for key, (old, new) in sorted(changed.items())]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """One line per key whose value differs."""
    return lines(changes(before, after))


def grows(old: Any, new: Any) -> bool:
    """Whether an extendable value became larger; None is no limit."""
    return old is not None and (new is None or new > old)
