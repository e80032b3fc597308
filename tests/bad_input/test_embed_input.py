"""`outlast embed` with what can't be drawn: refused in one sentence, and the run stays as it was."""

import importlib.util
import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import outlast
from bad_input.conftest import CLASSES
from outlast.export.sidecar import path_of


def test_a_run_of_ordinary_classes_is_drawn_by_its_logits_and_says_so(trained, command, tmp_path):
    run, data = trained
    ended = command("embed", run, "--to", tmp_path / "out", "--iterations", "250", "--json")
    assert ended.code == 0
    (made,) = json.loads(ended.out)["embeddings"]
    assert made["stages"] == {"train": "logits"} and made["images"] == 30 and not made["synthetic"]
    assert "train: the model gives no features, so these are its logits" in made["notes"]
    assert f"showing samples of {data}, which the run was trained on" in ended.err
    page = (tmp_path / "out" / "tsne.html").read_text()
    assert "logits of train" in page and all(f"{name} (10)" in page for name in CLASSES)
    table = pd.read_csv(made["csv"])
    assert all(row.id.startswith(f"{row.group}/") for row in table.itertuples())


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--method", "pca"), ["'pca'", "tsne, umap"]),
        (("--perplexity", "0"), ["--perplexity 0", "1 or more"]),
        (("--iterations", "10"), ["--iterations 10", "250 or more"]),
        (("--learning-rate", "nan"), ["--learning-rate nan"]),
        (("--method", "umap", "--metric", "hamming"), ["--metric hamming", "correlation"]),
        (("--method", "umap", "--min-dist", "2"), ["--min-dist 2", "from 0 to 1"]),
        (("--method", "umap", "--neighbours", "1"), ["--neighbours 1"]),
        (("--method", "umap", "--perplexity", "5"), ["--perplexity", "no setting of UMAP", "--neighbours"]),
        (("--metric", "cosine"), ["--metric", "no setting of t-SNE"]),
        (("--seed", "-1"), ["--seed -1"]),
        (("--samples", "2"), ["--samples 2", "5 or more"]),
        (("--stage", "nowhere"), ["'nowhere'", "train"]),
        (("--split", "nowhere"), ["'nowhere'", "test, train, val"]),
        (("--weights", "nowhere.pth"), ["nowhere.pth", "no such file"]),
        (("--weights", "a.pth", "--weights", "b.pth"), ["2 files of weights for 1 models", "--stage"]),
    ],
)
def test_options_that_do_not_fit_are_refused(words, names, trained, refused):
    refused("embed", trained[0], *words, names=names, keeps=trained[0], code=2)


def test_a_perplexity_of_more_than_the_samples_is_refused(trained, refused, tmp_path):
    words = ("--perplexity", "30", "--samples", "20", "--to", tmp_path / "out")
    refused("embed", trained[0], *words, names=["--perplexity 30", "20 samples", "less than 20"], code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["missing", "ordinary folder", "file"])
def test_what_is_no_run_and_holds_none_is_refused(place, refused, leaves):
    run = {"missing": leaves / "nowhere", "ordinary folder": leaves, "file": leaves / "rust" / "1.jpg"}[place]
    refused("embed", run, names=[run, "not a run"], keeps=leaves)


@pytest.mark.parametrize(
    ("method", "module", "package"), [("umap", "umap", "umap-learn"), ("tsne", "plotly", "plotly")]
)
def test_a_missing_package_is_named_with_what_to_install(method, module, package, trained, refused, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else find(name, *more))
    names = [package, "not installed", f"pip install {package}"]
    refused("embed", trained[0], "--method", method, names=names, keeps=trained[0], code=2)


def test_a_run_without_weights_is_refused(a_run, refused):
    run, _ = a_run
    shutil.rmtree(run / "train" / "best")
    refused("embed", run, names=[run / "train", "no best weights"], keeps=run)


def test_a_target_that_is_a_file_is_refused(trained, refused, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused("embed", trained[0], "--to", tmp_path / "out", names=["out", "not a folder"], code=2)
    assert (tmp_path / "out").read_text() == "mine"


def test_data_of_another_place_does_not_pass_for_the_split(a_run, refused):
    run, data = a_run
    shutil.rmtree(data / "rust")
    refused("embed", run, "--data", data, "--split", "test", names=[data, "'test'", "examples"], keeps=run, code=2)


@pytest.mark.parametrize(
    "damage", ["cut safetensors", "cut pth", "other model", "other task", "other rung", "no weights"]
)
def test_weights_that_do_not_fit_are_refused(damage, trained, refused, tmp_path):
    file = tmp_path / ("model.pth" if damage == "cut pth" else "model.safetensors")
    outlast.export_weights(trained[0], file)
    beside, names = path_of(file), [file]
    said = json.loads(beside.read_text())
    if damage.startswith("cut"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "no weights":
        file = file.rename(tmp_path / "model.txt")
        names = [file, ".safetensors"]
    else:
        save_file({"a": torch.zeros(2)}, file)
        said |= {"other task": {"task": "glaciers"}, "other rung": {"rung": {"rung": "huge"}}}.get(damage, {})
        beside.write_text(json.dumps(said))
        names += {"other task": ["glaciers"], "other rung": ["huge"], "other model": ["do not fit"]}[damage]
    code = 2 if damage == "no weights" else 1
    refused("embed", trained[0], "--weights", file, names=names, keeps=trained[0], code=code)
