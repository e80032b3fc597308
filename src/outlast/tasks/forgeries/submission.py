"""The submission of Recod.ai/LUC: a CSV file with case_id and annotation, the runs of every instance or "authentic".

Promises: exactly the cases of the sample submission, in its order, or a DataError that names what is missing, too many
or there twice; the file appears at once; what was written is read back and decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from outlast.base.files import write_text
from outlast.errors import DataError, listed
from outlast.model.forgery_metrics import decode, encode

SAMPLE = "sample_submission.csv"
COLUMNS = ("case_id", "annotation")


def write_submission(
    path: Path, predictions: Iterable[tuple[str, npt.NDArray[np.generic]]], sample: Path | None = None
) -> pd.DataFrame:
    """Write case ids with their instances (N, H, W), N = 0 for authentic; returns the table that was written.

    predictions may be a generator: only the text of each is kept. sample: the sample_submission.csv to follow.
    """
    rows, shapes = [], {}
    for case_id, instances in predictions:
        rows.append((case_id, encode(instances)))
        shapes[case_id] = (int(instances.shape[1]), int(instances.shape[2]))
    table = as_in_sample(pd.DataFrame(rows, columns=list(COLUMNS)), sample)
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    written = read_submission(path)
    for case_id, annotation in zip(written["case_id"], written["annotation"], strict=True):
        decode(annotation, shapes[case_id])
    return written


def as_in_sample(table: pd.DataFrame, sample: Path | None) -> pd.DataFrame:
    """The rows in the order of the sample submission (none: as they are). Raises DataError if the cases differ."""
    cases = table["case_id"].astype(str).tolist()
    problems = _twice("the predictions", cases)
    wanted = cases
    if sample is not None:
        wanted = read_submission(sample)["case_id"].tolist()
        problems += _twice(sample.name, wanted)
        missing, extra = sorted(set(wanted) - set(cases)), sorted(set(cases) - set(wanted))
        problems += [f"{len(missing)} cases without a prediction: {listed(missing)}"] if missing else []
        problems += [f"{len(extra)} cases that {sample.name} does not name: {listed(extra)}"] if extra else []
    if problems:
        raise DataError(
            "the predictions are not those that the submission wants",
            hint="predict the pictures of test_images, and exactly those",
            details=problems,
        )
    return table.assign(case_id=cases).set_index("case_id").loc[wanted].reset_index()[list(COLUMNS)]


def read_submission(path: Path) -> pd.DataFrame:
    """A submission or its sample: the columns case_id and annotation, as text. Raises DataError."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})", hint="save it as UTF-8 with a header") from error
    if not set(COLUMNS) <= set(table.columns):
        raise DataError(
            f"{path}: the columns {' and '.join(COLUMNS)} are needed, it has {', '.join(table.columns)}",
            hint="correct the header",
        )
    return table[list(COLUMNS)]


def _twice(where: str, cases: list[str]) -> list[str]:
    twice = sorted(case for case, count in Counter(cases).items() if count > 1)
    return [f"{where}: {len(twice)} cases are there twice: {listed(twice)}"] if twice else []
