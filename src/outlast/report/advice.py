"""What to do next with a run: exact commands, and why. No decision is made here; the run's own `next_command` leads."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from outlast.report.records import Collected


@dataclass(frozen=True)
class Advice:
    """Why, and the command to type (None: there is nothing to type)."""

    why: str
    command: str | None = None


def advice(run: Collected) -> list[Advice]:
    """The next steps for this run, the most useful first."""
    folder = shlex.quote(str(run.run))
    task = shlex.quote(run.task)
    steps: list[Advice] = []
    if run.status == "failed":
        steps.append(
            Advice("Find what went wrong before it costs another session.", f"outlast check {task}{_data(run)}")
        )
    if run.next_command and run.status != "finished":
        why = {
            "stopped": "Go on where it stopped; nothing is done twice.",
            "failed": "When the cause is removed, go on from the last verified checkpoint.",
        }.get(run.status, "If its session was killed, go on from the last verified checkpoint.")
        steps.append(Advice(why, run.next_command))
    if run.status == "running":
        steps.append(Advice("See how far it is.", f"outlast status {folder}"))
    if run.status == "finished":
        if run.next_command:
            steps.append(Advice("Go on.", run.next_command))
        if run.synthetic:
            steps.append(
                Advice("This run used synthetic data. Train on your own.", f"outlast train {task} --data YOUR_FOLDER")
            )
        steps += [
            Advice("Classify images that it has never seen.", f"outlast predict {folder} IMAGES"),
            Advice("Score it on labelled images from elsewhere.", f"outlast eval {folder} --data FOLDER"),
            Advice("Take the weights to plain PyTorch.", f"outlast export {folder} --to model.safetensors"),
        ]
    steps.append(Advice("Print a summary to paste into an issue or a chat.", f"outlast report {folder} --text"))
    return steps


def _data(run: Collected) -> str:
    """The --data option that names the run's data again, where there is one folder to name."""
    paths = {str(part["path"]) for part in run.data.values() if part.get("path") and not part.get("synthetic")}
    return f" --data {shlex.quote(paths.pop())}" if len(paths) == 1 else ""
