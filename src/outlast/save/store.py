"""Checkpoints on disk: written whole, verified before they count, pruned only after a newer one counts.

    <stage>/checkpoints/step-000001200/{model.safetensors, training.pt, manifest.json}, LATEST
    <stage>/best/step-000001000/{model.safetensors, manifest.json}

The manifest is the truth, LATEST is a hint for people. Nothing here decides which checkpoint to use: `resume` does.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlast.base.files import (
    REPLACED,
    put_back,
    read_manifest,
    remove_folder,
    sweep,
    verify_folder,
    write_folder,
    write_text,
)
from outlast.base.log import warn
from outlast.errors import CheckpointError
from outlast.save.format import WEIGHTS, read_weights, write_state, write_weights
from outlast.state import RunState

_NAME = re.compile(r"step-(\d{9,})")
_known: dict[Path, tuple[object, dict[str, Any]]] = {}  # what was verified: its files as they were then, its manifest


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint: its folder, its step and its manifest."""

    folder: Path
    step: int
    manifest: dict[str, Any]


def save(stage: Path, state: RunState, record: Mapping[str, Any], keep: int) -> Saved:
    """Write the state, verify what is on the disk, move LATEST, and only then remove all but the newest `keep`.

    On a full disk all but the newest verified checkpoint are given up for the new one. Raises OSError or
    CheckpointError if the state could not be saved; the newest before it is still there then. What fails after that
    (LATEST, the removal of old ones) takes nothing from the new checkpoint and is a warning.
    """
    parent = stage / "checkpoints"

    def write() -> Saved:
        return _write(parent, state.step, lambda folder: write_state(folder, state), record)

    try:
        saved = write()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _make_room(parent):
            raise
        saved = write()
    try:
        write_text(parent / "LATEST", saved.folder.name + "\n")
    except OSError as error:
        warn(f"{parent / 'LATEST'} cannot be written ({error.strerror}); {saved.folder.name} is saved all the same")
    _prune(parent, keep, saved)
    return saved


def save_best(stage: Path, step: int, weights: dict[str, Any], record: Mapping[str, Any]) -> Saved:
    """Write the best weights so far, and verify them. Those before stay until a checkpoint knows of these."""
    return _write(stage / "best", step, lambda folder: write_weights(folder / WEIGHTS, weights), record)


def keep_best(stage: Path, step: int) -> None:
    """Remove all best weights but those of `step`: the best that the newest checkpoint knows of."""
    for other, folder in _steps(stage / "best"):
        if other != step:
            _remove(folder)


def newest(parent: Path, problems: list[str]) -> Saved | None:
    """The newest checkpoint under `parent` that verifies; what doesn't goes to `problems`.

    A checkpoint that a kill has left aside, while a newer one was taking its name, counts too.
    """
    aside = [found for outgoing in parent.glob(f"{REPLACED}*") for found in _steps(outgoing)]
    newest_first = sorted([*_steps(parent), *aside], key=lambda found: (found[0], found[1].parent == parent))[::-1]
    for step, folder in newest_first:
        try:
            return Saved(folder, step, _verified(folder))
        except CheckpointError as error:
            problems.append(error.message)
    return None


def best_weights(stage: Path) -> tuple[dict[str, Any], Saved]:
    """The best weights of a stage, verified. Raises CheckpointError."""
    problems: list[str] = []
    saved = newest(stage / "best", problems)
    if saved is None:
        raise CheckpointError(
            f"{stage} holds no best weights", details=problems, hint="train until the first evaluation has passed"
        )
    return read_weights(saved.folder / WEIGHTS), saved


def drop_checkpoints(stage: Path) -> None:
    """Remove a finished stage's checkpoints; its best weights stay."""
    remove_folder(stage / "checkpoints")


def clear_interrupted(stage: Path) -> None:
    """Remove what killed saves left behind; a folder that was being replaced when the kill came is put back."""
    for parent in (stage, stage / "checkpoints", stage / "best"):
        put_back(parent)
        sweep(parent)


def _write(parent: Path, step: int, fill: Callable[[Path], None], record: Mapping[str, Any]) -> Saved:
    folder = write_folder(parent / f"step-{step:09d}", fill, {"format": 1, "step": step, **record})
    return Saved(folder, step, read_manifest(folder))


def _verified(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that verifies; what this process verified before is read again only if it changed."""
    files = [path.lstat() for path in sorted(folder.rglob("*"))]
    now = [(file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns) for file in files]
    if folder not in _known or _known[folder][0] != now:
        _known[folder] = now, verify_folder(folder)
    return _known[folder][1]


def _make_room(parent: Path) -> bool:
    """Remove all checkpoints but the newest that verifies; whether there was anything to remove."""
    good = newest(parent, [])
    spare = [folder for _, folder in _steps(parent) if good is not None and folder != good.folder]
    for folder in spare:
        warn(f"the disk is full: {folder} is removed to make room; {good.folder.name if good else ''} is kept")
        _remove(folder)
    return bool(spare)


def _steps(parent: Path) -> list[tuple[int, Path]]:
    if not parent.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in parent.iterdir())
    return [(int(match[1]), path) for match, path in found if match]


def _prune(parent: Path, keep: int, saved: Saved) -> None:
    # One of a later step was passed over when the run went on from an earlier one: it takes no good one's place.
    older = sorted((step, folder) for step, folder in _steps(parent) if step < saved.step)
    for _, folder in older[: max(len(older) - (keep - 1), 0)]:
        _remove(folder)


def _remove(folder: Path) -> None:
    try:
        remove_folder(folder)
    except OSError as error:
        warn(f"{folder} is not needed any more, but cannot be removed ({error.strerror})")
