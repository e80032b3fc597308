"""The glaciers task end to end on a few synthetic tiles: stages, folds, members, scores, maps, submissions."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

import outlast
from outlast.data.raster import read_header
from outlast.errors import DataError, DataNotFoundError, ModelError, UsageError
from outlast.tasks.glaciers import TASK, synthetic
from outlast.tasks.glaciers.config import GlaciersConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*Use `@` matmul.*:PendingDeprecationWarning")

QUICK = (
    "train.epochs=2", "train.batch_size=5", "model.encoder=plain", "model.width=8", "model.depth=3", "train.threads=1",
    "loading.workers=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Fourteen tiles of 64 px: ten to train on, four to be judged on."""
    folder = tmp_path_factory.mktemp("tiles") / "set"
    synthetic.write(folder, scenes=1, rows=2, columns=7)
    return folder


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches") / "hkh"
    synthetic.write_hkh(folder, scenes=2, rows=2, columns=2)
    return folder


@pytest.fixture(scope="module")
def run(tiles, tmp_path_factory):
    """A finished run on them, with the default single model."""
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTLAST_CACHE", str(out.parent / "cache"))
        result = outlast.train("glaciers", data=tiles, out=out, preset="smoke", overrides=QUICK)
    assert result["status"] == "finished"
    return out


def only(tiles, split, to):
    """A copy of the tiles of one split."""
    index = [line.split(",") for line in (tiles / "index.csv").read_text().splitlines()[1:]]
    for name in (name for name, own in index if own == split):
        for folder in (path for path in tiles.iterdir() if path.is_dir()):
            (to / folder.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, to / folder.name / name)
    return to


