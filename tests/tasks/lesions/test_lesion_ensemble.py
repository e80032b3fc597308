"""The ensemble on tables and logits made here: what it may see, what it must not, and what outlives a session."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from outlast.base import accident
from outlast.config.schema import Training
from outlast.data.columns import Columns, Declared
from outlast.data.patients import write_folds
from outlast.data.shards import write_shard
from outlast.errors import DataError
from outlast.model.area_bootstrap import paired_bootstrap
from outlast.model.boosting_settings import BoostingSettings
from outlast.model.partial_auc import partial_auc
from outlast.task import Work
from outlast.tasks.lesions import ensemble
from outlast.tasks.lesions.config import EnsembleConfig
from outlast.tasks.lesions.ensemble_columns import Measures, combinations, image_columns, measured, table_columns
from outlast.tasks.lesions.layout import ID, PATIENT, TARGET
from outlast.tasks.lesions.submit import submit
from outlast.tasks.lesions.table import Tables, keep_features, read_features

FOLDS, PATIENTS, EACH, TEST_PATIENTS = 3, 90, 5, 6
BACKBONES = ("one", "other")
CONFIG = EnsembleConfig(
    ensemble=BoostingSettings(rounds=40, patience_rounds=10, inner_parts=3, seeds=2, leaves=4, learning_rate=0.1),
    train=Training(seed=7, threads=1),
)


def lesions(seed=0):
    """(train with its folds, test): age and size say something, and so does the patient's other lesions' size."""
    dice = np.random.default_rng(seed)
    patient = np.repeat(np.arange(PATIENTS + TEST_PATIENTS), EACH)
    age = np.repeat(dice.integers(4, 17, PATIENTS + TEST_PATIENTS) * 5.0, EACH)
    size = dice.normal(6, 1, len(patient)) + np.repeat(dice.normal(0, 2, PATIENTS + TEST_PATIENTS), EACH)
    own = size - pd.Series(size).groupby(patient).transform("mean").to_numpy()
    target = (dice.random(len(patient)) < 1 / (1 + np.exp(-(0.05 * (age - 60) + 1.5 * own)))).astype(np.int64)
    table = pd.DataFrame(
        {
            ID: [f"ISIC_{number:05d}" for number in range(len(patient))],
            PATIENT: [f"P{number:03d}" for number in patient],
            TARGET: target,
            "age_approx": np.where(dice.random(len(patient)) < 0.1, np.nan, age),
            "clin_size_long_diam_mm": size,
            "sex": dice.choice(["female", "male"], len(patient)),
            "fold": patient % FOLDS,
        }
    )
    train = table[patient < PATIENTS]
    return train, table[patient >= PATIENTS].drop(columns=[TARGET, "fold"]).reset_index(drop=True)


def write(root, train, test, seed=0):
    """The folders of folds, extract-<backbone> and test-<backbone>; each fold's model has its own calibration."""
    declared = Declared(ID, PATIENT, TARGET, {})
    columns = Columns(("age_approx", "clin_size_long_diam_mm"), {"sex": ("female", "male")})
    folds = root / "folds"
    folds.mkdir(parents=True)
    write_folds(folds / "folds.csv", train, train["fold"], id=ID, patient=PATIENT, target=TARGET)
    keep_features(folds, Tables(train.drop(columns="fold"), test, columns, declared, ()), train.set_index(ID)["fold"])
    dice = np.random.default_rng(seed + 1)
    inputs = {"folds": folds}
    seen = train[TARGET].to_numpy() + dice.normal(0, 1, len(train))
    for backbone in BACKBONES:
        for fold in range(FOLDS):
            own = (train["fold"] == fold).to_numpy()
            logits = np.concatenate([seen[own], dice.normal(0.5, 1, len(test))]) * (1 + fold) + 3 * fold
            logits += dice.normal(0, 0.5, len(logits))
            parts = {
                "extract": (train[ID][own].tolist(), logits[: own.sum()]),
                "test": (test[ID].tolist(), logits[own.sum() :]),
            }
            for stage, (ids, part) in parts.items():
                inputs[f"{stage}-{backbone}"] = root / f"{stage}-{backbone}"
                folder = inputs[f"{stage}-{backbone}"] / f"train-{backbone}-fold{fold}"
                folder.mkdir(parents=True)
                write_shard(folder, 0, ids, {"logits": part.astype(np.float32)})
    return inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("inputs"), *lesions())


def build(folder, inputs, config=CONFIG, pause=lambda: None):
    out, kept = folder / "out", folder / "kept"
    out.mkdir(parents=True)
    kept.mkdir(exist_ok=True)
    told = ensemble.build(Work(config, inputs, out, None, True, kept, pause))
    return out, told


@pytest.fixture(scope="module")
def built(inputs, tmp_path_factory):
    """The folder `out` and what was recorded."""
    return build(tmp_path_factory.mktemp("built"), inputs)


