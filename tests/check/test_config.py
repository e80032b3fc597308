"""The checks of the configuration: each fires on what can't work or hardly works, and stays silent otherwise."""

from dataclasses import replace

import numpy as np
import pytest

from outlast.check import config
from outlast.check.finding import checks_of
from toys import plan
from toys.machines import T4, found, healthy, subject

HOUR = 3600.0

# check, settings, subject, severity, words; the toy has 30 training examples in each of two stages, batches of 8
WRONG = {
    "unknown key": ("values", ("train.epoch=3",), {}, "error", ("'train.epoch'", "'train.epochs'")),
    "type": ("values", ("train.batch_size=many",), {}, "error", ("train.batch_size='many'",)),
    "range": ("values", ("train.learning_rate=-1",), {}, "error", ("train.learning_rate=-1",)),
    "no effect": ("no_effect", ("train.plateau_factor=0.1",), {}, "warning", ("train.plateau_factor has no effect",)),
    "infinite": ("half_precision_numbers", ("train.precision=fp16", "model.dropout=1e5"), {}, "error", ("65504",)),
    "zero": (
        "half_precision_numbers", ("train.precision=fp16", "model.dropout=1e-8"), {}, "error", ("model.dropout", "zero")
    ),
    "digits": ("half_precision_numbers", ("train.precision=fp16", "model.dropout=1e-6"), {}, "warning", ("digits",)),
    "micro-batch": (
        "micro_batch", ("train.micro_batch=3",), {}, "warning", ("divide", "3 passes", "divisor of 8")
    ),
    "workers": ("workers", ("loading.workers=9",), {}, "warning", ("9 loader workers for 4 cores",)),
    "long warm-up": ("warmup", ("train.warmup_fraction=0.8",), {}, "warning", ("more than half",)),
    "rate too high": ("learning_rate", ("train.learning_rate=0.5",), {}, "warning", ("high", "adamw")),
    "rate too low": (
        "learning_rate", ("train.optimizer=sgd", "train.learning_rate=1e-6"), {}, "warning", ("low", "sgd")
    ),
    "rare saves": (
        "saving", ("saving.every_minutes=300",), {"session_limit": 9 * HOUR}, "warning", ("9h00m", "every_minutes=27")
    ),
    "one copy": ("saving", ("saving.keep=1",), {}, "warning", ("saving.keep=2",)),
    "impatient": (
        "patience", ("train.patience_epochs=2", "train.evaluate_every_epochs=5"), {}, "warning", ("first evaluation",)
    ),
}  # fmt: skip

# The same of what is seen only with the data: one finding for each of the two training stages.
WRONG_FOR_THE_DATA = {
    "batch": ("batch_size", ("train.batch_size=64",), ("64", "30 samples", "'train-fold0'")),
    "few steps": ("steps", ("train.epochs=2",), ("8 steps", "2 epochs x 4 steps")),
    "many steps": ("steps", ("train.minimum_steps=6000000",), ("6,000,000 steps",)),
    "no warm-up": ("warmup", ("train.warmup_fraction=0.001",), ("rounds to no step", "160 steps")),
    "plateau": (
        "patience",
        ("train.schedule=plateau", "train.plateau_patience_epochs=50"),
        ("never be lowered", "40 epochs"),
    ),
    "patience": (
        "patience",
        ("train.patience_epochs=60", "train.minimum_steps=1"),
        ("early stopping can never", "40 epochs"),
    ),
    "average": ("average", ("train.ema_decay=0.999",), ("1000 steps", "there are 160", "train.ema_decay=0.938")),
    "evaluation": ("evaluation", ("train.evaluate_every_epochs=40",), ("once", "evaluate_every_epochs=4")),
}


@pytest.mark.parametrize("case", WRONG)
def test_it_is_found(case, tmp_path):
    name, settings, changes, severity, words = WRONG[case]
    (finding,) = found(config, name, subject(healthy(tmp_path), *settings, **changes))
    assert finding.severity == severity
    for word in words:
        assert word in f"{finding.sentence} {finding.evidence} {finding.remedy}"


