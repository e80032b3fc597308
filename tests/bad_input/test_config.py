"""Bad settings and names: each is refused with the key, what is allowed and a remedy, before a run folder exists."""

from __future__ import annotations

import pickle
import socket
import time

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from bad_input.conftest import SETTINGS

CASES = {
    "unknown key": (("train.epoch=3",), ("train.epoch", "Did you mean 'train.epochs'?")),
    "a group": (("train=3",), ("'train' is a group", "train.epochs")),
    "no equals sign": (("train.epochs",), ("'train.epochs' is not of the form key=value",)),
    "wrong type": (("train.epochs=many",), ("train.epochs='many'", "integer")),
    "fraction for a whole": (("train.epochs=2.5",), ("train.epochs=2.5",)),
    "empty value": (("train.epochs=",), ("train.epochs=None",)),
    "too large": (("data.val_fraction=0.9",), ("data.val_fraction=0.9", "less than 0.5")),
    "negative": (("train.learning_rate=-1",), ("train.learning_rate=-1", "greater than 0")),
    "not a number": (("train.learning_rate=.nan",), ("train.learning_rate=nan",)),
    "not among the options": (("train.optimizer=adam",), ("train.optimizer='adam'", "'adamw' or 'sgd'")),
    "broken yaml": (("train.epochs=[3",), ("train.epochs", "YAML")),
    "a range upside down": (("data.augment.crop_scale=[1, 0.5]",), ("crop_scale", "low <= high")),
    "micro-batch above batch": (
        ("train.micro_batch=64", "train.batch_size=32"),
        ("train.micro_batch=64", "train.batch_size=32", "smaller"),
    ),
    "size and stride": (
        ("model.name=sclusterformer", "data.image_size=66"),
        ("data.image_size=66", "patch_stride=4", "multiple"),
    ),
    "stages of different lengths": (
        ("model.name=sclusterformer", "model.sclusterformer.dims=[32, 64]"),
        ("dims=(32, 64)",),
    ),
    "no stages": (
        (
            "model.name=sclusterformer",
            "model.sclusterformer.dims=[]",
            "model.sclusterformer.depths=[]",
            "model.sclusterformer.heads=[]",
        ),
        ("1-3 stages",),
    ),
    "no dims": (("model.name=sclusterformer", "model.sclusterformer.dims=[0]"), ("dims",)),
    "no heads": (("model.name=sclusterformer", "model.sclusterformer.heads=[0]"), ("heads",)),
    "no stem scale": (("model.name=sclusterformer", "model.sclusterformer.stem_scales=[0]"), ("stem_scales",)),
    "heads that don't divide": (("model.name=sclusterformer", "model.sclusterformer.heads=[5]"), ("5 heads",)),
    "unknown timm model": (("model.name=resnet81",), ("'resnet81'", "resnet18", "sclusterformer, minimal, tiny")),
    "unknown pretrained tag": (("model.name=resnet18.nothing",), ("'nothing'", "a1_in1k")),
    "weights for our own model": (("model.pretrained=true",), ("'tiny'", "model.pretrained")),
    "missing weights": (("model.name=resnet18", "model.weights=/no/such/file.pth"), ("/no/such/file.pth",)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_setting_is_named_with_what_is_allowed(name, refused_training, trained):
    settings, names = CASES[name]
    refused_training(trained[1], *settings, names=names)


def test_several_wrong_settings_are_all_listed(refused_training, trained):
    wrong = ("train.epocs=3", "train.epochs=0", "data.image_size=big", "loss.label_smoothing=1", "nonsense")
    message = refused_training(trained[1], *wrong, names=["train.epocs", "train.epochs=0", "data.image_size='big'"])
    assert "loss.label_smoothing=1" in message and "'nonsense'" in message
    assert sum(line.startswith("  - ") for line in message.splitlines()) == 5


FILES = {
    "missing": (None, "cannot be read"),
    "broken": ("train: {epochs: 3", "not valid YAML"),
    "tab": ("train:\n\tepochs: 3", "not valid YAML"),
    "list": ("- train.epochs", "key: value"),
    "unknown key": ("train:\n  epoch: 3\n", "Did you mean 'train.epochs'?"),
    "code": ("train: !!python/object/apply:os.system ['touch executed']", "not valid YAML"),
    "binary": (b"\xff\xfe\x00", "cannot be read"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_settings_file_is_named(name, refused_training, trained, tmp_path):
    content, reason = FILES[name]
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    names = [reason] if name == "unknown key" else [path, reason]
    refused_training(trained[1], "--config", path, names=names)
    assert not (tmp_path / "here" / "executed").exists()


def test_an_unknown_preset_is_refused_with_the_presets(refused_training, trained):
    refused_training(trained[1], "--preset", "smok", names=["'smok'", "Did you mean 'smoke'?", "cpu, t4, full"])


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("plant", ("'plant'", "Did you mean 'plants'?")),
        ("my_company.birds", ("my_company", "PYTHONPATH")),
        ("..plants", ("'..plants'", "dotted name")),
        ("json.decoder", ("json.decoder has no TASK",)),
    ],
)
def test_an_unknown_task_is_refused_by_name(task, names, refused, trained, tmp_path):
    refused("train", task, "--data", trained[1], "--out", tmp_path / "run", names=names, keeps=tmp_path / "run")


@pytest.mark.parametrize("text", ["nine", "9 hours", "9x", "-5", ""])
def test_a_session_limit_that_is_no_duration_is_refused(text, refused_training, trained):
    refused_training(trained[1], "--session-limit", text, names=[repr(text), "9h, 1h30m"], code=2)


def test_unknown_resume_and_stage_are_refused_with_the_choices(refused_training, trained):
    refused_training(trained[1], "--resume", "yes", names=["'yes'", "auto, must or never"], code=2)
    refused_training(trained[1], "--stage", "trian", names=["'trian'", "train, test, scores"], code=2)


def test_a_stage_whose_needs_are_not_done_is_refused(refused_training, trained):
    refused_training(trained[1], "--stage", "test", names=["'test' needs train", "--stage train"], code=2)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_pretrained_weights_without_internet_are_refused_at_once(refused_training, trained, monkeypatch, tmp_path):
    def unresolved(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    began = time.monotonic()
    settings = ("model.name=convnext_atto", "model.pretrained=true")
    refused_training(trained[1], *settings, names=["'convnext_atto'", "can't be fetched", "model.weights="])
    assert time.monotonic() - began < 20


def test_weights_of_another_model_are_refused_with_their_tensors(refused_training, trained, tmp_path):
    save_file({"stem.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    settings = ("model.name=resnet18", f"model.weights={tmp_path / 'other.safetensors'}")
    refused_training(trained[1], *settings, names=["other.safetensors", "conv1.weight", "stem.weight"])


class Malicious:
    """Its unpickling would leave a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(refused_training, trained, tmp_path, how):
    path, mark = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"conv1.weight": Malicious(mark)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    message = refused_training(trained[1], "model.name=resnet18", f"model.weights={path}", names=[path, "weights file"])
    assert "weights_only" not in message  # torch would advise to load it with its code
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["missing", "text", "another model", "a pickle"])
def test_weights_to_start_from_that_do_not_fit_are_refused(refused_training, trained, tmp_path, kind):
    path = tmp_path / "start.safetensors"
    if kind == "text":
        path.write_text("weights")
    elif kind == "another model":
        save_file({"stem.weight": torch.zeros(3, 3)}, path)
    elif kind == "a pickle":
        torch.save({"stem.weight": torch.zeros(3, 3)}, path)
    refused_training(trained[1], "--start-from", path, names=path)


def test_a_model_that_does_not_take_the_image_size_is_refused(refused_training, trained):
    settings = ("model.name=inception_v3", "data.image_size=32")
    refused_training(trained[1], *settings, names=["'inception_v3'", "32x32", "image size"])


def test_a_setting_without_effect_warns(command, trained, tmp_path):
    words = ("train", "plants", "--data", trained[1], "--out", tmp_path / "run", *SETTINGS)
    ended = command(*words, "train.plateau_factor=0.3")
    assert ended.code == 0, ended.err
    assert "train.plateau_factor has no effect" in ended.err