def test_a_run_judges_the_tiles_that_it_did_not_train_on(run):
    metrics = json.loads((run / "scores/metrics.json").read_text())
    assert metrics["split"] == "val" and metrics["images"] == 4 and metrics["synthetic"] is True
    assert set(metrics["metrics"]["iou"]) == {"background", "ice", "debris", "lake"}
    lines = [json.loads(line) for line in (run / "finetune/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        shares = [line[f"train_share_{name}"] for name in ("background", "ice", "debris", "lake")]
        assert sum(shares) == pytest.approx(1), "the shares of the classes that the epoch really showed"
        assert line["train_weight_mcc"] == pytest.approx(0.25)
        assert 0 <= line["val_iou_ice"] <= 1
    mix = metrics["sampling"]["finetune"]
    assert sum(share["wanted"] for share in mix.values()) == pytest.approx(1)
    assert sum(share["shown"] for share in mix.values()) == pytest.approx(1)
    assert mix["debris"]["shown"] > 0.07, "more than the 0.066 of all pixels, though a crop is a whole tile here"
    assert "Predictions next to truth" in (run / "report.html").read_text()


def test_what_eval_says_of_the_judged_tiles_is_what_the_run_says(run, tiles, tmp_path):
    judged = only(tiles, "val", tmp_path / "judged")
    said = outlast.evaluate(run, data=judged)
    scored = json.loads((run / "scores/metrics.json").read_text())["metrics"]
    assert said["metrics"]["mcc"] == scored["mcc"]
    assert said["metrics"]["confusion"] == scored["confusion"] if "confusion" in scored else True
    one = outlast.evaluate(run, data=judged, stage="finetune")
    assert one["stages"] == ["finetune"]
    with pytest.raises(UsageError, match="no training stage 'finetun'"):
        outlast.evaluate(run, data=judged, stage="finetun")


def test_other_bands_than_those_trained_on_are_refused_by_name(run, tiles, tmp_path):
    judged = only(tiles, "val", tmp_path / "judged")
    shutil.rmtree(judged / "Band5")
    with pytest.raises(DataError, match="Band5"):
        outlast.evaluate(run, data=judged)


def test_a_map_has_the_georeference_of_its_scene_and_the_classes_of_the_tiles(run, tiles, tmp_path):
    judged = only(tiles, "val", tmp_path / "judged")
    said = outlast.predict(run, [judged], to=tmp_path / "maps")
    assert said["images"] == 4
    confusion = np.zeros((4, 4), np.int64)
    for row in said["rows"]:
        with (
            rasterio.open(tmp_path / "maps" / row["file"]) as made,
            rasterio.open(judged / "Band1" / row["file"]) as given,
        ):
            assert (made.crs, made.transform, made.bounds) == (given.crs, given.transform, given.bounds)
            classes = made.read(1)
        with rasterio.open(judged / "label" / row["file"]) as label:
            truth = label.read(1)
        assert set(np.unique(classes)) <= {0, 85, 170, 255}
        np.add.at(confusion, (truth.ravel() // 85, classes.ravel() // 85), 1)
    observed = np.array(json.loads((run / "scores/metrics.json").read_text())["confusion"])
    # What was never observed is not scored, and is background on a map.
    assert (confusion[:, 1:] == observed[:, 1:]).all()
    provenance = json.loads((tmp_path / "maps/provenance.json").read_text())
    assert provenance["synthetic"] is True and provenance["rung"]["rung"] == "plain"


def test_a_scene_larger_than_a_tile_is_predicted_in_one_piece(run, tiles, tmp_path):
    names = sorted(path.name for path in (tiles / "Band1").iterdir())[:2]
    bands = [
        np.concatenate([rasterio.open(tiles / f"Band{k}" / name).read(1) for name in names], axis=1)
        for k in range(1, 6)
    ]
    with rasterio.open(tiles / "Band1" / names[0]) as first:
        profile = {**first.profile, "width": bands[0].shape[1], "count": 5}
    (tmp_path / "scene").mkdir()
    with rasterio.open(tmp_path / "scene/wide.tif", "w", **profile) as wide:
        wide.write(np.stack(bands))
    outlast.predict(run, [tmp_path / "scene/wide.tif"], to=tmp_path / "maps")
    header = read_header(tmp_path / "maps/wide.tif")
    assert (header.height, header.width) == bands[0].shape


def test_the_submission_gives_the_same_maps_without_outlast(run, tiles, tmp_path):
    judged = only(tiles, "val", tmp_path / "judged")
    outlast.predict(run, [judged], to=tmp_path / "maps")
    outlast.export_weights(run, tmp_path / "solution.zip")
    alone = tmp_path / "alone"
    with zipfile.ZipFile(tmp_path / "solution.zip") as packed:
        packed.extractall(alone)
    code = (
        "import sys; sys.modules['outlast'] = None\nimport solution; solution.maskgeration(sys.argv[1], sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, str(judged), str(tmp_path / "masks")]
    done = subprocess.run(command, cwd=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path in sorted((judged / "Band1").iterdir()):
        with (
            rasterio.open(tmp_path / "masks" / path.name) as mask,
            rasterio.open(tmp_path / "maps" / path.name) as mine,
        ):
            assert (mask.read(1) == mine.read(1)).all()


def test_pretraining_members_and_folds_make_one_plan_and_one_ensemble(tiles, patches, tmp_path):
    result = outlast.train(
        "glaciers", data=[f"pretrain={patches}"], out=tmp_path / "run", preset="smoke",
        overrides=[
            f"finetune={tiles}", *QUICK, "train.epochs=1", "pretrain.enabled=true", "pretrain.train.epochs=1",
            "data.folds=2", "members=[plain, resnet18]", "tta=none",
        ],
    )  # fmt: skip
    assert list(result["stages"]) == [
        "pretrain-plain", "pretrain-resnet18", "finetune-plain-fold0", "finetune-resnet18-fold0", "judge-fold0",
        "finetune-plain-fold1", "finetune-resnet18-fold1", "judge-fold1", "test", "scores",
    ]  # fmt: skip
    begun = json.loads((tmp_path / "run/finetune-plain-fold1/begun.json").read_text())
    assert begun["from"] == "pretrain-plain" and begun["complete"]
    fates = {tensor["name"]: tensor["status"] for tensor in begun["tensors"]}
    assert fates["net.down.0.0.weight"] == "loaded" and fates["mean"] == "kept"
    scores = json.loads((tmp_path / "run/scores/metrics.json").read_text())
    assert scores["split"] == "out of fold" and scores["images"] == 14
    said = outlast.evaluate(tmp_path / "run", data=tiles)
    assert len(said["stages"]) == 4, "two members of two folds are delivered together"
    # The patches are not needed any more: what was learned from them is there.
    shutil.move(patches, tmp_path / "elsewhere")
    again = outlast.train(
        "glaciers", data={"finetune": tiles}, out=tmp_path / "run", preset="smoke",
        overrides=[
            *QUICK, "train.epochs=1", "pretrain.enabled=true", "pretrain.train.epochs=1", "data.folds=2",
            "members=[plain, resnet18]", "tta=none",
        ],
    )  # fmt: skip
    shutil.move(tmp_path / "elsewhere", patches)
    assert again["status"] == "finished"


def test_pretraining_without_patches_says_how_to_give_them(tiles, tmp_path):
    with pytest.raises(DataNotFoundError, match="no HKH patches") as caught:
        outlast.train(
            "glaciers", data=tiles, out=tmp_path / "run", preset="smoke", overrides=[*QUICK, "pretrain.enabled=true"]
        )
    assert "--data pretrain=DIR" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_pretrained_bands_that_do_not_match_are_refused_unless_asked_for(tiles, patches, tmp_path):
    def train(*more):
        return outlast.train(
            "glaciers", data={"pretrain": patches, "finetune": tiles}, out=tmp_path / "run", preset="smoke",
            overrides=[
                *QUICK, "train.epochs=1", "pretrain.enabled=true", "pretrain.train.epochs=1", "tta=none",
                "bands.texture=true", *more,
            ],
        )  # fmt: skip

    with pytest.raises(ModelError) as caught:
        train()
    assert "pretrain.partial=true" in caught.value.hint
    shutil.rmtree(tmp_path / "run")
    train("pretrain.partial=true")
    begun = json.loads((tmp_path / "run/finetune/begun.json").read_text())
    first = next(tensor for tensor in begun["tensors"] if tensor["name"] == "net.down.0.0.weight")
    assert first["status"] == "remapped" and first["fresh"] == [5, 6], "the textures' channels begin anew"


def test_presets_are_what_the_page_says_of_them():
    assert TASK.presets["full"]().data.folds == 5
    members = [stage.name for stage in TASK.stages(TASK.presets["full"]()) if stage.name.startswith("finetune")]
    assert len(members) == 15
    with pytest.raises(ValueError, match="boundary_head"):
        GlaciersConfig.model_validate({"loss": {"boundary_head": 0.1}, "model": {"boundary_head": False}})


@pytest.mark.real_data
def test_real_tiles_train_and_are_judged(real_data, tmp_path):
    out = tmp_path / "run"
    outlast.train(
        "glaciers", data=real_data / "glaciers/everest", out=out, preset="smoke", overrides=[*QUICK, "train.epochs=1"]
    )
    metrics = json.loads((out / "scores/metrics.json").read_text())
    assert metrics["images"] == 22 and metrics["synthetic"] is False
    assert metrics["metrics"]["pixels"] == 22 * 64 * 64


def test_it_needs_nothing_from_this_machine(run):
    assert not [path for path in run.rglob("*.json") if str(Path.home()) in path.read_text(encoding="utf-8")]