@pytest.mark.parametrize("case", WRONG_FOR_THE_DATA)
def test_it_is_found_for_every_training_stage(case, tmp_path):
    name, settings, words = WRONG_FOR_THE_DATA[case]
    findings = found(config, name, subject(healthy(tmp_path), *settings))
    assert [finding.severity for finding in findings] == ["warning", "warning"]
    for word in words:
        assert word in f"{findings[0].sentence} {findings[0].evidence} {findings[0].remedy}"
    assert "'train-fold1'" in findings[1].sentence


@pytest.mark.parametrize("name", [name.partition(".")[2] for name in checks_of(config)])
def test_a_sound_configuration_is_silent(name, tmp_path):
    sound = (
        "train.precision=fp16", "train.micro_batch=4", "train.ema_decay=0.9", "train.patience_epochs=9",
        "train.schedule=plateau", "loading.workers=2",
    )  # fmt: skip
    assert found(config, name, subject(healthy(tmp_path), *sound, session_limit=9 * HOUR)) == []


def test_every_check_has_a_case():
    tried = {name for name, *_ in [*WRONG.values(), *WRONG_FOR_THE_DATA.values()]} | {"epoch"}
    assert {f"config.{name}" for name in tried} == set(checks_of(config))


def test_all_that_is_wrong_is_told_each_by_itself(tmp_path):
    about = subject(healthy(tmp_path), "train.epoch=3", "train.batch_size=0", "model.width=4")
    sentences = [finding.sentence for finding in found(config, "values", about)]
    assert len(sentences) == 3
    assert all(any(key in each for each in sentences) for key in ("train.epoch", "train.batch_size", "model.width"))


def test_with_a_wrong_configuration_the_rest_is_unchecked(tmp_path):
    about = subject(healthy(tmp_path), "train.batch_size=0")
    for name in checks_of(config):
        if name not in ("config.values", "config.no_effect"):
            (finding,) = found(config, name.partition(".")[2], about)
            assert finding.severity == "unchecked" and "the configuration is wrong" in finding.sentence


def test_a_sampler_that_hardly_shows_anything(tmp_path, monkeypatch):
    few = replace(plan.LEARNER, sampler=lambda config, table, seed, epoch: np.arange(2))
    monkeypatch.setattr(plan, "LEARNER", few)
    for epochs, count in ((14, 2), (15, 0)):  # 28 and 30 samples, 30 examples
        findings = found(config, "epoch", subject(healthy(tmp_path), f"train.epochs={epochs}"))
        assert len(findings) == count
        assert all("14 epochs of 2 samples, 30 examples" in finding.evidence for finding in findings)


def test_numbers_of_the_data_and_of_training_are_not_taken_for_the_model_s(tmp_path):
    # A normalisation by 1e5 and a weight decay of 1e-8 are computed in fp32.
    settings = ("train.precision=fp16", "train.weight_decay=1e-8", "data.val_fraction=1e-6")
    assert found(config, "half_precision_numbers", subject(healthy(tmp_path), *settings, task="plants")) == []
    settings = ("train.precision=fp16", "model.sclusterformer.stem_scales=[1, 1e-9]")
    (finding,) = found(config, "half_precision_numbers", subject(healthy(tmp_path), *settings, task="plants"))
    assert "model.sclusterformer.stem_scales=1e-09" in finding.sentence


def test_bf16_and_fp32_have_room_for_every_number(tmp_path):
    for precision in ("fp32", "bf16"):
        about = subject(healthy(tmp_path), f"train.precision={precision}", "model.dropout=1e-30")
        assert found(config, "half_precision_numbers", about) == []


def test_a_micro_batch_is_of_one_process(tmp_path):
    machine = healthy(tmp_path, gpus=(T4, T4))
    about = subject(machine, "train.batch_size=12", "train.micro_batch=4", processes=2)  # 6 each
    (finding,) = found(config, "micro_batch", about)
    assert "6 samples" in finding.sentence and "train.micro_batch=3" in finding.remedy


def test_an_image_size_that_the_patches_do_not_divide_prints_the_multiple(tmp_path):
    settings = ("model.name=sclusterformer", "data.image_size=100", "model.sclusterformer.patch_stride=8")
    (finding,) = found(config, "values", subject(healthy(tmp_path), *settings, task="plants"))
    assert "a multiple of 8 (model.sclusterformer.patch_stride=8); take 96 or 104" in finding.sentence
