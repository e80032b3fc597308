"""A stage to save into, a real S3 server with an empty bucket for each test, and accidents in this process."""

import hashlib
import json
import threading
import urllib.request
import uuid

import pytest
import torch

from outlast.base import accident
from outlast.save import store
from outlast.save.resume import choose
from outlast.state import RunState
from toys.accident import Accident
from toys.bucket import Server

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


@pytest.fixture(scope="session")
def _server():
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_):
            pass

    server = Server(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, server, threaded=True, request_handler=Quiet)
    server.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield server
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def s3(_server, monkeypatch, tmp_path):
    """The server without faults, and an empty bucket: s3.url is a mirror's URL."""
    from fsspec.config import conf

    _server.faults, _server.refused_key, _server.requests = [], None, []
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "FIRSTKEYFORTESTS",
        "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": _server.address,
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{_server.address}/{bucket}", method="PUT")).close()
    _server.url = f"s3://{bucket}/runs/one"
    return _server


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
