import lightgbm
import numpy as np
import pandas as pd
import pytest

from outlast.errors import DataError, ModelError
from outlast.model.boosting import Rows, choose_rounds, fit
from outlast.model.boosting_settings import BoostingSettings
from outlast.model.partial_auc import partial_auc

SETTINGS = BoostingSettings(rounds=60, patience_rounds=10, inner_parts=3, leaves=6, leaf_rows=10, learning_rate=0.1)


def make(rows=600, seed=0, start=0.0):
    """Rows whose label depends on `age`, on a kind of `site`, and on whether `size` is missing."""
    rng = np.random.default_rng(seed)
    age = rng.integers(1, 18, rows) * 5.0
    site = pd.Categorical(rng.choice(["arm", "head", "leg"], rows), categories=["arm", "head", "leg"])
    size, noise = (rng.normal(size=rows).round().clip(-2, 2) for _ in range(2))  # each value often: bins are the values
    size = np.where(rng.random(rows) < 0.3, np.nan, size)
    odds = 0.06 * (age - 45) + 3 * (site == "head") + 2 * np.isnan(size) - 1.5
    labels = (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    columns = pd.DataFrame({"age": age, "site": site, "size": size, "noise": noise})
    return Rows(columns, labels, np.full(rows, start))


def parts_of(rows, count=3):
    return np.arange(len(rows.labels)) % count


def test_the_same_seed_gives_the_same_model_byte_for_byte_and_another_seed_another():
    rows = make()
    first = fit(rows, 20, SETTINGS, 3, 1)
    assert fit(rows, 20, SETTINGS, 3, 1).text == first.text
    assert fit(rows, 20, SETTINGS, 4, 1).text != first.text
    chosen = choose_rounds(rows, parts_of(rows), SETTINGS, 3, 1)
    assert choose_rounds(rows, parts_of(rows), SETTINGS, 3, 1) == chosen


def test_the_number_of_trees_is_that_with_the_best_official_score_over_the_parts():
    rows = make()
    parts = parts_of(rows)
    settings = SETTINGS.model_copy(update={"rows_fraction": 1.0, "columns_fraction": 1.0})
    chosen = choose_rounds(rows, parts, settings, 0, 1)

    def score(rounds):
        scores = []
        for part in range(3):
            kept, out = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
            some = Rows(rows.columns.iloc[kept], rows.labels[kept], rows.start[kept])
            model = fit(some, rounds, settings, 0, 1)
            scores.append(partial_auc(rows.labels[out], model.predict(rows.columns.iloc[out], rows.start[out])))
        return float(np.mean(scores))

    assert chosen.pauc == pytest.approx(score(chosen.rounds), abs=1e-12)
    others = [rounds for rounds in (1, 3, 10, 30, 60) if rounds != chosen.rounds]
    assert all(score(rounds) <= chosen.pauc + 1e-12 for rounds in others)
    assert chosen.pauc_of_start == pytest.approx(0.02)
    assert 1 < chosen.rounds < 60


def test_missing_numbers_and_unseen_categories_are_predicted_and_missing_says_something():
    rows = make()
    model = fit(rows, 40, SETTINGS, 0, 1)
    columns = pd.DataFrame(
        {
            "age": [50.0] * 3,
            "site": pd.Categorical(["arm", "arm", None], categories=["arm", "head", "leg"]),
            "size": [0.0, np.nan, 0.0],
            "noise": [0.0] * 3,
        }
    )
    known, without_size, without_site = model.predict(columns, np.zeros(3))
    assert without_size > known + 0.15
    assert 0 < without_site < 1


def test_trees_add_to_what_they_start_from():
    """The start alone orders rows that the columns say nothing about; and it is part of the prediction."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=400) * 3
    labels = (rng.random(400) < 1 / (1 + np.exp(-start))).astype(np.int64)
    constant = Rows(pd.DataFrame({"same": np.ones(400)}), labels, start)
    predicted = fit(constant, 5, SETTINGS, 0, 1).predict(constant.columns, start)
    np.testing.assert_allclose(predicted, 1 / (1 + np.exp(-start)), rtol=1e-12)
    chosen = choose_rounds(constant, parts_of(constant), SETTINGS, 0, 1)
    assert chosen.pauc == pytest.approx(chosen.pauc_of_start)
    assert chosen.pauc_of_start > 0.1


def test_a_rising_column_never_lowers_the_prediction():
    rows = make(rows=200)
    falling = Rows(rows.columns.assign(age=-rows.columns["age"]), rows.labels, rows.start)
    at_all_ages = pd.concat([falling.columns.iloc[:1]] * 18).assign(age=-5.0 * np.arange(18)[::-1])
    free = fit(falling, 40, SETTINGS, 0, 1).predict(at_all_ages, np.zeros(18))
    assert (np.diff(free) < 0).any()
    bound = Rows(falling.columns, falling.labels, falling.start, rising=("age",))
    assert (np.diff(fit(bound, 40, SETTINGS, 0, 1).predict(at_all_ages, np.zeros(18))) >= 0).all()


def test_the_text_is_lightgbms_own():
    rows = make()
    model = fit(rows, 10, SETTINGS, 0, 1)
    alone = lightgbm.Booster(model_str=model.text)
    assert alone.feature_name() == ["age", "site", "size", "noise"]
    np.testing.assert_allclose(alone.predict(rows.columns), model.predict(rows.columns, rows.start), rtol=1e-12)


def test_the_gain_is_that_of_the_columns_that_decide():
    gain = fit(make(), 30, SETTINGS, 0, 1).gain()
    assert sum(gain.values()) == pytest.approx(1)
    assert min(gain["age"], gain["site"], gain["size"]) > gain["noise"]


def test_names_that_lightgbm_refuses_are_taken_and_two_that_become_one_are_not():
    rows = make()
    odd = Rows(rows.columns.set_axis(["age, years", "site:[a]", "größe", "noise"], axis=1), rows.labels, rows.start)
    model = fit(odd, 10, SETTINGS, 0, 1)
    np.testing.assert_array_equal(
        model.predict(odd.columns, odd.start), fit(rows, 10, SETTINGS, 0, 1).predict(rows.columns, rows.start)
    )
    assert set(model.gain()) == set(odd.columns.columns)
    with pytest.raises(ModelError, match="two columns are called a_b"):
        fit(Rows(rows.columns.set_axis(["a b", "a:b", "c", "d"], axis=1), rows.labels, rows.start), 5, SETTINGS, 0, 1)


def test_one_class_and_other_columns_are_refused():
    rows = make()
    with pytest.raises(DataError, match="both classes, but of 600 rows 0 are positive"):
        fit(Rows(rows.columns, np.zeros(600, np.int64), rows.start), 5, SETTINGS, 0, 1)
    model = fit(rows, 5, SETTINGS, 0, 1)
    with pytest.raises(ModelError, match="fitted to 4 columns, age, site, size, noise"):
        model.predict(rows.columns[["site", "age", "size", "noise"]], rows.start)
