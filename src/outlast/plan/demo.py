"""`outlast demo`: the main job in a minute or two, by the very commands that a user types.

The task plants on its synthetic set: a session that is stopped by its limit in the middle of an epoch, a second process
that resumes, one evaluation on the test split, the report. If this machine is so fast that nothing was stopped, the
demo shortens the session and begins again; what it prints is what happened.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from outlast.base.clock import format_duration
from outlast.base.files import read_json
from outlast.base.log import say
from outlast.errors import RunError
from outlast.plan import record

# The first session's limit: what importing takes on this machine times a factor (importing, data, checks, some
# training), plus what is set aside for saving and reporting. The second and third are for faster machines.
_LIMITS = ((2.5, 11.0), (2.0, 8.0), (1.5, 7.0))


def run_demo(out: Path) -> dict[str, Any]:
    """Run the demo in the folder `out` (a former demo there is replaced). Returns its status, metrics and times."""
    began = time.monotonic()
    _clear(out)
    command = ["train", "plants", "--synthetic", "--preset", "smoke", "--out", str(out)]
    first: dict[str, Any] = {}
    for factor, seconds in _LIMITS:
        limit = round(factor * _import_seconds() + seconds)
        say(f"1. a session of {limit} s, too short for the training:")
        first = _outlast([*command, "--session-limit", f"{limit}s"])
        if first["status"] == "stopped":
            break
        say("this machine finished before the session ended; once more with a shorter one")
        _clear(out)
    where = _where(out)
    if first["status"] == "stopped":
        say(f"\n2. the session is over; training stands at {where}. The next session, a new process, goes on:")
    result = _outlast(command)
    scores = read_json(out / "scores" / "metrics.json")
    metrics = {name: value for name, value in scores["metrics"].items() if isinstance(value, float)}
    sessions = [part for part in record.load(out)["sessions"] if part["from_step"] is not None]
    say(
        f"\ndone in {format_duration(time.monotonic() - began)}, in {len(sessions)} sessions. "
        f"SYNTHETIC leaves, test split, {scores['images']} images scored once: "
        + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in metrics.items())
    )
    say(f"report:   {result['report']}")
    say(f"predict:  outlast predict {out} IMAGES...")
    say("your own: outlast train plants --data FOLDER_WITH_ONE_FOLDER_PER_CLASS --session-limit 9h")
    return {
        **result,
        "stopped_at": where if first["status"] == "stopped" else None,
        "metrics": metrics,
        "synthetic": True,
    }


def _where(out: Path) -> str:
    """Where training stands, as its newest checkpoint says."""
    from outlast.save.format import read_state
    from outlast.save.store import newest

    saved = newest(out / "train" / "checkpoints", [])
    if saved is None:
        return "step 0"
    state = read_state(saved.folder)
    place = f"in the middle of epoch {state.epoch + 1}" if state.cursor else f"the end of epoch {state.epoch}"
    return f"step {state.step}, {place}"


def _outlast(words: list[str]) -> dict[str, Any]:
    """Run one of our own commands in a new process and return its JSON. Raises RunError if it fails."""
    say(f"   $ {shlex.join(['outlast', *words])}")
    done = subprocess.run([sys.executable, "-m", "outlast", *words, "--json"], stdout=subprocess.PIPE, check=False)
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        result = {"error": f"it ended with exit code {done.returncode}"}
    if done.returncode != 0:
        raise RunError(f"the demo's command failed: {result.get('error')}", hint="its messages stand above")
    return result


def _import_seconds() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import outlast.plan.session, outlast.tasks.plants"], check=True)
    return time.monotonic() - began


def _clear(out: Path) -> None:
    """Remove a former demo; anything else in its place is refused."""
    if not out.exists():
        return
    if not record.is_run(out) or not record.load(out).get("synthetic"):
        raise RunError(f"{out} exists and is not a demo", hint="give another folder with --out")
    shutil.rmtree(out)
