"""Where things are remembered that can be made again: decoded samples, hashes of files.

$OUTLAST_CACHE if it is set; on Kaggle the temporary disk, which does not count against what is kept; else the user's
cache folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

ON_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE"  # set in its notebooks and their batch runs
# Its folders: input, working, temp. Elsewhere only where something stands in for Kaggle, as in the tests.
KAGGLE = Path(os.environ.get("OUTLAST_KAGGLE_ROOT") or "/kaggle")


def scratch_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The folder; it need not exist."""
    environ = os.environ if environ is None else environ
    if environ.get("OUTLAST_CACHE"):
        return Path(environ["OUTLAST_CACHE"])
    if ON_KAGGLE in environ:
        return KAGGLE / "temp" / "outlast"
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or "/tmp") / ".cache")
    return Path(base) / "outlast"


def hashes_of(root: Path) -> Path:
    """The file that remembers the hashes of the files below a data root."""
    return scratch_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"
