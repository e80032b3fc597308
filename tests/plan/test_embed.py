"""`outlast embed`: the same coordinates every time, from runs, weights files and sweeps, and what it shows is told."""

import inspect
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sklearn.manifold

import outlast
from outlast import cli
from outlast.base.files import sha256
from outlast.errors import ModelError, TaskError, UsageError
from outlast.model.projection import Tsne, Umap, project, projection
from outlast.plan.embed import chosen, runs_below
from outlast.save.store import best_weights
from toys import pair

FAST = {"iterations": 250}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of a teacher and a student. Not to be changed."""
    run = tmp_path_factory.mktemp("embed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTLAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert outlast.train("toys.pair", preset="smoke", out=run, synthetic=True)["status"] == "finished"
    return run


def shown(run, to, **settings):
    """What `embed` wrote about one run, and its table of points."""
    result = outlast.embed(run, to=to, **{**FAST, **settings})
    (made,) = result["embeddings"]
    assert result["failed"] == []
    return made, pd.read_csv(made["csv"])


def clusters(samples=60, size=6, seed=0):
    """Features of two groups that lie far apart."""
    random = np.random.default_rng(seed)
    return (random.normal(0, 1, (samples, size)) + 8 * (np.arange(samples) % 2)[:, None]).astype(np.float32)


def separation(points):
    """Distance of the two groups' centres over their mean spread."""
    one, two = points[::2], points[1::2]
    return np.linalg.norm(one.mean(0) - two.mean(0)) / np.mean([one.std(), two.std()])


# -- the methods -------------------------------------------------------------------------------------------------------


def test_tsne_gives_the_same_coordinates_under_a_seed_and_keeps_groups_apart():
    features = clusters()
    one, two, other = (project(features, Tsne(seed=seed, iterations=300)) for seed in (0, 0, 1))
    assert np.array_equal(one.points, two.points)
    assert one.points.shape == (60, 2)
    assert separation(one.points) > 2
    assert other.settings["seed"] == 1
    assert one.settings == {
        "method": "tsne", "seed": 0, "perplexity": 59 / 3, "learning_rate": 200.0, "iterations": 300
    }  # fmt: skip
    assert one.notes[0] == "perplexity 19.67 instead of 30: there are only 60 samples"


