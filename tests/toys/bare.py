"""An environment that holds what this one holds, without Outlast: what a platform's image is to a bundle."""

import venv
from pathlib import Path

import torch


def make(folder, *, without=("segmentation_models_pytorch",)):
    """Make the environment in a folder; returns its interpreter. `without`: packages that it lacks as well.

    Its packages are links to those of the running interpreter. Files that lead to further folders (.pth), which is how
    an editable package is found, are left out.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (target,) = Path(folder).glob("lib/python*/site-packages")
    for path in Path(torch.__file__).parents[1].iterdir():
        if path.suffix != ".pth" and not path.name.startswith(("outlast", "__", *without)):
            (target / path.name).symlink_to(path)
    return Path(folder) / "bin" / "python"
