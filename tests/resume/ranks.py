"""One of several processes that train the toy plan together, again and again: importing torch for each session would
take longer than the sessions. Reads a session per line (JSON) from standard input and answers with its result."""

import collections
import contextlib
import json
import os
import signal
import sys

import torch
from accelerate.state import AcceleratorState

import outlast
from outlast.base import accident
from outlast.base.log import keep_stdout_clean
from outlast.errors import OutlastError
from outlast.loop import setup
from outlast.loop import train as training
from outlast.save import rng


def start_without_generators(*arguments):
    generators = rng.capture()
    state = setup.start(*arguments)
    rng.restore(generators)
    return state


# What a session can be made to do without, to show that it is needed.
PARTS = {
    "warm-up": (setup, "warm_up", lambda *_: None),
    "generators": (training, "start", start_without_generators),
}


class Crash(BaseException):
    """An accident that nothing in the product catches."""


def train(job):
    """One session as the rank that `job` says. Returns the result, None after a crash, and the rows of each step."""
    steps, rows = [], []
    seen = collections.Counter()

    def reached(place):
        seen[place] += 1
        if place == "stepped":  # a step of the training; others are trials of what fits
            steps.append(list(rows))
        if job["crash"] == [place, seen[place]]:
            raise Crash
        if job["stop"] == [place, seen[place]]:
            os.kill(os.getpid(), signal.SIGTERM)

    def watched(stepper, micro_batches, samples, rate):
        rows[:] = [row for batch in micro_batches for row in batch["row"].tolist()]
        return run(stepper, micro_batches, samples, rate)

    run = setup.Stepper.run
    os.environ.update(job["environment"])
    accident.happen = reached
    setup.Stepper.run = watched
    kept = {name: getattr(PARTS[name][0], PARTS[name][1]) for name in job["without"]}
    for name in job["without"]:
        setattr(*PARTS[name])
    result, refused = None, None
    try:
        with contextlib.suppress(Crash):
            result = outlast.train(job["task"], preset="smoke", out=job["run"], overrides=job["overrides"])
    except OutlastError as error:
        refused = error.message
    finally:
        setup.Stepper.run = run
        for name, part in kept.items():
            setattr(*PARTS[name][:2], part)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
    return {"result": result, "steps": steps, "error": refused}


if __name__ == "__main__":
    from outlast.plan import folder, session

    session.write_report = lambda run: run / "report.html"
    folder._SEEN_SECONDS = 0.5
    keep_stdout_clean()
    for line in sys.stdin:
        print(json.dumps(train(json.loads(line))), flush=True)
