"""`outlast train TASK --on kaggle`: sessions on Kaggle one after another, until the plan is finished.

Each session is a private kernel without the internet: the bundle of the task, the data, and the output of the session
before. When it has ended, its output is fetched, verified and put into the run folder here, and the next one goes on
with it. What is known stands on this computer's disk (kaggle_state) before and after every step, so that the same
command goes on after this computer was off. One session runs at a time. None is begun that the week's quota can't end.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outlast.base.clock import format_duration
from outlast.base.files import TEMPORARY, locked
from outlast.base.log import say, warn
from outlast.config.load import resolve, to_yaml
from outlast.config.schema import TaskConfig
from outlast.env import kaggle_client, kaggle_process, signals
from outlast.errors import OutlastError, RunError, UsageError
from outlast.plan import arrivals, bundling, kaggle_kernel, ledger, planning, preflight, record
from outlast.plan.kaggle_diagnosis import Diagnosis, Ended, diagnose
from outlast.plan.kaggle_state import COMPLETE, FAILED, FETCHED, PUSHING, RUNNING, KaggleSession, KaggleState
from outlast.plan.request import seconds
from outlast.save import snapshot
from outlast.task import Task, topological

LIMIT = "9h"  # Kaggle has said 12 and 9 hours at different times
ACCELERATOR = "NvidiaTeslaT4"  # two of them
_WITHOUT_GPU = ("smoke", "cpu")  # presets
_LOOKS = (15.0, 120.0)  # seconds between two looks at a session, growing
_LEAST_SECONDS = 600.0  # a shorter session would hardly get ready
_MOST_FAILURES = 3  # in a row, of the kinds that may pass


@dataclass(frozen=True)
class Wish:
    """What is to be trained on Kaggle, as `outlast.train` takes it; data: see kaggle_kernel.inputs."""

    task: str
    owner: str
    data: Sequence[str] = ()
    out: Path | None = None
    preset: str | None = None
    config: Path | None = None
    overrides: Sequence[str] = ()
    session_limit: str | float | None = None
    quota_rate: float = 1.0
    accelerator: str | None = None
    processes: int = 1  # of one training in a session; 1: one per GPU
    side_by_side: int = 1  # stages at a time in a session, each on a GPU of its own

    @property
    def limit_seconds(self) -> int:
        return round(seconds(self.session_limit if self.session_limit is not None else LIMIT))

    @property
    def command(self) -> str:
        """What to type to go on."""
        words = ["outlast", "train", self.task, "--on", "kaggle", "--owner", self.owner]
        words += [word for item in self.data for word in ("--data", item)]
        for name in ("out", "preset", "config", "session_limit", "accelerator"):
            value = getattr(self, name)
            words += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
        words += ["--quota-rate", f"{self.quota_rate:g}"] if self.quota_rate != 1 else []
        words += ["--processes", str(self.processes)] if self.processes > 1 else []
        words += ["--side-by-side", str(self.side_by_side)] if self.side_by_side > 1 else []
        return shlex.join([*words, *self.overrides])


@dataclass
class _Driver:
    """A training on Kaggle that goes on."""

    wish: Wish
    task: Task
    run: Path
    kernels: tuple[str, str]
    attached: kaggle_kernel.Inputs
    accelerator: str
    state: KaggleState
    config: TaskConfig
    stop: Callable[[], str | None]

    @property
    def folder(self) -> Path:
        return self.state.path.parent

    @property
    def uses_gpu(self) -> bool:
        return self.accelerator != kaggle_kernel.NO_ACCELERATOR


def train_on_kaggle(wish: Wish) -> dict[str, Any]:
    """Go on with a training on Kaggle until it is finished. Returns what `outlast.train` returns, and "sessions".

    "status" is "stopped" if the quota is used up, or a signal ended the watching: the session then goes on there.
    Raises UsageError; RunError for a session that failed, with an excerpt of its log, a diagnosis and what to do.
    """
    task = preflight.find_task(wish.task)
    preset = wish.preset or bundling.preset_for_kaggle(task)
    config, warnings = resolve(task.config, task.presets, preset, file=wish.config, overrides=wish.overrides)
    for sentence in warnings:
        warn(sentence)
    if wish.limit_seconds < _LEAST_SECONDS:
        raise UsageError(f"a session of {wish.limit_seconds} seconds is too short", hint="give --session-limit 9h")
    run = wish.out or Path("runs") / f"{task.name.rpartition('.')[2]}-{preset}"
    accelerator = wish.accelerator or (kaggle_kernel.NO_ACCELERATOR if preset in _WITHOUT_GPU else ACCELERATOR)
    _check_gpus(wish, accelerator)
    asked = {
        "task": task.name,
        "owner": wish.owner,
        "data": list(wish.data),
        "configuration": to_yaml(config),
        "accelerator": accelerator,
    }
    names = kaggle_kernel.slugs(task.name.rpartition(".")[2], preset, [asked, str(run.resolve())])
    first, second = (f"{wish.owner}/{slug}" for slug in names)
    folder = run.with_name(f"{run.name}.kaggle")
    attached = kaggle_kernel.inputs(wish.data, task.data)
    with (
        locked(folder.with_name(f".{folder.name}.lock"), f"another process watches the sessions of {run}"),
        signals.listen() as request,
    ):
        state = KaggleState.open(folder / "state.json", asked)
        if state.output is None and run.exists():
            raise RunError(
                f"{run} is there already, and was not made on Kaggle",
                hint="give another --out, or move it away",
            )
        if not (folder / "bundle.py").is_file():
            made = bundling.export(
                task.name, folder / "bundle.py", preset, wish.overrides, config_file=wish.config, data=attached.roots
            )
            say(f"{made['files'][0]}: {made['sources']} sources, {made['bytes'] / 1e3:.0f} kB; nothing else goes along")
            state.save()
        return _go_on(
            _Driver(
                replace(wish, preset=preset, out=run), task, run, (first, second), attached, accelerator, state,
                config, lambda: request.reason,
            )
        )  # fmt: skip


def _check_gpus(wish: Wish, accelerator: str) -> None:
    """Refuse what a session would refuse only after it was pushed. Raises UsageError."""
    if wish.side_by_side > 1 and wish.processes > 1:
        raise UsageError("--side-by-side does not go with --processes", hint="leave one of them out")
    for option, count in (("--processes", wish.processes), ("--side-by-side", wish.side_by_side)):
        if count < 1:
            raise UsageError(f"{option} {count} is too few", hint="give 1 or more")
        gpus = kaggle_kernel.GPUS.get(accelerator, count)
        if count > gpus:
            raise UsageError(f"{option} {count}: {accelerator} has {gpus} GPUs", hint=f"give {option} {gpus} at most")


def _go_on(driver: _Driver) -> dict[str, Any]:
    """Session after session."""
    while True:
        session = driver.state.last
        if session is not None and session.state not in (FETCHED, FAILED):
            if not _watch(driver, session):
                return _result(driver, "stopped", f"{driver.stop()}; the session goes on on Kaggle")
            continue
        if session is not None and session.state == FETCHED and record.load(driver.run)["status"] == "finished":
            return _result(driver, "finished", None)
        if driver.stop():
            return _result(driver, "stopped", driver.stop())
        limit, reason = _allowed_seconds(driver)
        if reason is not None:
            return _result(driver, "stopped", reason)
        _begin(driver, limit)


def _begin(driver: _Driver, limit_seconds: int) -> None:
    """Push the next session."""
    state, source = driver.state, driver.state.output
    kernel = next(name for name in driver.kernels if source is None or name != source.kernel)
    inside = round(limit_seconds - _margin(limit_seconds))
    kaggle_kernel.write(
        driver.folder / "kernel", (driver.folder / "bundle.py").read_text(encoding="utf-8"), kernel, driver.attached,
        source.kernel if source else None, driver.accelerator,
        {
            "session_limit": f"{inside}s", "side_by_side": driver.wish.side_by_side,
            "processes": driver.wish.processes if driver.wish.processes > 1 else None,
        },
    )  # fmt: skip
    session = KaggleSession(
        number=len(state.sessions) + 1,
        kernel=kernel,
        source=source.kernel if source else None,
        limit_seconds=limit_seconds,
        version_before=_version(kernel),
        quota_before_hours=_used_hours() if driver.uses_gpu else None,
    )
    state.sessions.append(session)
    state.save()
    _push(driver, session)


def _push(driver: _Driver, session: KaggleSession) -> None:
    pushed = kaggle_client.push(
        driver.folder / "kernel",
        seconds=session.limit_seconds,
        accelerator=driver.accelerator if driver.uses_gpu else None,
    )
    session.version, session.pushed, session.state = pushed.version, record.now(), RUNNING
    driver.state.save()
    limit = format_duration(session.limit_seconds)
    after = f", going on with {session.source}" if session.source else ""
    say(f"session {session.number}: {pushed.url}, version {pushed.version}, at most {limit}{after}")


def _watch(driver: _Driver, session: KaggleSession) -> bool:
    """Wait for the session's end and fetch what it made. False if a signal ended the watching."""
    if session.state == PUSHING:  # this computer was interrupted amid the push
        session.version = _version(session.kernel)
        if session.version == session.version_before:
            _push(driver, session)
        session.state = RUNNING
        driver.state.save()
    if session.state == RUNNING:
        status = _wait(driver, session)
        if status is None:
            return False
        session.ended = record.now()
        if session.quota_before_hours is not None:
            session.quota_hours = round(_used_hours() - session.quota_before_hours, 3)
        if status.state != "complete":
            _fail(driver, session, status)
            return True
        session.state = COMPLETE
        driver.state.save()
    _fetch(driver, session)
    return True


