"""run.json: what a run is, and what happened to it, session by session.

It is written at the start, at every change and at the end of a session, always as a whole. A run is known again by its
task, the fields of its configuration that decide the result, and the fingerprint of its data; anything else of them is
refused before a file is touched. What was changed on purpose stands in its list `changes`, written before config.yaml
is: a kill between the two leaves a change that did not take effect, which the next session takes out again.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from outlast.base.clock import Durations
from outlast.base.files import read_json, write_json, write_text
from outlast.config.identity import Changes, changes, digest, grows, identity, lines
from outlast.config.load import dotted, put, read_config, to_yaml
from outlast.config.schema import TaskConfig
from outlast.errors import RunError

NAME = "run.json"
EXTENSION = (
    "from the step of the extension on the learning rate is the one that a training planned with the new length has at "
    "that step, so a cosine that had come down goes up again; what was trained before is not changed"
)


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run."""
    return (folder / NAME).is_file()


def load(folder: Path) -> dict[str, Any]:
    """The record of the run in `folder`. Raises RunError if there is none."""
    if not is_run(folder):
        reason = "there is no such folder" if not folder.exists() else f"it has no {NAME}"
        raise RunError(f"{folder} is not a run of Outlast: {reason}", hint="give the folder that `outlast train` wrote")
    record = read_json(folder / NAME)
    if not isinstance(record, dict) or "task" not in record:
        raise RunError(f"{folder / NAME} is not the record of a run", hint="restore it from a copy, or start a new run")
    return record


def run_id(folder: Path) -> str | None:
    """What a run is known by wherever its folder lies; None if there is no run in `folder`."""
    return str(load(folder).get("run_id")) if is_run(folder) else None


def check_same(folder: Path, task: str, config: TaskConfig, *, extend: bool, extend_command: str) -> Changes:
    """Refuse to go on with the run in `folder` if it is another one; returns what was changed on purpose.

    extend: the user said `--extend`. extend_command: what to type if that is all that is missing.
    """
    record = load(folder)
    if record["task"] != task:
        raise RunError(
            f"{folder} is a run of the task {record['task']!r}, not of {task!r}", hint="give another folder with --out"
        )
    begun = read_config(type(config), folder / "config.yaml")
    changed = _changes(begun, config, "must")
    longer = _changes(begun, config, "extendable")
    shrunk = {key: values for key, values in longer.items() if not grows(*values)}
    if changed or (longer and not extend):
        hint = "give the same settings to go on with it, or another folder with --out for a new run"
        if not changed and not shrunk:
            hint += f"; to make this training longer, say so with --extend: {extend_command}"
        raise RunError(
            f"{folder} was begun with another configuration", details=lines({**changed, **longer}), hint=hint
        )
    if shrunk:
        raise RunError(
            f"--extend can only make the training in {folder} longer, not shorter",
            details=lines(shrunk),
            hint="give values as large as the run's own or larger, or another folder with --out for a new run",
        )
    return {**longer, **_changes(begun, config, "declared")}


def earlier(folder: Path, config: TaskConfig, changed: Changes) -> list[TaskConfig]:
    """The configurations that this run had before `config`, the newest first; `changed` leads to `config`."""
    history = [change["changes"] for change in load(folder).get("changes", [])]
    found: list[TaskConfig] = []
    for change in reversed([*history, *([changed] if changed else [])]):
        found.append(_before(found[-1] if found else config, change))
    return found


