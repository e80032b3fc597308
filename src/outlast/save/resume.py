"""Where a stage starts from, decided by four rules in one place:

1. the newest verified checkpoint of the run;
2. a newer verified one on the mirror (a session brings it into the run's folder before it looks here: `bring_back`);
3. `--start-from`: weights only;
4. fresh.

`--resume must` makes anything but rules 1 and 2 an error, `--resume never` skips them. The choice is one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from outlast.errors import CheckpointError, RunError
from outlast.save.format import read_state
from outlast.save.store import Saved, newest
from outlast.state import RunState

Resume = Literal["auto", "must", "never"]


@dataclass(frozen=True)
class Start:
    """What to start from: a state, bare weights, or nothing; and the sentence that says so."""

    sentence: str
    state: RunState | None = None
    saved: Saved | None = None
    weights: Path | None = None


def choose(stage: Path, resume: Resume, *, start_from: Path | None = None, model_hash: str) -> Start:
    """Apply the rules. Raises RunError (nothing to resume) or CheckpointError (a checkpoint of another model)."""
    problems: list[str] = []
    saved = newest(stage / "checkpoints", problems) if resume != "never" else None
    if saved is not None:
        check_model(saved, model_hash)
        skipped = f"; passed over: {'; '.join(problems)}" if problems else ""
        sentence = f"resuming {stage.name} from step {saved.step}, the newest verified checkpoint{skipped}"
        return Start(sentence, state=read_state(saved.folder), saved=saved)
    if resume == "must":
        raise RunError(
            f"{stage} has no checkpoint that verifies, and --resume must asks for one",
            details=problems,
            hint="use --resume auto to start fresh if there is none",
        )
    if problems:
        raise CheckpointError(
            f"none of the checkpoints in {stage / 'checkpoints'} verifies",
            details=problems,
            hint="restore one from a copy, or start again with --resume never (it overwrites them)",
        )
    if start_from is not None:
        return Start(f"starting {stage.name} with the weights in {start_from}", weights=start_from)
    return Start(f"starting {stage.name} fresh")


def check_model(saved: Saved, model_hash: str) -> None:
    """Refuse a checkpoint whose tensors have other names, shapes or types. Raises CheckpointError."""
    if saved.manifest.get("model_hash") != model_hash:
        raise CheckpointError(
            f"{saved.folder} belongs to another model (its tensors have other names or shapes)",
            hint="put the run's own checkpoint back, or start a new run with another --out",
        )