def _wait(driver: _Driver, session: KaggleSession) -> kaggle_client.KernelStatus | None:
    """How the session ended; None if a signal came first."""
    seen = ""
    for pause in _pauses():
        status = kaggle_client.status(session.kernel)
        if status.state != seen:
            say(f"session {session.number}: {status.state}")
            seen = status.state
        if status.ended:
            return status
        until = time.monotonic() + pause
        while time.monotonic() < until:
            if driver.stop():
                return None
            time.sleep(min(0.5, pause))
    raise AssertionError("pauses never end")


def _fail(driver: _Driver, session: KaggleSession, status: kaggle_client.KernelStatus) -> None:
    """Note a session that failed. Raises RunError where trying again would not help."""
    log = kaggle_client.logs(session.kernel)
    found = diagnose(Ended(status.state, status.message, log.text, log.seconds, session.limit_seconds))
    session.state, session.trouble = FAILED, found.kind
    driver.state.save()
    if found.again and len(driver.state.failures()) < _MOST_FAILURES:
        warn(f"session {session.number}: {found.sentence}; the next one goes on from the last output")
        return
    raise _error(session, found)


def _error(session: KaggleSession, found: Diagnosis) -> RunError:
    return RunError(
        f"session {session.number} ({session.kernel}) failed: {found.sentence}",
        details=found.excerpt,
        hint=f"{found.remedy}; then type the same again: what was fetched before is kept",
    )


