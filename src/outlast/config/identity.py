"""What makes two configurations the same run: a hash of the fields that decide the result, and readable differences."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from outlast.config.schema import Settings


def digest(value: Any) -> str:
    """SHA-256 (hex) of any JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(settings: Settings, kinds: tuple[str, ...] = ("must", "declared")) -> dict[str, Any]:
    """The fields, nested, whose identity kind is one of `kinds` ('must', 'declared', 'free')."""
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


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """One line per key whose value differs: 'train.epochs: 30 -> 40'."""
    lines: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key, "(absent)"), after.get(key, "(absent)")
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines
