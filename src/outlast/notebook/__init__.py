"""Outlast in a notebook: `outlast.notebook.train("plants", data="leaves")` in a cell of Jupyter, Colab or Kaggle.

The training runs in processes of its own: what ends them (memory, a crash of the driver) does not end the kernel, and
several GPUs can be used after CUDA was used in a cell. The cell shows one progress line, then the figures, the report
and a link to the best weights. Interrupting the cell asks the training to save and stop; interrupting it again ends it
at once. When the kernel goes, so does the training; what was saved is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outlast.errors import UsageError
from outlast.notebook import screen
from outlast.notebook.process import run
from outlast.plan import launch

__all__ = ["download", "show", "train"]


def train(task: str, *, report: bool = True, **options: Any) -> dict[str, Any]:
    """Train in processes of its own until it is finished or must stop; the same cell again goes on.

    options: those of `outlast.train`: data, out, preset, overrides, session_limit, mirror, ... With two GPUs
    `side_by_side=2` runs two stages at a time, `processes=2` one stage on both. report: show figures, report and link
    when the training is finished.

    Returns what `outlast.train` returns. Raises the error of the training, as one sentence.
    """
    if options.get("deadline") is not None:
        raise UsageError(
            "a deadline object cannot be handed to other processes", hint="give session_limit instead of deadline"
        )
    with screen.Screen(f"outlast train {task}") as shown:
        result = run(launch.arguments(task, options), shown)
    if result["status"] == "finished" and report and "sweep" not in options:
        show(result["run"])
    elif result.get("next_command"):
        screen.note(
            f"stopped in time ({result['reason']}); run this cell again to go on, or type", result["next_command"]
        )
    return result


def show(run_folder: str | Path, *, weights: bool = True) -> None:
    """Show the figures and the report of a run, and a link to its best weights (they are exported for it)."""
    folder = Path(run_folder)
    screen.figures(folder)
    screen.page(folder / "report.html")
    if weights:
        target = folder / "weights.safetensors"
        with screen.Screen(f"exporting {target}") as shown:
            run(["export", str(folder), "--to", str(target), "--json"], shown)
        screen.link(target)


def download(path: str | Path) -> None:
    """Bring a file to the computer that shows the notebook: Colab's own download, elsewhere a link."""
    screen.link(Path(path), now=True)
