"""Credentials of this machine, so that they can be left out of all that is shown, written or raised.

They are the values of environment variables that are called like secrets, and what lies in the files of Kaggle's own
clients. Short values are no credentials: taking them out would garble sentences.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_NAMES = ("SECRET", "TOKEN", "PASSWORD", "KEY")
_SHORTEST = 8
_KAGGLE_FILES = ("kaggle.json", "access_token", "access_token.txt", "credentials.json")


def known_secrets() -> set[str]:
    """Every credential that this process could have read."""
    values = {value for name, value in os.environ.items() if any(part in name.upper() for part in _NAMES)}
    texts = [text for path in _files() if (text := _text(path))]
    values |= {part for text in texts for part in _strings(text)}
    return {value for value in values if len(value) >= _SHORTEST}


def without_secrets(text: str, more: Iterable[str] = ()) -> str:
    """The text with *** in the place of each credential, and of what stands in `more`."""
    for secret in sorted({*known_secrets(), *more}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _files() -> Iterator[Path]:
    home = Path(os.environ.get("HOME") or "/")
    for folder in {os.environ.get("KAGGLE_CONFIG_DIR") or str(home / ".kaggle"), str(home / ".config" / "kaggle")}:
        yield from (Path(folder) / name for name in _KAGGLE_FILES)
    for name in ("KAGGLE_API_V1_TOKEN", "KAGGLE_API_TOKEN"):  # each may hold the name of a file
        if os.environ.get(name):
            yield Path(os.environ[name])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _strings(text: str) -> set[str]:
    """The strings in a JSON object, save the user's name; or the text itself, if it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {text}
    if not isinstance(found, dict):
        return {text}
    return {value for name, value in found.items() if isinstance(value, str) and name != "username"}
