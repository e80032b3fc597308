"""One of several processes that train the toy plan together, again and again: importing torch for each session would
take longer than the sessions. Reads a session per line (JSON) from standard input and answers with its result."""

import contextlib
import json
import os
import sys

import torch
from accelerate.state import AcceleratorState

import outlast
from outlast.loop import setup
from outlast.save import rng
from toys import plan as toy

# What a session can be made to do without, to show that it is needed.
PARTS = {
    "warm-up": (setup, "warm_up", lambda *_: None),
    "generators": (rng, "restore", lambda state: None),
}


class Crash(BaseException):
    """An accident that nothing in the product catches."""


def train(job):
    """One session as the rank that `job` says. Returns the result, None after a crash, and the rows of each step."""
    steps = []
    seen = {"count": 0}

    def accident(place):
        if job["crash"] is not None and place == job["crash"][0]:
            seen["count"] += 1
            if seen["count"] == job["crash"][1]:
                raise Crash

    def watched(stepper, micro_batches, samples, rate):
        steps.append([row for batch in micro_batches for row in batch["row"].tolist()])
        return run(stepper, micro_batches, samples, rate)

    run = setup.Stepper.run
    os.environ.update(job["environment"])
    toy.ACCIDENT[:] = [accident]
    setup.Stepper.run = watched
    kept = {name: getattr(PARTS[name][0], PARTS[name][1]) for name in job["without"]}
    for name in job["without"]:
        setattr(*PARTS[name])
    result = None
    try:
        with contextlib.suppress(Crash):
            result = outlast.train("toys.plan", preset="smoke", out=job["run"], overrides=job["overrides"])
    finally:
        setup.Stepper.run = run
        for name, part in kept.items():
            setattr(*PARTS[name][:2], part)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
    return {"result": result, "steps": steps}


if __name__ == "__main__":
    from outlast.plan import session

    session.write_report = lambda run: run / "report.html"
    for line in sys.stdin:
        print(json.dumps(train(json.loads(line))), flush=True)
