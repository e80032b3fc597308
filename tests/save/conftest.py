"""A stage to save into, a real S3 server with an empty bucket for each test, and accidents in this process."""

import hashlib
import json

import pytest
import torch

from outlast.base import accident
from outlast.save import store
from outlast.save.resume import choose
from outlast.state import RunState
from toys.accident import Accident
from toys.bucket import s3, s3_server  # noqa: F401 - fixtures

MODEL = "the model"  # its hash, as a checkpoint's record has it


def state(step, values=1):
    """A whole state, as small as it gets, in which every tensor tells the step; `values`: in the optimizer."""
    return RunState(
        model={"weight": torch.full((4, 3), float(step)), "bias": torch.full((3,), float(step))},
        optimizer={
            "state": {0: {"step": torch.full((values,), float(step))}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        ranks=[{"generators": {"torch": torch.get_rng_state()[:16]}, "sums": {"weight": float(step)}}],
        step=step,
        rung="toy",
    )


class Stage:
    """The folder of a training stage, saved and started as the loop does it."""

    def __init__(self, folder):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"

    def save(self, step, keep=2, values=1):
        return store.save(self.folder, state(step, values), {"model_hash": MODEL}, keep)

    def start(self):
        return choose(self.folder, "auto", model_hash=MODEL)

    def names(self):
        return sorted(path.name for path in self.checkpoints.iterdir())

    def newest(self):
        return store.newest(self.checkpoints, [])


@pytest.fixture
def stage(tmp_path):
    """A stage with the checkpoints of steps 1 and 2."""
    stage = Stage(tmp_path / "train-one")
    for step in (1, 2):
        stage.save(step)
    return stage


@pytest.fixture
def sealed():
    """Gives a manifest the checksum that an attacker would give it too."""

    def seal(manifest):
        text = json.dumps(manifest, sort_keys=True)
        return {**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}

    return seal


@pytest.fixture
def accidents(monkeypatch):
    """A list of places: coming to one of them raises, as often as it stands in the list."""
    places = []

    def happen(place):
        if place in places:
            places.remove(place)
            raise Accident(place)

    monkeypatch.setattr(accident, "happen", happen)
    return places
