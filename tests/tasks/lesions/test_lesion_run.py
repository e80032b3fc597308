"""Lesions end to end on the small set: folds, trainings, extraction and scores, quick tests and resumption."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import outlast
from outlast.base.files import read_json
from outlast.config.load import resolve
from outlast.data.shards import read_shards
from outlast.errors import CheckpointError, DataError, RunError
from outlast.loop import evaluate
from outlast.model.partial_auc import auc, partial_auc
from outlast.plan import runner
from outlast.task import Call, Predict, Train, topological
from outlast.tasks.lesions import TASK, stages
from outlast.tasks.lesions.extracted import embeddings, of_test, out_of_fold
from toys.lesion_set import ROWS, TEST_ROWS, write_set

SETTINGS = [
    "data.validation_negatives=12", "sampling.negatives_per_positive=null", "first.name=test_resnet",
    "second.name=test_efficientnet", "train.epochs=2", "train.batch_size=16", "views=flips",
]  # fmt: skip
BACKBONES = ("test_resnet", "test_efficientnet")
TEST_IDS = [f"ISIC_{ROWS + number:04d}" for number in range(TEST_ROWS)]


def train(data, out, *more, **options):
    return outlast.train(
        "lesions", data=data, out=out, preset="smoke", overrides=[*SETTINGS, *more], **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("lesions") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(evaluate, "SHARD_ROWS", 20)
    folder = tmp_path_factory.mktemp("lesions") / "run"
    train(data, folder)
    monkeypatch.undo()
    return folder


def configured(*overrides):
    return resolve(TASK.config, TASK.presets, "smoke", overrides=[*SETTINGS, *overrides])[0]


def test_the_plan_is_folds_trainings_extractions_and_what_uses_them():
    plan = {stage.name: stage for stage in topological(stages(configured("data.folds=3")))}
    trains = [name for name, stage in plan.items() if isinstance(stage, Train)]
    assert sorted(trains) == sorted(f"train-{name}-fold{fold}" for name in BACKBONES for fold in range(3))
    predicts = [f"{kind}-{backbone}" for kind in ("extract", "test") for backbone in BACKBONES]
    assert sorted(name for name, stage in plan.items() if isinstance(stage, Predict)) == sorted(predicts)
    assert all("folds" in plan[name].needs for name in [*trains, *predicts])
    assert all(stage.makes for stage in plan.values() if isinstance(stage, Call))


def test_every_row_is_predicted_once_by_the_model_that_never_saw_it_and_test_rows_by_every_model(run):
    listing = pd.read_csv(run / "folds" / "folds.csv", dtype={"id": str})
    for backbone in BACKBONES:
        extract = run / f"extract-{backbone}"
        found = out_of_fold(extract, run / "folds")
        assert found["id"].tolist() == listing["id"].tolist()
        assert found["fold"].tolist() == listing["fold"].tolist()
        tested = of_test(run / f"test-{backbone}", TEST_IDS)
        assert tested.groupby("fold")["id"].apply(list).tolist() == [TEST_IDS, TEST_IDS]
        one, two = (tested.loc[tested["fold"] == fold, "logit"].to_numpy() for fold in (0, 1))
        assert not np.allclose(one, two)
        shards = list((extract / f"train-{backbone}-fold0").glob("part-*"))
        assert len(shards) == -(-int((listing["fold"] == 0).sum()) // 20)
        assert embeddings(run / f"test-{backbone}", 0).loc[TEST_IDS].shape[0] == TEST_ROWS


def test_stored_logits_are_those_of_the_fold_s_own_best_model_over_turned_images(run, data):
    from outlast.plan.deliver import Delivered

    found = out_of_fold(run / "extract-test_resnet", run / "folds").set_index("id")
    listing = pd.read_csv(run / "folds" / "folds.csv").set_index("id")
    for fold in (0, 1):
        opened = Delivered(run, f"train-test_resnet-fold{fold}")
        examples = opened.delivery.labelled(opened.config, data, opened.facts)
        logits = pd.Series(opened.outputs(examples)["logits"], index=examples.table["id"])
        own = listing.index[listing["fold"] == fold]
        assert np.allclose(logits.loc[own], found.loc[own, "logit"], atol=1e-5)
        assert not np.allclose(logits.drop(own), found.drop(own)["logit"], atol=1e-3)


def test_scores_are_of_all_rows_of_a_fold_where_early_stopping_watched_a_part(run):
    told = pd.read_csv(run / "scores" / "folds.csv", dtype={"fold": str}).set_index(["backbone", "fold"])
    listing = pd.read_csv(run / "folds" / "folds.csv").set_index("id")
    for backbone in BACKBONES:
        found = out_of_fold(run / f"extract-{backbone}", run / "folds").set_index("id")
        for fold in (0, 1):
            own = found[found["fold"] == fold]
            labels = listing.loc[own.index, "label"].to_numpy()
            assert told.loc[(backbone, str(fold)), "pauc"] == pytest.approx(partial_auc(labels, own["logit"]), abs=1e-6)
            assert told.loc[(backbone, str(fold)), "images"] == len(own)
        pooled = auc(listing.loc[found.index, "label"].to_numpy(), found["logit"].to_numpy())
        assert told.loc[(backbone, "all"), "auc"] == pytest.approx(pooled, abs=1e-6)
        values = [told.loc[(backbone, str(fold)), "pauc"] for fold in (0, 1)]
        assert told.loc[(backbone, "sd"), "pauc"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    report = json.loads((run / "scores" / "metrics.json").read_text())
    assert report["images"] == ROWS
    assert "test_resnet_pauc" in report["metrics"]


def test_a_run_that_is_done_does_nothing_again_and_a_lost_shard_is_made_again(run, data):
    shard = run / "extract-test_resnet" / "train-test_resnet-fold1" / "part-00001.safetensors"
    others = {path: path.stat().st_mtime_ns for path in run.glob("extract-*/*/part-*") if path != shard}
    before = read_shards(shard.parent)
    shard.unlink()
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(evaluate, "SHARD_ROWS", 20)
    train(data, run)
    monkeypatch.undo()
    assert {path: path.stat().st_mtime_ns for path in others} == others
    after = read_shards(shard.parent)
    assert after[0] == before[0]
    assert all(np.array_equal(after[1][name], before[1][name]) for name in before[1])


def test_missing_predictions_and_those_of_other_folds_are_named(run, tmp_path):
    import shutil

    extract = tmp_path / "extract-test_resnet"
    shutil.copytree(run / "extract-test_resnet", extract)
    with pytest.raises(DataError, match="no prediction of 1 rows of the test set: ISIC_4711"):
        of_test(run / "test-test_resnet", [*TEST_IDS, "ISIC_4711"])
    with pytest.raises(DataError, match=f"not in the test table: {TEST_IDS[-1]}"):
        of_test(run / "test-test_resnet", TEST_IDS[:-1])
    (extract / "train-test_resnet-fold0").rename(extract / "train-test_resnet-foldx")
    (extract / "train-test_resnet-fold1").rename(extract / "train-test_resnet-fold0")
    (extract / "train-test_resnet-foldx").rename(extract / "train-test_resnet-fold1")
    with pytest.raises(DataError, match=r"has no prediction of .* rows of fold 0"):
        out_of_fold(extract, run / "folds")


def test_a_missing_checkpoint_of_a_fold_is_named(run, data, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "extract-test_resnet")
    for best in (copy / "train-test_resnet-fold1" / "best").iterdir():
        shutil.rmtree(best)
    around = None

    def stop_before_training(stage, folder, identity, surroundings, began):
        nonlocal around
        raise CheckpointError(f"{folder} would be trained again")

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(runner, "_train", stop_before_training)
    with pytest.raises(CheckpointError, match="train-test_resnet-fold1"):
        train(data, copy)
    monkeypatch.undo()


def test_a_quick_test_is_a_run_of_its_own_and_neither_goes_on_with_the_other(run, data, tmp_path):
    quick = ["quick.enabled=true", "quick.epochs=3", "quick.rows=40", "train.learning_rate=1e-8"]
    quick += ["loading.workers=2", "loading.cache_gigabytes=0"]  # both processes read the HDF5 file themselves
    out = tmp_path / "quick"
    result = train(data, out, *quick)
    assert result["status"] == "finished"
    trained = sorted(path.name for path in out.glob("train-*"))
    assert trained == [f"train-{name}-fold0" for name in sorted(BACKBONES)]
    assert not (out / "submit").exists()
    warnings = read_json(out / "run.json")["warnings"]
    assert any("train-test_resnet-fold0: the loss is" in told and "that knows nothing" in told for told in warnings)
    full = pd.read_csv(run / "folds" / "folds.csv").set_index("id")
    part = pd.read_csv(out / "folds" / "folds.csv").set_index("id")
    assert len(part) < len(full)
    assert part["fold"].equals(full.loc[part.index, "fold"])
    for folder, settings in ((out, []), (run, quick)):
        with pytest.raises(RunError, match="was begun with another configuration") as caught:
            train(data, folder, *settings)
        assert "quick.enabled" in str(caught.value)
        assert "another folder with --out" in str(caught.value)


def test_image_models_are_scored_predicted_and_exported_together(run, data, tmp_path):
    scored = outlast.evaluate(run, data=data)
    assert scored["images"] == ROWS
    assert 0.0 <= scored["metrics"]["pauc"] <= 0.2 + 1e-9
    assert len(scored["stages"]) == 4
    files = sorted((data / "train-image" / "image").iterdir())[:3]
    rows = outlast.predict(run, files, to=tmp_path / "predicted.csv")["rows"]
    assert [row["file"] for row in rows] == [str(path) for path in files]
    assert all(0 < row["probability"] < 1 for row in rows)
    outlast.export_weights(run, tmp_path / "lesions.safetensors")
    told = read_json(tmp_path / "lesions.safetensors.json")
    assert told["output"]["classes"] == ["benign", "malignant"]


def test_shards_are_cut_by_bytes_too(monkeypatch, run):
    shapes = {"logits": (), "features": (1_000_000,)}
    monkeypatch.setattr(evaluate, "output_shapes", lambda *_: shapes)
    cut = evaluate._rows_of_a_shard
    assert cut(None, None, None, None, 0, ("logits", "features"), None, None) == 16
    assert cut(None, None, None, None, 0, ("logits",), None, None) == evaluate.SHARD_ROWS
    shapes["features"] = (100_000_000,)
    assert cut(None, None, None, None, 0, ("features",), None, None) == 1


def test_predictions_that_were_cut_in_another_way_are_made_again(run, data, tmp_path):
    extract = run / "extract-test_efficientnet"
    shard = extract / "train-test_efficientnet-fold0" / "part-00000.safetensors"
    before = dict(zip(*(lambda found: (found[0], found[1]["logits"]))(read_shards(shard.parent)), strict=True))
    (extract / "stage.json").unlink()
    train(data, run)  # with shards of the usual size
    ids, arrays = read_shards(shard.parent)
    assert len(ids) == len(set(ids)) == len(before)
    assert {path.name for path in shard.parent.glob("part-*")} == {shard.name}
    for name, logit in zip(ids, arrays["logits"], strict=True):
        assert torch.isclose(torch.tensor(float(logit)), torch.tensor(float(before[name])), atol=1e-5)


def test_a_plan_can_be_made_where_the_rows_that_are_timed_hold_no_positive(data, tmp_path):
    few = ["data.validation_negatives=19", "train.batch_size=2"]
    plan = outlast.make_plan("lesions", data=data, preset="smoke", overrides=[*SETTINGS, *few])
    found = {stage["stage"]: stage for stage in plan["stages"]}
    assert set(found) == {stage.name for stage in stages(configured())}
    assert found["extract-test_resnet"]["guessed"] is None


def test_the_checks_before_training_find_nothing_wrong(data):
    found = outlast.check_task("lesions", data=data, preset="smoke", overrides=SETTINGS)
    wrong = [finding for finding in found["findings"] if finding["severity"] == "error"]
    assert not wrong
    assert not any(finding["id"] == "data.class_in_every_split" for finding in found["findings"])