def check_same_data(folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Refuse to go on if the data of a learner is not what the run was begun with."""
    known = load(folder).get("data", {})
    for name, fingerprint in fingerprints.items():
        if name in known and known[name]["fingerprint"] != fingerprint:
            raise RunError(
                f"the data in {folder} has changed since the run was begun ({name}: another fingerprint)",
                hint="give the data it was begun with, or another folder with --out for a new run",
            )


class RunRecord:
    """The record of a run while a session of it goes on; every method leaves the file up to date.

    durations: how long each kind of work took so far, in this and former sessions. Methods may be called from several
    threads.
    """

    def __init__(self, folder: Path, values: dict[str, Any], *, writes: bool, began: float) -> None:
        self.folder, self.values, self.writes, self.began = folder, values, writes, began
        # What took long in the sessions before is set aside from the first step of this one.
        self.durations = Durations(longest=dict(values.get("longest_seconds", {})))
        self._lock = threading.RLock()
        self._stages: list[str] = []  # under way, their seconds counted up to the moment `_counted`
        self._counted = began

    @classmethod
    def open(
        cls,
        folder: Path,
        config: TaskConfig,
        facts: Mapping[str, Any],
        *,
        writes: bool,
        began: float,
        changed: Changes | None = None,
        at: Mapping[str, int] | None = None,
    ) -> RunRecord:
        """Create the record or go on with the one there; `facts` are written over what was known.

        began: when this session did, on the monotonic clock (seconds). changed: what `check_same` found. at: how many
        steps each training had done by then.
        """
        values: dict[str, Any]
        values = load(folder) if is_run(folder) else {"format": 1, "created": now(), "sessions": [], "warnings": []}
        values.setdefault("run_id", secrets.token_hex(8))
        values = {**values, **facts, "config_hash": digest(identity(config))}
        values |= {"changes": _history(list(values.get("changes", ())), config, changed or {}, at or {})}
        record = cls(folder, values, writes=writes, began=began)
        begun = is_run(folder) and (folder / "config.yaml").is_file()
        if writes and not begun:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "config.yaml", to_yaml(config))
        record.save()
        if writes and begun and changed:
            write_text(folder / "config.yaml", to_yaml(config))
        return record

    def begin_session(
        self,
        device: str,
        bounds: Mapping[str, str],
        quota_rate: float = 1.0,
        limits: Mapping[str, Any] | None = None,
        side_by_side: int = 1,
    ) -> None:
        """A session begins; one that was killed before has no end, and stays without.

        bounds: what bit-for-bit equality hangs on (`env.bounds`). quota_rate: what an hour of it costs of the
        accelerator's quota; on a CPU it costs nothing. limits: which of them were in force (`plan.limits`).
        side_by_side: stages at a time, each on a device of its own.
        """
        self.values["sessions"].append(
            {"started": now(), "ended": None, "why_stopped": None, "device": device, "from_step": None, "to_step": None,
             "resumed_from": None, "bounds": dict(bounds), "stages": {}, "quota_rate": quota_rate, "quota_hours": 0.0,
             "limits": dict(limits or {}), "side_by_side": side_by_side}
        )  # fmt: skip
        self.values |= {"status": "running", "reason": None}
        self.save()

    def last_bounds(self) -> Mapping[str, str]:
        """What bit-for-bit equality hung on in the session before; empty if there was none."""
        return dict(self.values["sessions"][-1].get("bounds", {})) if self.values["sessions"] else {}

    def note(self, stage: str, facts: Mapping[str, Any]) -> None:
        """What a training stage has done in this session so far; told at every save."""
        with self._lock:
            self._note(stage, facts)
            self.save()

    def _note(self, stage: str, facts: Mapping[str, Any]) -> None:
        session = self.values["sessions"][-1]
        session |= {name: facts[name] for name in ("from_step", "to_step", "resumed_from")}
        session["stage"] = stage
        self._count()
        steps = {"from_step": facts["from_step"], "to_step": facts["to_step"]}
        session["trained"] = {**session.get("trained", {}), stage: steps}
        rung = facts["rung"]
        self.values.setdefault("rung", {})[stage] = {
            "name": rung["rung"], **{name: value for name, value in rung.items() if name not in ("rung", "asked")}
        }  # fmt: skip
        self.values.setdefault("inexact", {})[stage] = facts["inexact"]
        self.values.setdefault("parameters", {})[stage] = facts["parameters"]
        self.values.setdefault("stall_seconds", {})[stage] = facts["stall_seconds"]
        if "teacher" in facts:
            self.values.setdefault("teacher", {})[stage] = facts["teacher"]

    def take_over(self, stage: str, run: Path) -> None:
        """A stage was taken over as the run in that folder has done it: what that one knows of it holds here too."""
        other = load(run)
        with self._lock:
            for name in ("rung", "inexact", "parameters", "stall_seconds"):
                if stage in other.get(name, {}):
                    self.values.setdefault(name, {})[stage] = other[name][stage]
            self.values.setdefault("taken_from", {})[stage] = os.path.relpath(run, self.folder)
            self.save()

    def mirrored(self, state: Mapping[str, Any]) -> None:
        """How the run's mirror stands."""
        with self._lock:
            self.values["mirror"] = dict(state)
            self.save()

    def enter(self, stage: str) -> None:
        """A stage begins: its seconds in this session are counted until it is left."""
        with self._lock:
            self._count()
            self._stages.append(stage)

    def leave(self, stage: str) -> None:
        """A stage is left, done or not."""
        with self._lock:
            self._count()
            self._stages.remove(stage)

    def _count(self) -> None:
        """Count the time that has passed: the session's, its stage's, and what it costs of a quota."""
        session, moment = self.values["sessions"][-1], time.monotonic()
        for stage in self._stages:
            before = session["stages"].get(stage, 0.0)
            session["stages"][stage] = round(before + moment - self._counted, 3)
        self._counted = moment
        session["seconds"] = round(moment - self.began, 1)
        rate = 0.0 if session["device"] == "cpu" else session["quota_rate"]
        session["quota_hours"] = round(session["seconds"] / 3600 * rate, 5)

    def warn(self, sentences: Sequence[str]) -> None:
        """Keep warnings that are not there yet."""
        self.values["warnings"] += [sentence for sentence in sentences if sentence not in self.values["warnings"]]
        self.save()

    def end_session(self, status: str, reason: str | None, next_command: str | None) -> None:
        """The session ends: finished, stopped or failed, why, and what to type next."""
        session = self.values["sessions"][-1]
        self._count()
        session |= {"ended": now(), "why_stopped": reason or status}
        spent = _spent(self.values)
        self.values |= {"status": status, "reason": reason, "next_command": next_command, "seconds": {"total": spent}}
        self.save()

    def save(self) -> None:
        """Write run.json (the main process does)."""
        if self.writes:
            with self._lock:
                self.values["longest_seconds"] = dict(self.durations.longest)
                write_json(self.folder / NAME, self.values)


def joined(here: Mapping[str, Any], there: Mapping[str, Any], taken: Sequence[str]) -> dict[str, Any]:
    """The record of a run that takes over the stages `taken` from another folder of the same run, with its record.

    What that one knows of these stages holds here too; its sessions are counted among ours.
    """
    values = dict(here)
    for name in ("rung", "inexact", "parameters", "stall_seconds", "teacher"):
        own = {stage: known for stage, known in there.get(name, {}).items() if stage in taken}
        if own:
            values[name] = {**values.get(name, {}), **own}
    new = [session for session in there["sessions"] if session not in here["sessions"]]
    values["sessions"] = sorted([*here["sessions"], *new], key=lambda session: str(session["started"]))
    values["warnings"] = list(dict.fromkeys([*here["warnings"], *there["warnings"]]))
    values["longest_seconds"] = {**there.get("longest_seconds", {}), **here.get("longest_seconds", {})}
    values["seconds"] = {"total": _spent(values)}
    return values


def seconds_spent(folder: Path) -> float:
    """Seconds that all sessions of the run in `folder` took so far; 0 if there is no run."""
    return _spent(load(folder)) if is_run(folder) else 0.0


def _spent(values: Mapping[str, Any]) -> float:
    return sum(item.get("seconds") or 0.0 for item in values["sessions"])


def _changes(before: TaskConfig, after: TaskConfig, kind: str) -> Changes:
    return changes(identity(before, (kind,)), identity(after, (kind,)))


def _before(config: TaskConfig, changed: Changes) -> TaskConfig:
    values = config.model_dump(mode="json")
    for key, (old, _) in changed.items():
        put(values, key, old)
    return type(config).model_validate(values)


def _history(
    history: list[dict[str, Any]], config: TaskConfig, changed: Changes, at: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The list of changes with this one; a last one that a kill kept from taking effect is taken out."""
    begun = _before(config, changed)
    values = dict(dotted(begun.model_dump(mode="json")))
    if history and any(values[key] != new for key, (_, new) in history[-1]["changes"].items()):
        history.pop()
    if changed:
        rule = {"rule": EXTENSION} if _changes(begun, config, "extendable") else {}
        history.append({"when": now(), "changes": changed, "at": dict(at), **rule})
    return history


def now() -> str:
    """This moment as ISO 8601 with seconds, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
