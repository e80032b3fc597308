"""A test set that takes the place of the run's own: every picture of test_images, judged by what the run decides with.

Promises: exactly the cases of sample_submission.csv in its order, where that is there, else of the pictures by name;
all that can't be read is found before anything is judged.

A case without a readable picture is an error that names it. Where gaps are to be filled, it is called authentic, which
says that nothing was found in it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from outlast.base.log import Progress, warn
from outlast.data.find import find_root
from outlast.errors import DataError, listed
from outlast.model.forgery_metrics import AUTHENTIC, decode, encode
from outlast.task import Submission, Unseen
from outlast.tasks.forgeries.listing import TESTS, has_test_set, unlabelled_images
from outlast.tasks.forgeries.scores import CALIBRATE, rules_of
from outlast.tasks.forgeries.submission import COLUMNS, SAMPLE, read_submission
from outlast.tasks.forgeries.use import judged_by, large_enough

HOW_FILLED = "called authentic"
_MOST_NAMED = 20


def submit(asked: Unseen) -> Submission:
    """case_id and annotation of every case. Raises DataError with what is wrong with the test set."""
    root = find_root("forgeries", asked.root, has_test_set, accepts=Path.is_dir)
    files = _files(root)
    cases = _cases(root, files)
    gaps = _gaps(cases, files, fill=asked.fill)
    rules, members = rules_of(asked.run / CALIBRATE), asked.members()
    config = members[0].config
    annotations = []
    with Progress("predicting images", len(cases)) as progress:
        for number, case in enumerate(cases, start=1):
            if case in gaps:
                annotations.append(AUTHENTIC)
            else:
                image = large_enough(files[case])
                _, instances = judged_by(rules, config, members, image, asked.device)
                annotations.append(_written(instances, image))
            progress.update(number)
    return Submission(pd.DataFrame(dict(zip(COLUMNS, (cases, annotations), strict=True))), root, gaps, HOW_FILLED)


def _written(instances: np.ndarray, image: np.ndarray) -> str:
    """The runs of the instances, which were read back."""
    annotation = encode(instances)
    decode(annotation, (image.shape[0], image.shape[1]))
    return annotation


def _files(root: Path) -> dict[str, Path]:
    """{case_id: picture}. Raises DataError for two of one name."""
    names: dict[str, list[Path]] = {}
    for file in unlabelled_images(root):
        names.setdefault(file.stem, []).append(file)
    twice = [" and ".join(map(str, files)) for files in names.values() if len(files) > 1]
    if twice:
        raise DataError(f"{listed(twice)} have one case_id, which is the name without its ending", hint="keep one")
    return {case: files[0] for case, files in names.items()}


def _cases(root: Path, files: dict[str, Path]) -> list[str]:
    """What is asked for: the sample submission says it, without one the pictures do. Raises DataError."""
    if not (root / SAMPLE).is_file():
        return list(files)
    cases = read_submission(root / SAMPLE)["case_id"].tolist()
    if len(set(cases)) < len(cases) or not cases:
        raise DataError(f"{root / SAMPLE} names no case, or one of them twice", hint="copy it again from its source")
    if unasked := sorted(set(files) - set(cases)):
        warn(f"{len(unasked)} pictures in {TESTS} are not in {SAMPLE}, and are not predicted: {listed(unasked, 5)}")
    return cases


def _gaps(cases: list[str], files: dict[str, Path], *, fill: bool) -> dict[str, str]:
    """{case: why} of those without a readable picture. Raises DataError if there are any and they are not to be filled,
    or if there is no other.
    """
    gaps = {}
    with Progress("looking at test images", len(cases)) as progress:
        for number, case in enumerate(cases, start=1):
            try:
                if case in files:
                    large_enough(files[case])
                else:
                    gaps[case] = f"{case}: there is no picture of this case in {TESTS}"
            except DataError as error:
                gaps[case] = error.message
            progress.update(number)
    if gaps and (not fill or len(gaps) == len(cases)):
        lines = list(gaps.values())
        more = [f"and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
        hint = f"copy {TESTS} again from its source"
        raise DataError(
            f"{len(gaps)} of {len(cases)} cases have no picture that can be judged",
            hint=hint if fill else f"{hint}; --gaps fill calls such cases authentic",
            details=[*lines[:_MOST_NAMED], *more],
        )
    return gaps
