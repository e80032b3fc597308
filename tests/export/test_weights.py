"""What `outlast export` writes is used by people who have torch and no Outlast."""

import json
import subprocess
import sys

import pytest
import torch

import outlast
from outlast.plan.exported import read_sidecar
from outlast.save.store import best_weights

WITHOUT_OUTLAST = """
import json, sys
import torch
from safetensors.torch import load_file
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'outlast':
            raise ImportError('Outlast is not here')
sys.meta_path.insert(0, Refuse())
path = sys.argv[1]
weights = load_file(path) if path.endswith('.safetensors') else torch.load(path, weights_only=True)
import timm
sidecar = json.load(open(path + '.json'))
model = timm.create_model(sidecar['model']['name'], num_classes=len(sidecar['output']['classes']))
print(model.load_state_dict(weights))
images = torch.zeros(2, *sidecar['input']['shape'][1:])
print(tuple(model.eval()(images).shape), 'outlast' in sys.modules)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("export") / "run"
    settings = ["model.name=test_resnet", "train.epochs=1", "data.image_size=32", "train.threads=1"]
    outlast.train("plants", preset="smoke", synthetic=True, out=run, overrides=settings)
    return run


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_weights_load_in_plain_torch_without_outlast(trained, tmp_path, name):
    target = tmp_path / name
    result = outlast.export_weights(trained, target)
    assert result["files"] == [str(target), f"{target}.json"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OUTLAST, str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["<All keys matched successfully>", "(2, 4) False"]


def test_exports_of_one_name_keep_a_sidecar_each(trained, tmp_path):
    whole, small = tmp_path / "best.safetensors", tmp_path / "best.pth"
    outlast.export_weights(trained, whole)
    outlast.export_weights(trained, small, half=True)
    assert "precision" not in read_sidecar(whole)
    assert read_sidecar(small)["precision"]["parameters"] == "float16"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pth", "best.pth.json", "best.safetensors", "best.safetensors.json",
    ]  # fmt: skip
    whole.with_name("best.safetensors.json").unlink()
    assert read_sidecar(whole)["task"] == "plants", "a safetensors file holds its sidecar too"


def test_the_sidecar_says_where_the_weights_come_from(trained, tmp_path):
    outlast.export_weights(trained, tmp_path / "model.pth")
    sidecar = json.loads((tmp_path / "model.pth.json").read_text())
    assert sidecar["synthetic"] is True
    assert sidecar["output"]["classes"] == ["early_blight", "healthy", "late_blight", "rust"]
    assert sidecar["input"]["shape"] == ["batch", 3, 32, 32]
    assert len(sidecar["input"]["mean"]) == 3
    assert sidecar["rung"]["rung"] == "test_resnet"
    weights = torch.load(tmp_path / "model.pth", weights_only=True)
    best = best_weights(trained / "train")[0]
    assert all(torch.equal(weights[key], best[key]) for key in best)
