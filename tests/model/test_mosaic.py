"""A scene in tiles: the blend is right, depends on no setting of memory, and stays within its budget."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from outlast.errors import ConfigError, ModelError
from outlast.model.mosaic import ALL, DIHEDRAL, FLIPS, WINDOWS, ensemble, fit, predict_scene, tta

CLASSES, CHANNELS = 4, 3
PLENTY = 2**30


def forward(images):
    """A network that sees where in the tile it is, takes NaN, and mixes neighbours: wrong blends show."""
    images = torch.nan_to_num(images, nan=0.25)
    size = images.shape[-1]
    place = torch.linspace(-1, 1, size)[:, None] * torch.linspace(0, 2, size)[None, :]
    kernel = torch.linspace(-1, 1, CLASSES * CHANNELS * 9).reshape(CLASSES, CHANNELS, 3, 3)
    places = place * torch.arange(CLASSES)[:, None, None]
    return (torch.nn.functional.conv2d(images, kernel, padding=1) + places).softmax(1)


def scene(height, width, seed=0):
    random = np.random.default_rng(seed)
    bands = random.normal(size=(CHANNELS, height, width)).astype(np.float32)
    bands[:, : height // 7, : width // 3] = np.nan
    return bands


def reader(bands):
    def read(y, x, height, width):
        assert y >= 0 and x >= 0 and y + height <= bands.shape[1] and x + width <= bands.shape[2]
        return bands[:, y : y + height, x : x + width]

    return read


def whole(bands, *, tile, overlap, batch=4, budget_bytes=PLENTY, network=forward, **more):
    """The scene put together, and the rows as they came."""
    _, height, width = bands.shape
    made = np.full((CLASSES, height, width), np.nan, dtype=np.float32)
    came = []
    for y, x, probabilities in predict_scene(
        network,
        reader(bands),
        height,
        width,
        CHANNELS,
        classes=CLASSES,
        tile=tile,
        overlap=overlap,
        batch=batch,
        budget_bytes=budget_bytes,
        device="cpu",
        **more,
    ):
        target = made[:, y : y + probabilities.shape[1], x : x + probabilities.shape[2]]
        assert target.shape == probabilities.shape and np.isnan(target).all(), "rows are given once, inside the scene"
        target[:] = probabilities
        came.append((y, x, *probabilities.shape[1:]))
    assert np.isfinite(made).all()
    return made, came


def in_memory(bands, *, tile, overlap, window):
    """The reference: weighted sums over the whole scene in float64, divided by the sum of the weights."""
    _, height, width = bands.shape
    padded = np.full((CHANNELS, max(height, tile), max(width, tile)), np.nan, dtype=np.float32)
    padded[:, :height, :width] = bands
    centres = (np.arange(tile) + 0.5) / tile
    profile = {"hann": np.sin(np.pi * centres) ** 2, "cosine": np.sin(np.pi * centres), "flat": np.ones(tile)}[window]
    weight = np.outer(profile, profile)
    total, weights = np.zeros((CLASSES, *padded.shape[1:])), np.zeros(padded.shape[1:])

    def begins(size):
        step, found = tile - overlap, [0]
        while found[-1] + tile < size:
            found.append(min(found[-1] + step, size - tile))
        return found

    for y in begins(height):
        for x in begins(width):
            place = (slice(y, y + tile), slice(x, x + tile))
            image = torch.from_numpy(padded[(slice(None), *place)][None].copy())
            total[(slice(None), *place)] += forward(image)[0].numpy() * weight
            weights[place] += weight
    return (total / weights)[:, :height, :width]


@pytest.mark.parametrize("window", sorted(WINDOWS))
@pytest.mark.parametrize(("height", "width"), [(101, 83), (32, 32), (33, 90), (20, 75), (11, 9), (64, 1)])
def test_equals_the_blend_of_the_whole_scene_in_memory(window, height, width):
    bands = scene(height, width)
    made, _ = whole(bands, tile=32, overlap=12, window=window)
    reference = in_memory(bands, tile=32, overlap=12, window=window)
    np.testing.assert_allclose(made, reference, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(made.argmax(0), reference.argmax(0))


@pytest.mark.parametrize("overlap", [0, 1, 16, 24])
def test_every_overlap_is_blended(overlap):
    bands = scene(70, 45)
    made, _ = whole(bands, tile=32, overlap=overlap)
    np.testing.assert_allclose(made, in_memory(bands, tile=32, overlap=overlap, window="hann"), atol=1e-6, rtol=0)


def test_neither_batch_nor_blocks_change_the_result():
    bands = scene(130, 150)
    reference, came = whole(bands, tile=32, overlap=16, batch=1)
    assert {(x, columns) for _, x, _, columns in came} == {(0, 150)}
    assert [y for y, *_ in came] == sorted({y for y, *_ in came})
    for batch in (2, 7, 100):
        made, _ = whole(bands, tile=32, overlap=16, batch=batch)
        np.testing.assert_allclose(made, reference, atol=1e-6, rtol=0)
        np.testing.assert_array_equal(made.argmax(0), reference.argmax(0))
    columns_of_one = 2 * 4 * CLASSES * 32
    least = 4 * 32 * 32 * (2 * CHANNELS + 1 + 2 * CLASSES) + columns_of_one * 32
    for budget, blocks in ((least, 5), (least + 20 * columns_of_one, 3), (least + 60 * columns_of_one, 2)):
        made, came = whole(bands, tile=32, overlap=16, budget_bytes=budget)
        assert len({x for _, x, _, _ in came}) == blocks
        np.testing.assert_allclose(made, reference, atol=1e-6, rtol=0)
        np.testing.assert_array_equal(made.argmax(0), reference.argmax(0))


def test_the_same_call_gives_the_same_bits():
    bands = scene(75, 60)
    first, _ = whole(bands, tile=32, overlap=20, network=tta(forward, ALL))
    second, _ = whole(bands, tile=32, overlap=20, network=tta(forward, ALL))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("window", sorted(WINDOWS))
def test_a_constant_stays_that_constant(window):
    constant = torch.tensor([0.1, 0.2, 0.3, 0.4])[None, :, None, None]

    def network(images):
        return constant.expand(len(images), CLASSES, *images.shape[2:])

    made, _ = whole(scene(90, 77), tile=24, overlap=17, network=network, window=window)
    np.testing.assert_allclose(made, np.broadcast_to(constant[0].numpy(), made.shape), rtol=1e-6)


def test_a_place_that_one_tile_covers_is_what_the_network_said():
    bands = scene(32, 50)
    made, _ = whole(bands, tile=32, overlap=4, batch=1)
    alone = forward(torch.from_numpy(bands[None, :, :, :32]))[0].numpy()
    np.testing.assert_array_equal(made[:, :, :18], alone[:, :, :18])


def test_rows_that_were_handed_out_do_not_change_later():
    bands = scene(100, 40)
    settings = {"classes": CLASSES, "tile": 32, "overlap": 8, "batch": 2, "budget_bytes": PLENTY, "device": "cpu"}
    kept = list(predict_scene(forward, reader(bands), 100, 40, CHANNELS, **settings))
    copied = [
        rows.probabilities.copy() for rows in predict_scene(forward, reader(bands), 100, 40, CHANNELS, **settings)
    ]
    for rows, copy in zip(kept, copied, strict=True):
        np.testing.assert_array_equal(rows.probabilities, copy)


def test_a_budget_gives_way_by_batch_then_by_columns_and_says_the_least():
    settings = {"classes": CLASSES, "tile": 64, "batch": 8}
    image, column, always = 4 * 64**2 * (5 + 2 * CLASSES), 2 * 4 * CLASSES * 64, 4 * 64**2 * 6
    assert fit(1000, 5, budget_bytes=always + 1000 * column + 8 * image, **settings) == (1000, 8)
    assert fit(1000, 5, budget_bytes=always + 1000 * column + 8 * image - 1, **settings) == (1000, 7)
    assert fit(1000, 5, budget_bytes=always + 1000 * column + image, **settings) == (1000, 1)
    assert fit(1000, 5, budget_bytes=always + 1000 * column + image - 1, **settings) == (500, 1)
    least = always + 64 * column + image
    assert fit(1000, 5, budget_bytes=least, **settings) == (63, 1)  # 16 equal blocks of at most 64 columns
    with pytest.raises(ConfigError, match=f"give at least {least} bytes"):
        fit(1000, 5, budget_bytes=least - 1, **settings)
    assert fit(1000, 5, budget_bytes=least + 1000, forward_bytes=1000, **settings) == (63, 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"overlap": 32}, "overlap by 32"),
        ({"overlap": -1}, "overlap by -1"),
        ({"window": "round"}, "no window 'round'"),
        ({"batch": 0}, "batch of 0"),
        ({"budget_bytes": 1000}, "least"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_computed(wrong, said):
    settings = {"classes": CLASSES, "tile": 32, "overlap": 8, "batch": 2, "budget_bytes": PLENTY, "device": "cpu"}
    with pytest.raises(ConfigError, match=said):
        predict_scene(forward, reader(scene(50, 50)), 50, 50, CHANNELS, **{**settings, **wrong})


def test_a_network_that_does_not_keep_the_contract_is_named():
    with pytest.raises(ModelError, match="not finite"):
        whole(scene(70, 40), tile=32, overlap=8, network=lambda images: images[:, :1].expand(-1, CLASSES, -1, -1))
    with pytest.raises(ModelError, match=r"not \(1, 4, 32, 32\)"):
        whole(scene(32, 32), tile=32, overlap=8, network=lambda images: forward(images)[:, :2])


def test_augmentation_turns_back_what_it_turned():
    def pointwise(images):
        return torch.nan_to_num(images[:, :1]).mul(torch.arange(1.0, 5)[None, :, None, None]).softmax(1)

    images = torch.from_numpy(scene(16, 16)[None])
    for kind in DIHEDRAL:
        torch.testing.assert_close(tta(pointwise, [kind])(images), pointwise(images), rtol=0, atol=0)
    torch.testing.assert_close(tta(pointwise, ALL)(images), pointwise(images))


def test_augmentation_by_the_whole_group_is_equivariant():
    """Averaged over all eight, any network gives the turned answer for the turned picture; alone it does not."""
    images = torch.from_numpy(scene(16, 16)[None])
    turned = torch.rot90(images, 1, dims=(2, 3)).flip(3)
    averaged = tta(forward, ALL)
    torch.testing.assert_close(averaged(turned), torch.rot90(averaged(images), 1, dims=(2, 3)).flip(3))
    assert (forward(turned) - torch.rot90(forward(images), 1, dims=(2, 3)).flip(3)).abs().max() > 0.1


def test_the_eight_are_all_different():
    images = torch.from_numpy(scene(8, 8)[None]).nan_to_num(7.0)
    seen = []
    tta(lambda turned: seen.append(turned.numpy().tobytes()) or turned, ALL)(images)
    assert len(set(seen)) == len(DIHEDRAL) == 8
    assert set(FLIPS) < set(ALL)


def test_an_ensemble_is_the_mean_and_wrong_ones_are_refused():
    images = torch.from_numpy(scene(16, 16)[None])

    def other(images):
        return forward(images * 2)

    torch.testing.assert_close(ensemble([forward, other])(images), (forward(images) + other(images)) / 2)
    torch.testing.assert_close(ensemble([forward])(images), forward(images), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="no network"):
        ensemble([])
    for kinds in ([], ["upside"], ["identity", "identity"]):
        with pytest.raises(ConfigError, match="augmentation"):
            tta(forward, kinds)


LARGE = """
import sys
from pathlib import Path
import numpy as np, torch
from outlast.model.mosaic import predict_scene

