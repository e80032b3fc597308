"""Wildfires end to end on a small synthetic set: one plan gives teacher, student, student alone, and a table."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import outlast
from outlast.base.files import read_json
from outlast.config.identity import identity
from outlast.config.load import resolve
from outlast.data.augment import Augmentation
from outlast.data.table import Examples
from outlast.errors import OutlastError
from outlast.model.distillation_settings import TEACHERS
from outlast.model.lightweight import LightweightCnn, WithRegressor
from outlast.task import Inputs, Train, Trained
from outlast.tasks.wildfires import PRESETS, TASK, learner, stages
from outlast.tasks.wildfires.config import WildfiresConfig
from outlast.tasks.wildfires.synthetic import write

SETTINGS = ["teacher.train.epochs=2", "train.epochs=2", "train.threads=1", "loss.name=kl_contrastive_l2_bce"]
INPUTS = Inputs({"classes": ["fire", "smoke"]})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wildfires") / "data"
    write(folder, scenes=9, frames=8, size=32, seed=2)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wildfires") / "run"
    outlast.train("wildfires", data=data, preset="smoke", out=folder, overrides=SETTINGS)
    return folder


def configured(*overrides):
    return resolve(TASK.config, TASK.presets, "smoke", overrides=overrides)[0]


def table_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def trainings(config):
    return {stage.name: stage for stage in stages(config) if isinstance(stage, Train)}


def batch(config, count=6, seed=0):
    dice = np.random.default_rng(seed)
    side = config.data.decoded_side
    made = {
        "row": torch.arange(count),
        "rgb": torch.from_numpy(dice.integers(0, 256, (count, 3, side, side), dtype=np.uint8)),
        "ir": torch.from_numpy(dice.integers(0, 256, (count, 1, side, side), dtype=np.uint8)),
        "fire": torch.arange(count) % 2,
        "smoke": torch.arange(count) // 2 % 2,
    }
    draws = learner.draw(config, 0, 0, np.arange(count))
    return learner.augment(config, made, draws)


def test_one_plan_ends_in_a_table_of_teacher_student_and_student_alone(run):
    record = read_json(run / "run.json")
    assert (record["status"], record["synthetic"]) == ("finished", True)
    told = json.loads((run / "scores" / "models.json").read_text())
    assert list(told["models"]) == ["teacher", "student", "student-alone"]
    for name, model in told["models"].items():
        assert set(model["intervals"]) >= {"macro_f1", "macro_auc", "exact_match", "fire f1", "smoke auc"}, name
        for score, bounds in model["intervals"].items():
            if bounds is not None:
                assert 0 <= bounds[0] <= bounds[1] <= 1, score
    assert list(told["gains"]) == ["student - teacher", "student - student-alone"]
    student = told["models"]["student"]
    assert student["parameters"] == told["models"]["student-alone"]["parameters"]  # without the regressor
    assert student["parameters"] == sum(p.numel() for p in LightweightCnn(width=8).parameters())
    rows = table_of(run / "scores" / "models.csv")
    assert [row["model"] for row in rows] == list(told["models"])
    assert float(rows[1]["macro_f1"]) == pytest.approx(student["metrics"]["macro_f1"], abs=1e-4)
    overview = json.loads((run / "scores" / "overview.json").read_text())["metrics"]["per_class"]
    for row, (name, model) in zip(rows, told["models"].items(), strict=True):
        cost = overview[name]
        assert int(row["parameters"]) == cost["parameters"] == model["parameters"]
        assert cost["megabytes"] == model["bytes"] / 1e6 >= 4 * model["parameters"] / 1e6  # and running statistics
        assert float(row["milliseconds"]) == pytest.approx(cost["milliseconds"], abs=1e-3)
        assert model["latency_seconds"]["calls"] >= 20
        assert 0 < cost["milliseconds"] == 1e3 * model["latency_seconds"]["median_seconds"] < 1e4
    metrics = json.loads((run / "scores" / "metrics.json").read_text())
    assert metrics["metrics"]["macro_f1"] == student["metrics"]["macro_f1"]
    assert metrics["classes"] == ["NN", "YN", "NY", "YY"]
    assert np.sum(metrics["confusion"]) == metrics["images"] == told["images"]
    page = (run / "report.html").read_text()
    assert "fire, student-alone" in page
    assert "What each model is worth and costs" in page and "Milliseconds" in page
    assert "SYNTHETIC" in page


def test_thresholds_are_those_of_the_validation_split(run):
    """What stands in the table can be made again from the stored predictions, with thresholds from val alone."""
    from outlast.data.shards import read_shards
    from outlast.model.multilabel_metrics import multilabel, tuned_thresholds

    ids, arrays = read_shards(run / "judge-student")
    split = {row["id"]: row for row in table_of(run / "split.csv")}
    labels = np.array([[int(split[name]["fire"]), int(split[name]["smoke"])] for name in ids], np.float32)
    parts = np.array([split[name]["split"] for name in ids])
    assert set(parts) == {"val", "test"}
    cuts = tuned_thresholds(arrays["logits"][parts == "val"], labels[parts == "val"])
    expected = multilabel(arrays["logits"][parts == "test"], labels[parts == "test"], ("fire", "smoke"), cuts)
    told = json.loads((run / "scores" / "models.json").read_text())["models"]["student"]["metrics"]
    assert told["fire"]["threshold"] == cuts[0]
    assert told["macro_f1"] == pytest.approx(expected["macro_f1"])


def test_eval_scores_the_student_and_with_a_stage_the_teacher(run, data):
    student = outlast.evaluate(run, data=data)
    assert student["stages"] == ["student"]
    assert {"f1", "precision", "recall", "auc"} <= set(student["metrics"]["fire"])
    assert {"macro_f1", "macro_auc", "exact_match", "hamming", "ece", "smoke"} <= set(student["metrics"])
    teacher = outlast.evaluate(run, data=data, stage="teacher")
    assert teacher["stages"] == ["teacher"]
    assert teacher["metrics"]["loss"] != student["metrics"]["loss"]


def test_rgb_images_alone_are_predicted(run, data, tmp_path):
    folder = data / "254p RGB Images"
    result = outlast.predict(run, [folder], to=tmp_path / "out.csv")
    rows = table_of(tmp_path / "out.csv")
    assert list(rows[0]) == ["file", "probability_fire", "probability_smoke"]
    assert result["images"] == len(rows) == 72
    assert all(0 <= float(row["probability_fire"]) <= 1 for row in rows)
    assert len({row["probability_fire"] for row in rows}) > 30


def test_weights_of_the_student_are_delivered_without_what_only_its_training_needed(run, tmp_path):
    outlast.export_weights(run, tmp_path / "student.safetensors")
    from safetensors.torch import load_file

    bare = load_file(tmp_path / "student.safetensors")
    LightweightCnn(width=8, dropout=0.1).load_state_dict(bare)
    told = json.loads((tmp_path / "student.safetensors.json").read_text())
    assert told["output"]["labels"] == ["fire", "smoke"]
    assert list(told["input"]) == ["rgb", "steps"]


def test_both_pictures_are_moved_alike_and_only_rgb_is_recoloured():
    """A pair whose infrared is its first colour: moved by the same numbers it stays so, whatever the colours do."""
    spec = Augmentation(rotation_degrees=30, vertical_flip=True, saturation=0, brightness=0, contrast=0)
    config = configured().student_stage(taught=True)
    config = config.model_copy(update={"data": config.data.model_copy(update={"augment": spec})})
    side = config.data.decoded_side
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, side, side), dtype=np.uint8))
    pair = {"rgb": rgb, "ir": rgb[:, :1].clone()}
    draws = learner.draw(config, 0, 3, np.arange(5))
    moved = learner.augment(config, dict(pair), draws)
    back = moved["rgb"][:, :1] * learner.STD[0] + learner.MEAN[0]
    thermal = moved["ir"] * learner.IR_STD + learner.IR_MEAN
    assert torch.allclose(back, thermal, atol=1e-5)
    still = learner.augment(config, dict(pair), None)
    assert not torch.allclose(moved["ir"], still["ir"], atol=0.1)
    coloured = config.model_copy(
        update={"data": config.data.model_copy(update={"augment": spec.model_copy(update={"brightness": 0.5})})}
    )
    other = learner.augment(coloured, dict(pair), learner.draw(coloured, 0, 3, np.arange(5)))
    assert torch.equal(other["ir"], moved["ir"])
    assert not torch.allclose(other["rgb"], moved["rgb"], atol=0.01)


def test_the_thermal_level_is_kept():
    """A colder picture stays colder: nothing is stretched to the range of each image."""
    config = configured().teacher_stage()
    side = config.data.decoded_side
    ir = torch.stack([torch.full((1, side, side), level, dtype=torch.uint8) for level in (40, 200)])
    made = learner.augment(config, {"rgb": ir.repeat(1, 3, 1, 1), "ir": ir}, learner.draw(config, 0, 0, np.arange(2)))
    assert float(made["ir"][0].std()) == pytest.approx(0, abs=1e-5)
    assert float(made["ir"][1].mean() - made["ir"][0].mean()) == pytest.approx(160 / 255 / learner.IR_STD, rel=1e-4)


@pytest.mark.parametrize("loss", ["kl_bce", "kl_l2_bce", "kl_contrastive_l2_bce"])
def test_every_loss_trains_the_student_and_leaves_the_teacher(loss):
    config = configured(f"loss.name={loss}").student_stage(taught=True)
    own = configured().teacher_stage()
    torch.manual_seed(0)
    source = learner.model(own, INPUTS, own.model.name)
    teacher = learner.teacher(config, INPUTS, {"teacher": Trained(source.state_dict(), {})}).eval()
    samples = batch(config)
    with torch.no_grad():
        told = learner.teach(config, teacher, samples)
    model = learner.model(config, INPUTS, config.model.name)
    assert isinstance(model, WithRegressor) == (loss != "kl_bce")
    calls = []
    counted = model.student if isinstance(model, WithRegressor) else model
    counted.register_forward_hook(lambda *_: calls.append(1))
    result = learner.step(config, model, {**samples, **told})
    result["loss_sum"].backward()
    assert len(calls) == 1  # the student's forward runs once per step
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert set(result) == {"loss_sum", "weight", *config.loss.weights}
    assert learner.learner_of(config.loss).couples_batch == (loss == "kl_contrastive_l2_bce")


@pytest.mark.parametrize("name", list(TEACHERS))
def test_each_named_teacher_fits_into_the_task(name):
    """Shapes without numbers: a step of the teacher, and one of a student that learns from its logits and features."""
    config = configured(f"teacher.name={name}", "loss.name=kl_l2_bce", "data.image_size=64")
    own, taught = config.teacher_stage(), config.student_stage(taught=True)
    with torch.device("meta"):
        teacher = learner.model(own, INPUTS, own.model.name)
        student = learner.model(taught, INPUTS, taught.model.name)
        samples = {"rgb": torch.zeros(4, 3, 64, 64), "ir": torch.zeros(4, 1, 64, 64), "labels": torch.zeros(4, 2)}
        learner.step(own, teacher, samples)["loss_sum"].backward()
        with torch.no_grad():
            told = learner.teach(taught, teacher.eval(), samples)
        learner.step(taught, student, {**samples, **told})["loss_sum"].backward()
    assert all(parameter.grad is not None for model in (teacher, student) for parameter in model.parameters())


@pytest.mark.parametrize(("name", "kind"), [("test_vit", "tokens"), ("test_convnext", "towers")])
def test_tokens_and_towers_learn(name, kind):
    """As vit-b-16 and swin-tiny are fused, small ones for real: some steps on one batch bring the loss down."""
    config = configured(f"teacher.name={name}", "data.image_size=64").teacher_stage()
    torch.manual_seed(0)
    model = learner.model(config, INPUTS, name)
    assert model.kind == kind
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    samples, losses = batch(config), []
    for _ in range(12):
        result = learner.step(config, model, samples)
        losses.append(result["loss_sum"].item())
        optimizer.zero_grad()
        result["loss_sum"].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_a_teacher_that_fell_back_to_a_smaller_model_is_built_as_that(tmp_path):
    (tmp_path / "stage.json").write_text(json.dumps({"result": {"rung": "mobilenetv3_small_100"}}))
    config = configured("teacher.name=resnet18", "loss.name=kl_l2_bce").student_stage(taught=True)
    inputs = Inputs({}, {"teacher": tmp_path})
    assert learner.model(config, inputs, config.model.name).regressor.out_features == 1024
    assert learner.model(config, INPUTS, config.model.name).regressor.out_features == 512


def test_the_student_begins_with_the_same_weights_with_and_without_a_teacher():
    models = []
    for taught in (True, False):
        config = configured("loss.name=kl_l2_bce").student_stage(taught=taught)
        torch.manual_seed(3)
        models.append(learner.deploy(config, learner.model(config, INPUTS, config.model.name)))
    assert all(torch.equal(one, two) for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_teacher_does_not_depend_on_student_or_loss_and_the_lone_student_not_on_teacher_or_loss():
    """Stages of a sweep are shared where their own configuration is the same."""
    same, others = configured(), ("loss.name=kl_l2_bce", "loss.temperature=4", "student.width=12", "train.epochs=9")
    teacher = identity(trainings(same)["teacher"].config)
    assert all(identity(trainings(configured(other))["teacher"].config) == teacher for other in others)
    for other in ("train.seed=1", "teacher.name=resnet18", "teacher.train.epochs=9", "data.image_size=48"):
        assert identity(trainings(configured(other))["teacher"].config) != teacher, other
    alone = identity(trainings(same)["student-alone"].config)
    for other in ("loss.name=kl_l2_bce", "teacher.name=resnet18", "teacher.train.epochs=9"):
        assert identity(trainings(configured(other))["student-alone"].config) == alone, other
    for other in ("train.seed=1", "student.width=12"):
        assert identity(trainings(configured(other))["student-alone"].config) != alone, other


def test_early_stopping_is_on_in_every_training_of_every_preset():
    for preset in PRESETS.values():
        for stage in trainings(preset()).values():
            train = stage.config.train
            assert train.patience_epochs is not None and train.patience_epochs < train.epochs
    for stage in trainings(WildfiresConfig()).values():
        assert stage.config.train.patience_epochs == 5


def test_a_model_that_says_no_to_everything_at_one_half_still_has_a_score_that_tells_good_from_bad():
    labels = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 0]])
    scores = []
    for logits in (labels - 5, 1 - labels - 5):
        judge = learner.metric(configured().teacher_stage(), INPUTS.facts)
        judge.update({"logits": logits}, {"labels": labels})
        scores.append(judge.compute())
    assert [score["macro_f1"] for score in scores] == [0, 0]
    assert scores[0]["tuned_macro_f1"] == 1 > scores[1]["tuned_macro_f1"]


def test_small_sets_are_shown_again_within_an_epoch_each_time_cut_anew(data):
    config = configured("data.epoch_pairs=100").teacher_stage()
    found: Examples = learner.examples(config, {"data": data})
    table = found.table.iloc[:40]
    order = learner.order(config, table, 0, 0)
    assert len(order) == 120
    assert np.array_equal(np.bincount(order), np.full(40, 3))
    assert not np.array_equal(order[:40], order[40:80])
    assert not np.array_equal(order, learner.order(config, table, 0, 1))


def test_without_a_baseline_there_is_none(data):
    config: WildfiresConfig = configured("baseline=false")
    assert [stage.name for stage in stages(config)] == [
        "teacher",
        "student",
        "judge-teacher",
        "judge-student",
        "scores",
    ]


def test_images_of_another_size_and_a_missing_one(run, tmp_path):
    Image.fromarray(np.zeros((50, 80, 3), np.uint8)).save(tmp_path / "dark.png")
    assert outlast.predict(run, [tmp_path / "dark.png"], to=tmp_path / "out.csv")["images"] == 1
    with pytest.raises(OutlastError, match="there is no such file"):
        outlast.predict(run, [tmp_path / "none.png"], to=tmp_path / "out.csv")