def _fetch(driver: _Driver, session: KaggleSession) -> None:
    """Fetch the output and put its run into the run folder."""
    folder = driver.folder / f"session-{session.number}"
    fetched = kaggle_client.output(session.kernel, folder)
    if not fetched.verified:
        raise RunError(
            f"the output of {session.kernel} has no manifest to verify it with",
            hint="look at its log: did the session end as it should?",
        )
    own = folder / f"{driver.task.name.rpartition('.')[2]}-{driver.wish.preset}"
    known = record.load(own)
    before = snapshot.progress(driver.run) if driver.run.exists() else {}
    idle = known["status"] != "finished" and not snapshot.further(snapshot.progress(own), before)
    old = driver.run.with_name(f"{TEMPORARY}{driver.run.name}-{secrets.token_hex(4)}")
    if driver.run.exists():
        if record.run_id(driver.run) != known["run_id"]:
            raise RunError(f"{driver.run} holds another run", hint="move it away, then type the same again")
        if any(ledger.elsewhere(own / stage.name) for stage in driver.task.stages(driver.config)):
            arrivals.complete(own, driver.run)  # there was too little room there to carry what is here
        driver.run.rename(old)
    own.rename(driver.run)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    session.state = FETCHED
    driver.state.save()
    cost = f", {session.quota_hours:g} quota hours" if session.quota_hours is not None else ""
    say(f"session {session.number}: {known['status']}{cost}; its output is in {driver.run}, verified")
    if idle:
        raise RunError(
            f"session {session.number} brought the run no further ({known['reason']}): the next would not either",
            hint="give a longer --session-limit, and look at `outlast kaggle logs` of its kernel",
        )
    if known["status"] != "finished":
        _say_forecast(driver)


