"""A test set that takes the place of the run's own: all image models, then the boosted models, then the submission.

Promises: what predicts is what the run has kept, to the last bit; training rows are neither needed nor read; features
beside a patient's other lesions come from the patients of this test set; exactly the rows of its table are predicted,
in the order of its sample submission where that is there.

A row whose image is missing or can't be read is an error that names it. Where gaps are to be filled, such a row is
predicted by the boosted models that see the table alone (the ensemble's part "table", whose score is known), and the
patient's other lesions are compared without it. Never by a black image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from outlast.base.log import Progress, warn
from outlast.data.columns import encode, read_table
from outlast.data.find import find_root
from outlast.data.hdf5 import hash_images, open_images, unreadable
from outlast.data.table import Examples
from outlast.errors import DataError, RunError, listed
from outlast.task import Submission, Unseen
from outlast.tasks.lesions import boosted, layout, use
from outlast.tasks.lesions.ensemble_columns import image_columns, table_columns
from outlast.tasks.lesions.ensemble_scores import BOTH, TABLE
from outlast.tasks.lesions.extracted import training_stage
from outlast.tasks.lesions.layout import ID, PATIENT, TARGET
from outlast.tasks.lesions.submit import submit as averaged
from outlast.tasks.lesions.table import TEST_FOLD, Features, read_columns, read_sample

ENSEMBLE = "ensemble"  # the stage whose models are used
HOW_FILLED = "predicted by the table alone"
_MOST_NAMED = 20


def submit(asked: Unseen) -> Submission:
    """isic_id and target of every row. Raises DataError: what is wrong with the test set; RunError: a quick test."""
    if asked.config.quick.enabled:
        raise RunError(
            f"{asked.run} is a quick test: it has no ensemble and no submission", hint="predict with a full run"
        )
    root = find_root("lesions", asked.root, layout.has_test_set, accepts=Path.is_dir)
    kept = boosted.read(asked.run / ENSEMBLE)
    features = read_test(root, asked)
    rows, table = features.rows, table_columns(features)
    ids = _order(root, rows[ID].tolist(), fill=asked.fill)
    gaps = _gaps(root, rows[ID].tolist(), fill=asked.fill)
    seen = ~rows[ID].isin(gaps).to_numpy()
    examples = _examples(root, rows[seen].reset_index(drop=True))
    predicted = []
    for fold in asked.config.trained_folds:
        made = {
            backbone.short: asked.outputs(training_stage(backbone.short, fold), examples, use.together)["logits"]
            for backbone in asked.config.backbones
        }
        logits = pd.DataFrame({name: values.reshape(-1).astype(np.float64) for name, values in made.items()})
        images = image_columns(kept.measures.of_model(fold, logits), examples.table["group"])
        both = pd.concat([table[seen].reset_index(drop=True), images], axis=1)
        for unit in kept.units:
            if unit.fold == fold:
                probability = unit.predict(TABLE, table)
                probability[seen] = unit.predict(BOTH, both)
                one = {"id": rows[ID], "fold": fold, "seed": unit.seed, "probability": probability}
                predicted.append(pd.DataFrame(one))
    found = averaged(pd.concat(predicted), ids, asked.config.submission.average)
    return Submission(found, root, gaps, HOW_FILLED)


def read_test(root: Path, asked: Unseen) -> Features:
    """The test table of a folder as models get it, by the columns and categories of the run. Raises DataError."""
    missing = [name for name in (layout.TEST_TABLE, layout.TEST_FILE) if not (root / name).is_file()]
    if missing:
        raise DataError(
            f"{root} has no test set of lesions: there is no {listed(missing)}",
            hint=f"name the folder that holds {layout.TEST_TABLE} and {layout.TEST_FILE}",
        )
    declared = layout.declared(root, asked.config.data.leaks)
    columns = read_columns(asked.run / "folds")
    path = root / layout.TEST_TABLE
    table = read_table(path, declared, labelled=False)
    absent = [name for name in columns.names if name not in table.columns]
    if absent:
        raise DataError(
            f"{path} has no column {listed(absent)}, which the run was trained with",
            hint="give a test table with the columns of the one that the run had; or train without them: data.columns",
        )
    values, notes = encode(table, columns, declared)
    for note in notes:
        warn(f"{layout.TEST_TABLE}: {note}")
    rows = table[[ID, PATIENT]].assign(**{TARGET: np.nan, "fold": TEST_FOLD})
    return Features(rows, values, columns)


def _order(root: Path, ids: list[str], *, fill: bool) -> list[str]:
    """The ids of the test table, in the order of the sample submission if there is one.

    One that names others is an error; where gaps are filled it is said, and the table counts.
    """
    if not (root / layout.SAMPLE).is_file():
        return ids
    wanted = read_sample(root)[ID].tolist()
    differ = sorted(set(wanted) ^ set(ids))
    if not differ:
        return wanted
    told = (
        f"{layout.SAMPLE} and {layout.TEST_TABLE} in {root} name other ids ({len(differ)} differ: {listed(differ, 5)})"
    )
    if not fill:
        raise DataError(told, hint="take both from the same release; --gaps fill predicts the rows of the table")
    warn(f"{told}; the rows of the table are predicted")
    return ids


def _gaps(root: Path, ids: list[str], *, fill: bool) -> dict[str, str]:
    """{id: why} of the rows without a readable image. Raises DataError if there are any and they are not to be filled,
    or if there is no other.
    """
    images = open_images(root / layout.TEST_FILE)
    with Progress("looking at test images", len(ids)) as progress:
        gaps = unreadable(images, ids, progress=lambda done, total: progress.update(done))
    if gaps and (not fill or len(gaps) == len(ids)):
        lines = list(gaps.values())
        more = [f"and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
        hint = f"copy {layout.TEST_FILE} again from its source"
        raise DataError(
            f"{len(gaps)} of {len(ids)} test rows have no image that can be read",
            hint=hint if fill else f"{hint}; --gaps fill predicts such rows by the table alone",
            details=[*lines[:_MOST_NAMED], *more],
        )
    return gaps


def _examples(root: Path, rows: pd.DataFrame) -> Examples:
    ids = rows[ID].tolist()
    table = pd.DataFrame({"id": ids, "split": "test", "group": rows[PATIENT], "source": layout.TEST_FILE})
    return Examples(table.assign(hash=hash_images(open_images(root / layout.TEST_FILE), ids)), root, {})