def test_umap_gives_the_same_coordinates_under_a_seed_and_another_seed_gives_others():
    features = clusters()
    one, two, other = (project(features, Umap(seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(one.points, two.points)
    assert not np.array_equal(one.points, other.points)
    assert separation(one.points) > 2
    for metric in ("manhattan", "cosine", "correlation"):
        points = project(features, projection("umap", metric=metric)).points
        assert points.shape == (60, 2) and not np.array_equal(points, one.points)


@pytest.mark.parametrize("name", ["n_iter", "max_iter"])
def test_tsne_works_with_either_name_that_scikit_learn_had_for_its_iterations(name, monkeypatch):
    given = {}

    class Fake:
        def __init__(self, **settings):
            given.update(settings)

        def fit_transform(self, features):
            return np.zeros((len(features), 2)) + np.arange(len(features))[:, None]

    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
    Fake.__signature__ = inspect.Signature([parameter])
    monkeypatch.setattr(sklearn.manifold, "TSNE", Fake)
    project(clusters(), Tsne(iterations=777))
    assert given[name] == 777 and given["learning_rate"] == 200.0 and given["random_state"] == 0
    assert not {"n_iter", "max_iter"} - {name} & set(given)


def test_a_default_that_is_too_large_is_reduced_with_a_note_and_a_given_one_is_refused():
    found = project(clusters(8), Tsne(iterations=250))
    assert found.settings["perplexity"] == pytest.approx(7 / 3)
    assert found.notes[0] == "perplexity 2.333 instead of 30: there are only 8 samples"
    with pytest.raises(UsageError, match=r"--perplexity 60 is too large for 60 samples"):
        project(clusters(), Tsne(perplexity=60))
    with pytest.raises(UsageError, match=r"--neighbours 60 is too large for 60 samples"):
        project(clusters(), Umap(neighbours=60))


def test_features_without_sense_are_refused():
    with pytest.raises(ModelError, match="the features of 1 of 60 samples are not finite"):
        project(np.where(np.arange(60)[:, None] == 3, np.nan, clusters()), Tsne())
    with pytest.raises(ModelError, match="all samples have the same features"):
        project(np.ones((20, 3)), Tsne())
    flat = clusters()
    flat[5] = 2.0
    with pytest.raises(UsageError, match="1 of 60 samples have features that are all equal"):
        project(flat, Umap(metric="correlation"))


def test_samples_are_chosen_by_the_seed_in_their_order():
    rows = chosen(5000, 2000, 0)
    assert len(rows) == 2000 and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, chosen(5000, 2000, 0))
    assert not np.array_equal(rows, chosen(5000, 2000, 1))
    assert np.array_equal(chosen(7, 2000, 0), np.arange(7))


# -- a run -------------------------------------------------------------------------------------------------------------


def test_teacher_and_student_stand_side_by_side_with_the_groups_of_the_task(trained, tmp_path):
    made, table = shown(trained, tmp_path)
    assert made["stages"] == {"teacher": "features", "student": "features"}
    assert made["images"] == 60
    assert table.groupby("stage").size().to_dict() == {"teacher": 60, "student": 60}
    assert set(table["group"]) == set(pair.OCCURRING)
    assert np.isfinite(table[["x", "y"]].to_numpy()).all()
    halves = [table[table["stage"] == stage].reset_index(drop=True) for stage in ("teacher", "student")]
    assert halves[0][["id", "group"]].equals(halves[1][["id", "group"]])
    assert not np.allclose(halves[0][["x", "y"]], halves[1][["x", "y"]])
    page = (tmp_path / "tsne.html").read_text()
    assert "smoke only (empty)" in page and "fire only (20)" in page
    assert made["synthetic"] and "SYNTHETIC DATA" in page
    assert (tmp_path / "tsne.png").read_bytes().startswith(b"\x89PNG")
    about = json.loads((tmp_path / "tsne.json").read_text())
    assert about["task"] == "toys.pair" and about["settings"]["iterations"] == 250
    assert about["stages"]["teacher"]["rung"]["rung"] == "wide"
    assert about["stages"]["student"]["rung"]["rung"] == "narrow"


def test_the_same_command_writes_the_same_files(trained, tmp_path):
    for name in ("one", "two"):
        shown(trained, tmp_path / name, stages=["teacher"], samples=40, seed=5)
    for file in ("tsne.csv", "tsne.png", "tsne.html", "tsne.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    _, table = shown(trained, tmp_path / "three", stages=["teacher"], samples=40, seed=6)
    assert set(table["id"]) != set(pd.read_csv(tmp_path / "one" / "tsne.csv")["id"])


def test_a_split_is_that_of_the_run(trained, tmp_path):
    _, table = shown(trained, tmp_path, stages=["student"], split="val")
    frozen = pd.read_csv(trained / "split-student.csv")
    assert sorted(table["id"]) == sorted(frozen.loc[frozen["split"] == "val", "id"])


def test_exported_weights_give_the_points_of_the_run_with_nothing_but_its_record(trained, tmp_path):
    made, expected = shown(trained, tmp_path / "of-the-run")
    files = [tmp_path / "teacher.safetensors", tmp_path / "student.pth"]
    for file in files:
        outlast.export_weights(trained, file, stage=file.stem)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("run.json", "config.yaml"):
        shutil.copy(trained / name, bare / name)
    _, table = shown(bare, None, stages=["teacher", "student"], weights=files)
    assert table.equals(expected)
    about = json.loads((bare / "embeddings" / "tsne.json").read_text())
    for stage, file in zip(("teacher", "student"), files, strict=True):
        said = about["stages"][stage]
        assert said["weights"] == {"file": str(file), "sha256": sha256(file)}
        assert said["step"] == best_weights(trained / stage)[1].step
    assert made["stages"] == {"teacher": "features", "student": "features"}


def test_a_model_whose_outputs_are_maps_is_refused_with_their_shapes(trained, tmp_path, monkeypatch):
    def maps(config, model, batch):
        return {"logits": batch["image"], "probabilities": batch["image"]}

    monkeypatch.setattr(pair, "STUDENT", replace(pair.STUDENT, predict=maps))
    with pytest.raises(TaskError, match=r"'student' predicts nothing that stands .* logits \(1, 8, 8\)"):
        shown(trained, tmp_path / "out", stages=["student"])
    assert not (tmp_path / "out").exists()


# -- a folder of runs --------------------------------------------------------------------------------------------------


def test_every_cell_of_a_sweep_becomes_a_figure_and_one_that_fails_is_told(trained, tmp_path, monkeypatch, capsys):
    sweep = tmp_path / "sweep"
    for cell in ("resnet/kl/seed_1", "resnet/kl/seed_2", "vit/kl/seed_1"):
        shutil.copytree(trained, sweep / cell)
    shutil.rmtree(sweep / "resnet/kl/seed_2/student/best")
    words = ["embed", sweep, "--stage", "student", "--iterations", "250", "--to", tmp_path / "figures", "--json"]
    monkeypatch.setattr(sys, "argv", ["outlast", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    result = json.loads(capsys.readouterr().out)
    assert [one["run"] for one in result["embeddings"]] == [
        str(sweep / c) for c in ("resnet/kl/seed_1", "vit/kl/seed_1")
    ]
    (failed,) = result["failed"]
    assert failed["run"] == str(sweep / "resnet/kl/seed_2") and "no best weights" in failed["error"]
    assert "t-SNE: vit/kl/seed_1" in (tmp_path / "figures/vit/kl/seed_1/tsne.html").read_text()
    assert not (tmp_path / "figures/resnet/kl/seed_2").exists()


def test_what_lies_in_a_run_is_no_cell(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "cell")
    shutil.copytree(trained, tmp_path / "cell" / "copy")
    assert runs_below(tmp_path) == [tmp_path / "cell"]
    assert runs_below(trained) == [trained]
