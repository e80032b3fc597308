"""A process that does stages of a run for another one, which keeps the run's record: `python -m outlast.plan.worker`.

On standard input come JSON lines: first what every stage has in common, then one line per stage. On standard output go
JSON lines of what happens: what belongs into the record, warnings, how each stage ended. The stages' own folders are
written here, everything else of the run by the process that started this one; when that is gone, so is this one.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlast.base.clock import Deadline, Durations
from outlast.base.files import plain
from outlast.base.log import keep_stdout_clean
from outlast.config.load import resolve
from outlast.env import host, signals
from outlast.errors import OutlastError
from outlast.loop.accel import set_up
from outlast.loop.memory import release
from outlast.plan import launch, preflight, record, runner, sources

GONE = "the process that keeps the run's record is gone"


def main() -> None:
    """Do one stage after another until standard input ends."""
    launch.end_with_launcher()
    keep_stdout_clean()
    with signals.listen(announce=False) as request:
        around: runner.Surroundings | None = None
        for line in sys.stdin:
            told = json.loads(line)
            stage = told.get("stage")
            try:
                if around is None:
                    around = _surroundings(told, request)
                    continue
                around.durations.longest.update(told["longest"])
                around.progressed = False
                reason = runner.run(around, stage)
                release()
            except OutlastError as error:
                said: dict[str, Any] = {"message": error.message, "hint": error.hint}
                _tell(stage, "failed", {**said, "details": list(error.details)})
                sys.exit(error.exit_code)
            except Exception as error:  # the edge of a stage: the others are to be done all the same
                said = {"message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
                _tell(stage, "failed", said)
                sys.exit(1)
            _tell(stage, "longest", around.durations.longest)
            _tell(stage, "ended", {"reason": reason, "progressed": around.progressed})


def _surroundings(told: Mapping[str, Any], request: signals.StopRequest) -> runner.Surroundings:
    """What the stages run in: as in the session that started this process, found anew."""
    task, run, machine = preflight.find_task(told["task"]), Path(told["run"]), host.detect()
    config, _ = resolve(
        task.config, task.presets, told["preset"], file=Path(told["config"]) if told["config"] else None,
        overrides=told["overrides"],
    )  # fmt: skip
    compute = set_up(told["threads"], machine.cores)
    plan = list(task.stages(config))
    roots = sources.roots(task, told["data"], told["preset"], machine, compute, synthetic=told["asked_synthetic"])
    parent = os.getppid()

    def stop() -> str | None:
        return request.reason or (GONE if os.getppid() != parent else None)

    return runner.Surroundings(
        run=run, plan=plan, examples=sources.examples_of(plan, roots, run), compute=compute, scratch=machine.scratch,
        cores=told["cores"], record=told["record"], synthetic=told["synthetic"],
        deadline=Deadline() if told["ends_at"] is None else Deadline(told["ends_at"], told["why"]),
        durations=Durations(told["guess_seconds"], {}), stop=stop,
        start_from={name: Path(path) for name, path in told["start_from"].items()},
        earlier=[list(task.stages(each)) for each in record.earlier(run, config, {})],
        noted=lambda name, facts: _tell(name, "noted", facts), finished=lambda: _tell(None, "finished", None),
        warned=lambda sentence: _tell(None, "warned", sentence), afterwards=tuple(told["afterwards"]),
    )  # fmt: skip


def _tell(stage: str | None, event: str, value: Any) -> None:
    print(json.dumps({"stage": stage, "event": event, "value": plain(value)}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
