"""Finding a task's data: what the user named, $OUTLAST_DATA, the Kaggle mounts, ./data, in this order.

Promises: an explicit path is obeyed or refused, never replaced by another; two candidates in one place are listed, not
chosen from; when there is none, the error says where it looked. Link loops never hang.
Does not do: read the data, download it, or fall back to anything synthetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from outlast.base.scratch import KAGGLE
from outlast.errors import DataError, DataNotFoundError, UsageError

LooksRight = Callable[[Path], bool]

KAGGLE_INPUT = KAGGLE / "input"
_NESTING = 2  # archives often unpack into one folder, sometimes into one more


def find_root(
    task_name: str,
    given: Path | None,
    looks_right: LooksRight,
    *,
    accepts: LooksRight | None = None,
    environ: Mapping[str, str] = os.environ,
    kaggle_input: Path = KAGGLE_INPUT,
    here: Path = Path("data"),
) -> Path:
    """The folder that holds the data of a task.

    given: what the user named (--data), or None. looks_right: whether a folder has the task's layout; it decides the
    search. accepts: what a folder that the user named must pass; none: looks_right (a task whose own checks say more
    precisely what is wrong passes a lenient one).
    Raises DataError: a named folder that is missing or wrong, several candidates in one place; DataNotFoundError where
    nothing was named and there is none anywhere.
    """
    accepts = accepts or looks_right
    if given is not None:
        return _named(Path(given), "--data", task_name, accepts, looks_right)
    if environ.get("OUTLAST_DATA"):
        root = Path(environ["OUTLAST_DATA"])
        own = root / task_name  # one folder may hold the data of several tasks
        return own if looks_right(own) else _named(root, "$OUTLAST_DATA", task_name, accepts, looks_right)

    mounted = mounts(kaggle_input)
    for candidates in (
        [c for mount in mounted for c in _below(mount, looks_right)],
        _local(here, task_name, looks_right),
    ):
        unique = {os.path.realpath(candidate): candidate for candidate in candidates}
        if len(unique) > 1:
            raise DataError(
                f"{len(unique)} folders could be the data of {task_name}",
                hint="choose one with --data DIR",
                details=[str(candidate) for candidate in unique.values()],
            )
        if unique:
            return next(iter(unique.values()))
    raise DataNotFoundError(
        f"no data found for {task_name}",
        hint="name the folder with --data DIR (`outlast data list` shows public ones); for a synthetic set, on purpose,"
        " use --preset smoke",
        details=[
            "$OUTLAST_DATA is not set",
            f"{kaggle_input}: "
            + (f"{len(mounted)} data sets, none with this layout" if mounted else "no data sets there"),
            f"{here.absolute()}: " + ("nothing with this layout" if here.is_dir() else "no such folder"),
        ],
    )


def mounts(kaggle_input: Path) -> list[Path]:
    """The mounted data sets: <slug>, datasets/<owner>/<slug> and competitions/<slug>."""
    found: list[Path] = []
    for folder in _folders(kaggle_input):
        if folder.name == "datasets":
            found += [slug for owner in _folders(folder) for slug in _folders(owner)]
        elif folder.name == "competitions":
            found += _folders(folder)
        else:
            found.append(folder)
    return found


def check_names(task_name: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse data that was given under a name (--data NAME=DIR) that the task doesn't know. Raises UsageError."""
    unknown = [name for name in given if name not in known]
    if unknown:
        plain = "give it as --data DIR" if list(known) == ["data"] else f"its names are: {', '.join(known)}"
        raise UsageError(f"{task_name} has no data called {', '.join(map(repr, unknown))}", hint=plain)


def _named(root: Path, how: str, task_name: str, accepts: LooksRight, looks_right: LooksRight) -> Path:
    if not os.path.lexists(root):
        raise DataError(f"{how} names {root}, which doesn't exist", hint="check the path; nothing else was searched")
    if not root.is_dir():
        kind = "a broken or circular link" if root.is_symlink() and not root.exists() else "not a folder"
        raise DataError(f"{how} names {root}, which is {kind}", hint="name the folder that holds the data")
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"{how} names {root}, which may not be read", hint=f"run: chmod u+rx '{root}'")
    if accepts(root):
        return root
    nested = _below(root, looks_right)
    found = f"did you mean --data '{nested[0]}'?" if nested else f"`outlast tasks` says what {task_name} expects"
    raise DataError(f"{how} names {root}, which doesn't look like data for {task_name}", hint=found)


def _local(here: Path, task_name: str, looks_right: LooksRight) -> list[Path]:
    """The task's own folder goes before ./data itself, and that before what lies inside."""
    for folder in (here / task_name, here):
        if folder.is_dir() and looks_right(folder):
            return [folder]
    return _below(here / task_name, looks_right) or _below(here, looks_right)


def _below(root: Path, looks_right: LooksRight) -> list[Path]:
    """The folders at or below `root` that look right, at the first depth where there are any."""
    level: Sequence[Path] = [root] if root.is_dir() else []
    seen: set[str] = set()
    for _ in range(_NESTING + 1):
        fresh = [folder for folder in level if os.path.realpath(folder) not in seen]
        seen.update(os.path.realpath(folder) for folder in fresh)
        right = [folder for folder in fresh if looks_right(folder)]
        if right:
            return right
        level = [inner for folder in fresh for inner in _folders(folder)]
    return []


def _folders(folder: Path) -> list[Path]:
    """Sub-folders in the order of names; a folder that is missing or may not be listed has none."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []
    # is_dir is False, and no exception, for a circular link.
    return [path for path in inside if not path.name.startswith(".") and path.name != "__MACOSX" and path.is_dir()]
