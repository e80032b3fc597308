"""The submission: averaged over folds and seeds, checked against the sample, never of other ids or a constant."""

import numpy as np
import pandas as pd
import pytest

from outlast.errors import DataError
from outlast.tasks.lesions import submit

IDS = ["c", "a", "b"]


def predictions(values=((0.1, 0.2, 0.9), (0.3, 0.1, 0.7)), ids=IDS):
    """A row per id for each of two folds."""
    return pd.DataFrame(
        [
            {"id": name, "fold": fold, "seed": 0, "probability": value}
            for fold, row in enumerate(values)
            for name, value in zip(ids, row, strict=True)
        ]
    )


def test_probabilities_are_averaged_over_folds_in_the_order_of_the_sample():
    shuffled = predictions().sample(frac=1, random_state=1)
    made = submit.submit(shuffled, IDS, "probability")
    assert made["isic_id"].tolist() == IDS
    assert made["target"].tolist() == pytest.approx([0.2, 0.15, 0.8])


def test_ranks_take_the_scale_of_a_fold_away():
    made = submit.submit(predictions(((0.1, 0.2, 0.9), (1e-9, 1e-12, 1e-7))), IDS, "rank")
    assert made["target"].tolist() == pytest.approx([0.25, 0.25, 1.0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f[f["id"] != "a"], "a: in the sample submission, but not predicted"),
        (lambda f: pd.concat([f, f.assign(id="z")]), "z: predicted, but not in the sample submission"),
        (lambda f: pd.concat([f, f.iloc[[1]]]), "a: predicted twice by one model"),
        (lambda f: f[~((f["id"] == "b") & (f["fold"] == 1))], "lack a prediction of some fold or seed: b"),
        (lambda f: f.assign(probability=np.where(f["id"] == "c", np.nan, f["probability"])), "lack a prediction.*c"),
        (lambda f: f.assign(probability=f["probability"] + 0.5), "are no probabilities"),
        (lambda f: f.assign(probability=0.0), "every test row gets the same number"),
    ],
)
def test_predictions_that_make_no_submission_are_refused(change, told):
    with pytest.raises(DataError) as caught:
        submit.submit(change(predictions()), IDS, "probability")
    assert pd.Series([str(caught.value)]).str.contains(told, regex=True).all(), str(caught.value)
    assert caught.value.hint