def contents(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# -- what it makes -----------------------------------------------------------------------------------------------------


def test_every_test_row_is_predicted_once_for_each_fold_and_seed_and_makes_a_submission(built):
    out, _ = built
    found = pd.read_csv(out / "test.csv")
    assert list(found.columns) == ["id", "fold", "seed", "probability"]
    ids = lesions()[1][ID].tolist()
    assert len(found) == len(ids) * FOLDS * 2 and set(found["id"]) == set(ids)
    assert found["probability"].between(0, 1).all()
    made = submit(found, ids, "probability")
    assert made[ID].tolist() == ids
    mean = found.groupby("id")["probability"].mean().loc[ids].to_numpy()
    np.testing.assert_allclose(made[TARGET].to_numpy(), mean, rtol=1e-12)


def test_all_parts_are_scored_out_of_fold_on_the_same_rows_with_paired_intervals(built):
    out, told = built
    metrics = json.loads((out / "metrics.json").read_text())
    names = [*BACKBONES, "images", "images by rank", "table", "both"]
    text = pd.read_csv(out / "out_of_fold.csv", dtype=dict.fromkeys(names, str))  # older pandas lose the last bit
    scored = text.astype(dict.fromkeys(names, float))
    assert list(metrics["parts"]) == names and list(metrics["ensemble_above"]) == names[:-1]
    assert len(scored) == PATIENTS * EACH == metrics["images"]
    for name in names:
        assert metrics["parts"][name]["pauc"]["value"] == partial_auc(scored[TARGET], scored[name]), name
    pair = paired_bootstrap(scored[TARGET], scored["both"], scored["table"], scored[PATIENT], area="auc")
    above = metrics["ensemble_above"]["table"]["auc"]
    assert (above["value"], above["low"], above["high"]) == (pair.value, pair.low, pair.high)
    # The images are what the image models say, nothing more.
    folds = lesions()[0]["fold"].to_numpy()
    logits = np.column_stack([np.log(scored[name] / (1 - scored[name])) for name in BACKBONES])
    np.testing.assert_allclose(scored["images"], (1 / (1 + np.exp(-logits))).mean(axis=1), rtol=1e-9)
    assert logits[folds == 2].std() > 2 * logits[folds == 0].std()
    assert told["auc"] == metrics["parts"]["both"]["auc"]["value"]
    assert told["auc"] > max(metrics["parts"][name]["auc"]["value"] for name in names[:-1])
    row = metrics["metrics"]["per_class"]["table"]
    assert row["both_above_auc"] == f"{pair.value:+.3f} ({pair.low:+.3f} to {pair.high:+.3f})"


def test_importance_is_a_share_of_the_gain_over_all_models(built):
    importance = json.loads((built[0] / "importance.json").read_text())
    gains = [column["gain"] for column in importance["columns"]]
    assert importance["models"] == FOLDS * 2
    assert sum(gains) == pytest.approx(1) and gains == sorted(gains, reverse=True)
    assert "clin_size_long_diam_mm_from_median" in [column["name"] for column in importance["columns"][:8]]


# -- what it must not see ----------------------------------------------------------------------------------------------


def test_a_fold_says_nothing_about_its_own_models(inputs, built, tmp_path):
    """With every label of fold 0 turned round, its models are the same byte for byte; those of the others are not."""
    train, test = lesions()
    train.loc[train["fold"] == 0, TARGET] = 1 - train[TARGET]
    turned = write(tmp_path / "turned", train, test)
    for name in BACKBONES:  # the logits of models that never saw the labels
        turned[f"extract-{name}"] = inputs[f"extract-{name}"]
    out, _ = build(tmp_path / "run", turned)
    before, after = contents(built[0] / "models"), contents(out / "models")
    same = {name for name in before if before[name] == after[name]}
    assert same == {name for name in before if name.startswith("fold0-")} and len(same) == 4
    rows = [pd.read_csv(folder / "out_of_fold.csv") for folder in (built[0], out)]
    own = rows[0]["fold"] == 0
    np.testing.assert_array_equal(rows[0].loc[own, "both"], rows[1].loc[own, "both"])


def test_columns_depend_on_no_label_and_training_columns_not_on_the_test_set(inputs, tmp_path):
    train, test = lesions()
    columns = table_columns(read_features(inputs["folds"]))
    other = test.assign(clin_size_long_diam_mm=99.0, **{PATIENT: train[PATIENT].iloc[0]})
    turned = train.assign(**{TARGET: train[TARGET].sample(frac=1, random_state=0).to_numpy()})
    features = read_features(write(tmp_path, turned, other)["folds"])
    pd.testing.assert_frame_equal(columns.iloc[: len(train)], table_columns(features).iloc[: len(train)])
    assert not {TARGET, ID, PATIENT, "fold"} & set(columns.columns)


def test_without_images_there_are_no_columns_of_images(built):
    text = (built[0] / "models" / "fold0-seed0-table.txt").read_text()
    assert "logit" not in text and "age_approx" in text
    assert "logit_one_of_patient" in (built[0] / "models" / "fold0-seed0-both.txt").read_text()


def test_logits_are_made_comparable_by_each_models_own_mean_and_spread():
    dice = np.random.default_rng(0)
    folds = pd.Series(np.repeat([0, 1], 50))
    truth = dice.normal(size=100)
    logits = pd.DataFrame({"net": np.where(folds == 0, truth, 5 * truth - 40)})
    tested = {0: pd.DataFrame({"net": [0.3]}), 1: pd.DataFrame({"net": [5 * 0.3 - 40]})}
    measures = Measures.from_json(json.loads(json.dumps(measured(logits, folds).as_json())))
    own = measures.out_of_fold(logits, folds)
    assert own.equals(measured(logits, folds).out_of_fold(logits, folds))
    assert own.groupby(folds).mean()["net"].tolist() == pytest.approx([0, 0], abs=1e-12)
    back = measures.of_model(1, tested[1])["net"][0] * truth[50:].std() + truth[50:].mean()
    assert back == pytest.approx(0.3)
    constant = pd.DataFrame({"net": np.ones(100)})
    assert (measured(constant, folds).out_of_fold(constant, folds)["net"] == 0).all()


def test_logits_beside_those_of_the_patient():
    logits = pd.DataFrame({"net": [1.0, 2.0, 6.0, 4.0]})
    made = image_columns(logits, pd.Series(["a", "a", "a", "b"]))
    assert made["logit_net_of_patient"].tolist() == [3.0, 3.0, 3.0, 4.0]
    assert made["logit_net_from_median"].tolist() == [-1.0, 0.0, 4.0, 0.0]
    assert np.isnan(made["logit_net_z"].iloc[3])


def test_combinations_are_missing_where_a_part_is_and_only_made_of_what_is_there():
    values = pd.DataFrame({"clin_size_long_diam_mm": [4.0, np.nan, 4.0], "age_approx": [50.0, 50.0, 0.0]})
    made = combinations(values)
    assert list(made.columns) == ["size_for_age"]
    assert made["size_for_age"].iloc[0] == 0.08 and made["size_for_age"].iloc[1:].isna().all()


def test_a_missing_prediction_is_named(inputs, tmp_path):
    train, test = lesions()
    broken = write(tmp_path, train, test)
    folder = broken["extract-one"] / "train-one-fold1"
    own = train[train["fold"] == 1][ID].tolist()
    write_shard(folder, 0, [*own[:-1], *test[ID]], {"logits": np.zeros(len(own) - 1 + len(test), np.float32)})
    with pytest.raises(DataError, match=f"no prediction of 1 rows of fold 1: {own[-1]}"):
        ensemble.read(broken)


# -- what outlives a session -------------------------------------------------------------------------------------------


class Ends(BaseException):
    """The session."""


def test_a_pause_between_any_two_units_changes_nothing(inputs, built, tmp_path):
    """Each session does one (fold, seed); the last one finds all and gathers."""
    pauses = []

    def pause():
        pauses.append(len(list((tmp_path / "kept").iterdir())))
        raise Ends

    for number in range(FOLDS * 2):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (tmp_path / "kept").mkdir(exist_ok=True)
        with pytest.raises(Ends):
            ensemble.build(Work(CONFIG, inputs, out, None, True, tmp_path / "kept", pause))
        assert not list(out.iterdir())
    assert pauses == [1, 2, 3, 4, 5, 6]
    out, _ = build(tmp_path, inputs, pause=lambda: pytest.fail("no unit was left"))
    assert contents(out) == contents(built[0])


def test_a_unit_that_the_disk_has_damaged_is_done_again(inputs, built, tmp_path, capsys):
    shutil.copytree(built[0].parent / "kept", tmp_path / "kept")
    model = tmp_path / "kept" / "fold1-seed0" / "both.txt"
    model.write_text(re.sub(r"leaf_value=\S+", "leaf_value=9", model.read_text(), count=1))
    done = []
    out, _ = build(tmp_path, inputs, pause=lambda: done.append(1))
    assert len(done) == 1 and "this unit is done again" in capsys.readouterr().err
    assert contents(out) == contents(built[0])


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from outlast.base import accident
from test_lesion_ensemble import CONFIG, Work, ensemble
accident.happen = accident.kill_at("folder.rename", 3)
root = Path(sys.argv[1])
names = sorted(path.name for path in Path(sys.argv[2]).iterdir())
inputs = {{name: Path(sys.argv[2]) / name for name in names}}
ensemble.build(Work(CONFIG, inputs, root / "out", None, True, root / "kept", lambda: None))
"""


def test_a_real_kill_costs_the_unit_that_was_being_done(inputs, built, tmp_path):
    for name in ("out", "kept"):
        (tmp_path / "run" / name).mkdir(parents=True)
    script = KILLED.format(here=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(tmp_path / "run"), str(inputs["folds"].parent)]
    killed = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert accident.happen is None
    (tmp_path / "run" / "out").rmdir()
    done = []
    out, _ = build(tmp_path / "run", inputs, pause=lambda: done.append(1))
    assert len(done) == FOLDS * 2 - 2
    assert contents(out) == contents(built[0])
