"""The command line. Each command is one call of `outlast.api`; results go to standard output, the rest to stderr.

Exit codes: 0 finished, or stopped in time with a verified checkpoint; 1 a failure, with one clear sentence and a hint;
2 wrong usage; 130 interrupted twice.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from outlast.base.log import keep_stdout_clean
from outlast.cli import training  # each of these adds its commands, which the help shows in this order

# isort: split
from outlast.cli import models, runs

# isort: split
from outlast.cli import data, kaggle
from outlast.cli.command import app
from outlast.errors import OutlastError
from outlast.plan import launch

__all__ = ["app", "data", "kaggle", "main", "models", "runs", "training"]


def main() -> None:
    """Run the command line; a failure that we foresaw is one sentence and an exit code, not a traceback."""
    # Threads that spin while they wait make a step many times slower as soon as another process wants a core
    # (benchmarks/README.md); this must be said before torch is imported, and is the user's to overrule.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path.append(str(Path.cwd()))  # a task module beside the user, as `python -m outlast` would find it
    as_json = "--json" in sys.argv
    launch.end_with_launcher()
    if "WORLD_SIZE" in os.environ:  # of several processes, whoever started them
        keep_stdout_clean()
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        launch.leave(end.code)
        raise
    except OutlastError as error:
        if launch.tell_failure(error):
            sys.exit(error.exit_code)
        print(f"error: {error}", file=sys.stderr)
        if as_json:
            print(
                json.dumps({"status": "failed", "error": error.message, "hint": error.hint, "details": error.details})
            )
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: what was not saved is lost, what was saved is intact", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not launch.tell_failure(error):
            raise
        sys.exit(1)