torch.set_num_threads(1)
HEIGHT, WIDTH, CHANNELS, CLASSES, TILE = 3000, 2600, 5, 4, 256
weights = torch.linspace(-1, 1, CLASSES * CHANNELS).reshape(CLASSES, CHANNELS, 1, 1)

def read(y, x, height, width):
    rows = np.arange(y, y + height, dtype=np.float32)[:, None]
    columns = np.arange(x, x + width, dtype=np.float32)[None, :]
    bands = np.empty((CHANNELS, height, width), dtype=np.float32)
    for channel, band in enumerate(bands):
        band[:] = rows * ((channel + 1) / HEIGHT) - columns / WIDTH
    return bands

def forward(images):
    return torch.nn.functional.conv2d(images.nan_to_num_(0.0), weights).softmax(1)

def run(height, width, budget):
    settings = dict(classes=CLASSES, tile=TILE, overlap=64, batch=4, budget_bytes=budget, device="cpu")
    settings["forward_bytes"] = 4 * TILE * TILE * (CLASSES + CHANNELS)
    pixels, blocks, total = 0, set(), 0.0
    for y, x, probabilities in predict_scene(forward, read, height, width, CHANNELS, **settings):
        pixels += probabilities[0].size
        blocks.add(x)
        total += float(probabilities[2].sum(dtype=np.float64))
    return pixels, len(blocks), total

def resident(line):
    found = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(line))
    return int(found.split()[1]) * 1024

budget = int(sys.argv[1])
run(TILE, TILE, 2**30)
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, not from the import of torch
before = resident("VmRSS")
pixels, blocks, total = run(HEIGHT, WIDTH, budget)
print(pixels == HEIGHT * WIDTH, blocks, resident("VmHWM") - before, total)
"""


@pytest.mark.parametrize(("budget", "blocks"), [(32 * 2**20, 1), (16 * 2**20, 3)])
def test_a_large_scene_stays_within_its_budget(budget, blocks):
    # Kept whole, the probabilities alone would take 119 MiB.
    command = [sys.executable, "-c", LARGE, str(budget)]
    # What is in use is measured, without what the C library keeps for the next allocation.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    everything, made, grown, total = done.stdout.split()
    assert everything == "True" and int(made) == blocks
    assert 0.5 * budget < int(grown) <= budget
    assert 0 < float(total) < 3000 * 2600
