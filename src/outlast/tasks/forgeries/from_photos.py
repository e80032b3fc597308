"""A labelled set out of any folder of photos: each as it is, and with regions copied within it, in the layout of LUC.

For: somebody who has photos and no forgeries yet, and for asking which copies a model finds. Promises: the same files
for the same photos, numbers and settings; a photo and its forgeries are one group, so that no split parts them; a file
SYNTHETIC.txt marks the folder from the first moment, for nobody has forged these by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from outlast.data.readers import list_images, read_image
from outlast.errors import DataError
from outlast.tasks.forgeries.composer import Composition, compose, draw
from outlast.tasks.forgeries.listing import GROUPS
from outlast.tasks.forgeries.synthetic import COMPOSITION, new_folder

MARKER_TEXT = """SYNTHETIC DATA

The photos in this folder are somebody's; every forgery was made by outlast.tasks.forgeries.from_photos (seed {seed}).
While this file is here, everything that is made from the folder says that it is synthetic.
"""


def write(
    photos: Path, folder: Path, *, copies: int = 1, seed: int = 0, settings: Composition = COMPOSITION
) -> dict[str, int]:
    """Write every photo as authentic, and `copies` forgeries of each; returns {"authentic", "forged"}: how many.

    case_ids are "<photo>" and "<photo>_<number>". A photo without room for a copy of the smallest region has no
    forgery. Raises DataError: no photo, two of one name, one that can't be read, a folder that holds anything already.
    """
    files = list_images(photos)
    names = [file.stem for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not files or twice:
        raise DataError(
            f"{photos} has two photos called {twice[0]}" if twice else f"there are no photos in {photos}",
            hint="rename one of them" if twice else "name a folder of pictures",
        )
    new_folder(folder, MARKER_TEXT.format(seed=seed))
    groups, forged = ["case_id,group"], 0
    for number, file in enumerate(files):
        photo = read_image(file)
        Image.fromarray(photo).save(folder / f"train_images/authentic/{file.stem}.png")
        groups.append(f"{file.stem},{file.stem}")
        for copy in range(copies):
            composed = compose(photo, draw(seed, copy, [number])[0], settings)
            if len(composed.instances):
                case = f"{file.stem}_{copy}"
                Image.fromarray(composed.image).save(folder / f"train_images/forged/{case}.png")
                np.save(folder / f"train_masks/{case}.npy", composed.instances)
                groups.append(f"{case},{file.stem}")
                forged += 1
    (folder / GROUPS).write_text("\n".join(groups) + "\n", encoding="utf-8")
    return {"authentic": len(files), "forged": forged}