def _say_forecast(driver: _Driver) -> None:
    """What is left, from the times that the run has recorded, where they tell enough."""
    question = planning.Question(
        task=driver.task.name,
        run=driver.run,
        session_limit=driver.wish.limit_seconds,
        quota_rate=driver.wish.quota_rate,
        gpus=driver.wish.side_by_side,
    )
    try:
        say(f"the whole plan: {planning.plan(question)['answer']}")
    except OutlastError as error:
        say(f"what is left can't be forecast yet: {error.message}")


def _allowed_seconds(driver: _Driver) -> tuple[int, str | None]:
    """How long the next session may be, or why there can't be one now."""
    limit = float(driver.wish.limit_seconds)
    killed = sum(one.trouble == "time" for one in driver.state.failures())
    limit *= 0.8**killed  # what Kaggle allows is less than what was said
    if driver.uses_gpu:
        quota = kaggle_client.quota().get("gpu")
        if quota is not None:
            limit = min(limit, quota.remaining_hours * 3600 / driver.wish.quota_rate)
            if limit < _LEAST_SECONDS:
                when = f" until {quota.refresh_at}" if quota.refresh_at else ""
                return 0, (
                    f"only {format_duration(quota.remaining_hours * 3600)} of the GPU quota are left{when}: "
                    "a session could not end"
                )
    return int(limit), None


def _result(driver: _Driver, status: str, reason: str | None) -> dict[str, Any]:
    stages = topological(driver.task.stages(driver.config))
    results = {stage.name: ledger.result(driver.run / stage.name) for stage in stages}
    spent = [one.quota_hours for one in driver.state.sessions if one.quota_hours is not None]
    command = None if status == "finished" else driver.wish.command
    if status == "finished":
        say(f"finished after {len(driver.state.sessions)} sessions: {driver.run}")
    else:
        say(f"stopped: {reason}; go on with:\n  {command}")
    return {
        "status": status,
        "reason": reason,
        "run": str(driver.run),
        "next_command": command,
        "report": str(driver.run / "report.html"),
        "synthetic": bool(record.load(driver.run).get("synthetic")) if record.is_run(driver.run) else False,
        "stages": {name: value for name, value in results.items() if value is not None},
        "stages_left": [name for name, value in results.items() if value is None],
        "sessions": [
            {"number": one.number, "kernel": one.kernel, "state": one.state, "trouble": one.trouble}
            for one in driver.state.sessions
        ],
        "quota_hours": round(sum(spent), 3) if spent else 0.0,
    }


def _pauses() -> Iterator[float]:
    pause, longest = _LOOKS
    while True:
        yield pause
        pause = min(pause * 1.5, longest)


def _margin(limit_seconds: float) -> float:
    """What lies between the end of training and the session's: the report, the manifest, Kaggle's own clock."""
    return min(600.0, 0.05 * limit_seconds)


def _version(kernel: str) -> int:
    return int(kaggle_process.patiently("kernel_version", {"kernel": kernel}))


def _used_hours() -> float:
    quota = kaggle_client.quota().get("gpu")
    return quota.used_hours if quota is not None else 0.0
