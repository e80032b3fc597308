"""A solution.zip runs in an empty folder with torch, numpy and rasterio, and gives the masks of this process."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from torch import nn

from outlast.errors import ConfigError, ModelError, UsageError
from outlast.export import solution
from outlast.export.program import capture
from outlast.export.solution import Prepare, export_solution
from outlast.model.mosaic import FLIPS, ensemble, predict_scene, tta

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # rasterio's use of affine

BANDS = [f"Band{number}" for number in range(1, 6)]
TILE, OVERLAP = 32, 12
SIZES = {"first.tif": (48, 70), "second.TIF": (32, 32), "third.tif": (20, 41)}

# Refuses Outlast and whatever else a jury's machine need not have, then calls the function the way a jury does.
JURY = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("outlast", "segmentation_models_pytorch", "timm", "pydantic", "safetensors"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import warnings
warnings.simplefilter("error")
warnings.simplefilter("ignore", PendingDeprecationWarning)  # rasterio's use of affine
from solution import PROVENANCE, maskgeration
said = []
for images, out in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        said.append([path.name for path in maskgeration(images, out)])
    except ValueError as error:
        said.append(str(error))
assert "outlast" not in sys.modules
print(json.dumps({"said": said, "provenance": PROVENANCE}))
"""

TEXTURE = """
import numpy as np
from pydantic import Field
from outlast.config.schema import Settings
from outlast.errors import DataError


class Texture(Settings):
    window: int = Field(1, ge=1, description="pixels from one to the other")
    scale: float = Field(7.0, ge=0)


def with_texture(bands, settings, band):
    if not 0 <= band < len(bands):
        raise DataError(f"no band {band}")
    beside = np.roll(bands[[band]], settings.window, axis=2)
    return np.concatenate([bands, (bands[[band]] - beside) * np.float32(settings.scale)])
"""
PREPARED = """
from outlast.data.texture import Texture, with_texture


def prepared(bands, settings, band):
    return with_texture(bands, Texture(**settings), band)
"""


