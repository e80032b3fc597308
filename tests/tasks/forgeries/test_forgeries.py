"""Forgeries end to end on a small synthetic set: network, classical baseline, rules, scores, eval and predict."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import outlast
from outlast.base.files import read_json
from outlast.config.load import resolve
from outlast.errors import DataError, RunError
from outlast.model.forgery_metrics import decode, optimal_f1
from outlast.tasks.forgeries import TASK, learner, samples
from outlast.tasks.forgeries.calibration import Case, calibrate, of1_by_area, scored, tabulate, told_apart
from outlast.tasks.forgeries.evidence import Evidence, Rule, decided, regions
from outlast.tasks.forgeries.judge import Judge
from outlast.tasks.forgeries.synthetic import write

SETTINGS = ["train.epochs=1", "data.samples=16", "train.threads=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forgeries") / "data"
    write(folder, cases=16, seed=1)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forgeries") / "run"
    outlast.train("forgeries", data=data, preset="smoke", out=folder, overrides=SETTINGS)
    return folder


def config(*overrides):
    return resolve(TASK.config, TASK.presets, "smoke", overrides=overrides)[0]


def stage_config(*overrides):
    return {stage.name: stage for stage in TASK.stages(config(*overrides))}["network"].config


def canvases(images, instances=None, side=128):
    made = [samples.on_canvas(image, side) for image in images]
    for number, marked in enumerate(instances or []):
        made[number]["instances"][: marked.shape[0], : marked.shape[1]] = marked
    return {name: torch.from_numpy(np.stack([one[name] for one in made])) for name in made[0]}


def evidence(mask, score):
    return Evidence(mask.astype(np.float32), score)


def test_one_plan_ends_in_scores_of_network_baseline_and_fusion(run):
    record = read_json(run / "run.json")
    assert (record["status"], record["synthetic"]) == ("finished", True)
    told = json.loads((run / "scores" / "models.json").read_text())["models"]
    assert list(told) == ["network", "classical", "fusion", "mark everything", "mark nothing"]
    for name in ("network", "classical", "fusion"):
        for metric, bounds in told[name]["intervals"].items():
            assert bounds is None or 0 <= bounds[0] <= bounds[1] <= 1, (name, metric)
    with Image.open(run / "scores" / "examples.png") as picture:
        assert min(picture.size) >= 200


def test_eval_scores_what_decides_beside_the_other_models(run, data):
    metrics = outlast.evaluate(run, data=data)["metrics"]
    assert metrics["model"] == "fusion"
    assert set(metrics["models"]) == {"network", "classical", "fusion"}
    for name in ("pixel_f1", "image_auc", "of1"):
        assert metrics[name] == metrics["models"]["fusion"][name]
        assert 0 <= metrics[name] <= 1
    alone = outlast.evaluate(run, data=data, stage="network")["metrics"]
    assert "quality" in alone


def test_predict_writes_a_submission_that_decodes_to_each_image_and_a_picture_of_it(run, data, tmp_path):
    result = outlast.predict(run, [data / "test_images"], to=tmp_path / "found")
    images = {path.stem: path for path in (data / "test_images").iterdir()}
    table = pd.read_csv(tmp_path / "found" / "submission.csv", dtype=str)
    assert list(table.columns) == ["case_id", "annotation"]
    assert set(table["case_id"]) == set(images)
    for case_id, annotation in zip(table["case_id"], table["annotation"], strict=True):
        with Image.open(images[case_id]) as image:
            decode(annotation, (image.height, image.width))
        assert (tmp_path / "found" / f"{case_id}.png").is_file()
    assert result["images"] == len(images)


def test_two_images_of_one_case_and_images_below_a_patch_are_named(run, data, tmp_path):
    (tmp_path / "other").mkdir()
    first = sorted((data / "test_images").iterdir())[0]
    (tmp_path / "other" / first.name).write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=first.stem):
        outlast.predict(run, [first, tmp_path / "other"], to=tmp_path / "found")
    Image.fromarray(np.zeros((9, 40, 3), np.uint8)).save(tmp_path / "tiny.png")
    with pytest.raises(DataError, match=r"tiny\.png.*smaller than a patch"):
        outlast.predict(run, [tmp_path / "tiny.png"], to=tmp_path / "found")


def test_a_run_whose_rules_were_not_chosen_yet_says_how_to_go_on(run, data, tmp_path):
    rules = run / "calibrate" / "calibration.json"
    text = rules.read_text()
    rules.unlink()
    try:
        with pytest.raises(RunError, match=r"calibration\.json") as caught:
            outlast.evaluate(run, data=data)
    finally:
        rules.write_text(text)
    assert "--stage network" in caught.value.hint


def test_larger_images_are_scaled_down_and_their_maps_back_up():
    assert samples.fitted(3888, 2592, 512) == (512, 341)
    assert samples.fitted(64, 74, 512) == (64, 74)
    assert samples.fitted(8000, 8, 512) == (512, 1)
    batch = samples.whole(canvases([np.zeros((300, 200, 3), np.uint8), np.zeros((50, 60, 3), np.uint8)]))
    assert batch["image"].shape[2:] == (128, 112)
    assert batch["valid"].sum(dim=(1, 2)).tolist() == [128 * 85, 50 * 60]
    values = np.zeros((128, 128), np.float32)
    values[:128, :85] = 1
    back = samples.at_original(values, (128, 85), (300, 200))
    assert back.shape == (300, 200)
    assert back.min() == 1


def test_a_crop_counts_a_region_only_with_a_whole_partner_or_when_nothing_was_left_out():
    marked = np.zeros((40, 60), np.uint8)
    for left in (2, 20, 50):
        marked[10:16, left : left + 6] = 1
    marked[30:36, 30:36] = 2
    seen = samples.known_mask(marked, (slice(0, 40), slice(0, 53)))
    assert seen[12, 4] == 1
    assert seen[12, 22] == 1
    assert seen[12, 51] == samples.UNKNOWN  # cut off
    assert seen[32, 32] == 1  # all of it is there
    alone = samples.known_mask(marked, (slice(0, 25), slice(15, 40)))
    assert alone[12, 7] == samples.UNKNOWN
    assert set(np.unique(alone)) == {0, samples.UNKNOWN}


def test_crops_are_forged_turned_and_told_what_is_known_of_them():
    dice = np.random.default_rng(0)
    images = [dice.integers(0, 256, (100, 120, 3), dtype=np.uint8) for _ in range(24)]
    settings = stage_config("data.compose.authentic=0.5").data
    batch = canvases(images)
    made = samples.crops(batch, samples.draw(0, 1, np.arange(24)), settings)
    assert made["image"].shape == (24, 3, 64, 64)
    forged = made["mask"].flatten(1).eq(1).any(dim=1)
    assert torch.equal(made["known"] == 1, forged)
    assert 0 < int(forged.sum()) < 24
    assert bool(made["valid"].all())
    again = samples.crops({name: value[3:4] for name, value in batch.items()}, samples.draw(0, 1, [3]), settings)
    assert torch.equal(again["image"][0], made["image"][3])


def test_loss_counts_neither_padding_nor_unknown_pixels():
    truth = torch.zeros(2, 8, 8)
    truth[0, :4] = 1
    counted = torch.ones(2, 8, 8)
    counted[:, :, 6:] = 0
    logits = torch.randn(2, 8, 8)
    other = torch.where(counted > 0, logits, 99.0)
    for loss in (learner.cross_entropy, learner.dice):
        assert torch.equal(loss(logits, truth, counted), loss(other, truth, counted))
    perfect = torch.where(truth > 0, 40.0, -40.0)
    assert learner.dice(perfect, truth, counted).max() < 1e-3
    assert learner.dice(logits, truth, counted)[1] == 0  # nothing was copied


def test_a_metric_of_two_processes_is_that_of_one():
    dice = torch.Generator().manual_seed(0)
    mask = (torch.rand(6, 16, 16, generator=dice) > 0.8).to(torch.uint8)
    mask[:3] = 0
    batch = {"mask": mask, "valid": torch.ones(6, 16, 16, dtype=torch.bool), "forged": torch.tensor([0, 0, 0, 1, 1, 1])}
    outputs = {"map": torch.rand(6, 20, 20, generator=dice), "score": torch.rand(6, generator=dice)}
    whole, parts = Judge(), [Judge(), Judge()]
    whole.update(outputs, batch)
    for number, part in enumerate(parts):
        rows = slice(3 * number, 3 * number + 3)
        part.update({k: v[rows] for k, v in outputs.items()}, {k: v[rows] for k, v in batch.items()})
    parts[0].merge(parts[1])
    assert parts[0].compute() == whole.compute()
    alone = Judge()
    alone.update({k: v[:3] for k, v in outputs.items()}, {k: v[:3] for k, v in batch.items()})
    assert alone.compute()["pixel_f1"] is None


def test_the_rule_is_chosen_by_of1_and_judged_on_other_groups():
    cases = []
    for number in range(12):
        mask = np.zeros((20, 20))
        mask[4:10, 4:10] = number % 2
        noise = np.zeros((20, 20))
        noise[:3, :3] = 1
        truth = (mask > 0)[None] if number % 2 else np.zeros((0, 20, 20), bool)
        network = evidence(mask if number % 2 else noise, 0.8 if number % 2 else 0.3)
        cases.append(Case(network, evidence(noise, 0.5), truth, f"g{number // 2}"))
    table = tabulate(cases, 4)
    rule, worth, held_out = calibrate(table, "network", 5)
    assert (worth, held_out) == (1.0, 1.0)
    assert np.mean(scored(cases, rule)["of1"]) == 1.0
    assert 0.3 < rule.authentic <= 0.8
    assert calibrate(table, "classical", 5)[0].weight == 1.0
    both, as_much, _ = calibrate(table, "fusion", 5)
    assert (as_much, both.score_weight) == (1.0, 0.5)  # the images do not say whom to trust: both are asked
    assert calibrate(tabulate(cases[:1], 4), "network", 5)[2] is None
    assert not told_apart(cases, {"network": (rule, worth)})["network"].separate


def test_the_of1_of_a_mask_as_one_instance_is_the_official_one():
    dice = np.random.default_rng(0)
    marked = dice.random((40, 50)) > 0.55
    truth = np.stack([np.zeros((40, 50)), np.zeros((40, 50))])
    truth[0, 3:12, 5:20], truth[1, 20:30, 30:45] = 1, 1
    for true in (truth, truth[:1], truth[:0]):
        values = of1_by_area(marked, true, (1, 6, 20, 5000))
        for area, value in zip((1, 6, 20, 5000), values, strict=True):
            mask = regions(evidence(marked, 1.0), 0.5, area)
            instances = mask[None] if mask.any() else np.zeros((0, 40, 50))
            assert value == pytest.approx(optimal_f1(instances, true), abs=1e-12)


def test_an_image_below_the_authentic_score_has_no_instance_whatever_its_map():
    mask = np.ones((10, 10))
    rule = Rule(weight=0.0, score_weight=0.0, threshold=0.5, minimum_area=4, authentic=0.6)
    assert decided(evidence(mask, 0.59), rule).shape == (0, 10, 10)
    assert decided(evidence(mask, 0.6), rule).shape == (1, 10, 10)
    assert decided(evidence(np.eye(10) * 0, 0.9), rule).shape == (0, 10, 10)