class Tiny(nn.Module):
    """Raw bands with NaN to logits, with what real networks have: statistics, normalisation, another size inside."""

    def __init__(self, channels=5, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.register_buffer("mean", torch.full((1, channels, 1, 1), 120.0))
            self.first = nn.Conv2d(channels, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.second = nn.Conv2d(8, 8, 3, padding=1, stride=2)
            self.last = nn.Conv2d(16, 4, 1)
            nn.init.normal_(self.last.weight, std=3.0)

    def forward(self, images):
        features = self.norm(self.first(torch.nan_to_num((images - self.mean) / 60.0))).relu()
        deep = nn.functional.interpolate(self.second(features).relu(), size=images.shape[2:], mode="bilinear")
        place = torch.linspace(-1, 1, images.shape[3], device=images.device)
        return {"logits": self.last(torch.cat([features, deep], dim=1)) + place, "boundary": features[:, :1]}


def write_tiles(folder, dtype="uint8", fill=0, tagged=True):
    """Tiles in the layout of the competition; returns what was written, NaN where nothing was observed."""
    random = np.random.default_rng(0)
    written = {}
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        bands = random.integers(1, 255, size=(len(BANDS), height, width)).astype(np.float32)
        bands[:, : height // 3, : width // 4] = np.nan
        bands[1, :, -3:] = np.nan
        for band, values in zip(BANDS, bands, strict=True):
            path = folder / band / name
            path.parent.mkdir(parents=True, exist_ok=True)
            place = {"crs": "EPSG:32645", "transform": from_origin(5e5 + 1000 * number, 3e6, 30, 30)}
            place |= {"nodata": fill} if tagged else {}
            with rasterio.open(
                path, "w", driver="GTiff", count=1, height=height, width=width, dtype=dtype, **place
            ) as dataset:
                dataset.write(np.nan_to_num(values, nan=fill).astype(dtype), 1)
        written[name] = bands
    return written


def expected_mask(networks, bands, kinds=("identity",)):
    """The mask that the networks give in this process."""

    def member(network):
        return lambda images: network(images)["logits"].softmax(1)

    _, height, width = bands.shape
    forward = tta(ensemble([member(network) for network in networks]), kinds)
    classes = np.zeros((height, width), dtype=np.uint8)
    settings = {"classes": 4, "tile": TILE, "overlap": OVERLAP, "batch": 8, "budget_bytes": 2**30, "device": "cpu"}
    for y, x, probabilities in predict_scene(
        forward, lambda y, x, h, w: bands[:, y : y + h, x : x + w], height, width, len(bands), **settings
    ):
        rows, columns = probabilities.shape[1:]
        classes[y : y + rows, x : x + columns] = probabilities.argmax(0)
    return classes * np.uint8(85)


def run_alone(archive, empty, *calls):
    """Unpack into an empty folder and call it there with each (images, out), isolated from Outlast and environment."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(empty)
    command = [sys.executable, "-I", "-c", JURY, str(empty), *(str(path) for call in calls for path in call)]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1), dataset.profile, dataset.bounds


SIDECAR = {
    "task": "glaciers",
    "run": "runs/it's one",
    "config_hash": "ab12",
    "data": {"data": "f00"},
    "synthetic": True,
}


def export(networks, to, **more):
    return export_solution(
        networks, to, **{"channels": BANDS, "tile": TILE, "overlap": OVERLAP, "sidecar": SIDECAR, **more}
    )


NETWORKS = [Tiny(seed=seed).eval() for seed in (1, 2)]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """What a jury gets: masks, the same again, and the answer to a folder with missing files."""
    root = tmp_path_factory.mktemp("judged")
    written = write_tiles(root / "tiles")
    write_tiles(root / "broken")
    (root / "broken" / "Band2" / "first.tif").unlink()
    (root / "broken" / "Band4" / "third.tif").unlink()
    archive = export(NETWORKS, root / "solution.zip", tta=FLIPS)
    calls = [("tiles", "masks"), ("tiles", "again"), ("broken", "never"), ("nowhere", "never")]
    answer = run_alone(archive, root / "empty", *((root / images, root / out) for images, out in calls))
    return root, written, answer


def test_runs_alone_and_gives_the_masks_of_this_process_on_the_place_of_band_1(judged):
    root, written, answer = judged
    assert answer["said"][0] == sorted(SIZES) and answer["provenance"] == SIDECAR
    assert sorted(path.name for path in (root / "masks").iterdir()) == sorted(SIZES)
    for name, bands in written.items():
        made, profile, bounds = read(root / "masks" / name)
        _, reference, where = read(root / "tiles" / "Band1" / name)
        assert profile["dtype"] == "uint8" and profile["count"] == 1 and profile["nodata"] is None
        assert (profile["crs"], profile["transform"], bounds) == (reference["crs"], reference["transform"], where)
        expected = expected_mask(NETWORKS, bands, FLIPS)
        nothing = np.isnan(bands).all(axis=0)
        assert nothing.any() and (made[nothing] == 0).all()
        np.testing.assert_array_equal(made[~nothing], expected[~nothing])
        assert len(np.unique(made)) >= 3, "the networks must tell classes apart for this to mean anything"


def test_a_second_run_and_a_second_export_give_the_same_bytes(judged, tmp_path):
    root, _, _ = judged
    for name in SIZES:
        assert (root / "masks" / name).read_bytes() == (root / "again" / name).read_bytes()
    again = export(NETWORKS, tmp_path / "other name.zip", tta=FLIPS)
    assert again.read_bytes() == (root / "solution.zip").read_bytes()


def test_missing_files_are_all_named_before_anything_is_written(judged):
    root, _, answer = judged
    _, _, broken, nowhere = answer["said"]
    assert "Band2/first.tif" in broken and "Band4/third.tif" in broken
    assert all(f"nowhere/{band}" in nowhere for band in BANDS)
    assert not (root / "never").exists()


def test_half_precision_halves_the_file_and_keeps_statistics_whole(tmp_path):
    class Wide(Tiny):
        def __init__(self):
            super().__init__()
            self.mean += 70_000.0  # does not fit into float16
            self.wide = nn.Conv2d(16, 4, 31, padding=15)

        def forward(self, images):
            logits = super().forward(images + 70_000.0)["logits"]
            return {"logits": logits + 1e-3 * self.wide(torch.cat([logits] * 4, dim=1))}

    network = Wide().eval()
    sizes = {}
    for half in (False, True):
        archive = export([network], tmp_path / f"{half}.zip", half=half)
        with zipfile.ZipFile(archive) as packed, packed.open("solution_weights/0.pth") as stream:
            sizes[half] = packed.getinfo("solution_weights/0.pth").file_size
            tensors = torch.load(stream, weights_only=True)
    assert sizes[True] < 0.55 * sizes[False]
    assert tensors["network.wide.weight"].dtype == torch.float16
    assert tensors["network.norm.running_var"].dtype == torch.float32
    torch.testing.assert_close(tensors["network.mean"], network.mean)
    written = write_tiles(tmp_path / "tiles")
    run_alone(tmp_path / "True.zip", tmp_path / "empty", (tmp_path / "tiles", tmp_path / "masks"))
    same = [
        read(tmp_path / "masks" / name)[0] == np.where(np.isnan(bands).all(axis=0), 0, expected_mask([network], bands))
        for name, bands in written.items()
    ]
    assert np.concatenate([part.ravel() for part in same]).mean() > 0.99


def test_channels_that_are_computed_go_along_and_a_fill_without_a_tag_is_nothing_observed(tmp_path):
    written = write_tiles(tmp_path / "tiles", dtype="int16", fill=-9999, tagged=False)
    network = Tiny(channels=6).eval()
    sources = {"texture": TEXTURE, "prepared": PREPARED}
    prepare = Prepare("prepared", "prepared", 1, sources, {"settings": {"scale": 0.5}, "band": 3})
    archive = export([network], tmp_path / "solution.zip", prepare=prepare, fills=[-9999.0] * 5)
    run_alone(archive, tmp_path / "empty", (tmp_path / "tiles", tmp_path / "masks"))
    for name, bands in written.items():
        added = (bands[[3]] - np.roll(bands[[3]], 1, axis=2)) * np.float32(0.5)
        nothing = np.isnan(bands).all(axis=0)
        expected = expected_mask([network], np.concatenate([bands, added]))
        made = read(tmp_path / "masks" / name)[0]
        assert nothing.any() and (made[nothing] == 0).all()
        np.testing.assert_array_equal(made[~nothing], expected[~nothing])


def test_folds_of_one_architecture_share_its_source(tmp_path):
    archive = export([Tiny(seed=seed).eval() for seed in range(3)], tmp_path / "solution.zip")
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
        text = packed.read("solution.py").decode()
    assert [name for name in names if "network" in name] == ["solution_parts/network_0.py"]
    assert [name for name in names if "weights" in name] == [f"solution_weights/{number}.pth" for number in range(3)]
    assert text.index("config_hash") < text.index("def maskgeration")


def test_weights_beyond_the_limit_are_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(solution, "LIMIT_BYTES", 10_000)
    with pytest.raises(ModelError, match=r"2 networks take 0\.0 MB, the limit is 0\.01 MB"):
        export([Tiny().eval(), Tiny().eval()], tmp_path / "solution.zip")
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_that_of_the_rules():
    assert solution.LIMIT_BYTES == 300 * 10**6


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"channels": BANDS[:4]}, ModelError, "can't take images"),
        ({"channels": ["Band1", "Band1"]}, ConfigError, "once"),
        ({"fills": [None]}, ConfigError, "fill value"),
        ({"overlap": TILE}, ConfigError, "overlap"),
        ({"tta": ["upside"]}, ConfigError, "augmentation"),
        ({"budget_bytes": 1000}, ConfigError, "least"),
        ({"prepare": Prepare("a", "b", 0, {"a": "import scipy.ndimage"})}, ModelError, "scipy"),
        ({"prepare": Prepare("a", "b", 0, {"a": "from outlast.data.raster import x"})}, ModelError, "outlast"),
    ],
)
def test_what_would_fail_there_fails_here(tmp_path, wrong, kind, said):
    with pytest.raises(kind, match=said):
        export([Tiny().eval()], tmp_path / "solution.zip", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_only_a_zip_file_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"\.zip"):
        export([Tiny()], tmp_path / "solution.py")


class Counting(Tiny):
    def forward(self, images):
        self.mean.add_(1.0)
        return super().forward(images)["logits"]


class Deciding(Tiny):
    def forward(self, images):
        logits = super().forward(images)["logits"]
        return logits if torch.nan_to_num(images).sum() > 0 else -logits


class Narrow(Tiny):
    def forward(self, images):
        return super().forward(images)["logits"][:, :3]


class Gaps(Tiny):
    def forward(self, images):
        return super().forward(images)["logits"] + images[:, :1]


class Random(Tiny):
    def forward(self, images):
        logits = super().forward(images)["logits"]
        return logits + torch.rand_like(logits)


@pytest.mark.parametrize(
    ("network", "said"),
    [(Counting, "differs"), (Deciding, "traced"), (Narrow, "4 classes"), (Gaps, "NaN"), (Random, "differs")],
)
def test_a_network_that_would_not_give_the_same_there_is_refused(network, said):
    with pytest.raises(ModelError, match=said):
        capture(network().eval(), 5, 4, TILE)


def test_capturing_leaves_the_network_as_it_was():
    network = Tiny().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    capture(network, 5, 4, TILE)
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_program_runs_with_any_number_of_images():
    network = Tiny().eval()
    program = capture(network, 5, 4, TILE)
    assert Path(__file__).stem not in program.source
    for count in (1, 2, 5):
        images = torch.rand(count, 5, TILE, TILE) * 255
        with torch.inference_mode():
            torch.testing.assert_close(program.run(images), network(images)["logits"].softmax(1))
